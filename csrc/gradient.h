// The gradient of a row from its statistics and the loss's partial derivatives.
#pragma once

#include "statistics.h"

namespace {

// d loss / d z_j = exp(z_j - shift) (exp_ + spread (shift - z_j)) + mean c_j + soft q_j for every
// class but the pivot, whose entry is formed in float64 from the log-odds: no "p - 1".
template <class Real>
struct Slopes {
  Real shift = 0, exp_ = 0, spread = 0, mean = 0, soft = 0;
  int64_t pivot = -1;
  double at_pivot = 0;
};

double get(const Partials& f, const double* field, int64_t row) {
  return field ? field[row * f.step] : 0.0;
}

template <class Real>
Slopes<Real> find_slopes(const Problem& p, int64_t n, int64_t label, double d, double pivot,
                         double rest) {
  const xent::Statistics& s = p.statistics;
  const Partials& f = p.partials;
  const int64_t at = p.labels ? label : int64_t(s.top[n]);
  const double lse = get(f, f.lse, n);
  double all = lse * rest, at_pivot = lse * pivot, soft = 0, spread = 0;
  if (p.labels) {
    const double slope = get(f, f.log_odds, n) + times(rest, get(f, f.log_prob, n));
    all -= slope;
    at_pivot += slope + get(f, f.target, n);
  } else {
    // log_odds is a function of log_prob = sum_j q_j log p_j; its derivative is 1 / (1 - prob).
    const double odds = get(f, f.log_odds, n), target = get(f, f.target, n), mass = s.mass[n];
    const double slope =
        get(f, f.log_prob, n) + (odds == 0 ? 0.0 : odds / one_minus_exp(-s.log_prob[n]));
    Real block[kLanes];
    load_soft(p, Strip(p.soft, n), {0, 1, at, 1, kLanes}, block);
    const double q = double(block[0]);
    all -= slope * mass * rest;
    at_pivot += slope * ((q - mass) + mass * rest) + target * q;
    soft = slope + target;
  }
  if (f.entropy) {
    // d H / d z_j = -p_j (log p_j + H)
    const double overlap = overlap_lane(d), entropy = get(f, f.entropy, n);
    const double above = (d < 0 ? -d : 0.0) + overlap;
    const double below = s.log_sum[n] + (d < 0 ? 0.0 : d) + overlap;
    all += times(rest, entropy * (below - s.entropy[n]));
    spread = entropy * rest;
    at_pivot += times(pivot, entropy * (above - s.entropy[n]));
  }
  const double mean = f.mean ? get(f, f.mean, n) / s.support[n] : 0.0;
  if (at >= 0) at_pivot += mean * class_weight<Real>(p, at);
  const double scale = row_scale(p, n), sum = s.sum[n];
  return {Real(s.shift[n]),   Real(scale * all / sum), Real(scale * spread / sum),
          Real(scale * mean), Real(scale * soft),      at,
          scale * at_pivot};
}

template <class Real>
void find_slopes(const Problem& p, int64_t n, int height, const Label* label, Slopes<Real>* out) {
  const double* log_odds = p.labels ? p.statistics.log_odds : p.statistics.pivot_log_odds;
  double d[kStrip] = {}, pivot[kStrip], rest[kStrip];
  for (int r = 0; r < height; ++r) d[r] = log_odds[n + r];
  for (int r = 0; r < kStrip; ++r) pivot[r] = sigmoid_lane(d[r]);
  for (int r = 0; r < kStrip; ++r) rest[r] = sigmoid_lane(-d[r]);
  for (int r = 0; r < height; ++r)
    if (label[r].kind == Kind::kept) out[r] = find_slopes<Real>(p, n + r, label[r].pivot, d[r], pivot[r], rest[r]);
}

// Turns a block of logits into a block of gradient, in place.
template <class Real>
void differentiate(const Problem& p, const Slopes<Real>& s, int64_t first, int width, Real* z,
                   const Real* soft, const Real* mean, const Ahead& ahead, const Ahead& out) {
  const int n = padded(width);
  for (int j = width; j < n; ++j) z[j] = s.shift;
  if (!p.labels || p.partials.mean || p.partials.entropy) {
    for (int j = 0; j < n; ++j) {
      const Real x = z[j] - s.shift;
      Real g = exp_scaled(x, s.exp_ - s.spread * x);
      if (p.partials.mean) g += x == Real(-kInfinity) ? Real(0) : s.mean * mean[j];
      if (!p.labels) g += s.soft * soft[j];
      z[j] = g;
    }
  } else if (smallest(z, n) - s.shift >= normal_floor(s.exp_)) {
    for (int j = 0; j < n; j += kLanes) {
      ahead.fetch(j / kLanes);
      out.fetch(j / kLanes);
      for (int i = 0; i < kLanes; ++i) z[j + i] = exp_normal(z[j + i] - s.shift, s.exp_);
    }
  } else {
    for (int j = 0; j < n; ++j) z[j] = exp_scaled(z[j] - s.shift, s.exp_);
  }
  if (s.pivot >= first && s.pivot < first + width) z[s.pivot - first] = Real(s.at_pivot);
}

// Turns a panel of logits into a panel of gradient, in place. Rows without a slope become 0.
template <class Real>
void differentiate_panel(const Slopes<Real>* s, int64_t first, int width, Real* z,
                         const Ahead& ahead, const Ahead& out) {
  Real shift[kStrip], factor[kStrip], low[kStrip];
  for (int r = 0; r < kStrip; ++r) shift[r] = s[r].shift;
  for (int r = 0; r < kStrip; ++r) factor[r] = s[r].exp_;
  for (int r = 0; r < kStrip; ++r) low[r] = Real(kInfinity);
  for (int j = 0; j < width; ++j)
    for (int r = 0; r < kStrip; ++r)
      low[r] = z[j * kStrip + r] < low[r] ? z[j * kStrip + r] : low[r];
  bool tame = true;
  for (int r = 0; r < kStrip; ++r)
    tame &= factor[r] == 0 || low[r] - shift[r] >= normal_floor(factor[r]);
  for (int j = 0; j < width; ++j) {
    Real* at = z + j * kStrip;
    ahead.fetch(j);
    out.fetch(j);
    if (tame)
      for (int r = 0; r < kStrip; ++r) {
        const Real g = exp_normal(at[r] - shift[r], factor[r]);
        at[r] = factor[r] == 0 ? Real(0) : g;
      }
    else
      for (int r = 0; r < kStrip; ++r) {
        const Real g = exp_scaled(at[r] - shift[r], factor[r]);
        at[r] = factor[r] == 0 ? Real(0) : g;  // ignored rows may hold NaN
      }
  }
  for (int r = 0; r < kStrip; ++r)
    if (s[r].pivot >= first && s[r].pivot < first + width)
      z[(s[r].pivot - first) * kStrip + r] = Real(s[r].at_pivot);
}

}  // namespace
