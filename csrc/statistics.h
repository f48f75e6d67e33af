// The statistics of a row: blocks are absorbed into running sums, the pivot is kept apart, and the
// logarithms are taken at the end. Row by row, with everything that can be asked for; plain.h has
// the common case.
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

// Does not see NaN; both callers go on to see it in the sums.
template <class Real>
Real largest(const Real* z, int n) {
  const auto greater = [](Real a, Real b) { return a > b ? a : b; };
  Real lane[kLanes];
  XENT_FOR(i, kLanes) lane[i] = z[i];
  for (int j = kLanes; j < n; j += kLanes)
    XENT_FOR(i, kLanes) lane[i] = greater(z[j + i], lane[i]);
  return fold<kLanes / 2>(lane, greater);
}

template <class Real>
int first_equal(const Real* z, int n, Real value) {
  int j = 0;
  while (j < n - 1 && z[j] != value) ++j;
  return j;
}

template <class Real>
double sum_of_exp(const Real* z, int n, const Base<Real>& base, const Ahead& ahead) {
  Real lane[kLanes] = {};
  const Real magic = base.magic(), lowest = base.lowest();
  for (int j = 0; j < n; j += kLanes) {
    ahead.fetch(0, j);
    XENT_FOR(i, kLanes) {
      const Real x = lowest > z[j + i] ? lowest : z[j + i];
      lane[i] = exponential(x, magic).added_to(lane[i]);
    }
  }
  return total(lane);
}

template <class Real>
void subtract(Real offset, Real* z, int n) {
  if (offset == 0) return;
  for (int j = 0; j < n; ++j) z[j] -= offset;
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
  Real largest = Real(-kInfinity);
  Base<Real> base{-kInfinity};
  double sum = 0, spread = 0;
  double tops = 0;  // for the entropy: how many classes reach the shift; `sum` is then without them
  double soft_mass = 0, soft_deficit = 0;
  double mean_mass = 0, mean_deficit = 0, support = 0;

  double log_sum() const {
    if (tops == 0) return log_lane(sum);
    const double ratio = sum / tops;
    return log_lane(tops) + (ratio <= 1 ? log1p_lane(ratio) : log_lane(1 + ratio));
  }

  bool masked() const { return largest == Real(-kInfinity); }

  void raise(Real to) {
    if (!(to > largest)) return;
    const Base<Real> next(double(to), true);  // the deficits and the entropy want it exact
    if (!masked() && next.shift > base.shift) {
      const double delta = next.shift - base.shift, factor = exp_scaled(-delta, 1.0);
      spread = factor * (spread + delta * (sum + tops));
      sum = factor * (sum + tops);
      tops = 0;
      soft_deficit += delta * soft_mass;
      mean_deficit += delta * mean_mass;
    }
    largest = to;
    base = next;
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
    XENT_FOR(i, kLanes) {
      const Real x = z[j + i], e = exp_scaled(x, Real(1));
      sum[i] += x == 0 ? Real(0) : e;
      tops[i] += x == 0 ? Real(1) : Real(0);
      spread[i] += e == 0 ? Real(0) : -x * e;
    }
  rest.sum += total(sum);
  rest.tops += total(tops);
  rest.spread += total(spread);
}

template <class Real>
void absorb_block(Rest<Real>& rest, const Wanted& want, Real* z, const Real* soft,
                  const Real* mean, int n, const Ahead& ahead) {
  rest.raise(largest(z, n));
  subtract(rest.base.offset, z, n);
  if (rest.masked())
    rest.sum += nan_or_zero(z, n);
  else if (want.entropy)
    absorb_with_spread(rest, z, n);
  else
    rest.sum += sum_of_exp(z, n, rest.base, ahead);
  if (want.soft) {
    Real mass[kLanes] = {}, deficit[kLanes] = {};
    for (int j = 0; j < n; j += kLanes)
      XENT_FOR(i, kLanes) {
        const Real q = soft[j + i];
        mass[i] += q;
        deficit[i] += q == 0 ? Real(0) : q * -z[j + i];
      }
    rest.soft_mass += total(mass);
    rest.soft_deficit += total(deficit);
  }
  if (want.mean) {
    Real mass[kLanes] = {}, deficit[kLanes] = {}, support[kLanes] = {};
    for (int j = 0; j < n; j += kLanes)
      XENT_FOR(i, kLanes) {
        const bool out = z[j + i] == Real(-kInfinity);
        mass[i] += out ? Real(0) : mean[j + i];
        deficit[i] += out ? Real(0) : mean[j + i] * -z[j + i];
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
  const double gap = rest.base.shift - row.pivot_logit, e = exp_scaled(-gap, 1.0);
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

// The sum of exponentials of a strip of rows, side by side: logarithms and exponentials of many rows
// at once cost a tenth of one after the other.
struct Sums {
  double pivot[kStrip];    // the pivot's logit
  double shift[kStrip];
  double sum[kStrip];      // of the rest, relative to the shift
  double log_sum[kStrip];
  // What follows from them.
  double d[kStrip];        // the log-odds of the pivot
  double above[kStrip];    // lse - pivot = -log sigmoid(d)
  double below[kStrip];    // lse - shift
};

void find_odds(Sums& s, int height) {
  double d[kStrip], overlap[kStrip];
  for (int r = 0; r < height; ++r) {
    // An infinite logit is an overflow upstream; it must not look like a sure prediction.
    const double pivot = s.pivot[r] == kInfinity ? kNaN : s.pivot[r];
    d[r] = pivot - s.shift[r] - s.log_sum[r];
  }
  for (int r = 0; r < height; ++r) overlap[r] = overlap_lane(d[r]);
  for (int r = 0; r < height; ++r) {
    s.d[r] = d[r];
    s.above[r] = (d[r] < 0 ? -d[r] : 0.0) + overlap[r];
    s.below[r] = s.log_sum[r] + (d[r] < 0 ? 0.0 : d[r]) + overlap[r];
  }
}

template <class Real>
void collect(const Row<Real>* rows, int height, Sums& s) {
  for (int r = 0; r < height; ++r) {
    s.pivot[r] = rows[r].pivot_logit;
    s.shift[r] = rows[r].rest.base.shift;
    s.sum[r] = rows[r].rest.tops + rows[r].rest.sum;
    s.log_sum[r] = rows[r].rest.log_sum();
  }
}

void put(double* field, int64_t n, int height, const double* value) {
  if (!field) return;
  for (int r = 0; r < height; ++r) field[n + r] = value[r];
}

// The fields that every target has, as they are for an index target.
void finish_plain(const xent::Statistics& s, const Sums& sums, int64_t n, int height) {
  double value[kStrip];
  put(s.shift, n, height, sums.shift);
  put(s.sum, n, height, sums.sum);
  put(s.log_sum, n, height, sums.log_sum);
  put(s.log_odds, n, height, sums.d);
  put(s.target, n, height, sums.pivot);
  for (int r = 0; r < height; ++r) value[r] = -sums.above[r];
  put(s.log_prob, n, height, value);
  for (int r = 0; r < height; ++r)
    value[r] = sums.d[r] < 0 ? sums.shift[r] + sums.below[r] : sums.pivot[r] + sums.above[r];
  put(s.lse, n, height, value);
}

// The class weight of an index target; 0 where the target is on another shard.
template <class Real>
double label_weight(const Problem& p, int64_t pivot) {
  return pivot < 0 ? 0.0 : class_weight<Real>(p, pivot);
}

// The fields that only a row-by-row sweep finds.
template <class Real>
void finish(const Problem& p, const Wanted& want, const Row<Real>& row, const Sums& sums, int r,
            int64_t n) {
  const xent::Statistics& s = p.statistics;
  const Rest<Real>& rest = row.rest;
  const double shift = sums.shift[r], pivot = row.pivot_logit, d = sums.d[r];
  const double above = sums.above[r], below = sums.below[r];
  const bool pivot_wins = !want.soft && (pivot > double(row.top_logit) ||
                                         (pivot == double(row.top_logit) && row.pivot < row.top));
  put(s.top, n, double(pivot_wins ? row.pivot : row.top));
  put(s.top_logit, n, pivot_wins ? pivot : double(row.top_logit));
  if (want.soft) {
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
    const double sum = sums.sum[r];
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
void finish_nothing(const xent::Statistics& s, bool soft, double mass, int64_t n) {
  const double reached = soft && mass == 0 ? 0.0 : -kInfinity;
  put(s.shift, n, -kInfinity);
  put(s.sum, n, 0);
  put(s.log_odds, n, reached == 0 ? kInfinity : -kInfinity);
  put(s.log_prob, n, reached);
  put(s.target, n, reached);
  put(s.lse, n, -kInfinity);
  put(s.mass, n, mass);
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
