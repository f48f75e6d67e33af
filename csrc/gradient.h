// The gradient of a row from its statistics and the loss's partial derivatives.
#pragma once

#include "statistics.h"

namespace {

// d loss / d z_j = exp(z_j - shift) (exp_ + spread (shift - z_j)) + mean c_j + soft q_j for every
// class but the pivot, whose entry is formed in float64 from the log-odds: no "p - 1".
// For a strip of rows, side by side; a row without any gradient has exp_ = 0 and no pivot.
template <class Real>
struct Slopes {
  double shift[kStrip];  // of a Base
  Real exp_[kStrip];
  int64_t pivot[kStrip];
  double at_pivot[kStrip];
  Real spread[kStrip], mean[kStrip], soft[kStrip];  // not written where is_plain
};

// Whether every class but the pivot gets a multiple of its probability.
bool is_plain(const Problem& p) { return p.labels && !p.partials.mean && !p.partials.entropy; }

double get(const Partials& f, const double* field, int64_t n) {
  return field ? field[n * f.step] : 0.0;
}

void get(const Partials& f, const double* field, int64_t n, int height, double* out) {
  if (field && f.step == 1)
    for (int r = 0; r < height; ++r) out[r] = field[n + r];
  else
    for (int r = 0; r < height; ++r) out[r] = field ? *field : 0.0;
}

// The parts of a row's slopes: `all` is shared out among the rest by probability.
struct Parts {
  double pivot, rest;  // probabilities
  double all, at_pivot, spread, mean, soft;
};

template <class Real>
void add_soft(const Problem& p, int64_t n, int64_t pivot, Parts& parts) {
  const Partials& f = p.partials;
  const double odds = get(f, f.log_odds, n), target = get(f, f.target, n);
  const double mass = p.statistics.mass[n], log_prob = p.statistics.log_prob[n];
  // log_odds is a function of log_prob = sum_j q_j log p_j; its derivative is 1 / (1 - prob).
  const double slope =
      get(f, f.log_prob, n) + (odds == 0 ? 0.0 : odds / one_minus_exp(-log_prob));
  Real block[kLanes];
  load_soft(p, Strip(p.soft, n), {0, 1, pivot, 1, kLanes}, block);
  const double q = double(block[0]);
  parts.all -= slope * mass * parts.rest;
  parts.at_pivot += slope * ((q - mass) + mass * parts.rest) + target * q;
  parts.soft = slope + target;
}

// d H / d z_j = -p_j (log p_j + H)
void add_entropy(const Problem& p, int64_t n, double d, Parts& parts) {
  const double overlap = overlap_lane(d), entropy = get(p.partials, p.partials.entropy, n);
  const double above = (d < 0 ? -d : 0.0) + overlap;
  const double below = p.statistics.log_sum[n] + (d < 0 ? 0.0 : d) + overlap;
  parts.all += times(parts.rest, entropy * (below - p.statistics.entropy[n]));
  parts.spread = entropy * parts.rest;
  parts.at_pivot += times(parts.pivot, entropy * (above - p.statistics.entropy[n]));
}

template <class Real>
void find_slopes(const Problem& p, int64_t n, int height, const Label* label, Slopes<Real>& out) {
  const xent::Statistics& s = p.statistics;
  const Partials& f = p.partials;
  const double* d = (p.labels ? s.log_odds : s.pivot_log_odds) + n;
  double pivot[kStrip], rest[kStrip], all[kStrip], unit[kStrip], lse[kStrip];
  double odds[kStrip], prob[kStrip], target[kStrip], scale[kStrip];
  get(f, f.lse, n, height, lse);
  get(f, p.labels ? f.log_odds : nullptr, n, height, odds);
  get(f, p.labels ? f.log_prob : nullptr, n, height, prob);
  get(f, p.labels ? f.target : nullptr, n, height, target);
  for (int r = 0; r < height; ++r) {
    const double e = exp_scaled(d[r] < 0 ? d[r] : -d[r], 1.0), whole = 1.0 + e;
    pivot[r] = (d[r] < 0 ? e : 1.0) / whole;
    rest[r] = (d[r] < 0 ? 1.0 : e) / whole;
  }
  for (int r = 0; r < height; ++r) {
    const double slope = odds[r] + times(rest[r], prob[r]);
    all[r] = lse[r] * rest[r] - slope;
    out.at_pivot[r] = lse[r] * pivot[r] + slope + target[r];
  }
  for (int r = 0; r < height; ++r) scale[r] = row_scale(p, n + r);
  for (int r = 0; r < height; ++r) {
    out.shift[r] = Base<Real>(s.shift[n + r], !is_plain(p)).shift;
    // Without a sum, all the rest is masked.
    unit[r] = s.sum[n + r] == 0 ? 0.0 : scale[r] / s.sum[n + r];
  }
  for (int r = 0; r < height; ++r) {
    // Statistics with the top class or the entropy are relative to the largest logit itself.
    const double gap = out.shift[r] - s.shift[n + r];
    if (gap < 0 || gap > 0) unit[r] *= exp_scaled(gap, 1.0);
  }
  for (int r = 0; r < height; ++r) {
    out.pivot[r] = p.labels ? label[r].pivot : int64_t(s.top[n + r]);
    if (is_plain(p) || label[r].kind != Kind::kept) continue;
    Parts parts{pivot[r], rest[r], all[r], out.at_pivot[r], 0, 0, 0};
    if (!p.labels) add_soft<Real>(p, n + r, out.pivot[r], parts);
    if (f.entropy) add_entropy(p, n + r, d[r], parts);
    if (f.mean) parts.mean = get(f, f.mean, n + r) / s.support[n + r];
    if (out.pivot[r] >= 0) parts.at_pivot += parts.mean * class_weight<Real>(p, out.pivot[r]);
    all[r] = parts.all;
    out.at_pivot[r] = parts.at_pivot;
    out.spread[r] = Real(unit[r] * parts.spread);
    out.mean[r] = Real(scale[r] * parts.mean);
    out.soft[r] = Real(scale[r] * parts.soft);
  }
  for (int r = 0; r < height; ++r) {
    out.exp_[r] = Real(times(unit[r], all[r]));
    out.at_pivot[r] *= scale[r];
  }
  for (int r = 0; r < height; ++r)
    if (label[r].kind != Kind::kept) out.exp_[r] = 0, out.pivot[r] = -1, out.shift[r] = 0;
}

// Turns a block of logits into a block of gradient, in place: where every class has its own slope.
template <class Real>
void differentiate(const Problem& p, const Slopes<Real>& s, int r, int64_t first, int width,
                   Real* z, const Real* soft, const Real* mean) {
  const Base<Real> base(s.shift[r], true);
  const Real magic = base.magic(), vanished = base.vanished();
  for (int j = 0; j < width; ++j) {
    const Real x = z[j] - base.offset;
    Real g = exp_scaled(x, magic, vanished, s.exp_[r] - s.spread[r] * x);
    if (p.partials.mean) g += x == Real(-kInfinity) ? Real(0) : s.mean[r] * mean[j];
    if (!p.labels) g += s.soft[r] * soft[j];
    z[j] = s.exp_[r] == s.exp_[r] ? g : s.exp_[r];
  }
  if (s.pivot[r] >= first && s.pivot[r] < first + width)
    z[s.pivot[r] - first] = Real(s.at_pivot[r]);
}

}  // namespace
