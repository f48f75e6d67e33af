// The statistics of a row: blocks are absorbed into running sums, the pivot is kept apart, and the
// logarithms are taken at the end.
#pragma once

#include "blocks.h"

namespace {

// ---- sums over one block ------------------------------------------------------------------------

template <int half, class Real, class Operation>
Real fold(Real* lane, Operation operation) {
  if constexpr (half == 0) {
    return lane[0];
  } else {
    for (int i = 0; i < half; ++i) lane[i] = operation(lane[i], lane[i + half]);
    return fold<half / 2>(lane, operation);
  }
}

template <class Real>
double total(Real* lane) {
  return double(fold<kLanes / 2>(lane, [](Real a, Real b) { return a + b; }));
}

template <class Real, class Operation>
Real extreme(const Real* z, int n, Operation operation) {
  Real lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = z[i];
  for (int j = kLanes; j < n; j += kLanes)
    for (int i = 0; i < kLanes; ++i) lane[i] = operation(z[j + i], lane[i]);
  return fold<kLanes / 2>(lane, operation);
}

// NaN where a block starts with one in some lane; both callers go on to see it in the sums.
template <class Real>
Real largest(const Real* z, int n) {
  return extreme(z, n, [](Real a, Real b) { return a > b ? a : b; });
}

template <class Real>
Real smallest(const Real* z, int n) {
  return extreme(z, n, [](Real a, Real b) { return a < b ? a : b; });
}

template <class Real>
int first_equal(const Real* z, int n, Real value) {
  int j = 0;
  while (j < n - 1 && z[j] != value) ++j;
  return j;
}

template <class Real>
double sum_of_exp(const Real* z, int n, Real shift, const Ahead& ahead) {
  Real lane[kLanes] = {};
  for (int j = 0; j < n; j += kLanes) {
    ahead.fetch(j / kLanes);
    for (int i = 0; i < kLanes; ++i) lane[i] += exp_clamped(z[j + i] - shift);
  }
  return total(lane);
}

// 0, or NaN where the block holds one. `largest` does not see them.
template <class Real>
double nan_or_zero(const Real* z, int n) {
  double found = 0;
  for (int j = 0; j < n; ++j) found = z[j] == z[j] ? found : kNaN;
  return found;
}

// ---- one row ------------------------------------------------------------------------------------

// Everything but the pivot. The deficits are sums of c_j (shift - z_j), for which no digits are
// lost however large the logits.
template <class Real>
struct Rest {
  Real shift = Real(-kInfinity);
  double sum = 0, spread = 0;
  double tops = 0;  // for the entropy: how many classes reach the shift; `sum` is then without them
  double soft_mass = 0, soft_deficit = 0;
  double mean_mass = 0, mean_deficit = 0, support = 0;

  double log_sum() const {
    if (tops == 0) return log_lane(sum);
    const double ratio = sum / tops;
    return log_lane(tops) + (ratio <= 1 ? log1p_lane(ratio) : log_lane(1 + ratio));
  }

  void raise(Real to) {
    if (!(to > shift)) return;
    if (shift > Real(-kInfinity)) {
      const double delta = double(to) - double(shift), factor = exp_scaled(-delta, 1.0);
      spread = factor * (spread + delta * (sum + tops));
      sum = factor * (sum + tops);
      tops = 0;
      soft_deficit += delta * soft_mass;
      mean_deficit += delta * mean_mass;
    }
    shift = to;
  }
};

template <class Real>
struct Row {
  Rest<Real> rest;
  int64_t pivot = -1;
  double pivot_logit = -kInfinity;
  double pivot_soft = 0, pivot_mean = 0;  // the pivot's coefficients
  Real top_logit = Real(-kInfinity);
  int64_t top = 0;
};

struct Wanted {
  bool soft, mean, entropy, top;
  explicit Wanted(const Problem& p)
      : soft(!p.labels), mean(p.statistics.mean), entropy(p.statistics.entropy),
        top(p.statistics.top) {}
  bool plain() const { return !(soft || mean || entropy || top); }
};

template <class Real>
double class_weight(const Problem& p, int64_t j) {
  return p.class_weight ? double(static_cast<const Real*>(p.class_weight)[j]) : 1.0;
}

// With sum of (shift - z) exp(z - shift), which is what the entropy needs, all terms positive. The
// classes at the shift itself are counted, so that log(tops + sum) keeps a tiny `sum`.
template <class Real>
void absorb_with_spread(Rest<Real>& rest, const Real* z, int n) {
  Real sum[kLanes] = {}, spread[kLanes] = {}, tops[kLanes] = {};
  for (int j = 0; j < n; j += kLanes)
    for (int i = 0; i < kLanes; ++i) {
      const Real x = z[j + i] - rest.shift;
      const Real e = x < Exp<Real>::vanished ? Real(0) : exp_scaled(x, Real(1));
      sum[i] += x == 0 ? Real(0) : e;
      tops[i] += x == 0 ? Real(1) : Real(0);
      spread[i] += e == 0 ? Real(0) : -x * e;
    }
  rest.sum += total(sum);
  rest.tops += total(tops);
  rest.spread += total(spread);
}

template <class Real>
void absorb_block(Rest<Real>& rest, const Wanted& want, const Real* z, const Real* soft,
                  const Real* mean, int n, const Ahead& ahead) {
  rest.raise(largest(z, n));
  const bool masked = rest.shift == Real(-kInfinity);
  const Real shift = masked ? Real(0) : rest.shift;
  if (masked)
    rest.sum += nan_or_zero(z, n);
  else if (want.entropy)
    absorb_with_spread(rest, z, n);
  else
    rest.sum += sum_of_exp(z, n, shift, ahead);
  if (want.soft) {
    Real mass[kLanes] = {}, deficit[kLanes] = {};
    for (int j = 0; j < n; j += kLanes)
      for (int i = 0; i < kLanes; ++i) {
        const Real q = soft[j + i];
        mass[i] += q;
        deficit[i] += q == 0 ? Real(0) : q * (shift - z[j + i]);
      }
    rest.soft_mass += total(mass);
    rest.soft_deficit += total(deficit);
  }
  if (want.mean) {
    Real mass[kLanes] = {}, deficit[kLanes] = {}, support[kLanes] = {};
    for (int j = 0; j < n; j += kLanes)
      for (int i = 0; i < kLanes; ++i) {
        const bool out = z[j + i] == Real(-kInfinity);
        mass[i] += out ? Real(0) : mean[j + i];
        deficit[i] += out ? Real(0) : mean[j + i] * (shift - z[j + i]);
        support[i] += out ? Real(0) : Real(1);
      }
    rest.mean_mass += total(mass);
    rest.mean_deficit += total(deficit);
    rest.support += total(support);
  }
}

// The pivot of a soft target gives way to a larger logit and joins the rest.
template <class Real>
void release_pivot(Row<Real>& row, const Wanted& want) {
  if (!(row.pivot_logit > -kInfinity)) return;
  Rest<Real>& rest = row.rest;
  rest.raise(Real(row.pivot_logit));
  const double gap = double(rest.shift) - row.pivot_logit, e = exp_scaled(-gap, 1.0);
  (want.entropy && gap == 0 ? rest.tops : rest.sum) += e;
  rest.spread += gap * e;
  rest.soft_mass += row.pivot_soft;
  rest.soft_deficit += row.pivot_soft * gap;
  rest.mean_mass += row.pivot_mean;
  rest.mean_deficit += row.pivot_mean * gap;
  rest.support += 1;
}

template <class Real>
void take_pivot(Row<Real>& row, const Problem& p, int64_t first, int j, Real* z, Real* soft) {
  row.pivot = first + j;
  row.pivot_logit = double(z[j]);
  row.pivot_mean = class_weight<Real>(p, first + j);
  z[j] = Real(-kInfinity);
  if (soft) {
    row.pivot_soft = double(soft[j]);
    soft[j] = 0;
  }
}

template <class Real>
void absorb(Row<Real>& row, const Problem& p, const Wanted& want, int64_t first, Real* z,
            Real* soft, const Real* mean, int width, int64_t pivot, const Ahead& ahead) {
  if (want.soft || want.top) {
    const Real best = largest(z, padded(width));
    if (best > row.top_logit) {
      const int j = first_equal(z, width, best);
      row.top_logit = best;
      row.top = first + j;
      if (want.soft) {
        release_pivot(row, want);
        take_pivot(row, p, first, j, z, soft);
      }
    }
  }
  if (pivot >= first && pivot < first + width)
    take_pivot(row, p, first, int(pivot - first), z, static_cast<Real*>(nullptr));
  absorb_block(row.rest, want, z, soft, mean, padded(width), ahead);
}

// A zero factor wins over an infinite value: 0 * -inf = 0 for masked classes.
double times(double factor, double value) { return factor == 0 ? 0.0 : factor * value; }

void put(double* field, int64_t row, double value) {
  if (field) field[row] = value;
}

// What follows from the log-odds d of the pivot, for a strip of rows at once: logarithms and
// exponentials side by side cost a tenth of one after the other.
struct Odds {
  double d[kStrip];
  double log_sum[kStrip];
  double above[kStrip];  // lse - pivot = -log sigmoid(d)
  double below[kStrip];  // lse - shift
};

template <class Real>
void find_odds(const Row<Real>* rows, bool with_tops, Odds& odds) {
  double log_sum[kStrip], overlap[kStrip];
  for (int r = 0; r < kStrip; ++r) {
    // An infinite logit is an overflow upstream; it must not look like a sure prediction.
    const double pivot = rows[r].pivot_logit == kInfinity ? kNaN : rows[r].pivot_logit;
    odds.d[r] = pivot - double(rows[r].rest.shift);
    log_sum[r] = rows[r].rest.sum;
  }
  if (with_tops)
    for (int r = 0; r < kStrip; ++r) log_sum[r] = rows[r].rest.log_sum();
  else
    for (int r = 0; r < kStrip; ++r) log_sum[r] = log_lane(log_sum[r]);
  for (int r = 0; r < kStrip; ++r) odds.log_sum[r] = log_sum[r];
  for (int r = 0; r < kStrip; ++r) odds.d[r] -= log_sum[r];
  for (int r = 0; r < kStrip; ++r) overlap[r] = overlap_lane(odds.d[r]);
  for (int r = 0; r < kStrip; ++r) {
    const double d = odds.d[r];
    odds.above[r] = (d < 0 ? -d : 0.0) + overlap[r];
    odds.below[r] = log_sum[r] + (d < 0 ? 0.0 : d) + overlap[r];
  }
}

// The class weight of an index target; 0 where the target is on another shard.
template <class Real>
double label_weight(const Problem& p, const Row<Real>& row) {
  return row.pivot < 0 ? 0.0 : class_weight<Real>(p, row.pivot);
}

template <class Real>
void finish(const Problem& p, const Wanted& want, const Row<Real>& row, const Odds& odds, int r,
            int64_t n) {
  const xent::Statistics& s = p.statistics;
  const Rest<Real>& rest = row.rest;
  const double shift = double(rest.shift), pivot = row.pivot_logit, log_sum = odds.log_sum[r];
  const double d = odds.d[r], above = odds.above[r], below = odds.below[r];
  put(s.shift, n, shift);
  put(s.sum, n, rest.tops + rest.sum);
  put(s.log_sum, n, log_sum);
  put(s.lse, n, d < 0 ? shift + below : pivot + above);
  const bool pivot_wins = !want.soft && (pivot > double(row.top_logit) ||
                                         (pivot == double(row.top_logit) && row.pivot < row.top));
  put(s.top, n, double(pivot_wins ? row.pivot : row.top));
  put(s.top_logit, n, pivot_wins ? pivot : double(row.top_logit));
  if (!want.soft) {
    put(s.log_odds, n, d);
    put(s.log_prob, n, -above);
    put(s.target, n, pivot);
    put(s.mass, n, label_weight(p, row));
  } else {
    const double nll = times(row.pivot_soft, above) + rest.soft_deficit +
                       times(rest.soft_mass, below);
    put(s.log_prob, n, -nll);
    put(s.log_odds, n, -nll - log_lane(one_minus_exp(nll)));
    put(s.target, n, times(row.pivot_soft, pivot) + times(rest.soft_mass, shift) -
                         rest.soft_deficit);
    put(s.mass, n, row.pivot_soft + rest.soft_mass);
    put(s.pivot_log_odds, n, d);
  }
  if (want.entropy) {
    const double sum = rest.tops + rest.sum;
    const double surprise = below + (sum > 0 ? rest.spread / sum : 0.0);
    put(s.entropy, n, times(sigmoid_lane(d), above) +
                          times(sigmoid_lane(-d), surprise));
  }
  if (want.mean) {
    const bool in = pivot != -kInfinity;
    const double support = rest.support + (in ? 1.0 : 0.0);
    const double sum = (in ? times(row.pivot_mean, pivot) : 0.0) + times(rest.mean_mass, shift);
    put(s.support, n, support);
    put(s.mean_mass, n, (rest.mean_mass + (in ? row.pivot_mean : 0.0)) / support);
    put(s.mean, n, (sum - rest.mean_deficit) / support);
  }
}

// A shard without any unmasked class is the identity of the merge, where a whole row would be NaN.
template <class Real>
bool is_nothing(const Problem& p, const Row<Real>& row) {
  return p.sharded && row.rest.sum + row.rest.tops == 0 && row.pivot_logit == -kInfinity;
}

template <class Real>
void finish_nothing(const Problem& p, bool soft, const Row<Real>& row, int64_t n) {
  const xent::Statistics& s = p.statistics;
  const double reached = soft && row.rest.soft_mass == 0 ? 0.0 : -kInfinity;
  put(s.shift, n, -kInfinity);
  put(s.sum, n, 0);
  put(s.log_odds, n, reached == 0 ? kInfinity : -kInfinity);
  put(s.log_prob, n, reached);
  put(s.target, n, reached);
  put(s.lse, n, -kInfinity);
  put(s.mass, n, soft ? row.rest.soft_mass : label_weight(p, row));
  put(s.top, n, 0);
  put(s.top_logit, n, -kInfinity);
  put(s.pivot_log_odds, n, -kInfinity);
  put(s.entropy, n, 0);
  put(s.log_sum, n, 0);
  put(s.mean, n, 0);
  put(s.support, n, 0);
  put(s.mean_mass, n, 0);
}

// An ignored row is a row predicted with certainty: no loss of the family sees it.
void finish_ignored(const xent::Statistics& s, int64_t n) {
  put(s.shift, n, 0);
  put(s.sum, n, 0);
  put(s.log_odds, n, kInfinity);
  put(s.log_prob, n, 0);
  put(s.target, n, 0);
  put(s.lse, n, 0);
  put(s.mass, n, 0);
  put(s.top, n, 0);
  put(s.top_logit, n, 0);
  put(s.entropy, n, 0);
  put(s.log_sum, n, 0);
  put(s.mean, n, 0);
  put(s.support, n, 1);
  put(s.mean_mass, n, 0);
}

// ---- short rows ---------------------------------------------------------------------------------

// With lanes across the rows of a strip there are no sums across lanes and no padding, which is
// most of the work for rows of a hundred classes (a third of the time at V = 10, half at 100).
// Only for the fields that every index target has.
template <class Real>
void absorb_panel(Rest<Real>* rest, const Real* z, int width, bool first, const Ahead& ahead) {
  Real shift[kStrip], top[kStrip], base[kStrip], part[kStrip] = {};
  double sum[kStrip], factor[kStrip];
  for (int r = 0; r < kStrip; ++r) top[r] = shift[r] = rest[r].shift;
  for (int j = 0; j < width; ++j)
    for (int r = 0; r < kStrip; ++r) {
      const Real x = z[j * kStrip + r];
      top[r] = x > top[r] ? x : top[r];
    }
  for (int r = 0; r < kStrip; ++r) base[r] = top[r] == Real(-kInfinity) ? Real(0) : top[r];
  for (int j = 0; j < width; ++j) {
    ahead.fetch(j);
    for (int r = 0; r < kStrip; ++r) part[r] += exp_clamped(z[j * kStrip + r] - base[r]);
  }
  // Where everything is masked, only a NaN may leave a trace.
  for (int r = 0; r < kStrip; ++r)
    sum[r] = top[r] == Real(-kInfinity) && part[r] == part[r] ? 0.0 : double(part[r]);
  if (!first) {
    for (int r = 0; r < kStrip; ++r)
      factor[r] = exp_scaled(double(shift[r]) - double(base[r]), 1.0);
    for (int r = 0; r < kStrip; ++r) sum[r] += factor[r] * rest[r].sum;
  }
  for (int r = 0; r < kStrip; ++r) rest[r].shift = top[r];
  for (int r = 0; r < kStrip; ++r) rest[r].sum = sum[r];
}

// ---- labels -------------------------------------------------------------------------------------

enum class Kind { kept, ignored, bad };

// What the label of a row says; `pivot` is its class here, negative where there is none.
struct Label {
  Kind kind;
  int64_t pivot;
};

Label read_label(const Problem& p, int64_t row) {
  if (!p.labels) return {Kind::kept, -1};
  const int64_t label = p.labels[row], here = label - p.first_class;
  if (label == p.ignore_index) return {Kind::ignored, -1};
  if (here >= 0 && here < p.classes) return {Kind::kept, here};
  return {p.sharded ? Kind::kept : Kind::bad, -1};
}

}  // namespace
