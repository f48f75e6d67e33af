// Elementary functions of float64 for every argument, with the limits that C gives them. Lanes, as
// lanes.h has them: the same bits with every instruction set, which no library of them promises.
#pragma once

#include "lanes.h"

namespace {

// Not far beyond the largest exponent: the integer steps of `times` would wrap.
XENT_LANE double exp_of(double x) { return exp_scaled(x > 1000.0 ? 1000.0 : x, 1.0); }

// 2^k 2^f - 1 = 2^k (2^f - 1) + (2^k - 1), where 2^f - 1 has no constant term.
XENT_LANE double expm1_of(double x) {
  using E = Exp<double>;
  constexpr double far = 40;  // from here on the 1 is nothing
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

// What 1 + x rounds away is put back to first order.
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

XENT_LANE double pow_of(double x, double y) { return __builtin_pow(x, y); }

}  // namespace
