// Elementary functions of float64, for every argument and with the limits of the C standard. They
// are vectorised as those of lanes.h, right to 1 to 3 units in the last place, and have the same
// bits on every instruction set. No library promises that.
#pragma once

#include "lanes.h"

namespace {

// The argument is limited, because the integer steps of `times` would wrap far beyond the largest
// exponent.
XENT_LANE double exp_of(double x) { return exp_scaled(x > 1000.0 ? 1000.0 : x, 1.0); }

// 2^k 2^f - 1 = 2^k (2^f - 1) + (2^k - 1), where 2^f - 1 has no constant term.
XENT_LANE double expm1_of(double x) {
  using E = Exp<double>;
  constexpr double far = 40;  // beyond it the 1 is lost in rounding
  const double y = x < -far ? -far : x > far ? far : x;
  const double biased = fused(y, E::log2e, E::magic);
  const double f = fused(y, E::log2e_low, fused(y, E::log2e, E::magic - biased));
  const double power = power_of_two(biased), grown = f * polynomial<1>(f, E::power);
  const double near = fused(grown, power, power - 1.0);
  return x > far ? exp_of(x) : x == 0 ? x : near;
}

XENT_LANE double log_of(double x) {
  const bool tiny = x < 0x1p-1000;  // perhaps subnormal
  const double value = log_lane(tiny ? x * 0x1p100 : x);
  const double whole = tiny ? value - 100 * (kLn2High + kLn2Low) : value;
  return x < 0 ? __builtin_nan("") : whole;
}

// What 1 + x rounds away is added to first order.
XENT_LANE double log1p_of(double x) {
  const double sum = 1.0 + x, lost = (x - (sum - 1.0)) / sum;
  const double value = log_of(sum) + (lost == lost ? lost : 0.0);
  return x == 0 ? x : value;
}

XENT_LANE double log_sigmoid_of(double x) {
  return (x < 0 ? x : 0.0) - log1p_of(exp_of(x < 0 ? x : -x));
}

XENT_LANE double slope_of_log_sigmoid(double x) {
  const double e = exp_of(x < 0 ? x : -x), small = e / (1.0 + e);
  return x < 0 ? 1.0 - small : small;
}

XENT_LANE double slope_of_softplus(double x) {
  const double e = exp_of(x);
  return x > 20.0 ? 1.0 : e / (e + 1.0);
}

// A number as the sum high + low, where `low` is what `high` has rounded away.
struct Pair {
  double high, low;
};

// log(x) for x > 0 by the formula of log_lane, to 58 bits. `pow` needs the digits, because the
// exponent y multiplies the error of the logarithm.
XENT_LANE Pair log_pair(double x) {
  constexpr uint64_t half_root = 0x3fe6a09e667f3bcd;  // the bits of sqrt(1/2)
  const bool tiny = x < 0x1p-1000;                    // perhaps subnormal
  const uint64_t u = bits<uint64_t>(tiny ? x * 0x1p100 : x) - half_root;
  const uint64_t exponent = ((u + (uint64_t{2048} << 52)) >> 52) - 2048;
  const double k = bits<double>(exponent + bits<uint64_t>(Exp<double>::magic)) -
                   Exp<double>::magic - (tiny ? 100.0 : 0.0);
  const double f = bits<double>((u & 0x000fffffffffffff) + half_root) - 1.0;
  // s = f / (2 + f) in two parts
  const double below = 2.0 + f, s = f / below, z = s * s;
  const double rest = (fused(-s, below, f) - s * (f - (below - 2.0))) / below;
  const double whole = k * kLn2High, twice = 2.0 * s, sum = whole + twice;
  const double tail = fused(s, z * polynomial(z, kLogTail), 2.0 * rest) + k * kLn2Low;
  const double more = lost_in_difference(whole, -twice, sum) + tail, high = sum + more;
  return {high, (sum - high) + more};
}

// x^y for x > 0
XENT_LANE double pow_of_positive(double x, double y) {
  const Pair log = log_pair(x);
  const double p = y * log.high, lost = fused(y, log.high, -p) + y * log.low;
  const double power = exp_of(p), mended = fused(power, lost, power);
  return mended - mended == 0 ? mended : power;
}

XENT_LANE double pow_of(double x, double y) {
  const double size = __builtin_fabs(x);
  const bool whole = __builtin_floor(y) == y, odd = whole && __builtin_floor(0.5 * y) != 0.5 * y;
  const double limit = (size == 0) == (y > 0) ? 0.0 : __builtin_huge_val();  // of 0 and infinity
  double value = pow_of_positive(size, y);
  value = size - size == 0 && size > 0 ? value : y == y && size == size ? limit : x + y;
  value = size == 1 && y == y ? 1.0 : value;
  value = bits<int64_t>(x) < 0 && odd ? -value : value;
  value = x < 0 && size - size == 0 && !whole ? __builtin_nan("") : value;
  // Powers that are exact, or rounded as PyTorch rounds them.
  value = y == 1 ? x : y == 2 ? x * x : y == 3 ? x * x * x : value;
  return y == 0 || x == 1 ? 1.0 : value;
}

}  // namespace
