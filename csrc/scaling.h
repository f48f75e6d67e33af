// Multiplies numbers by a power of two: an addition to their exponents.
#pragma once

#include "blocks.h"

namespace {

// A floating-point format: the integer type of its bits, and the widths of mantissa and exponent.
template <class Bits, int mantissa, int exponent>
struct Format {
  static constexpr int top = (1 << exponent) - 1;  // infinity and NaN
  static bool is_zero(Bits x) { return Bits(x << 1) == 0; }

  // True if 2^k times the rounded numbers are the rounded products: if all are normal before and
  // after. A zero only fits k <= 0, because it may be a number that was too small for the format.
  static bool fit(const Bits* x, int64_t n, int k) {
    const int low = k < 0 ? 1 - k : 1, high = k > 0 ? top - 1 - k : top - 1;
    if (high < low) return false;
    const Bits span = Bits(high - low), zero_fits = k <= 0;
    Bits misfit = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Bits e = Bits(x[i] >> mantissa) & Bits(top), above = Bits(e - low);
      misfit |= is_zero(x[i]) ? Bits(!zero_fits) : Bits(above > span ? 1 : 0);
    }
    return !misfit;
  }

  static void multiply(Bits* x, int64_t n, int k) {
    const Bits step = Bits(Bits(k) << mantissa);
    for (int64_t i = 0; i < n; ++i) x[i] = is_zero(x[i]) ? x[i] : Bits(x[i] + step);
  }
};

template <class Format, class Bits>
bool scale(Bits* x, int64_t n, int k, bool unchecked) {
  const bool fits = unchecked || Format::fit(x, n, k);
  if (fits) Format::multiply(x, n, k);
  return fits;
}

// Multiplies the numbers [begin, end) by 2^k if that is exact, or in any case if `unchecked`.
// Returns true if it did.
bool scale_entry(void* data, Type type, int64_t begin, int64_t end, int k, bool unchecked) {
  const int64_t n = end - begin;
  char* at = static_cast<char*>(data) + begin * size_of(type);
  const auto as = [&](auto bits) { return reinterpret_cast<decltype(bits)*>(at); };
  switch (type) {
    case Type::f32: return scale<Format<uint32_t, 23, 8>>(as(uint32_t{}), n, k, unchecked);
    case Type::f64: return scale<Format<uint64_t, 52, 11>>(as(uint64_t{}), n, k, unchecked);
    case Type::bf16: return scale<Format<uint16_t, 7, 8>>(as(uint16_t{}), n, k, unchecked);
    case Type::f16: return scale<Format<uint16_t, 10, 5>>(as(uint16_t{}), n, k, unchecked);
  }
  return false;
}

}  // namespace
