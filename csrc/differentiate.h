// The backward sweep of a strip of rows: blocks of logits become blocks of gradient.
#pragma once

#include "gradient.h"
#include "exponentials.h"
#include "layouts.h"

namespace {

// True if the factor of the exponential differs between the classes of a row.
constexpr bool varies(unsigned set) { return set & (kEntropy | kPowers); }

// The gradient of one class from its logit, in one row. The quick way is right if no logit of the
// row is below a floor, which `differentiate` computes. `class_step` is that of the soft targets.
template <unsigned set, bool quick, int class_step, class Real>
struct ClassGradient {
  Real offset, magic, vanished, all, spread, square, cube, mean, soft, live;
  Real quick_row;  // 1 if the quick way is right for this row
  const Real *weight, *target, *transform;

  XENT_LANE Real operator()(Real z, int j) const {
    const Real x = set & kEntropy ? z - offset : z;
    const Real y = !quick && vanished > x ? vanished : x;  // below `vanished` the exponential is 0
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
    if constexpr (set & kSoft) g = fused(soft, target[j * class_step], g);
    if constexpr (set & kTransform) g = !quick && g == 0 ? g : g * transform[j];
    return quick || live == Real(1) ? g : live;
  }

  // factor * e^x
  XENT_LANE Real multiple(const Power<Real>& power, Real factor, Real x) const {
    if constexpr (quick) return straight(power, factor);
    const Real careful = x < vanished ? Real(0) : power.times(factor);
    // The bits of a row must not depend on the other rows of the block. So a row for which the
    // quick way is right gets the quick product, even if another row needs the careful one. Where
    // the factor is the same for all classes, both products have the same bits.
    if constexpr (!varies(set)) return careful;
    return quick_row == Real(1) ? straight(power, factor) : careful;
  }

  XENT_LANE Real straight(const Power<Real>& power, Real factor) const {
    return set & kPowers ? power.value() * factor : power.times_normal(factor);
  }
};

// Calls apply(step), where step(row)(logit, class) is the gradient of a class other than the pivot.
template <unsigned set, class Real, class Layout, class Next, class Apply>
void differentiate(const Coefficients<Real>& s, const Layout& block, int from,
                   const PerClass<Real>& per_class, const Next& next, Apply apply) {
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
      ClassGradient<set, decltype(how)::value, Layout::class_step, Real> one;
      one.offset = offset[r], one.magic = magic[r], one.vanished = vanished[r];
      one.quick_row = quick_row[r], one.live = s.live[n], one.all = s.all[n];
      if constexpr (set & kEntropy) one.spread = s.spread[n];
      if constexpr (set & kPowers) one.square = s.square[n], one.cube = s.cube[n];
      if constexpr (set & kMean) one.mean = s.mean[n], one.weight = per_class.weight;
      if constexpr (set & kSoft)
        one.soft = s.soft[n], one.target = per_class.soft + r * per_class.pitch;
      if constexpr (set & kTransform) one.transform = per_class.transform.row(r);
      return one;
    };
  };
  if (quick)
    apply(step(Constant<1>()));
  else
    apply(step(Constant<0>()));
}

// Calls put(row, class, value) for the entries of a block that are computed once per row: those of
// the pivot and of the largest class of the rest.
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

// Stores the gradient of a block; `step` is that of `differentiate`.
template <class Stored, class Real, class Step, class Next>
void store_gradient(const Strip& out, const Block& b, bool streams,
                    const RowsLayout<Real, Less>& block, Step step, const Next& next) {
  if (streams)
    block.template map_to<true, Stored>(out, b, step, next);
  else
    block.template map_to<false, Stored>(out, b, step, next);
}

// Calls visit(Stored()) with the type of the gradient. Only float64 is swept in float64.
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

// Computes the gradient of a block of logits and stores it, without a copy in the buffer.
template <unsigned set, class Real, class Next>
void differentiate_to(const Strip& out, const Block& b, bool streams,
                      const Coefficients<Real>& coefficients, const RowsLayout<Real, Less>& block,
                      const PerClass<Real>& per_class, const Next& next) {
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

// Computes the gradient of a block from its exponentials and stores it. Returns false, and stores
// nothing, if the gradient must be computed from the logits.
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
