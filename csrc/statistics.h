// The forward sweep of a strip of rows: adds blocks of logits to running sums, without the pivots.
#pragma once

#include "fields.h"
#include "sums.h"

namespace {

bool is_finite(double x) { return x - x == 0; }

// Adds a block, the classes from `first` on, to the state of the rows from `from` on.
template <unsigned set, class Real, class Layout, class Next>
class BlockAdder {
 public:
  BlockAdder(const Problem& p, StripState& state, const Layout& block,
             const PerClass<Real>& per_class, const Label* label, int from, int64_t first,
             const Next& next)
      : p_(p), state_(state), block_(block), per_class_(per_class), label_(label), from_(from),
        first_(first), next_(next) {}

  void add() {
    if constexpr (set & kSoft)
      for (int r = 0; r < block_.height; ++r) place_[r] = -1;
    else
      take_pivots_out();
    block_.extreme(next_, here_);
    if constexpr (set & kSoft)
      take_largest();
    else if constexpr (!Layout::is_panel)
      look_without_pivots();
    if (!(set & kSoft) && state_.finds_top) find_top();
    choose_bases();
    add_up();
    merge();
  }

 private:
  using At = Places<set>;

  void take_pivots_out() {
    for (int r = 0; r < block_.height; ++r) {
      const int64_t j = label_[from_ + r].pivot - first_;
      place_[r] = j < 0 || j >= block_.width ? -1 : j;
      if (place_[r] < 0) continue;
      state_.pivot[from_ + r] = double(block_.at(r, j));
      block_.at(r, j) = Real(-kInfinity);
    }
  }

  // Under a soft target a larger logit becomes the pivot, and the former pivot joins the rest.
  void take_largest() {
    Real found[kStrip];
    bool any = false;
    for (int r = 0; r < block_.height; ++r) {
      displaced_[r] = -kInfinity;
      any |= double(here_[r]) > state_.pivot[from_ + r];
    }
    if (!any) return;
    block_.find(here_, found);
    for (int r = 0; r < block_.height; ++r) {
      const int n = from_ + r;
      if (!(double(here_[r]) > state_.pivot[n])) continue;
      displaced_[r] = state_.pivot[n];
      displaced_soft_[r] = state_.pivot_soft[n];
      displaced_weight_[r] = mean_weight<Real>(p_, state_.top[n]);
      place_[r] = int64_t(found[r]);
      Real& soft = per_class_.soft[r * per_class_.pitch + place_[r] * Layout::class_step];
      state_.pivot[n] = double(here_[r]);
      state_.pivot_soft[n] = double(soft);
      state_.top[n] = first_ + place_[r];
      block_.at(r, place_[r]) = Real(-kInfinity);
      if constexpr (!Layout::is_panel) block_.look_again(r);
      soft = 0;
    }
    block_.extreme(next_, here_);
  }

  // Finds the largest logit of a row again if it may be the pivot, which has been taken out since.
  void look_without_pivots() {
    bool any = false;
    for (int r = 0; r < block_.height; ++r) {
      if (place_[r] < 0 || !(state_.pivot[from_ + r] >= double(here_[r]))) continue;
      block_.look_again(r);
      any = true;
    }
    if (any) block_.extreme(next_, here_);
  }

  void find_top() {
    Real found[kStrip];
    bool any = false;
    for (int r = 0; r < block_.height; ++r) any |= double(here_[r]) > state_.largest[from_ + r];
    if (!any) return;
    block_.find(here_, found);
    for (int r = 0; r < block_.height; ++r)
      if (double(here_[r]) > state_.largest[from_ + r])
        state_.top[from_ + r] = first_ + int64_t(found[r]);
  }

  void choose_bases() {
    for (int r = 0; r < block_.height; ++r) {
      Real top = Greater()(here_[r], Real(state_.largest[from_ + r]));
      if constexpr (set & kSoft) top = Greater()(Real(displaced_[r]), top);
      const Base<Real> base{double(top), exact_sums(set)};
      top_[r] = top;
      shift_[r] = base.shift;
      offset_[r] = base.offset;
      magic_[r] = base.magic();
      if constexpr (Layout::keeps) exponent_[r] = base.exponent_or_nan();
      lowest_[r] = base.logit_of(lowest_exponent());
    }
  }

  // The exponent below which exponentials are not made smaller, so that their powers stay normal:
  // a subnormal product takes a hundred cycles. This adds at most V 2^-41 to a sum of 1, which is
  // half a unit of float32 at 65536 classes.
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
      add_up_all<Way::checks_masks>(lowest_);
      look_again();
    } else {
      // Places without a class get the exponential 1, which is subtracted from the sum afterwards,
      // and add 0 to the other sums. Not for the entropy, whose sums may be tiny beside that 1.
      if constexpr (!(set & kEntropy))
        for (int r = 0; r < block_.height; ++r) block_.fill_empty_places(r, place_[r], offset_[r]);
      add_up_all<Way::quick>(lowest_);
      if constexpr (!(set & kEntropy)) subtract_empty_places();
      look_again();
    }
  }

  template <Way way>
  auto adder(const Real* low) const {
    return [this, low](int r) {
      return Adder<set, way, Layout::class_step, Real>{offset_[r], magic_[r], low[r],
                                                       per_class_.weight, soft(r)};
    };
  }

  template <Way way>
  void add_up_all(const Real* low) {
    block_.template sums<At::count(way)>(adder<way>(low), next_, sum_);
  }

  void keep() {
    block_.template sums<1>([&](int r) { return Keeper<Real>{magic_[r], lowest_[r]}; }, next_,
                            sum_);
    // Exponentials of 0 in places without a class: a subnormal product takes a hundred cycles.
    for (int r = 0; r < block_.height; ++r) block_.fill_empty_places(r, place_[r], Real(0));
    block_.note(exponent_);
  }

  void subtract_empty_places() {
    for (int r = 0; r < block_.height; ++r) {
      const bool pivot = place_[r] >= 0;
      sum_[At::sum][r] -= double(block_.padding() + pivot);
      if constexpr (set & kWeights)
        sum_[At::weight][r] -= pivot ? double(per_class_.weight[place_[r]]) : 0.0;
      if constexpr (set & kMean) sum_[At::support][r] = double(block_.width - pivot);
    }
  }

  // Adds up rows again, carefully, where the quick sums are not good enough. Masked classes turn
  // some sums into infinity or NaN. For the entropy, a sum a little above 1 has lost digits, and
  // exponentials may have reached the lower limit.
  void look_again() {
    constexpr double little = 0.25, faint = sizeof(Real) == 8 ? 0x1p-950 : 0x1p-88;
    bool marked[kStrip], any = false;
    for (int r = 0; r < block_.height; ++r) {
      marked[r] = false;
      if constexpr ((set & kMean) && !is_all(set))
        marked[r] |= !is_finite(sum_[At::weighted_sum][r]);
      if constexpr ((set & kSoft) && !is_all(set)) marked[r] |= !is_finite(sum_[At::deficit][r]);
      if constexpr (set & kEntropy) {
        const double sum = sum_[At::sum][r];
        marked[r] |= sum < faint || (!(set & kSoft) && here_[r] == top_[r] && sum < 1 + little);
        ties_[r] = 0;
      }
      any |= marked[r];
    }
    if (any) add_up_carefully(marked);
  }

  void add_up_carefully(const bool* marked) {
    Real vanished[kStrip] = {};
    for (int r = 0; r < block_.height; ++r) {
      vanished[r] = Base<Real>(0, true).vanished();
      if (marked[r]) block_.fill_empty_places(r, place_[r], Real(-kInfinity));
    }
    block_.template sums_of<At::count(Way::careful)>(marked, adder<Way::careful>(vanished), next_,
                                                     sum_);
    for (int r = 0; r < block_.height; ++r) {
      if (!marked[r]) continue;
      if constexpr (set & kEntropy)
        ties_[r] = sum_[At::ties][r];
      else
        sum_[At::sum][r] += sum_[At::ties][r];
    }
  }

  const Real* soft([[maybe_unused]] int r) const {
    if constexpr (set & kSoft) return per_class_.soft + r * per_class_.pitch;
    return nullptr;
  }

  void merge() {
    double* sum = sum_[At::sum];
    for (int r = 0; r < block_.height; ++r) {
      // Where all classes are masked, the sums are 0, unless there is a NaN.
      const bool masked = top_[r] == Real(-kInfinity);
      const bool nothing = masked && sum[r] == sum[r];
      sum[r] = nothing ? 0.0 : sum[r];
      if constexpr (set & kEntropy) ties_[r] = masked ? 0.0 : ties_[r];
      if constexpr (set & kEntropy) sum_[At::spread][r] = masked ? 0.0 : sum_[At::spread][r];
      if constexpr (set & kSquares) sum_[At::squares][r] = nothing ? 0.0 : sum_[At::squares][r];
      if constexpr (set & kCubes) sum_[At::cubes][r] = nothing ? 0.0 : sum_[At::cubes][r];
    }
    if (first_ > 0) carry();
    if constexpr (set & kSoft) add_displaced();
    for (int r = 0; r < block_.height; ++r) {
      const int n = from_ + r;
      state_.largest[n] = double(top_[r]);
      state_.shift[n] = shift_[r];
      state_.sum[n] = sum[r];
    }
    if constexpr (set & kEntropy) store(state_.ties, ties_), store(state_.spread, sum_[At::spread]);
    if constexpr (set & kSquares) store(state_.squares, sum_[At::squares]);
    if constexpr (set & kCubes) store(state_.cubes, sum_[At::cubes]);
    if constexpr (set & kSoft)
      store(state_.mass, sum_[At::mass]), store(state_.deficit, sum_[At::deficit]);
    if constexpr (set & kMean)
      for (int r = 0; r < block_.height; ++r) {
        const int n = from_ + r;
        const double weight = sum_[set & kWeights ? At::weight : At::support][r];
        state_.weighted_sum[n] += sum_[At::weighted_sum][r] + weight * double(offset_[r]);
        state_.weight[n] += weight;
        state_.support[n] += sum_[At::support][r];
      }
  }

  void store(double* field, const double* value) {
    for (int r = 0; r < block_.height; ++r) field[from_ + r] = value[r];
  }

  // Adds the sums of earlier blocks, which may have another shift. Sums of 0 are not multiplied,
  // because their shift may be -inf.
  void carry() {
    for (int r = 0; r < block_.height; ++r) {
      const int n = from_ + r;
      const double before = state_.sum[n] + (set & kEntropy ? state_.ties[n] : 0.0);
      const double delta = shift_[r] - state_.shift[n];
      // Most blocks have no new maximum, and then the shift stays.
      const double factor = before == 0 ? 0.0 : delta == 0 ? 1.0 : exp_scaled(-delta, 1.0);
      if constexpr (set & kEntropy) {
        const bool same = delta == 0;
        sum_[At::sum][r] += same ? state_.sum[n] : factor * before;
        ties_[r] += same ? state_.ties[n] : 0.0;
        sum_[At::spread][r] += before == 0 ? 0.0 : factor * (state_.spread[n] + delta * before);
      } else {
        sum_[At::sum][r] += factor * before;
      }
      if constexpr (set & kSquares) sum_[At::squares][r] += factor * factor * state_.squares[n];
      if constexpr (set & kCubes) sum_[At::cubes][r] += factor * factor * factor * state_.cubes[n];
      if constexpr (set & kSoft) {
        const bool masked = state_.shift[n] == -kInfinity;
        sum_[At::mass][r] += state_.mass[n];
        sum_[At::deficit][r] += state_.deficit[n] + (masked ? 0.0 : delta * state_.mass[n]);
      }
    }
  }

  void add_displaced() {
    for (int r = 0; r < block_.height; ++r) {
      if (!(displaced_[r] > -kInfinity)) continue;
      const double gap = shift_[r] - displaced_[r], e = exp_scaled(-gap, 1.0);
      sum_[At::sum][r] += e;
      sum_[At::mass][r] += displaced_soft_[r];
      sum_[At::deficit][r] += displaced_soft_[r] * gap;
      if constexpr (set & kEntropy) sum_[At::spread][r] += gap * e;
      if constexpr (set & kMean) {
        state_.weighted_sum[from_ + r] += displaced_weight_[r] * displaced_[r];
        state_.weight[from_ + r] += displaced_weight_[r];
        state_.support[from_ + r] += 1;
      }
    }
  }

  const Problem& p_;
  StripState& state_;
  const Layout& block_;
  const PerClass<Real>& per_class_;
  const Label* label_;
  const int from_;
  const int64_t first_;
  const Next& next_;

  int64_t place_[kStrip];            // the place of the pivot in the block; -1: not in the block
  Real here_[kStrip], top_[kStrip];  // largest logits of the rest: in this block, in all so far
  Real exponent_[kStrip];
  // Zeros, because loops over a panel include rows that are not there.
  Real offset_[kStrip] = {}, magic_[kStrip] = {}, lowest_[kStrip] = {};
  double shift_[kStrip], sum_[At::count(Way::careful)][kStrip], ties_[kStrip];
  double displaced_[kStrip], displaced_soft_[kStrip], displaced_weight_[kStrip];  // former pivots
};

template <unsigned set, class Real, class Layout, class Next>
[[gnu::flatten]] void add_block(const Problem& p, StripState& state, const Layout& block,
                                const PerClass<Real>& per_class, const Label* label, const Block& b,
                                const Next& next) {
  BlockAdder<set, Real, Layout, Next>(p, state, block, per_class, label, b.r, b.first, next).add();
}

}  // namespace
