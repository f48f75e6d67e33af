// Computes the coefficients of the gradient of each row from its statistics and the partial
// derivatives of the loss, for the rows of a strip side by side.
#pragma once

#include "fields.h"

namespace {

// The coefficients of the gradient. With e_j = exp(z_j - shift), for every class but the pivot
//
//   d loss / d z_j = e_j (all + spread (z_j - shift) + e_j (square + cube e_j))
//                    + mean c_j + soft q_j
//
// The entry of the pivot is formed in float64 from the log-odds: there is no "p - 1". So is that of
// the largest class of the rest (the top) if the loss has a partial derivative by its logit.
template <class Real>
struct Coefficients {
  double shift[kStrip];  // the shift of a Base
  Real all[kStrip], spread[kStrip], square[kStrip], cube[kStrip], mean[kStrip], soft[kStrip];
  Real live[kStrip];  // 1 in most rows; else the gradient of every class: 0 (ignored), or NaN
  int64_t pivot[kStrip], top[kStrip];  // negative: none
  double at_pivot[kStrip], at_top[kStrip];
  bool has_top;
};

// The terms of the gradient, besides the multiple of the exponential, which all gradients have.
unsigned terms_of(const Problem& p, const Partials& f) {
  const bool capped = p.softcap > 0 || p.class_scale;
  return (f.mean.at ? kMean | (p.mean_weight ? kWeights : 0u) : 0u) |
         (f.entropy.at ? kEntropy : 0u) | (f.rest_squares.at ? kSquares : 0u) |
         (f.rest_cubes.at ? kPowers : 0u) | (is_soft(p) ? kSoft : 0u) | (capped ? kTransform : 0u);
}

void get(const PerRow& f, int64_t n, int height, double* out) {
  if (f.at && f.step)
    for (int r = 0; r < height; ++r) out[r] = f.at[n + r];
  else
    for (int r = 0; r < height; ++r) out[r] = f.at ? *f.at : 0.0;
}

// The partial derivatives by the fields that every loss may use.
struct Common {
  double lse[kStrip], odds[kStrip], prob[kStrip], target[kStrip];

  Common(const Partials& f, int64_t n, int height) {
    get(f.lse, n, height, lse);
    get(f.log_odds, n, height, odds);
    get(f.log_prob, n, height, prob);
    get(f.target, n, height, target);
  }
};

// True if the gradient has terms of z - shift, which must then be exact.
constexpr bool exact_gradient(unsigned set) { return set & kEntropy; }

// Finds the coefficients of the rows from n on.
template <class Real>
class CoefficientFinder {
 public:
  // `set` has the terms that the sweep computes.
  CoefficientFinder(unsigned set, const Problem& p, int64_t n, int height, const Label* label,
                    Coefficients<Real>& out)
      : exact_(exact_gradient(set)), more_(set & ~kTransform), p_(p), s_(p.statistics),
        f_(p.partials), n_(n), height_(height), label_(label), out_(out) {}

  void find() {
    find_probabilities();
    find_bases();
    clear();
    if (is_soft(p_))
      add_soft();
    else
      add_index();
    if (f_.entropy.at) add_entropy();
    if (f_.rest_squares.at || f_.rest_cubes.at) add_powers();
    if (f_.mean.at) add_mean();
    if (f_.rest_top_logit.at) find_top();
    round();
  }

 private:
  // The probabilities of the pivot and of the rest as a whole.
  void find_probabilities() {
    const double* d = (is_soft(p_) ? s_.pivot_log_odds : s_.log_odds) + n_;
    for (int r = 0; r < height_; ++r) {
      const double e = exp_scaled(d[r] < 0 ? d[r] : -d[r], 1.0), whole = 1.0 + e;
      pivot_[r] = (d[r] < 0 ? e : 1.0) / whole;
      rest_[r] = (d[r] < 0 ? 1.0 : e) / whole;
    }
    // A small e^-d has the error of the rounding of d, half a unit of float64 per nat. 1 minus the
    // probability, computed from log_prob, has not.
    if (sizeof(Real) == 8 && !is_soft(p_))
      for (int r = 0; r < height_; ++r) {
        const double rest = one_minus_exp(-s_.log_prob[n_ + r]);
        rest_[r] = d[r] > 0 ? rest : rest_[r];
      }
    for (int r = 0; r < height_; ++r)
      out_.pivot[r] = is_soft(p_) ? int64_t(s_.top[n_ + r]) : label_[r].pivot;
  }

  // unit e_j rest = p_j, before `round` multiplies the unit by the scale of the row.
  void find_bases() {
    for (int r = 0; r < height_; ++r) scale_[r] = row_scale(p_, n_ + r);
    for (int r = 0; r < height_; ++r) {
      out_.shift[r] = Base<Real>(s_.shift[n_ + r], exact_).shift;
      // If the sum is 0, all the rest is masked.
      unit_[r] = s_.sum[n_ + r] == 0 ? 0.0 : 1.0 / s_.sum[n_ + r];
    }
    for (int r = 0; r < height_; ++r) {
      const double gap = out_.shift[r] - s_.shift[n_ + r];
      if (gap < 0 || gap > 0) unit_[r] *= exp_scaled(gap, 1.0);
    }
  }

  void clear() {
    out_.has_top = f_.rest_top_logit.at;
    if (!more_) return;
    for (int r = 0; r < height_; ++r) spread_[r] = square_[r] = cube_[r] = mean_[r] = soft_[r] = 0;
  }

  // `all` is the gradient of the rest as a whole, which its classes share by their probabilities.
  void add_index() {
    const Common f(f_, n_, height_);
    for (int r = 0; r < height_; ++r) {
      const double slope = f.odds[r] + times(rest_[r], f.prob[r]);
      all_[r] = f.lse[r] * rest_[r] - slope;
      at_pivot_[r] = f.lse[r] * pivot_[r] + slope + f.target[r];
    }
  }

  void add_soft() {
    const Common f(f_, n_, height_);
    for (int r = 0; r < height_; ++r) {
      const double mass = s_.mass[n_ + r], nll = -s_.log_prob[n_ + r];
      // log_odds is a function of log_prob = sum_j q_j log p_j; its derivative is 1 / (1 - prob).
      const bool flat = f.odds[r] == 0 || nll <= 0;
      const double slope = f.prob[r] + (flat ? 0.0 : f.odds[r] / one_minus_exp(nll));
      const int64_t line = p_.labels ? label_[r].pivot : n_ + r;
      const bool kept = label_[r].kind == LabelKind::kept;
      const double q = kept ? double(soft_at<Real>(p_, line, out_.pivot[r])) : 0.0;
      all_[r] = (f.lse[r] - slope * mass) * rest_[r];
      at_pivot_[r] =
          f.lse[r] * pivot_[r] + slope * ((q - mass) + mass * rest_[r]) + f.target[r] * q;
      soft_[r] = slope + f.target[r];
    }
  }

  // d H / d z_j = -p_j (log p_j + H)
  void add_entropy() {
    const double* d = (is_soft(p_) ? s_.pivot_log_odds : s_.log_odds) + n_;
    double slope[kStrip], overlap[kStrip];
    get(f_.entropy, n_, height_, slope);
    for (int r = 0; r < height_; ++r) overlap[r] = overlap_lane(d[r]);
    for (int r = 0; r < height_; ++r) {
      const double entropy = s_.entropy[n_ + r];
      const double above = (d[r] < 0 ? -d[r] : 0.0) + overlap[r];
      const double below = s_.log_sum[n_ + r] + (d[r] < 0 ? 0.0 : d[r]) + overlap[r];
      all_[r] += times(rest_[r], slope[r] * (below - entropy));
      at_pivot_[r] += times(pivot_[r], slope[r] * (above - entropy));
      spread_[r] = -slope[r] * rest_[r];
    }
  }

  // d (sum over the rest of p_j^k) / d z_j = k p_j (p_j^(k - 1) [j in the rest] - sum)
  void add_powers() {
    double squares[kStrip], cubes[kStrip];
    get(f_.rest_squares, n_, height_, squares);
    get(f_.rest_cubes, n_, height_, cubes);
    for (int r = 0; r < height_; ++r) {
      const double unit = unit_[r] * rest_[r];
      double slope = 0;
      if (f_.rest_squares.at) slope += 2 * squares[r] * s_.rest_squares[n_ + r];
      if (f_.rest_cubes.at) slope += 3 * cubes[r] * s_.rest_cubes[n_ + r];
      all_[r] -= rest_[r] * slope;
      at_pivot_[r] -= pivot_[r] * slope;
      square_[r] = 2 * squares[r] * unit * unit;
      cube_[r] = 3 * cubes[r] * unit * unit * unit;
    }
  }

  void add_mean() {
    get(f_.mean, n_, height_, mean_);
    for (int r = 0; r < height_; ++r) {
      const double support = s_.support[n_ + r];
      mean_[r] = support == 0 ? 0.0 : mean_[r] / support;
      const bool masked = !is_soft(p_) && s_.target[n_ + r] == -kInfinity;
      if (out_.pivot[r] >= 0 && support > 0 && !masked)
        at_pivot_[r] += mean_[r] * mean_weight<Real>(p_, out_.pivot[r]);
    }
  }

  // The entry of the largest class of the rest, by whose logit the loss has a partial derivative.
  void find_top() {
    get(f_.rest_top_logit, n_, height_, at_top_);
    for (int r = 0; r < height_; ++r) {
      const double z = s_.rest_top_logit[n_ + r];
      out_.top[r] = -1;
      if (z == -kInfinity || label_[r].kind != LabelKind::kept) continue;
      const double x = z - out_.shift[r], e = exp_scaled(x, 1.0);
      out_.top[r] = int64_t(s_.rest_top[n_ + r]);
      at_top_[r] += e * unit_[r] * all_[r];
      if (more_) {
        at_top_[r] += e * (unit_[r] * spread_[r] * x + e * (square_[r] + e * cube_[r]));
        at_top_[r] += mean_[r] * mean_weight<Real>(p_, out_.top[r]);
      }
      out_.at_top[r] = scale_[r] * at_top_[r];
    }
  }

  void round() {
    for (int r = 0; r < height_; ++r) {
      unit_[r] *= scale_[r];
      out_.all[r] = Real(times(unit_[r], all_[r]));
      out_.at_pivot[r] = at_pivot_[r] * scale_[r];
      out_.live[r] = out_.all[r];
    }
    if (more_)
      for (int r = 0; r < height_; ++r) {
        out_.spread[r] = Real(unit_[r] * spread_[r]);
        out_.square[r] = Real(scale_[r] * square_[r]);
        out_.cube[r] = Real(scale_[r] * cube_[r]);
        out_.mean[r] = Real(scale_[r] * mean_[r]);
        out_.soft[r] = Real(scale_[r] * soft_[r]);
        out_.live[r] += (out_.spread[r] + out_.mean[r]) + (out_.square[r] + out_.cube[r]);
      }
    for (int r = 0; r < height_; ++r) {
      // A row with NaN among the coefficients is NaN in its masked classes, too.
      out_.live[r] = out_.live[r] == out_.live[r] ? Real(1) : out_.live[r];
      if (label_[r].kind == LabelKind::kept) continue;
      out_.all[r] = out_.live[r] = 0;
      out_.shift[r] = 0;
      out_.pivot[r] = -1;
    }
  }

  const bool exact_, more_;  // more_: the gradient has more terms than a multiple of e_j
  const Problem& p_;
  const xent::Statistics& s_;
  const Partials& f_;
  const int64_t n_;
  const int height_;
  const Label* label_;
  Coefficients<Real>& out_;

  double pivot_[kStrip], rest_[kStrip], scale_[kStrip], unit_[kStrip];
  double all_[kStrip], at_pivot_[kStrip], at_top_[kStrip];
  double spread_[kStrip], square_[kStrip], cube_[kStrip], mean_[kStrip], soft_[kStrip];
};

}  // namespace
