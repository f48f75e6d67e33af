// Value and slope of single elements: the log terms, and the modulator, a factor of these terms.
// A piece of a few hundred elements goes through one short loop after the other.
#pragma once

#include "elementary.h"
#include "operands.h"

namespace {

// ---- one element --------------------------------------------------------------------------------

// log(1 + e) for e in [0, 1]: a minimax fit of log(1 + e) / e, relative error 8e-10.
// clang-format off
constexpr float kLog1pOver[] = {
    0.999999999257f,  -0.499999814337f,  0.333325596283f, -0.24987270907f,
    0.198907479586f,  -0.161056923308f,  0.124184377179f, -0.0824417732684f,
    0.0414782430224f, -0.0134075368593f, 0.00203024259141f};
// clang-format on
XENT_LANE float log1p_unit(float e) { return e * polynomial(e, kLog1pOver); }
XENT_LANE double log1p_unit(double e) { return log1p_lane(e); }

XENT_LANE float root(float x) { return __builtin_sqrtf(x); }
XENT_LANE double root(double x) { return __builtin_sqrt(x); }

// log(x) for normal numbers, by the formula of log_lane with the first terms of its series. The
// error is 2 units in the last place at most. NaN stays NaN.
XENT_LANE float log_of_normal(float x) {
  constexpr float tail[] = {2 / 3.0f, 2 / 5.0f, 2 / 7.0f, 2 / 9.0f};
  constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860677e-6f;
  constexpr int32_t half_root = 0x3f3504f3;  // the bits of sqrt(1/2)
  const int32_t u = bits<int32_t>(x) - half_root;
  const float k = float(u >> 23), f = bits<float>((u & 0x007fffff) + half_root) - 1.0f;
  const float s = f / (2.0f + f), z = s * s, square = 0.5f * f * f;
  const float small = fused(s, square + z * polynomial(z, tail), k * ln2_low);
  const float value = fused(k, ln2_high, f - (square - small));
  return x == x ? value : x;
}

// A loop over whole vectors of the elements of a piece.
#ifdef __clang__
#define XENT_EACH(i, count) for (int i = 0; i < (count); ++i)
#else
#define XENT_EACH(i, count)                          \
  for (int i##_ = 0; i##_ < (count); i##_ += kLanes) \
  _Pragma("GCC unroll 1") for (int i = i##_; i < i##_ + kLanes; ++i)
#endif

// factor * value, where 0 times infinity is 0. Near logits have no infinite terms.
template <bool near = false, class Real>
XENT_LANE Real product(Real factor, Real value) {
  return !near && factor == 0 ? Real(0) : factor * value;
}

// A logit is near if its exponential is a normal number, which takes a third of the work of others.
// Nearly all logits are near.
template <class Real>
bool are_near(const Real* z, int n) {
  constexpr Real limit = -Exp<Real>::lowest / Exp<Real>::log2e;
  Real far[kLanes] = {};
  for (int j = 0; j < n; j += kLanes) XENT_FOR(i, kLanes) {
      const Real size = z[j + i] < 0 ? -z[j + i] : z[j + i];
      far[i] = size > far[i] ? size : far[i];
    }
  bool near = true;
  for (const Real one : far) near &= one < limit;
  return near;
}

template <class Real>
struct Settings {
  Real positive, negative, side, plain_above, gamma, gamma_negative, margin,
      rest;  // rest = 1 - margin
  Real followed, ignored, scale, kept, half;

  explicit Settings(const Elements& p)
      : positive(Real(p.positive)), negative(Real(p.negative)), side(Real(p.side)),
        plain_above(Real(p.plain_above)), gamma(Real(p.gamma)),
        gamma_negative(Real(p.gamma_negative)), margin(Real(p.margin)), rest(Real(1 - p.margin)),
        followed(Real(!p.detached)), ignored(Real(p.ignored)), scale(Real(p.scale)),
        kept(Real(1 - p.smoothing)), half(Real(p.smoothing / 2)) {}

  // Moves n targets towards 1/2, and returns their new place.
  const Real* smooth(const Real* target, int n, Real* to) const {
    for (int j = 0; j < n; j += kGroup)
      XENT_FOR(i, kGroup) to[j + i] = fused(target[j + i], kept, half);
    return to;
  }
};

// Elements that are computed together, and their results. A plain piece has no weights, no upstream
// gradient and no targets to leave out; most losses have only such pieces.
template <class Real>
struct Piece {
  const Real *z, *label, *t, *weight, *pos_weight, *upstream;  // t: the labels after smoothing
  int count;                                                   // a multiple of kLanes
  alignas(64) Real e[kPiece], overlap[kPiece];                 // e = exp(-|z|), log(1 + e)
  alignas(64) Real value[kPiece], slope[kPiece];
};

// The modulator, a factor of the log terms: none, error^gamma for a gamma of 1, 3/2, 2, ... (which
// takes products and a square root), error^gamma for any gamma, or the one with a margin. `excess`
// has no such factor and subtracts the entropy of the target.
enum class Modulator { none, simple, any, margin, excess };

// The log terms of an element, and their derivative by the logit.
template <bool near, class Real>
struct Terms {
  Real e, unit, p, q, yes, no, up, down, value, slope;

  XENT_LANE Terms(Real z, Real t, Real pos_weight, Real e, Real overlap)
      : Terms(z, t, Real(1) - t, pos_weight, e, overlap) {}
  // `no` is 1 - t, given apart where 1 minus the rounded t would lose digits.
  XENT_LANE Terms(Real z, Real t, Real no, Real pos_weight, Real e, Real overlap) : e(e), no(no) {
    unit = Real(1) / (Real(1) + e);
    const Real small = e * unit;
    up = (z > 0 ? z : Real(0)) + overlap, down = (z < 0 ? -z : Real(0)) + overlap;
    p = z < 0 ? small : unit;
    q = z < 0 ? unit : small;
    yes = t * pos_weight;
    value = product<near>(yes, down) + product<near>(no, up);
    slope = no * p - yes * q;
  }
};

// The log terms of an element of a piece.
template <bool near, bool plain, class Real>
XENT_LANE Terms<near, Real> terms_at(const Piece<Real>& g, int i) {
  return {g.z[i], g.t[i], plain ? Real(1) : g.pos_weight[i], g.e[i], g.overlap[i]};
}

// The error of an element. Its modulator is share error^gamma, and d error / d z = turn p q.
template <class Real>
struct Error {
  Real value, turn, share;

  template <bool near>
  XENT_LANE Error(const Settings<Real>& s, const Terms<near, Real>& x, Real t) {
    const Real other = s.side * x.no, gap = t * x.q + other * x.p;
    const bool plain = t > s.plain_above;
    value = plain ? Real(1) : gap < 0 ? -gap : gap;
    turn = plain ? Real(0) : gap < 0 ? t - other : other - t;
    share = plain ? t : s.positive * t + s.negative * x.no;
  }
};

template <bool near, bool plain, class Real>
XENT_LANE void evaluate_simple(Piece<Real>& g, const Settings<Real>& s) {
  Real error[kPiece], power[kPiece];  // power = share error^(gamma - 1)
  XENT_EACH(i, g.count) {
    const auto x = terms_at<near, plain>(g, i);
    const Error<Real> e(s, x, g.t[i]);
    error[i] = e.value;
    power[i] = e.share;
    g.slope[i] = s.gamma * product(e.turn * x.p * x.q, x.value) + e.value * x.slope;
    g.value[i] = x.value;
  }
  for (int k = 1; k < int(s.gamma); ++k) XENT_EACH(i, g.count) power[i] *= error[i];
  if (s.gamma != Real(int(s.gamma))) XENT_EACH(i, g.count) power[i] *= root(error[i]);
  XENT_EACH(i, g.count) {
    g.value[i] = power[i] * product(error[i], g.value[i]);
    g.slope[i] *= power[i];
  }
}

// share error^gamma, where error^0 = 1 for every error.
template <class Real>
XENT_LANE Real power_of(Real log_error, Real gamma, Real share) {
  return exp_scaled(gamma * (log_error < Real(-1e300) ? Real(-1e300) : log_error), share);
}

template <bool near, bool plain, class Real>
XENT_LANE void evaluate_any(Piece<Real>& g, const Settings<Real>& s) {
  Real error[kPiece], share[kPiece], turn[kPiece];
  XENT_EACH(i, g.count) {
    const auto x = terms_at<near, plain>(g, i);
    const Error<Real> e(s, x, g.t[i]);
    error[i] = e.value;
    share[i] = e.share;
    // d log error / d z, from p and q without their common factor, which may be rounded to 0.
    const Real other = s.side * x.no;
    const Real gap = g.z[i] < 0 ? g.t[i] + other * x.e : g.t[i] * x.e + other;
    const Real rest = gap < 0 ? -gap : gap;
    turn[i] = e.turn * (rest == 0 ? x.unit : x.unit * x.e / rest);
    g.value[i] = x.value;
    g.slope[i] = x.slope;
  }
  XENT_EACH(i, g.count) error[i] = log_lane(error[i]);
  XENT_EACH(i, g.count) {
    const Real power = power_of(error[i], s.gamma, share[i]);
    g.slope[i] = power * (s.gamma * product(turn[i], g.value[i]) + g.slope[i]);
    g.value[i] = product(power, g.value[i]);
  }
}

// Computes a piece with a margin. For targets 0 the error is r = max(p - margin, 0), and the power
// is gamma_negative.
template <bool near, bool plain>
XENT_LANE void evaluate_margin(Piece<double>& g, const Settings<double>& s) {
  double error[kPiece], turn[kPiece], rest[kPiece], yes[kPiece], close[kPiece];
  XENT_EACH(i, g.count) {
    const double t = g.t[i];
    // x: the term of targets 0, y: that of targets 1
    const Terms<near, double> x(g.z[i], t, 0.0, g.e[i], g.overlap[i]);
    const Terms<near, double> y(g.z[i], 1.0, plain ? 1.0 : g.pos_weight[i], g.e[i], g.overlap[i]);
    const bool inside = x.p > s.margin;
    const double over = inside ? x.p - s.margin : 0.0, slope = inside ? x.p * x.q : 0.0;
    error[i] = t * x.q + x.no * over;
    turn[i] = error[i] == 0 ? 0.0 : (x.no * slope - t * x.p * x.q) / error[i];
    // rest = 1 - r. If r is small, `close` corrects log(rest) for the rounding of 1 - r.
    const bool low = over < 0.5;
    rest[i] = low ? 1.0 - over : x.q + s.margin;
    close[i] = low ? (-over - (rest[i] - 1.0)) / rest[i] : 0.0;
    yes[i] = product(t, y.value);
    g.slope[i] = t * y.slope + x.no * (s.margin == 0 ? x.p : slope / rest[i]);
    g.value[i] = s.margin == 0 ? x.value : 0.0;  // not from q, which may be rounded to 0
    close[i] = s.margin == 0 ? 0.0 : close[i];
    rest[i] = s.margin == 0 ? 1.0 : rest[i];
  }
  XENT_EACH(i, g.count) rest[i] = log_lane(rest[i]);
  XENT_EACH(i, g.count) error[i] = log_lane(error[i]);
  XENT_EACH(i, g.count) {
    const double t = g.t[i], no = 1.0 - t;
    const double gamma = s.gamma * t + s.gamma_negative * no;
    const double power = power_of(error[i], gamma, 1.0);
    const double value = yes[i] + g.value[i] - product(no, rest[i] + close[i]);
    g.slope[i] = power * (s.followed * gamma * product(turn[i], value) + g.slope[i]);
    g.value[i] = product(power, value);
  }
}

// Computes a piece with a margin where all logits are near, all targets 0 or 1, and the powers 0 or
// simple.
template <bool near, bool plain>
XENT_LANE void evaluate_margin(Piece<float>& g, const Settings<float>& s) {
  float error[kPiece], turn[kPiece], rest[kPiece], close[kPiece], power[kPiece];
  XENT_EACH(i, g.count) {
    const float pos_weight = plain ? 1.0f : g.pos_weight[i];
    const bool yes = g.t[i] == 1.0f;
    const Terms<near, float> x(g.z[i], 0.0f, 0.0f, g.e[i], g.overlap[i]);
    // p - margin from e: a difference of p would have the rounding of p, too.
    const bool negative = g.z[i] < 0;
    const float factor = negative ? s.rest : -s.margin, term = negative ? -s.margin : s.rest;
    const float beyond = fused(x.e, factor, term) * x.unit;
    const float over = beyond < 0 ? 0.0f : beyond;  // NaN stays
    const float slope = beyond > 0 ? x.p * x.q : 0.0f;
    const bool low = over < 0.5f;
    const float left = low ? 1.0f - over : x.q + s.margin;
    error[i] = yes ? x.q : over;
    turn[i] = yes ? -x.p * x.q : slope;
    rest[i] = left;
    close[i] = low ? (-over - (left - 1.0f)) / left : 0.0f;
    const float if_no = s.margin == 0 ? x.p : slope / left;
    g.slope[i] = yes ? -pos_weight * x.q : if_no;
    g.value[i] = yes ? product<near>(pos_weight, x.down) : x.up;
  }
  if (s.margin != 0) XENT_EACH(i, g.count) {
      const float if_no = 0.0f - (log_of_normal(rest[i]) + close[i]);  // not -0
      g.value[i] = g.t[i] == 1.0f ? g.value[i] : if_no;
    }
  XENT_EACH(i, g.count) power[i] = 1.0f;
  const float most = s.gamma > s.gamma_negative ? s.gamma : s.gamma_negative;
  for (float k = 2; k <= most; ++k) XENT_EACH(i, g.count) {
      const float gamma = g.t[i] == 1.0f ? s.gamma : s.gamma_negative;
      power[i] *= k <= gamma ? error[i] : 1.0f;
    }
  const float half = s.gamma - float(int(s.gamma));
  const float half_negative = s.gamma_negative - float(int(s.gamma_negative));
  if (half + half_negative != 0) XENT_EACH(i, g.count) {
      const float part = g.t[i] == 1.0f ? half : half_negative;
      power[i] *= part == 0 ? 1.0f : root(error[i]);
    }
  XENT_EACH(i, g.count) {
    const float gamma = g.t[i] == 1.0f ? s.gamma : s.gamma_negative;
    const float last = gamma == 0 ? 1.0f : error[i];
    const float turned = s.followed * gamma * product<near>(turn[i], g.value[i]);
    g.slope[i] = power[i] * (turned + last * g.slope[i]);
    g.value[i] = power[i] * product<near>(last, g.value[i]);
  }
}

// 1/3 + u/5 + u^2/7 + ...: log(1 + x) = 2 s (1 + u times this) for s = x / (2 + x) and u = s^2.
constexpr double kArtanhTail[] = {1 / 3.0,  1 / 5.0,  1 / 7.0,  1 / 9.0, 1 / 11.0,
                                  1 / 13.0, 1 / 15.0, 1 / 17.0, 1 / 19.0};

// a log(a / b) + gap for probabilities a and b = a + gap. It is not negative. Near 0, where
// log(a / b) = -log(1 + x) with x = gap / a, it is a (x - log(1 + x)) without the parts that
// cancel.
XENT_LANE double divergence_term(double a, double gap, double log_ratio) {
  const bool close = (gap < 0 ? -gap : gap) < 0.25 * a;
  const double s = gap / (2.0 * a + gap), u = s * s;
  const double series = s * (gap - 2.0 * a * u * polynomial(u, kArtanhTail));
  const double far = gap + product(a, log_ratio);
  return close ? series : far;
}

// The logarithms of t / p and (1 - t) / q need no logarithms of p and q, which may be rounded to 0.
// The gap p - t is the slope.
template <bool near>
XENT_LANE void evaluate_excess(Piece<double>& g) {
  XENT_EACH(i, g.count) {
    const double z = g.z[i], t = g.t[i];
    const Terms<near, double> x(z, t, 1.0, g.e[i], g.overlap[i]);
    const double below = 1.0 + x.e;
    const double from_yes = log_of(t * below) + (z < 0 ? -z : 0.0);
    const double from_no = log_of(x.no * below) + (z > 0 ? z : 0.0);
    g.slope[i] = x.slope;
    g.value[i] = divergence_term(t, x.slope, from_yes) + divergence_term(x.no, -x.slope, from_no);
  }
}

template <Modulator modulator, bool near, bool plain, class Real>
XENT_LANE void evaluate(Piece<Real>& g, const Settings<Real>& s) {
  // Loops with short bodies: the processor then works on many elements at a time, and does not wait
  // for the long chain of operations of each.
  XENT_EACH(i, g.count) {
    const Real x = g.z[i] < 0 ? g.z[i] : -g.z[i];
    g.e[i] = near ? exponential(x).value() : exp_scaled(x, Real(1));
  }
  XENT_EACH(i, g.count) g.overlap[i] = log1p_unit(g.e[i]);
  if constexpr (modulator == Modulator::none) {
    XENT_EACH(i, g.count) {
      const Real no = fused(Real(1) - g.label[i], s.kept, s.half);  // smoothed as g.t
      const Terms<near, Real> x(g.z[i], g.t[i], no, plain ? Real(1) : g.pos_weight[i], g.e[i],
                                g.overlap[i]);
      g.value[i] = x.value;
      g.slope[i] = x.slope;
    }
  } else if constexpr (modulator == Modulator::simple) {
    evaluate_simple<near, plain>(g, s);
  } else if constexpr (modulator == Modulator::any) {
    evaluate_any<near, plain>(g, s);
  } else if constexpr (modulator == Modulator::margin) {
    evaluate_margin<near, plain>(g, s);
  } else {
    evaluate_excess<near>(g);
  }
  if constexpr (plain) {
    XENT_EACH(i, g.count) g.slope[i] *= s.scale;
  } else {
    XENT_EACH(i, g.count) {
      const bool ignored = g.label[i] == s.ignored;
      g.value[i] = ignored ? Real(0) : g.weight[i] * g.value[i];
      g.slope[i] = ignored ? Real(0) : g.weight[i] * (s.scale * g.upstream[i]) * g.slope[i];
    }
  }
}

}  // namespace
