// Losses with Tsallis' logarithm and softmax: sparsemax and entmax losses, bi-tempered losses. From
// logits z come probabilities p_j = exp_t2(z_j - lambda), whose sum is 1. The loss of a row is the
// divergence of p from its class, and for entmax a price if the class is impossible.
//
//   sweep the row: keep its candidates (candidates.h) -> search lambda on them, in float64
//   -> divergence -> gradient on them -> write the row
#pragma once

#include "candidates.h"
#include "tsallis.h"

namespace {

// Calls step(x, place, lane) for the candidates of a row, by whole vectors, or for one vector in
// `stride`. x is the logit less the normaliser lambda, which is the largest logit plus mu.
template <class Real, class Step>
XENT_LANE void each_candidate(Candidates<Real>& row, double mu, Step step, int stride = 1) {
  const Real* z = row.logits();
  const double largest = row.largest();
  const int64_t count = row.count();
  for (int64_t first = 0; first < count; first += stride * kLanes)
    XENT_FOR(i, kLanes) step((double(z[first + i]) - largest) - mu, first + i, i);
}

// Searches the number `mu` of a row, which is not below `low`. Newton's method is on
// log_t sum_j exp_t(z_j - lambda), which is convex for t >= 0 and linear if all logits are equal.
// Bisection replaces a step that leaves the interval or shrinks too slowly. With a stride, one
// vector of candidates stands for so many of them.
template <class Powers, class Real>
double search_normaliser(const Temperatures& t, const Powers powers, Candidates<Real>& row,
                         double low, double mu, int stride = 1) {
  constexpr double eps = 0x1p-52;
  // The largest probability is at least 1 / classes.
  double high = -(1 + 4 * eps) * expm1_of(-t.c * log_of(double(row.count() + 1))) / t.c;
  double last = kInfinity;
  const int most = t.t2 >= 0 ? 40 : 100;
  for (int k = 0; k < most; ++k) {
    LaneSum p, slopes;
    each_candidate(
        row, mu,
        [&](double x, int64_t, int i) XENT_INLINE {
          const ClassPowers one = powers(x);
          p.lane[i] += one.p;
          slopes.lane[i] += one.slope;
        },
        stride);
    const double sum = stride * p.total(), others = stride * slopes.total();
    if (t.t2 == 1) return log1p_of(sum);
    // Rounding of all x moves mu by about this much, so a smaller step has no meaning.
    const double noise = (sum - others) / t.c;  // the sum of slope times x
    const double slope = others + powers(-mu).slope;
    // Excess of the sum over 1: the other probabilities, less the gap of the largest one to 1.
    const double excess = powers.exp_less_1(-mu) + sum;
    if (excess >= 0) {
      low = mu;
      if (t.t2 < 1 && stride == 1)
        row.drop(t.reach() - mu);  // these probabilities are 0 from now on
    }
    if (excess <= 0) high = mu;
    const double step = powers.rise(excess) / slope, size = __builtin_fabs(step);
    // A step of NaN counts as small: no further step would change that.
    const bool small = !(size > 4 * eps * (mu - noise / slope));
    double target = mu + step;
    const bool astray = target < low || target > high || 2 * size > last;
    if (astray && !small) target = low + (high - low) / 2;
    last = __builtin_fabs(target - mu);
    mu = target;
    if (small) break;
  }
  return mu;
}

// Searches from `low`, or from what a sample of many candidates says. That saves half of the sweeps
// over rows of nearly equal logits, and over all rows where t2 > 1.
template <class Powers, class Real>
double search_from_sample(const Temperatures& t, const Powers powers, Candidates<Real>& row,
                          double low) {
  constexpr int many = 4096, stride = 16;
  const bool samples = t.t2 >= 0 && t.t2 != 1 && row.count() >= many;
  const double start = samples ? search_normaliser(t, powers, row, low, low, stride) : low;
  return search_normaliser(t, powers, row, low, start);
}

// Computes value and gradient of rows of a dense loss. With `priced`, where t1 = t2, the gradient
// is p - q.
template <class Powers, bool priced, class Real>
class TemperedSweep {
 public:
  TemperedSweep(const Dense& loss, const Temperatures& t)
      : p_(loss), t_(t), powers_(t), divergence_(t), candidates_(loss.classes) {}

  // Returns false if there is not enough memory.
  bool run(int64_t begin, int64_t end) {
    if (!candidates_.are_there()) return false;
    for (int64_t n = begin; n < end; ++n) {
      if (p_.leaves_out(n))
        fill(n, 0, 0);
      else
        run_row(n, p_.labels[n]);
    }
    if (p_.streams) finish_streams();
    return true;
  }

 private:
  struct Sums {
    double energy, pull, slope;  // of p^beta, of the gradient for a given mu, of p^t2
  };

  void fill(int64_t n, double value, double gradient) {
    p_.values[n] = value;
    if (p_.gradient.data)
      candidates_.store_all(Strip(p_.gradient, n), p_.streams, gradient, next_row(n));
  }

  void run_row(int64_t n, int64_t label) {
    const Strip row(p_.logits, n);
    if (!candidates_.find_largest(row)) return fill(n, kNaN, kNaN);
    const double least = least_normaliser();
    if (!candidates_.collect(row, t_.reach() - least)) return fill(n, kNaN, kNaN);
    const double mu = search_from_sample(t_, powers_, candidates_, least);
    const bool right = label == candidates_.top();
    const double x = right ? -mu : (logit(n, label) - candidates_.largest()) - mu;
    if (const int64_t place = candidates_.place_of(label); place >= 0)
      candidates_.logits()[place] = Real(-kInfinity);
    Sums sums = sum_others(mu);
    const ClassPowers top = powers_(-mu), own = powers_(x);
    const double log_p = t_.log_exp(x);
    if (!right) add(top, sums);
    double value = divergence_.of(log_p) + sums.energy / t_.beta;
    if (priced && t_.c > 0 && -1 / t_.c - x > 0) value += -1 / t_.c - x;
    p_.values[n] = value * p_.weight(n);
    if (p_.gradient.data) differentiate(n, label, mu, sums, own, x, log_p);
  }

  // A number that the normaliser is not below, from the largest logits of the blocks. There are ten
  // times fewer candidates above it: with 1.5-entmax that is half of the time of a row.
  double least_normaliser() {
    if (!(t_.t2 >= 0 && t_.t2 < 1) || candidates_.count() == 1) return 0;
    return search_normaliser(t_, powers_, candidates_, 0, 0) * (1 - 0x1p-48);
  }

  Sums sum_others(double mu) {
    LaneSum energy, pull, slope;
    const Powers powers = powers_;  // a local one: stores to other memory cannot change it
    each_candidate(candidates_, mu, [&](double x, int64_t, int i) XENT_INLINE {
      const ClassPowers one = powers(x);
      energy.lane[i] += one.p * one.gain;
      pull.lane[i] += pull_of(one);
      slope.lane[i] += one.slope;
    });
    return {energy.total(), pull.total(), slope.total()};
  }

  XENT_LANE static double pull_of(const ClassPowers& one) {
    return priced ? one.p : one.slope * one.gain;
  }

  static void add(const ClassPowers& one, Sums& sums) {
    sums.energy += one.p * one.gain;
    sums.pull += pull_of(one);
    sums.slope += one.slope;
  }

  // The gradient adds up to 0, so the entry of the likeliest class is minus the sum of the others.
  // That keeps all digits where the class has more weight than the others together.
  void differentiate(int64_t n, int64_t label, double mu, const Sums& sums, const ClassPowers& own,
                     double x, double log_p) {
    const double seed = p_.seed * p_.weight(n);
    const double less_1 = expm1_of(log_p), u = t_.base(x);
    const double pull = priced ? less_1 : u > 0 ? own.gain * less_1 / u : 0.0;
    // What is left over is shared by the derivatives of mu; of an entmax loss only rounding is.
    const double weight = sums.slope + own.slope, share = (sums.pull + pull) / weight;
    LaneSum total;
    const Powers powers = powers_;
    Real* out = candidates_.logits();
    each_candidate(candidates_, mu, [&](double x, int64_t place, int i) XENT_INLINE {
      const ClassPowers one = powers(x);
      const double g = pull_of(one) - one.slope * share;
      total.lane[i] += g;
      out[place] = Real(seed * g);
    });
    const double others = total.total(), at_label = pull - own.slope * share;
    const ClassPowers top = powers(-mu);
    const bool right = label == candidates_.top();
    const double itself = right ? at_label : pull_of(top) - top.slope * share;
    const double at_top = 2 * top.slope < weight ? itself : -(right ? others : others + at_label);
    candidates_.store(Strip(p_.gradient, n), p_.streams, label, seed * at_label, candidates_.top(),
                      seed * at_top, next_row(n));
  }

  // The logits that come after row n, for the cache.
  Strip next_row(int64_t n) const { return Strip(p_.logits, n + 1 < p_.rows ? n + 1 : n); }

  double logit(int64_t n, int64_t label) const {
    Real z;
    NoExtremes none;
    load(Strip(p_.logits, n), {0, 1, label, 1, 1}, &z, none);
    return double(z);
  }

  const Dense& p_;
  const Temperatures t_;
  const Powers powers_;
  const ClassDivergence divergence_;
  Candidates<Real> candidates_;
};

template <class Powers, bool priced>
bool sweep_tempered_as(const Dense& p, const Temperatures& t, int64_t begin, int64_t end) {
  if (p.logits.type == Type::f64)
    return TemperedSweep<Powers, priced, double>(p, t).run(begin, end);
  return TemperedSweep<Powers, priced, float>(p, t).run(begin, end);
}

bool sweep_tempered(const Dense& p, int64_t begin, int64_t end) {
  const Temperatures t(p.number[0], p.number[1]);
  if (p.kind == xent::DenseKind::bi_tempered) {
    if (t.are_powers(-2, -1))
      return sweep_tempered_as<WholePowers<-2, -1>, false>(p, t, begin, end);
    if (t.are_powers(-5, -1))
      return sweep_tempered_as<WholePowers<-5, -1>, false>(p, t, begin, end);
    return sweep_tempered_as<AnyPowers, false>(p, t, begin, end);
  }
  if (t.are_powers(1, 1)) return sweep_tempered_as<WholePowers<1, 1>, true>(p, t, begin, end);
  if (t.are_powers(2, 1)) return sweep_tempered_as<WholePowers<2, 1>, true>(p, t, begin, end);
  return sweep_tempered_as<AnyPowers, true>(p, t, begin, end);
}

}  // namespace
