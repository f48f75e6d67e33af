// The backward sweep of a strip of rows: blocks of logits become blocks of gradient.
#pragma once

#include "gradient.h"
#include "exponentials.h"
#include "layouts.h"

namespace {

// Whether the multiple of the exponential is another for each class.
constexpr bool varies(unsigned set) { return set & (kEntropy | kPowers); }

// From the logit of a class to its slope, in one row. The quick way holds from the logit `floor` of
// the row on.
template <unsigned set, bool quick, class Real>
struct ClassGradient {
  Real offset, magic, vanished, all, spread, square, cube, mean, soft, live;
  Real quick_row;  // 1 where the quick way would have done
  const Real *weight, *target, *transform;

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
    if constexpr (set & kTransform) g = !quick && g == 0 ? g : g * transform[j];
    return quick || live == Real(1) ? g : live;
  }

  XENT_LANE Real multiple(const Power<Real>& power, Real factor, Real x) const {
    if constexpr (quick) return straight(power, factor);
    const Real careful = x < vanished ? Real(0) : power.times(factor);
    // What makes another row of the block harder must not change the bits of this one; a factor
    // that is the same for all classes cannot.
    if constexpr (!varies(set)) return careful;
    return quick_row == Real(1) ? straight(power, factor) : careful;
  }

  XENT_LANE Real straight(const Power<Real>& power, Real factor) const {
    return set & kPowers ? power.value() * factor : power.times_normal(factor);
  }
};

// apply(step) with the step(row) that turns a block of logits into gradient, but for the pivots.
template <unsigned set, class Real, class Layout, class Apply>
void differentiate(const Coefficients<Real>& s, const Layout& block, int from,
                   const PerClass<Real>& per_class, const Prefetch& next, Apply apply) {
  const int height = block.height;
  Real magic[kStrip] = {}, offset[kStrip] = {}, vanished[kStrip] = {};
  Real quick_row[kStrip] = {};
  Real low[kStrip], floor[kStrip];
  for (int r = 0; r < height; ++r) {
    const Base<Real> base{s.shift[from + r], exact_gradient(set)};
    const Real factor = s.all[from + r];
    magic[r] = base.magic();
    offset[r] = base.offset;
    vanished[r] = base.vanished();
    floor[r] = varies(set) || factor == 0 ? base.lowest() : base.normal_floor(factor);
  }
  block.extreme(next, low);
  if (!exact_gradient(set)) subtract_offsets(block, offset);
  bool quick = true;
  for (int r = 0; r < height; ++r) {
    const bool enough = low[r] - offset[r] >= floor[r] && s.live[from + r] == 1;
    quick_row[r] = enough ? Real(1) : Real(0);
    quick &= enough;
  }
  const auto step = [&](auto how) {
    return [&](int r) {
      const int n = from + r;
      ClassGradient<set, decltype(how)::value, Real> one;
      one.offset = offset[r], one.magic = magic[r], one.vanished = vanished[r];
      one.quick_row = quick_row[r], one.live = s.live[n], one.all = s.all[n];
      if constexpr (set & kEntropy) one.spread = s.spread[n];
      if constexpr (set & kPowers) one.square = s.square[n], one.cube = s.cube[n];
      if constexpr (set & kMean) one.mean = s.mean[n], one.weight = per_class.weight;
      if constexpr (set & kSoft)
        one.soft = s.soft[n], one.target = per_class.soft + r * block.pitch;
      if constexpr (set & kTransform) one.transform = per_class.transform.row(r);
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
void put_pivots(const Coefficients<Real>& s, const Block& b, Put put) {
  const auto put_one = [&](int r, int64_t class_, double value) {
    const int64_t j = class_ - b.first;
    if (j >= 0 && j < b.width) put(r, j, Real(value));
  };
  for (int r = 0; r < b.height; ++r) put_one(r, s.pivot[b.r + r], s.at_pivot[b.r + r]);
  if (s.has_top)
    for (int r = 0; r < b.height; ++r) put_one(r, s.top[b.r + r], s.at_top[b.r + r]);
}

// By the step(row) of `differentiate`.
template <class Stored, class Real, class Step>
void store_gradient(const Strip& out, const Block& b, bool streams,
                    const RowsLayout<Real, Less>& block, Step step, const Prefetch& next) {
  if (streams)
    block.template map_to<true, Stored>(out, b, step, next);
  else
    block.template map_to<false, Stored>(out, b, step, next);
}

// visit(Stored()) for the type that a gradient has; float64 is swept in float64.
template <class Visit>
void with_stored(Type type, const double*, Visit visit) {
  if (type == Type::f64) visit(double());
}
template <class Visit>
void with_stored(Type type, const float*, Visit visit) {
  switch (type) {
    case Type::f32: return visit(float());
    case Type::bf16: return visit(bf16());
    case Type::f16: return visit(f16());
    case Type::f64: return;
  }
}

// The gradient of a block of logits, straight to where it goes.
template <unsigned set, class Real>
void differentiate_to(const Strip& out, const Block& b, bool streams,
                      const Coefficients<Real>& coefficients, const RowsLayout<Real, Less>& block,
                      const PerClass<Real>& per_class, const Prefetch& next) {
  with_stored(out.type, block.z, [&](auto type) {
    using Stored = decltype(type);
    differentiate<set>(coefficients, block, b.r, per_class, next, [&](auto step) {
      store_gradient<Stored>(out, b, streams, block, step, next);
    });
    put_pivots(coefficients, b, [&](int r, int64_t j, Real g) {
      narrow(per_class.transform.of(r, j, g), out.at<Stored>(b.r + r, b.first)[j]);
    });
  });
}

// The gradient of a block out of its exponentials; false if it must be computed from the logits.
template <class Real>
bool multiply_exponentials(const Strip& out, const Block& b, bool streams,
                           const Coefficients<Real>& coefficients, Exponentials<Real>& exponentials,
                           Extremes<Real, Less>& unused, const Prefetch& next) {
  Real factor[kStrip];
  if (!exponentials.find_factors(coefficients, b, factor)) return false;
  exponentials.clear_zero_rows(coefficients, b);
  const RowsLayout<Real, Less> block{exponentials.at(b), b.height, b.width, b.pitch, unused};
  const auto step = [&](int r) { return [f = factor[r]](Real e, int) { return e * f; }; };
  with_stored(out.type, factor, [&](auto type) {
    using Stored = decltype(type);
    store_gradient<Stored>(out, b, streams, block, step, next);
    put_pivots(coefficients, b,
               [&](int r, int64_t j, Real g) { narrow(g, out.at<Stored>(b.r + r, b.first)[j]); });
  });
  return true;
}

}  // namespace
