// What a class adds to a divergence: its exponential in either prediction, and the terms
// a (e^y - 1 - y) of log-ratios y, which keep their digits near 0.
#pragma once

#include "blocks.h"
#include "lanes.h"

namespace {

// e^y - 1 and e^y - 1 - y for |y| <= kFar, both with all digits near 0.
constexpr double kFar = 700;
// clang-format off
constexpr double kExcess[] = {  // (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2, by its series
    1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
    1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
// clang-format on
struct Growth {
  double whole, excess;

  XENT_LANE explicit Growth(double y) {
    using E = Exp<double>;
    constexpr double high = 6.93147180369123816490e-01, low = 1.90821492927058770002e-10;
    const double biased = fused(y, E::log2e, E::magic), k = biased - E::magic;
    const double r = fused(k, -low, fused(k, -high, y));
    const double more = r * r * polynomial(r, kExcess), power = power_of_two(biased);
    whole = fused(r + more, power, power - 1.0);
    excess = k == 0 ? more : whole - y;
  }
};

XENT_LANE double limited(double y) {
  const double raised = -kFar > y ? -kFar : y;
  return kFar < raised ? kFar : raised;
}

// a e^y - a - a y, where b = a e^y
XENT_LANE double divergence_term(double a, double b, double y) {
  const double near = a * Growth(limited(y)).excess, far = (b - a) - a * y;
  return y < 1 ? near : far;
}

// The number that is subtracted from the logits of a row before exp. The range of float64 has room
// for logits far above it, so that the largest logit of the first block does for nearly all rows.
struct Shift {
  double value = -kInfinity;

  bool found() const { return value > -kInfinity; }
  double finite() const { return value == -kInfinity ? 0.0 : value; }
};

// 2^f for |f| <= 1/2, a minimax fit with a relative error of 1.4e-14: losses and gradients are
// rounded to float32. Two terms less than in Exp<double>::power save 5 % of the time.
// clang-format off
constexpr double kPower[] = {
    1.0000000000000127, 0.693147180559871, 0.24022650695649653,
    0.055504108668685624, 0.009618129192067193, 0.0013333557617602426,
    0.00015403434948103528, 1.5252984839814557e-05, 1.3259405603573696e-06,
    1.0150336495148618e-07};
// clang-format on

// Exponentials of the logits of a row, over the temperature and relative to the shift.
struct Exponent {
  static constexpr int lowest = -1000, highest = 500;  // powers of two
  double unit, shift, low, high;

  Exponent(double unit, double shift)
      : unit(unit), shift(shift), low(lowest / unit), high(highest / unit) {}

  // True if the smallest and the largest of some logits are within the limits.
  bool is_plain(double smallest, double largest) const {
    return smallest - shift >= low && largest - shift <= high;
  }

  // 2^(unit (z - shift)). `careful` keeps it between the limits, and gives 0 below them.
  template <bool careful>
  XENT_LANE double of(double z) const {
    using E = Exp<double>;
    const double x = z - shift, raised = careful && low > x ? low : x;
    const double y = careful && high < raised ? high : raised;
    const double biased = fused(y, unit, E::magic);
    const double f = fused(y, unit, E::magic - biased);
    const double value = polynomial(f, kPower) * power_of_two(biased);
    return careful && x < low ? 0.0 : value;
  }
};

}  // namespace
