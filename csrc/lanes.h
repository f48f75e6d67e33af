// The arithmetic of one lane, written so that compilers vectorise loops over it.
// Additions, multiplications, explicit fused multiply-adds and integer steps, each rounded as IEEE
// says (the build forbids contraction), so every instruction set gives the same bits.
// Everything sits in an anonymous namespace: a shared inline function compiled for AVX-512 must
// never be what the linker keeps for the baseline.
#pragma once

#include <cstdint>

namespace {

constexpr int kLanes = 32;  // accumulators in flight: enough to hide the latency of an addition

template <class To, class From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &value, sizeof to);
  return to;
}

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bf16 x) { return bits<float>(uint32_t{x.bits} << 16); }
inline float widen(f16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  // 2^112 moves the exponent's bias from 15 to 127 and makes subnormals normal, exactly.
  const uint32_t finite = bits<uint32_t>(bits<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;  // infinity, NaN
  return bits<float>((magnitude >= 0x0f800000u ? special : finite) | sign);
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, bf16& out) {
  const uint32_t u = bits<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // to nearest, ties to even
  out.bits = uint16_t(x == x ? rounded : 0x7fc0u);
}
inline void narrow(float x, f16& out) {
  const uint32_t u = bits<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 an addition to 0.5 lets the hardware round at the subnormals' fixed point.
  const uint32_t subnormal = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  out.bits = uint16_t((magnitude >= 0x477ff000u ? special : finite) | sign);
}

// a * b + c, rounded once. A third of the time of exp: where the processor lacks the instruction
// (x86 before 2013) it is emulated exactly, and everything is right but slow.
#if defined(__FMA__) || defined(__aarch64__)
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
inline float fused(float a, float b, float c) {
  // The product is exact in float64. The sum is rounded to odd there, after which rounding to
  // float32 is as good as rounding once (Boldo and Melquiond, 2008).
  const double product = double(a) * double(b), sum = product + double(c);
  const double part = sum - product, error = (product - (sum - part)) + (double(c) - part);
  // Where the sum is inexact and even, its odd neighbour lies towards the error. In masks, all
  // ones for true, because the baseline has no 64-bit comparisons.
  const int64_t u = bits<int64_t>(sum);
  const int64_t inexact = error != 0 ? -1 : 0, finite = sum - sum == 0 ? -1 : 0;
  const int64_t even = (u & 1) - 1;
  const int64_t grows = error > 0 ? -1 : 0, positive = sum > 0 ? -1 : 0;
  const int64_t towards = (grows ^ positive) | 1;  // +1 or -1
  return float(bits<double>(u + (towards & inexact & finite & even)));
}
#endif
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

// c[i] + c[i + 1] x + c[i + 2] x^2 + ... (a recursion, since vectorisers stop at inner loops)
template <int i = 0, class Real, int n>
inline Real polynomial(Real x, const Real (&c)[n]) {
  if constexpr (i == n - 1)
    return c[i];
  else
    return fused(polynomial<i + 1>(x, c), x, c[i]);
}

// exp(x) = 2^k * e^r with |r| <= ln(2)/2. Adding `magic` rounds to the nearest integer and leaves
// k in the low bits of the mantissa. ln(2) is split in two so that r keeps its digits. The
// polynomials are minimax fits of (e^r - 1 - r) / r^2, relative error 3e-9 and 4e-18.
template <class Real>
struct Exp;

template <>
struct Exp<float> {
  using Int = int32_t;
  static constexpr float lowest = -87.0f;  // above the smallest normal number's logarithm
  static constexpr float vanished = -174.0f;
  static constexpr float log2e = 1.44269504f, high = 0.693147182f, low = -1.90465430e-9f;
  static constexpr float magic = 12582912.0f;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float tail[] = {0.4999999343191f, 0.1666652039949f, 0.0416683908517f,
                                   0.0083687450788f, 0.0013814536086f};
};

template <>
struct Exp<double> {
  using Int = int64_t;
  static constexpr double lowest = -708.0;
  static constexpr double vanished = -1416.0;
  static constexpr double log2e = 1.4426950408889634, high = 6.93147180369123816490e-01,
                          low = 1.90821492927058770002e-10;
  static constexpr double magic = 6755399441055744.0;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double tail[] = {
      0.5000000000000010668,     0.16666666666666411542,    4.1666666666529734353e-2,
      8.3333333334949600643e-3,  1.3888888943758550661e-3,  1.9841269505802464635e-4,
      2.4801492950891894688e-5,  2.7557586785062232817e-6,  2.7630305869083040294e-7,
      2.5000022953681372175e-8};
};

template <class Real>
inline Real power_of_two(typename Exp<Real>::Int k) {
  using Int = typename Exp<Real>::Int;
  return bits<Real>(Int((k + Exp<Real>::bias) << Exp<Real>::mantissa));
}

// e^x = mantissa * 2^k; `rounded` holds k in its low bits.
template <class Real>
inline Real reduced_exp(Real x, Real& rounded) {
  using E = Exp<Real>;
  rounded = fused(x, E::log2e, E::magic);
  const Real k = rounded - E::magic;
  const Real r = fused(-k, E::low, fused(-k, E::high, x));
  return fused(r * r, polynomial(r, E::tail), r) + Real(1);
}

// mantissa * 2^k by adding k to the exponent: right where the result is a normal number.
template <class Real>
inline Real shifted(Real mantissa, Real rounded) {
  using Int = typename Exp<Real>::Int;
  const auto k = uint64_t(bits<Int>(rounded));
  return bits<Real>(Int(bits<Int>(mantissa) + Int(k << Exp<Real>::mantissa)));
}

// e^x for x <= 0; below the normal numbers it stays at the smallest of them.
template <class Real>
inline Real exp_clamped(Real x) {
  Real rounded;
  const Real mantissa = reduced_exp(Exp<Real>::lowest > x ? Exp<Real>::lowest : x, rounded);
  return shifted(mantissa, rounded);
}

// factor * e^x where that is known to be a normal number: a third cheaper than exp_scaled.
template <class Real>
inline Real exp_normal(Real x, Real factor) {
  Real rounded;
  const Real mantissa = reduced_exp(x, rounded);
  return shifted(mantissa * factor, rounded);
}

// The x from which on exp_normal(x, factor) is right; +inf where it never is.
template <class Real>
inline Real normal_floor(Real factor) {
  using E = Exp<Real>;
  using Int = typename E::Int;
  const Int exponent = (bits<Int>(factor) >> E::mantissa) & (2 * E::bias + 1);
  const bool normal = exponent > 1 && exponent < 2 * E::bias;
  return normal ? Real(2 - exponent) * Real(0.6931) : Real(__builtin_huge_val());
}

// factor * e^x for x <= 0, right down into the subnormal numbers; 0 for x = -inf whatever the
// factor. The power of two is applied last, in two halves, so that only the last product rounds.
template <class Real>
inline Real exp_scaled(Real x, Real factor) {
  using E = Exp<Real>;
  using Int = typename E::Int;
  Real rounded;
  const Real mantissa = reduced_exp(E::vanished > x ? E::vanished : x, rounded);
  const Int k = Int(bits<Int>(rounded) - bits<Int>(E::magic));
  const Int half = k >> 1;
  const Real value = mantissa * factor * power_of_two<Real>(half) * power_of_two<Real>(k - half);
  return x < E::vanished ? Real(0) : value;
}

// tanh: an odd minimax polynomial near 0, where 1 - e^-2a would cancel, the exponential beyond.
constexpr float kTanhTailF[] = {-0.3333333089354224f, 0.1333320921396320f, -0.0539471308563843f,
                                0.0217025453461810f,  -0.0081815862462787f, 0.0021465029921655f};
constexpr double kTanhTailD[] = {
    -0.33333333333333313543,    0.1333333333332984983,      -5.3968253966113112822e-2,
    2.1869488470079612179e-2,   -8.8632343324833989e-3,     3.5921141822323457262e-3,
    -1.4557270412743500783e-3,  5.8945615290827820994e-4,   -2.37023148695355009e-4,
    9.1577356076563475166e-5,   -3.020523896938559647e-5,   6.0499526823748638534e-6};
inline float tanh_tail(float u) { return polynomial(u, kTanhTailF); }
inline double tanh_tail(double u) { return polynomial(u, kTanhTailD); }
template <class Real>
inline Real tanh_lane(Real x) {
  const Real a = x < 0 ? -x : x;
  const Real u = x * x;
  const Real near_zero = fused(x * u, tanh_tail(u), x);
  const Real e = exp_clamped(Real(-2) * a);
  const Real beyond = (Real(1) - e) / (Real(1) + e);
  return a < Real(0.625) ? near_zero : (x < 0 ? -beyond : beyond);
}

constexpr double kLogTail[] = {0.6666666666666734514, 0.39999999999413938364,
                               0.28571428742566592859, 0.2222219855339807394,
                               0.18183565425232764437, 0.15314020692657148034,
                               0.14796265218331786987};

// log(x) = k ln(2) + log(1 + f) with 1 + f in [sqrt(1/2), sqrt(2)) and
// log(1 + f) = f - s (f - R(s^2)), s = f / (2 + f); R a minimax fit, error 2e-18.
// For the normal numbers and 0; infinity and NaN come back as they are.
inline double log_lane(double x) {
  constexpr uint64_t half_root = 0x3fe6a09e667f3bcd;  // the bits of sqrt(1/2)
  constexpr uint64_t offset = uint64_t{2048} << 52;    // keeps the shift among positive numbers
  const uint64_t u = bits<uint64_t>(x) - half_root;
  const uint64_t exponent = ((u + offset) >> 52) - 2048;
  const double k = bits<double>(exponent + bits<uint64_t>(Exp<double>::magic)) -
                   Exp<double>::magic;
  const double f = bits<double>((u & 0x000fffffffffffff) + half_root) - 1.0;
  const double s = f / (2.0 + f), z = s * s;
  const double tail = z * polynomial(z, kLogTail);
  const double square = 0.5 * f * f;
  const double small = fused(s, square + tail, k * Exp<double>::low);
  const double value = fused(k, Exp<double>::high, f - (square - small));
  const double zero = x == 0 ? -__builtin_huge_val() : x;
  return x > 0 && x < __builtin_huge_val() ? value : zero;
}

// log(1 + u) for u in [0, 1]; what 1 + u rounds away is put back to first order.
inline double log1p_lane(double u) {
  const double sum = 1.0 + u;
  return log_lane(sum) + (u - (sum - 1.0)) / sum;
}

// log(1 + e^-|d|), the part that log sigmoid(d) and log sigmoid(-d) share.
inline double overlap_lane(double d) {
  return log1p_lane(exp_scaled(d < 0 ? d : -d, 1.0));
}

inline double sigmoid_lane(double d) {
  const double e = exp_scaled(d < 0 ? d : -d, 1.0);
  return (d < 0 ? e : 1.0) / (1.0 + e);
}

// 1 - e^-x for x >= 0, by way of tanh: nothing cancels near 0.
inline double one_minus_exp(double x) {
  const double t = tanh_lane(0.5 * x);
  return 2.0 * t / (1.0 + t);
}

}  // namespace
