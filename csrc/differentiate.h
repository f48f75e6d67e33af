// The backward sweep of a strip of rows: blocks of logits become blocks of gradient.
#pragma once

#include "gradient.h"
#include "layouts.h"

namespace {

// Whether the multiple of the exponential is another for each class.
constexpr bool varies(unsigned set) { return set & (kEntropy | kPowers); }

// From the logit of a class to its slope, in one row. The quick way holds from the logit `floor` of
// the row on.
template <unsigned set, bool quick, class Real>
struct Slope {
  Real offset, magic, vanished, all, spread, square, cube, mean, soft, live;
  Real tame;  // 1 where the quick way would have done
  const Real *weight, *target, *outer;

  XENT_LANE Real operator()(Real z, int j) const {
    const Real x = set & kEntropy ? z - offset : z;
    const Real y = !quick && vanished > x ? vanished : x;  // below, the exponential is nothing
    const Power<Real> power = exponential(y, magic);
    Real factor = all;
    if constexpr (set & kEntropy) factor = fused(spread, y, factor);
    if constexpr (set & kPowers) {
      const Real e = quick ? power.value() : x < vanished ? Real(0) : power.times(Real(1));
      factor = fused(e, set & kCubes ? fused(e, cube, square) : square, factor);
    }
    Real g = 0;
    if constexpr (!(set & kMean)) {
      g = multiple(power, factor, x);
    } else {
      const Real c = set & kWeights ? mean * weight[j] : mean;
      if constexpr (quick && !varies(set))
        g = power.times_normal_plus(factor, c);
      else
        g = multiple(power, factor, x) + (!quick && z == Real(-kInfinity) ? Real(0) : c);
    }
    if constexpr (set & kSoft) g = fused(soft, target[j], g);
    if constexpr (set & kSlope) g = !quick && g == 0 ? g : g * outer[j];
    return quick || live == Real(1) ? g : live;
  }

  XENT_LANE Real multiple(const Power<Real>& power, Real factor, Real x) const {
    if constexpr (quick) return straight(power, factor);
    const Real careful = x < vanished ? Real(0) : power.times(factor);
    // What makes another row of the block harder must not change the bits of this one; a factor
    // that is the same for all classes cannot.
    if constexpr (!varies(set)) return careful;
    return tame == Real(1) ? straight(power, factor) : careful;
  }

  XENT_LANE Real straight(const Power<Real>& power, Real factor) const {
    return set & kPowers ? power.value() * factor : power.times_normal(factor);
  }
};

// apply(step) with the step(row) that turns a block of logits into gradient, but for the pivots.
template <unsigned set, class Real, class Layout, class Apply>
void differentiate(const Slopes<Real>& s, const Layout& block, int from,
                   const Beside<Real>& beside, const Ahead& next, Apply apply) {
  const int height = block.height;
  Real magic[kStrip] = {}, offset[kStrip] = {}, vanished[kStrip] = {};
  Real tame[kStrip] = {};
  Real low[kStrip], floor[kStrip];
  for (int r = 0; r < height; ++r) {
    const Base<Real> base{s.shift[from + r], exact_slopes(set)};
    const Real factor = s.all[from + r];
    magic[r] = base.magic();
    offset[r] = base.offset;
    vanished[r] = base.vanished();
    floor[r] = varies(set) || factor == 0 ? base.lowest() : base.normal_floor(factor);
  }
  if (!exact_slopes(set)) subtract_offsets(block, offset);
  block.extreme([](Real a, Real b) { return a < b ? a : b; }, next, low);
  bool quick = true;
  for (int r = 0; r < height; ++r) {
    const Real x = exact_slopes(set) ? low[r] - offset[r] : low[r];
    const bool enough = x >= floor[r] && s.live[from + r] == 1;
    tame[r] = enough ? Real(1) : Real(0);
    quick &= enough;
  }
  const auto step = [&](auto how) {
    return [&](int r) {
      const int n = from + r;
      Slope<set, decltype(how)::value, Real> one;
      one.offset = offset[r], one.magic = magic[r], one.vanished = vanished[r];
      one.tame = tame[r], one.live = s.live[n], one.all = s.all[n];
      if constexpr (set & kEntropy) one.spread = s.spread[n];
      if constexpr (set & kPowers) one.square = s.square[n], one.cube = s.cube[n];
      if constexpr (set & kMean) one.mean = s.mean[n], one.weight = beside.weight;
      if constexpr (set & kSoft) one.soft = s.soft[n], one.target = beside.soft + r * block.pitch;
      if constexpr (set & kSlope) one.outer = beside.outer.row(r);
      return one;
    };
  };
  if (quick)
    apply(step(Constant<1>()));
  else
    apply(step(Constant<0>()));
}

// put(row, class, value) for the entries of a block that are known by themselves.
template <class Real, class Put>
void put_pivots(const Slopes<Real>& s, const Block& b, Put put) {
  const auto put_one = [&](int r, int64_t class_, double value) {
    const int64_t j = class_ - b.first;
    if (j >= 0 && j < b.width) put(r, j, Real(value));
  };
  for (int r = 0; r < b.height; ++r) put_one(r, s.pivot[b.r + r], s.at_pivot[b.r + r]);
  if (s.has_top)
    for (int r = 0; r < b.height; ++r) put_one(r, s.top[b.r + r], s.at_top[b.r + r]);
}

template <unsigned set, class Stored, class Real>
void differentiate_to(const Strip& out, const Block& b, bool streams, const Slopes<Real>& slopes,
                      const RowsLayout<Real>& block, const Beside<Real>& beside,
                      const Ahead& next) {
  differentiate<set>(slopes, block, b.r, beside, next, [&](auto step) {
    if (streams)
      block.template map_to<true, Stored>(out, b, step, next);
    else
      block.template map_to<false, Stored>(out, b, step, next);
  });
  put_pivots(slopes, b, [&](int r, int64_t j, Real g) {
    narrow(beside.outer.of(r, j, g), out.at<Stored>(b.r + r, b.first)[j]);
  });
}

template <unsigned set>
void differentiate_to_any(const Strip& out, const Block& b, bool streams,
                          const Slopes<double>& slopes, const RowsLayout<double>& block,
                          const Beside<double>& beside, const Ahead& next) {
  differentiate_to<set, double>(out, b, streams, slopes, block, beside, next);
}
template <unsigned set>
void differentiate_to_any(const Strip& out, const Block& b, bool streams,
                          const Slopes<float>& slopes, const RowsLayout<float>& block,
                          const Beside<float>& beside, const Ahead& next) {
  switch (out.type) {
    case Type::f32:
      return differentiate_to<set, float>(out, b, streams, slopes, block, beside, next);
    case Type::bf16:
      return differentiate_to<set, bf16>(out, b, streams, slopes, block, beside, next);
    case Type::f16:
      return differentiate_to<set, f16>(out, b, streams, slopes, block, beside, next);
    case Type::f64: return;  // swept in float64
  }
}

}  // namespace
