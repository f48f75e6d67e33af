// Computes the fields that Python reads from the sums that a sweep has found for a strip of rows.
// Logarithms and exponentials of many rows side by side take a tenth of the time of single ones.
#pragma once

#include "blocks.h"
#include "terms.h"

namespace {

// ---- labels -------------------------------------------------------------------------------------

enum class LabelKind { kept, ignored, bad };

// The label of a row as the kernels use it.
struct Label {
  LabelKind kind;
  int64_t pivot;  // the class among these logits, or a line of a table of soft targets; -1: none
};

bool is_soft(const Problem& p) { return p.soft.data != nullptr; }

Label read_label(const Problem& p, int64_t row) {
  if (!p.labels) return {LabelKind::kept, -1};
  const int64_t label = p.labels[row], first = p.first_class;
  if (label == p.ignore_index) return {LabelKind::ignored, -1};
  if (label >= first && label - first < p.classes) return {LabelKind::kept, label - first};
  return {p.sharded ? LabelKind::kept : LabelKind::bad, -1};
}

// ---- rows ---------------------------------------------------------------------------------------

// What the forward sweep has found so far for each row of a strip. The pivot is the class of an
// index target, or the largest class of a soft target. The rest is every class but the pivot. Only
// the sums that a loss asks for are kept.
struct StripState {
  double pivot[kStrip];    // the logit of the pivot
  double largest[kStrip];  // the largest logit of the rest
  double shift[kStrip];
  double sum[kStrip];     // the sum of e^(z - shift)
  double ties[kStrip];    // the number of classes at the shift, where they are counted and not in
                          // `sum`: log(ties + sum) then keeps the digits of a tiny sum
  double spread[kStrip];  // the sum of (shift - z) e^(z - shift)
  double squares[kStrip], cubes[kStrip];  // the sums of e^2(z - shift) and e^3(z - shift)
  double weighted_sum[kStrip], weight[kStrip], support[kStrip];  // sums of c_j z_j, c_j and 1
  double mass[kStrip], deficit[kStrip];  // sums of q_j and q_j (shift - z_j)
  double pivot_soft[kStrip];             // the q of the pivot
  int64_t top[kStrip];  // the class of the largest logit of the rest; under a soft target the pivot
  bool finds_top;

  StripState(unsigned set, bool finds_top) : finds_top(finds_top) {
    for (int r = 0; r < kStrip; ++r) {
      pivot[r] = largest[r] = shift[r] = -kInfinity;
      sum[r] = 0;
    }
    for (int r = 0; r < kStrip; ++r) top[r] = 0;
    const auto clear = [](double* field) {
      for (int r = 0; r < kStrip; ++r) field[r] = 0;
    };
    if (set & kEntropy) clear(ties), clear(spread);
    if (set & kSquares) clear(squares);
    if (set & kCubes) clear(cubes);
    if (set & kMean) clear(weighted_sum), clear(weight), clear(support);
    if (set & kSoft) clear(mass), clear(deficit), clear(pivot_soft);
  }
};

// The weight c_j of class j in the mean.
template <class Real>
double mean_weight(const Problem& p, int64_t j) {
  return p.mean_weight ? double(static_cast<const Real*>(p.mean_weight)[j]) : 1.0;
}

// factor * value, where 0 times infinity is 0, as for masked classes.
XENT_LANE double times(double factor, double value) { return factor == 0 ? 0.0 : factor * value; }

// NaN for +inf: an overflow of the model must not look like a certain prediction.
double finite_or_nan(double logit) { return logit == kInfinity ? kNaN : logit; }

// The odds of the pivot against the rest, from the sums. An exponential of d would magnify the
// rounding of d: half a unit of float64 per nat. So where the pivot leads, e^-d is formed from the
// sum and from the lead. The rounding of the lead is known, and corrected.
struct Odds {
  double sum[kStrip], log_sum[kStrip];  // sum of e^(z - shift) over the rest, and its logarithm
  double d[kStrip];                     // the log-odds of the pivot
  double above[kStrip];                 // lse - pivot = -log sigmoid(d)
  double below[kStrip];                 // lse - shift

  Odds(const StripState& state, int height, bool counted) {
    double lost[kStrip];  // pivot - shift = lead + lost
    for (int r = 0; r < height; ++r) sum[r] = state.sum[r];
    if (counted)
      for (int r = 0; r < height; ++r) sum[r] += state.ties[r];
    for (int r = 0; r < height; ++r) log_sum[r] = log_lane(sum[r]);
    if (counted)
      for (int r = 0; r < height; ++r) {
        const double rounded = state.sum[r] - (sum[r] - state.ties[r]);
        log_sum[r] += sum[r] == 0 ? 0.0 : rounded / sum[r];
      }
    for (int r = 0; r < height; ++r) {
      const double pivot = finite_or_nan(state.pivot[r]);
      lead_[r] = pivot - state.shift[r];
      lost[r] = lost_in_difference(pivot, state.shift[r], lead_[r]);
      d[r] = lead_[r] - (log_sum[r] - lost[r]);
      lead_[r] = d[r] == d[r] ? lead_[r] : kNaN;
    }
    for (int r = 0; r < height; ++r) {
      const bool leads = lead_[r] > 0;
      const double x = leads ? -lead_[r] : d[r];
      ratio_[r] = exp_scaled(x, leads ? sum[r] - sum[r] * lost[r] : 1.0);
    }
    for (int r = 0; r < height; ++r) {
      const double overlap = log1p_lane(ratio_[r]);
      above[r] = overlap - (lead_[r] > 0 ? 0.0 : d[r]);
      below[r] = overlap + (lead_[r] > 0 ? lead_[r] : log_sum[r]);
    }
  }

  // The probabilities of the pivot and of the rest.
  double pivot(int r) const { return (lead_[r] > 0 ? 1.0 : ratio_[r]) / (1.0 + ratio_[r]); }
  double rest(int r) const { return (lead_[r] > 0 ? ratio_[r] : 1.0) / (1.0 + ratio_[r]); }

 private:
  double lead_[kStrip];   // pivot - shift, rounded
  double ratio_[kStrip];  // (1 - p) / p where the lead is positive, else p / (1 - p), for p of the
                          // pivot
};

// ---- fields -------------------------------------------------------------------------------------

void put(double* field, int64_t n, int height, const double* value) {
  if (!field) return;
  for (int r = 0; r < height; ++r) field[n + r] = value[r];
}

void put(double* field, int64_t row, double value) {
  if (field) field[row] = value;
}

// Stores the fields that all targets have, as they are for an index target.
void finish_all(const xent::Statistics& s, const StripState& state, const Odds& odds, int64_t n,
                int height) {
  double value[kStrip];
  put(s.shift, n, height, state.shift);
  put(s.sum, n, height, odds.sum);
  put(s.log_sum, n, height, odds.log_sum);
  put(s.log_odds, n, height, odds.d);
  for (int r = 0; r < height; ++r) value[r] = finite_or_nan(state.pivot[r]);
  put(s.target, n, height, value);
  for (int r = 0; r < height; ++r) value[r] = -odds.above[r];
  put(s.log_prob, n, height, value);
  for (int r = 0; r < height; ++r)
    value[r] = odds.d[r] < 0 ? state.shift[r] + odds.below[r] : state.pivot[r] + odds.above[r];
  put(s.lse, n, height, value);
}

template <class Real>
void finish_index(const Problem& p, const StripState& state, const Odds& odds, const Label* label,
                  int64_t n, int height) {
  const xent::Statistics& s = p.statistics;
  const Real* weight = static_cast<const Real*>(p.class_weight);
  double value[kStrip];
  for (int r = 0; r < height; ++r)  // 0 where the target is on another shard
    value[r] = label[r].pivot < 0 ? 0.0 : weight ? double(weight[label[r].pivot]) : 1.0;
  put(s.mass, n, height, value);
  if (!s.rest_top) return;
  for (int r = 0; r < height; ++r) value[r] = double(state.top[r]);
  put(s.rest_top, n, height, value);
  double logit[kStrip];  // comparisons ignore NaN, but the log-odds of such a row are NaN
  for (int r = 0; r < height; ++r) {
    const bool masked = odds.sum[r] == 0 && state.pivot[r] == -kInfinity;
    logit[r] = masked || odds.d[r] == odds.d[r] ? state.largest[r] : kNaN;
  }
  put(s.rest_top_logit, n, height, logit);
  for (int r = 0; r < height; ++r) {
    const bool tie = state.pivot[r] == state.largest[r] && label[r].pivot < state.top[r];
    if (tie || state.pivot[r] > state.largest[r]) value[r] = double(label[r].pivot);
  }
  put(s.top, n, height, value);
}

// The logarithm of a number that may be subnormal.
XENT_LANE double log_of_tiny(double x) {
  const bool tiny = x < 0x1p-1000;
  return log_lane(tiny ? x * 0x1p100 : x) - (tiny ? 100 * (kLn2High + kLn2Low) : 0.0);
}

void finish_soft(const xent::Statistics& s, const StripState& state, const Odds& odds, int64_t n,
                 int height) {
  const double *q = state.pivot_soft, *mass = state.mass;
  double log_prob[kStrip], value[kStrip];
  for (int r = 0; r < height; ++r)
    log_prob[r] = -(times(q[r], odds.above[r]) + state.deficit[r] + times(mass[r], odds.below[r]));
  put(s.log_prob, n, height, log_prob);
  if (s.log_odds)
    for (int r = 0; r < height; ++r) {
      const double finite = log_prob[r] - log_of_tiny(one_minus_exp(-log_prob[r]));
      value[r] = log_prob[r] >= 0 ? kInfinity : finite;
    }
  put(s.log_odds, n, height, value);
  for (int r = 0; r < height; ++r) {
    const double pivot = finite_or_nan(state.pivot[r]);
    value[r] = times(q[r], pivot) + times(mass[r], state.shift[r]) - state.deficit[r];
  }
  put(s.target, n, height, value);
  for (int r = 0; r < height; ++r) value[r] = q[r] + mass[r];
  put(s.mass, n, height, value);
  for (int r = 0; r < height; ++r) value[r] = double(state.top[r]);
  put(s.top, n, height, value);
  put(s.top_logit, n, height, state.pivot);
  put(s.pivot_log_odds, n, height, odds.d);
}

void finish_entropy(const xent::Statistics& s, const StripState& state, const Odds& odds, int64_t n,
                    int height) {
  double value[kStrip];
  for (int r = 0; r < height; ++r) {
    const double sum = odds.sum[r];
    const double surprise = odds.below[r] + (sum > 0 ? state.spread[r] / sum : 0.0);
    value[r] = times(odds.pivot(r), odds.above[r]) + times(odds.rest(r), surprise);
  }
  put(s.entropy, n, height, value);
}

void finish_powers(const xent::Statistics& s, const StripState& state, const Odds& odds, int64_t n,
                   int height) {
  double unit[kStrip], value[kStrip];
  for (int r = 0; r < height; ++r) unit[r] = odds.rest(r) / odds.sum[r];
  if (s.rest_squares)
    for (int r = 0; r < height; ++r) value[r] = times(state.squares[r], unit[r] * unit[r]);
  put(s.rest_squares, n, height, value);
  if (s.rest_cubes)
    for (int r = 0; r < height; ++r) value[r] = times(state.cubes[r], unit[r] * unit[r] * unit[r]);
  put(s.rest_cubes, n, height, value);
}

template <class Real>
void finish_mean(const Problem& p, const StripState& state, const Label* label, int64_t n,
                 int height) {
  const xent::Statistics& s = p.statistics;
  double weight[kStrip], support[kStrip], mean[kStrip], mass[kStrip];
  for (int r = 0; r < height; ++r) {
    const int64_t pivot = is_soft(p) ? state.top[r] : label[r].pivot;
    weight[r] = state.pivot[r] == -kInfinity ? 0.0 : mean_weight<Real>(p, pivot);
  }
  for (int r = 0; r < height; ++r) {
    support[r] = state.support[r] + (state.pivot[r] == -kInfinity ? 0.0 : 1.0);
    mean[r] = (times(weight[r], state.pivot[r]) + state.weighted_sum[r]) / support[r];
    mass[r] = (weight[r] + state.weight[r]) / support[r];
  }
  put(s.mean, n, height, mean);
  put(s.support, n, height, support);
  put(s.mean_mass, n, height, mass);
}

template <class Real>
void finish(const Problem& p, const StripState& state, const Odds& odds, const Label* label,
            int64_t n, int height) {
  const xent::Statistics& s = p.statistics;
  finish_all(s, state, odds, n, height);
  if (is_soft(p))
    finish_soft(s, state, odds, n, height);
  else
    finish_index<Real>(p, state, odds, label, n, height);
  if (s.entropy) finish_entropy(s, state, odds, n, height);
  if (s.rest_squares || s.rest_cubes) finish_powers(s, state, odds, n, height);
  if (s.mean) finish_mean<Real>(p, state, label, n, height);
}

// Stores every field of a row without classes to look at; most are 0.
void finish_empty(const xent::Statistics& s, int64_t n, double log_odds, double log_prob,
                  double lse, double mass, double support) {
  put(s.shift, n, lse);
  put(s.sum, n, 0);
  put(s.log_odds, n, log_odds);
  put(s.log_prob, n, log_prob);
  put(s.target, n, log_prob);
  put(s.lse, n, lse);
  put(s.mass, n, mass);
  put(s.top, n, 0);
  put(s.top_logit, n, lse);
  put(s.pivot_log_odds, n, lse);
  put(s.entropy, n, 0);
  put(s.log_sum, n, 0);
  put(s.mean, n, 0);
  put(s.support, n, support);
  put(s.mean_mass, n, 0);
  put(s.rest_top, n, 0);
  put(s.rest_top_logit, n, lse);
  put(s.rest_squares, n, 0);
  put(s.rest_cubes, n, 0);
}

// A shard whose classes are all masked is the identity of the merge. In a whole row all fields
// would be NaN.
void finish_masked_shard(const xent::Statistics& s, bool soft, double mass, int64_t n) {
  const double reached = soft && mass == 0 ? 0.0 : -kInfinity;
  finish_empty(s, n, reached == 0 ? kInfinity : -kInfinity, reached, -kInfinity, mass, 0);
}

// An ignored row gets the fields of a certain prediction: every loss of it is 0.
void finish_ignored(const xent::Statistics& s, int64_t n) {
  finish_empty(s, n, kInfinity, 0, 0, 0, 1);
}

}  // namespace
