// The forward sweep of a strip of rows: blocks are absorbed into running sums, the pivots are kept
// apart.
#pragma once

#include "fields.h"
#include "sums.h"

namespace {

bool is_finite(double x) { return x - x == 0; }

// A block of classes, those from `first` on, on its way into the rows from `from` on.
template <unsigned set, class Real, class Layout>
class Absorber {
 public:
  Absorber(const Problem& p, Rows& rows, const Layout& block, const Beside<Real>& beside,
           const Label* label, int from, int64_t first, const Ahead& next)
      : p_(p), rows_(rows), block_(block), beside_(beside), label_(label), from_(from),
        first_(first), next_(next) {}

  void absorb() {
    if constexpr (set & kSoft)
      for (int r = 0; r < block_.height; ++r) place_[r] = -1;
    else
      take_labels();
    block_.extreme(next_, here_);
    if constexpr (set & kSoft)
      take_largest();
    else if constexpr (!Layout::is_panel)
      leave_pivots_out();
    if (!(set & kSoft) && rows_.seeks_top) find_top();
    choose_bases();
    add_up();
    merge();
  }

 private:
  using At = Places<set>;

  void take_labels() {
    for (int r = 0; r < block_.height; ++r) {
      const int64_t j = label_[from_ + r].pivot - first_;
      place_[r] = j < 0 || j >= block_.width ? -1 : j;
      if (place_[r] < 0) continue;
      rows_.pivot[from_ + r] = double(block_.at(r, j));
      block_.at(r, j) = Real(-kInfinity);
    }
  }

  // The pivot of a soft target gives way to a larger logit, and joins the rest.
  void take_largest() {
    Real found[kStrip];
    bool any = false;
    for (int r = 0; r < block_.height; ++r) {
      released_[r] = -kInfinity;
      any |= double(here_[r]) > rows_.pivot[from_ + r];
    }
    if (!any) return;
    block_.find(here_, found);
    for (int r = 0; r < block_.height; ++r) {
      const int n = from_ + r;
      if (!(double(here_[r]) > rows_.pivot[n])) continue;
      released_[r] = rows_.pivot[n];
      released_soft_[r] = rows_.pivot_soft[n];
      released_weight_[r] = mean_weight<Real>(p_, rows_.top[n]);
      place_[r] = int64_t(found[r]);
      Real& soft = beside_.soft[r * block_.pitch + place_[r]];
      rows_.pivot[n] = double(here_[r]);
      rows_.pivot_soft[n] = double(soft);
      rows_.top[n] = first_ + place_[r];
      block_.at(r, place_[r]) = Real(-kInfinity);
      block_.look_again(r);
      soft = 0;
    }
    block_.extreme(next_, here_);
  }

  // A row was loaded with its pivot, which may be its largest logit.
  void leave_pivots_out() {
    bool any = false;
    for (int r = 0; r < block_.height; ++r) {
      if (place_[r] < 0 || !(rows_.pivot[from_ + r] >= double(here_[r]))) continue;
      block_.look_again(r);
      any = true;
    }
    if (any) block_.extreme(next_, here_);
  }

  void find_top() {
    Real found[kStrip];
    bool any = false;
    for (int r = 0; r < block_.height; ++r) any |= double(here_[r]) > rows_.largest[from_ + r];
    if (!any) return;
    block_.find(here_, found);
    for (int r = 0; r < block_.height; ++r)
      if (double(here_[r]) > rows_.largest[from_ + r])
        rows_.top[from_ + r] = first_ + int64_t(found[r]);
  }

  void choose_bases() {
    for (int r = 0; r < block_.height; ++r) {
      Real top = Greater()(here_[r], Real(rows_.largest[from_ + r]));
      if constexpr (set & kSoft) top = Greater()(Real(released_[r]), top);
      const Base<Real> base{double(top), exact_sums(set)};
      top_[r] = top;
      shift_[r] = base.shift;
      offset_[r] = base.offset;
      magic_[r] = base.magic();
      if constexpr (Layout::keeps) whole_[r] = base.whole_or_nan();
      lowest_[r] = base.logit_of(lowest_exponent());
    }
  }

  // Subnormal powers would take a hundred cycles each. What is added where exponentials stop to
  // fall is at most V 2^-41 of the sum, at 65536 classes half an ulp of float32.
  int lowest_exponent() const {
    constexpr int lowest = Exp<Real>::lowest;
    return set == kSquares ? lowest / 2 : set == kPowers ? lowest / 3 : lowest;
  }

  void add_up() {
    if constexpr (Layout::keeps) {
      subtract_offsets(block_, offset_);
      keep();
    } else if constexpr (!exact_sums(set)) {
      subtract_offsets(block_, offset_);
      add_up_all<Way::quick>(lowest_);
    } else if constexpr (Layout::is_panel && (set & kEntropy)) {
      bool all[kStrip];
      for (int r = 0; r < block_.height; ++r) all[r] = true;
      add_up_carefully(all);
    } else if constexpr (is_all(set)) {
      add_up_all<Way::minds_masks>(lowest_);
      look_again();
    } else {
      // What is no class gets the exponential 1, which is easily taken out of the sums, and nothing
      // in the others; but the entropy's sums may be tiny.
      if constexpr (!(set & kEntropy))
        for (int r = 0; r < block_.height; ++r) block_.blank(r, place_[r], offset_[r]);
      add_up_all<Way::quick>(lowest_);
      if constexpr (!(set & kEntropy)) take_blanks_out();
      look_again();
    }
  }

  template <Way way>
  auto adder(const Real* low) const {
    return [this, low](int r) {
      return Adder<set, way, Real>{offset_[r], magic_[r], low[r], beside_.weight, soft(r)};
    };
  }

  template <Way way>
  void add_up_all(const Real* low) {
    block_.template sums<At::count(way)>(adder<way>(low), next_, sum_);
  }

  void keep() {
    block_.template sums<1>([&](int r) { return Keeper<Real>{magic_[r], lowest_[r]}; }, next_,
                            sum_);
    // 0 where there is no class: what is below it would take a hundred cycles to multiply.
    for (int r = 0; r < block_.height; ++r) block_.blank(r, place_[r], Real(0));
    block_.note(whole_);
  }

  void take_blanks_out() {
    for (int r = 0; r < block_.height; ++r) {
      const bool pivot = place_[r] >= 0;
      sum_[At::sum][r] -= double(block_.padding() + pivot);
      if constexpr (set & kWeights)
        sum_[At::weight][r] -= pivot ? double(beside_.weight[place_[r]]) : 0.0;
      if constexpr (set & kMean) sum_[At::support][r] = double(block_.width - pivot);
    }
  }

  // Masked classes turn sums into infinities or NaN. And the entropy may live on what a sum of 1
  // and a little has rounded, or on exponentials so small that they were not let fall further.
  void look_again() {
    constexpr double little = 0.25, faint = sizeof(Real) == 8 ? 0x1p-950 : 0x1p-88;
    bool marked[kStrip], any = false;
    for (int r = 0; r < block_.height; ++r) {
      marked[r] = false;
      if constexpr ((set & kMean) && !is_all(set)) marked[r] |= !is_finite(sum_[At::level][r]);
      if constexpr ((set & kSoft) && !is_all(set)) marked[r] |= !is_finite(sum_[At::deficit][r]);
      if constexpr (set & kEntropy) {
        const double sum = sum_[At::sum][r];
        marked[r] |= sum < faint || (!(set & kSoft) && here_[r] == top_[r] && sum < 1 + little);
        tops_[r] = 0;
      }
      any |= marked[r];
    }
    if (any) add_up_carefully(marked);
  }

  void add_up_carefully(const bool* marked) {
    Real vanished[kStrip] = {};
    for (int r = 0; r < block_.height; ++r) {
      vanished[r] = Base<Real>(0, true).vanished();
      if (marked[r]) block_.blank(r, place_[r], Real(-kInfinity));
    }
    block_.template sums_of<At::count(Way::careful)>(marked, adder<Way::careful>(vanished), next_,
                                                     sum_);
    for (int r = 0; r < block_.height; ++r) {
      if (!marked[r]) continue;
      if constexpr (set & kEntropy)
        tops_[r] = sum_[At::tops][r];
      else
        sum_[At::sum][r] += sum_[At::tops][r];
    }
  }

  const Real* soft([[maybe_unused]] int r) const {
    if constexpr (set & kSoft) return beside_.soft + r * block_.pitch;
    return nullptr;
  }

  void merge() {
    double* sum = sum_[At::sum];
    for (int r = 0; r < block_.height; ++r) {
      // Where everything is masked, only a NaN may leave a trace.
      const bool masked = top_[r] == Real(-kInfinity);
      const bool nothing = masked && sum[r] == sum[r];
      sum[r] = nothing ? 0.0 : sum[r];
      if constexpr (set & kEntropy) tops_[r] = masked ? 0.0 : tops_[r];
      if constexpr (set & kEntropy) sum_[At::spread][r] = masked ? 0.0 : sum_[At::spread][r];
      if constexpr (set & kSquares) sum_[At::squares][r] = nothing ? 0.0 : sum_[At::squares][r];
      if constexpr (set & kCubes) sum_[At::cubes][r] = nothing ? 0.0 : sum_[At::cubes][r];
    }
    if (first_ > 0) carry();
    if constexpr (set & kSoft) release();
    for (int r = 0; r < block_.height; ++r) {
      const int n = from_ + r;
      rows_.largest[n] = double(top_[r]);
      rows_.shift[n] = shift_[r];
      rows_.sum[n] = sum[r];
    }
    if constexpr (set & kEntropy) store(rows_.tops, tops_), store(rows_.spread, sum_[At::spread]);
    if constexpr (set & kSquares) store(rows_.squares, sum_[At::squares]);
    if constexpr (set & kCubes) store(rows_.cubes, sum_[At::cubes]);
    if constexpr (set & kSoft)
      store(rows_.mass, sum_[At::mass]), store(rows_.deficit, sum_[At::deficit]);
    if constexpr (set & kMean)
      for (int r = 0; r < block_.height; ++r) {
        const int n = from_ + r;
        const double weight = sum_[set & kWeights ? At::weight : At::support][r];
        rows_.level[n] += sum_[At::level][r] + weight * double(offset_[r]);
        rows_.weight[n] += weight;
        rows_.support[n] += sum_[At::support][r];
      }
  }

  void store(double* field, const double* value) {
    for (int r = 0; r < block_.height; ++r) field[from_ + r] = value[r];
  }

  // Earlier blocks had another shift. Nothing of theirs is moved where they held nothing: it may
  // have been -inf.
  void carry() {
    for (int r = 0; r < block_.height; ++r) {
      const int n = from_ + r;
      const double before = rows_.sum[n] + (set & kEntropy ? rows_.tops[n] : 0.0);
      const double delta = shift_[r] - rows_.shift[n];
      // Most blocks bring no new maximum: then the shift is the old one.
      const double factor = before == 0 ? 0.0 : delta == 0 ? 1.0 : exp_scaled(-delta, 1.0);
      if constexpr (set & kEntropy) {
        const bool same = delta == 0;
        sum_[At::sum][r] += same ? rows_.sum[n] : factor * before;
        tops_[r] += same ? rows_.tops[n] : 0.0;
        sum_[At::spread][r] += before == 0 ? 0.0 : factor * (rows_.spread[n] + delta * before);
      } else {
        sum_[At::sum][r] += factor * before;
      }
      if constexpr (set & kSquares) sum_[At::squares][r] += factor * factor * rows_.squares[n];
      if constexpr (set & kCubes) sum_[At::cubes][r] += factor * factor * factor * rows_.cubes[n];
      if constexpr (set & kSoft) {
        const bool masked = rows_.shift[n] == -kInfinity;
        sum_[At::mass][r] += rows_.mass[n];
        sum_[At::deficit][r] += rows_.deficit[n] + (masked ? 0.0 : delta * rows_.mass[n]);
      }
    }
  }

  void release() {
    for (int r = 0; r < block_.height; ++r) {
      if (!(released_[r] > -kInfinity)) continue;
      const double gap = shift_[r] - released_[r], e = exp_scaled(-gap, 1.0);
      sum_[At::sum][r] += e;
      sum_[At::mass][r] += released_soft_[r];
      sum_[At::deficit][r] += released_soft_[r] * gap;
      if constexpr (set & kEntropy) sum_[At::spread][r] += gap * e;
      if constexpr (set & kMean) {
        rows_.level[from_ + r] += released_weight_[r] * released_[r];
        rows_.weight[from_ + r] += released_weight_[r];
        rows_.support[from_ + r] += 1;
      }
    }
  }

  const Problem& p_;
  Rows& rows_;
  const Layout& block_;
  const Beside<Real>& beside_;
  const Label* label_;
  const int from_;
  const int64_t first_;
  const Ahead& next_;

  int64_t place_[kStrip];            // of the pivot in the block; negative where it is elsewhere
  Real here_[kStrip], top_[kStrip];  // the largest logits of the rest: in the block, and so far
  Real whole_[kStrip];
  Real offset_[kStrip] = {}, magic_[kStrip] = {}, lowest_[kStrip] = {};  // panels are swept whole
  double shift_[kStrip], sum_[At::count(Way::careful)][kStrip], tops_[kStrip];
  double released_[kStrip], released_soft_[kStrip], released_weight_[kStrip];  // former pivots
};

template <unsigned set, class Real, class Layout>
[[gnu::flatten]] void absorb(const Problem& p, Rows& rows, const Layout& block,
                             const Beside<Real>& beside, const Label* label, const Block& b,
                             const Ahead& next) {
  Absorber<set, Real, Layout>(p, rows, block, beside, label, b.r, b.first, next).absorb();
}

}  // namespace
