// The element-wise kernel: value and gradient of the sigmoid family from one exponential.
//
//   read a block of each operand -> per element two log terms, a modulator -> sum, values, gradient
//
// With e = exp(-|z|) both softplus(z) and softplus(-z) are a maximum plus log(1 + e), and both
// probabilities a quotient by 1 + e. Every sum has terms of one sign only, so nothing cancels where
// targets are 0 or 1, and the smallest losses keep their digits.
#include "elements.h"

#include "elementary.h"
#include "operands.h"

#ifndef XENT_VARIANT
#define XENT_VARIANT baseline
#endif

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
  Real positive, negative, side, plain_above, gamma, gamma_negative, margin;
  Real followed, ignored, scale;

  explicit Settings(const Elements& p)
      : positive(Real(p.positive)), negative(Real(p.negative)), side(Real(p.side)),
        plain_above(Real(p.plain_above)), gamma(Real(p.gamma)),
        gamma_negative(Real(p.gamma_negative)), margin(Real(p.margin)), followed(Real(!p.detached)),
        ignored(Real(p.ignored)), scale(Real(p.scale)) {}
};

// A group of elements, and its results.
template <class Real>
struct Group {
  const Real *z, *t, *weight, *pos_weight, *upstream;
  alignas(64) Real value[kGroup], slope[kGroup];
};

// The modulator, a factor of the log terms: none, error^gamma for a whole gamma, error^gamma for
// any gamma, or the one with a margin. `excess` is none, and subtracts the entropy of the target.
enum class Modulator { none, whole, any, margin, excess };

// The log terms of an element, and their derivative by the logit.
template <bool near, class Real>
struct Terms {
  Real e, unit, p, q, yes, no, value, slope;

  XENT_LANE Terms(Real z, Real t, Real pos_weight) {
    const Real x = z < 0 ? z : -z;
    e = near ? exponential(x).value() : exp_scaled(x, Real(1));
    unit = Real(1) / (Real(1) + e);
    const Real overlap = log1p_unit(e), small = e * unit;
    const Real up = (z > 0 ? z : Real(0)) + overlap, down = (z < 0 ? -z : Real(0)) + overlap;
    p = z < 0 ? small : unit;
    q = z < 0 ? unit : small;
    no = Real(1) - t;
    yes = t * pos_weight;
    value = product<near>(yes, down) + product<near>(no, up);
    slope = no * p - yes * q;
  }
};

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

template <bool near, class Real>
XENT_LANE void evaluate_whole(Group<Real>& g, const Settings<Real>& s) {
  Real error[kGroup], power[kGroup];  // power = share error^(gamma - 1)
  XENT_FOR(i, kGroup) {
    const Terms<near, Real> x(g.z[i], g.t[i], g.pos_weight[i]);
    const Error<Real> e(s, x, g.t[i]);
    error[i] = e.value;
    power[i] = e.share;
    g.slope[i] = s.gamma * product(e.turn * x.p * x.q, x.value) + e.value * x.slope;
    g.value[i] = x.value;
  }
  for (int k = 1; k < int(s.gamma); ++k) XENT_FOR(i, kGroup) power[i] *= error[i];
  XENT_FOR(i, kGroup) {
    g.value[i] = power[i] * product(error[i], g.value[i]);
    g.slope[i] *= power[i];
  }
}

// share error^gamma, where error^0 = 1 for every error.
template <class Real>
XENT_LANE Real power_of(Real log_error, Real gamma, Real share) {
  return exp_scaled(gamma * (log_error < Real(-1e300) ? Real(-1e300) : log_error), share);
}

template <bool near, class Real>
XENT_LANE void evaluate_any(Group<Real>& g, const Settings<Real>& s) {
  Real error[kGroup], share[kGroup], turn[kGroup];
  XENT_FOR(i, kGroup) {
    const Terms<near, Real> x(g.z[i], g.t[i], g.pos_weight[i]);
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
  XENT_FOR(i, kGroup) error[i] = log_lane(error[i]);
  XENT_FOR(i, kGroup) {
    const Real power = power_of(error[i], s.gamma, share[i]);
    g.slope[i] = power * (s.gamma * product(turn[i], g.value[i]) + g.slope[i]);
    g.value[i] = product(power, g.value[i]);
  }
}

// Computes a group with a margin. For targets 0 the error is r = max(p - margin, 0), and the power
// is gamma_negative.
template <bool near, class Real>
XENT_LANE void evaluate_margin(Group<Real>& g, const Settings<Real>& s) {
  Real error[kGroup], turn[kGroup], rest[kGroup], yes[kGroup], close[kGroup];
  XENT_FOR(i, kGroup) {
    const Real t = g.t[i];
    const Terms<near, Real> x(g.z[i], t, Real(0));  // the term of targets 0; y: that of targets 1
    const Terms<near, Real> y(g.z[i], Real(1), g.pos_weight[i]);
    const bool inside = x.p > s.margin;
    const Real over = inside ? x.p - s.margin : Real(0), slope = inside ? x.p * x.q : Real(0);
    error[i] = t * x.q + x.no * over;
    turn[i] = error[i] == 0 ? Real(0) : (x.no * slope - t * x.p * x.q) / error[i];
    // rest = 1 - r. If r is small, `close` corrects log(rest) for the rounding of 1 - r.
    const bool low = x.p < Real(0.5);
    rest[i] = low ? Real(1) - over : x.q + s.margin;
    close[i] = low ? (-over - (rest[i] - Real(1))) / rest[i] : Real(0);
    yes[i] = product(t, y.value);
    g.slope[i] = t * y.slope + x.no * (s.margin == 0 ? x.p : slope / rest[i]);
    g.value[i] = s.margin == 0 ? x.value : Real(0);  // not from q, which may be rounded to 0
    close[i] = s.margin == 0 ? Real(0) : close[i];
    rest[i] = s.margin == 0 ? Real(1) : rest[i];
  }
  XENT_FOR(i, kGroup) rest[i] = log_lane(rest[i]);
  XENT_FOR(i, kGroup) error[i] = log_lane(error[i]);
  XENT_FOR(i, kGroup) {
    const Real t = g.t[i], no = Real(1) - t;
    const Real gamma = s.gamma * t + s.gamma_negative * no;
    const Real power = power_of(error[i], gamma, Real(1));
    const Real value = yes[i] + g.value[i] - product(no, rest[i] + close[i]);
    g.slope[i] = power * (s.followed * gamma * product(turn[i], value) + g.slope[i]);
    g.value[i] = product(power, value);
  }
}

// 1/3 + u/5 + u^2/7 + ...: log(1 + x) = 2 s (1 + u times this) for s = x / (2 + x) and u = s^2.
constexpr double kArtanhTail[] = {1 / 3.0,  1 / 5.0,  1 / 7.0,  1 / 9.0, 1 / 11.0,
                                  1 / 13.0, 1 / 15.0, 1 / 17.0, 1 / 19.0};

// a log(a / b) + gap for probabilities a and b = a + gap. It is not negative. Near 0, where
// log(a / b) = -log(1 + x) with x = gap / a, it is a (x - log(1 + x)) without the parts that cancel.
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
XENT_LANE void evaluate_excess(Group<double>& g) {
  XENT_FOR(i, kGroup) {
    const double z = g.z[i], t = g.t[i];
    const Terms<near, double> x(z, t, 1.0);
    const double below = 1.0 + x.e;
    const double from_yes = log_of(t * below) + (z < 0 ? -z : 0.0);
    const double from_no = log_of(x.no * below) + (z > 0 ? z : 0.0);
    g.slope[i] = x.slope;
    g.value[i] = divergence_term(t, x.slope, from_yes) + divergence_term(x.no, -x.slope, from_no);
  }
}

template <Modulator modulator, bool near, class Real>
XENT_LANE void evaluate(Group<Real>& g, const Settings<Real>& s) {
  if constexpr (modulator == Modulator::none) {
    XENT_FOR(i, kGroup) {
      const Terms<near, Real> x(g.z[i], g.t[i], g.pos_weight[i]);
      g.value[i] = x.value;
      g.slope[i] = x.slope;
    }
  } else if constexpr (modulator == Modulator::whole) {
    evaluate_whole<near>(g, s);
  } else if constexpr (modulator == Modulator::any) {
    evaluate_any<near>(g, s);
  } else if constexpr (modulator == Modulator::margin) {
    evaluate_margin<near>(g, s);
  } else {
    evaluate_excess<near>(g);
  }
  XENT_FOR(i, kGroup) {
    const bool ignored = g.t[i] == s.ignored;
    g.value[i] = ignored ? Real(0) : g.weight[i] * g.value[i];
    g.slope[i] = ignored ? Real(0) : g.weight[i] * (s.scale * g.upstream[i]) * g.slope[i];
  }
}

// ---- the sweep ----------------------------------------------------------------------------------

// The sum of the values and the range of the targets, lane by lane.
template <class Real>
struct Totals {
  double sum[kLanes] = {};
  Real low[kLanes] = {}, high[kLanes] = {};

  XENT_LANE void add(const Group<Real>& g, Real ignored) {
    for (int h = 0; h < kGroup; h += kLanes) {
      XENT_FOR(i, kLanes) sum[i] += double(g.value[h + i]);
      XENT_FOR(i, kLanes) {
        const Real t = g.t[h + i] == ignored ? Real(0) : g.t[h + i];
        low[i] = t < low[i] ? t : low[i];
        high[i] = t > high[i] ? t : high[i];
      }
    }
  }

  void finish(Elements& p, int64_t block) {
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) {
        sum[i] += sum[i + half];
        low[i] = low[i + half] < low[i] ? low[i + half] : low[i];
        high[i] = high[i + half] > high[i] ? high[i + half] : high[i];
      }
    if (p.sums) p.sums[block] = sum[0];
    if (low[0] >= 0 && high[0] <= 1) return;
    double bad = double(low[0] < 0 ? low[0] : high[0]);
    __atomic_store(&p.bad_target, &bad, __ATOMIC_RELAXED);
    __atomic_store_n(&p.has_bad_target, true, __ATOMIC_RELAXED);
  }
};

// Evaluates the n elements from `first` on, in groups.
template <Modulator modulator, bool near, bool values, bool gradient, class Real>
void sweep_block(const Elements& p, const Settings<Real>& settings, Group<Real>& g, int64_t first,
                 int n, Totals<Real>& totals) {
  for (int j = 0; j < n; j += kGroup) {
    evaluate<modulator, near>(g, settings);
    const int some = n - j < kGroup ? n - j : kGroup;
    if constexpr (values) totals.add(g, settings.ignored);
    if (values && p.values.data) put_any(g.value, p.values, first + j, some, false);
    if (gradient) put_any(g.slope, p.gradient, first + j, some, p.streams);
    g.z += kGroup, g.t += kGroup, g.weight += kGroup, g.pos_weight += kGroup;
    g.upstream += kGroup;
  }
}

template <Modulator modulator, bool values, bool gradient, class Real>
void sweep(Elements& p, int64_t begin, int64_t end) {
  Reader<Real> logits(p.logits, p.count), target(p.target, p.count), weight(p.weight, p.count),
      pos_weight(p.pos_weight, p.count), upstream(p.upstream, p.count);
  const Settings<Real> settings(p);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kBlock, left = p.count - first;
    const int n = int(left < kBlock ? left : kBlock);
    Group<Real> g{logits.read(first, n),
                  target.read(first, n),
                  weight.read(first, n),
                  pos_weight.read(first, n),
                  upstream.read(first, n),
                  {},
                  {}};
    Totals<Real> totals;
    if (are_near(g.z, n))
      sweep_block<modulator, true, values, gradient>(p, settings, g, first, n, totals);
    else
      sweep_block<modulator, false, values, gradient>(p, settings, g, first, n, totals);
    if constexpr (values) totals.finish(p, block);
  }
  if (p.streams) finish_streams();
}

template <Modulator modulator, class Real>
void sweep_what_is_wanted(Elements& p, int64_t begin, int64_t end) {
  const bool values = p.sums || p.values.data;
  if (!p.gradient.data) return sweep<modulator, true, false, Real>(p, begin, end);
  if (values) return sweep<modulator, true, true, Real>(p, begin, end);
  sweep<modulator, false, true, Real>(p, begin, end);
}

Modulator modulator_of(const Elements& p) {
  if (p.excess) return Modulator::excess;
  if (p.margin >= 0) return Modulator::margin;
  const bool plain = p.gamma == 0 && p.positive == 1 && p.negative == 1;
  if (plain && p.plain_above >= 1) return Modulator::none;
  const bool whole = p.gamma >= 1 && p.gamma <= 8 && p.gamma == double(int(p.gamma));
  return whole ? Modulator::whole : Modulator::any;
}

// True where float32 would lose its digits: powers that are computed from logarithms, and
// differences of target and probability.
bool sweeps_in_double(const Elements& p) {
  const bool wide = p.logits.type == Type::f64 || p.target.type == Type::f64;
  const Modulator modulator = modulator_of(p);
  const bool single = modulator == Modulator::none || modulator == Modulator::whole;
  return wide || !single || p.side < 0;
}

template <class Real>
void sweep_modulated(Elements& p, int64_t begin, int64_t end) {
  const Modulator modulator = modulator_of(p);
  if (modulator == Modulator::none)
    return sweep_what_is_wanted<Modulator::none, Real>(p, begin, end);
  if (modulator == Modulator::whole)
    return sweep_what_is_wanted<Modulator::whole, Real>(p, begin, end);
  if constexpr (sizeof(Real) == 8) {
    if (modulator == Modulator::any)
      return sweep_what_is_wanted<Modulator::any, Real>(p, begin, end);
    if (modulator == Modulator::margin)
      return sweep_what_is_wanted<Modulator::margin, Real>(p, begin, end);
    sweep_what_is_wanted<Modulator::excess, Real>(p, begin, end);
  }
}

}  // namespace

namespace xent::XENT_VARIANT {
void sweep_elements(Elements& p, int64_t begin, int64_t end) {
  sweeps_in_double(p) ? sweep_modulated<double>(p, begin, end)
                      : sweep_modulated<float>(p, begin, end);
}
}  // namespace xent::XENT_VARIANT
