// The arithmetic of one lane, written so that compilers vectorise loops over it.
// There are only additions, multiplications, explicit fused multiply-adds and integer steps. Each
// is rounded as IEEE says (the build forbids contraction), so every instruction set gives the same
// bits. Everything is in an anonymous namespace. Otherwise the linker might keep one copy of an
// inline function for all instruction sets, and that could be the AVX-512 copy. A test looks for
// weak symbols.
#pragma once

#include <cstdint>

namespace {

constexpr int kLanes = 16;  // accumulators in flight: enough to hide the latency of an addition

// Compilers do not vectorise a loop with a call, so lane functions are always inlined: that saves a
// third of the time of short rows. Nor do they vectorise a loop with two conditions joined by &&.
// -fopt-info-vec-missed says which loop was not vectorised, and why.
#define XENT_INLINE __attribute__((always_inline))
#define XENT_LANE inline XENT_INLINE

// A loop over a few lanes. GCC would unroll such a short loop before it tries to vectorise it, and
// would then fail.
#ifdef __clang__
#define XENT_FOR(i, count) for (int i = 0; i < (count); ++i)
#else
#define XENT_FOR(i, count) _Pragma("GCC unroll 1") for (int i = 0; i < (count); ++i)
#endif

template <class To, class From>
XENT_LANE To bits(From value) {
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

XENT_LANE float widen(float x) { return x; }
XENT_LANE double widen(double x) { return x; }
XENT_LANE float widen(bf16 x) { return bits<float>(uint32_t{x.bits} << 16); }
XENT_LANE float widen(f16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  // 2^112 moves the exponent's bias from 15 to 127 and makes subnormals normal, exactly.
  const uint32_t finite = bits<uint32_t>(bits<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;  // infinity, NaN
  return bits<float>((magnitude >= 0x0f800000u ? special : finite) | sign);
}

XENT_LANE void narrow(float x, float& out) { out = x; }
XENT_LANE void narrow(double x, double& out) { out = x; }
XENT_LANE void narrow(float x, bf16& out) {
  const uint32_t u = bits<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // to nearest, ties to even
  out.bits = uint16_t(x == x ? rounded : 0x7fc0u);
}
XENT_LANE void narrow(float x, f16& out) {
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

// a * b + c, rounded once. The instruction saves a third of the time of exp. Where the processor
// lacks it (x86 before 2013) it is emulated exactly: the bits are the same, but it is slow.
#if defined(__FMA__) || defined(__aarch64__)
XENT_LANE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
XENT_LANE float fused(float a, float b, float c) {
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
XENT_LANE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

// c[i] + c[i + 1] x + c[i + 2] x^2 + ... (a recursion, since vectorisers stop at inner loops)
template <int i = 0, class Real, int n>
XENT_LANE Real polynomial(Real x, const Real (&c)[n]) {
  if constexpr (i == n - 1)
    return c[i];
  else
    return fused(polynomial<i + 1>(x, c), x, c[i]);
}

// e^x = 2^k 2^f with k an integer and |f| <= 1/2. Adding `magic` rounds x log2(e) to the nearest
// integer and leaves k, with an exponent's bias, in the low bits of the mantissa. log2(e) is split
// in two so that f keeps its digits. `power` is a minimax fit of 2^f, relative errors 2e-9, 3e-18.
template <class Real>
struct Exp;

template <>
struct Exp<float> {
  using Int = int32_t;
  using UInt = uint32_t;
  static constexpr float log2e = 1.44269502f, log2e_low = 1.925963e-8f;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float magic = 12582912.0f + bias;
  static constexpr int lowest = -124;    // down to 2^lowest every intermediate is a normal number
  static constexpr int vanished = -251;  // a product of two such powers reaches down to 2^vanished
  // clang-format off
  static constexpr float power[] = {1.0f,          0.6931472f,   0.24022646f,  0.055503286f,
                                    0.009618489f, 0.0013399931f, 0.00015345811f};
  // clang-format on
};

template <>
struct Exp<double> {
  using Int = int64_t;
  using UInt = uint64_t;
  static constexpr double log2e = 1.4426950408889634, log2e_low = 2.035527374093103e-17;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double magic = 6755399441055744.0 + bias;
  static constexpr int lowest = -1020;
  static constexpr int vanished = -2043;
  // clang-format off
  static constexpr double power[] = {
      1.0,                    0.6931471805599453,    0.24022650695910155,
      0.055504108664819925,   0.009618129107588335,  0.0013333558146789936,
      0.0001540353046251445,  1.5252733489975454e-05, 1.3215433089671955e-06,
      1.0178198027112659e-07, 7.074105613499429e-09,  4.435281892117942e-10};
  // clang-format on
};

// 2^k for the number with k + bias in its low bits; the sign and the exponent are shifted out.
template <class Real>
XENT_LANE Real power_of_two(Real biased) {
  const auto k = uint64_t(bits<typename Exp<Real>::Int>(biased));
  return bits<Real>(typename Exp<Real>::Int(k << Exp<Real>::mantissa));
}

// 2^k for an integer k
template <class Real>
XENT_LANE Real exact_power(typename Exp<Real>::Int k) {
  const auto exponent = uint64_t(k + Exp<Real>::bias);
  return bits<Real>(typename Exp<Real>::Int(exponent << Exp<Real>::mantissa));
}

// mantissa * 2^k, with k in the low bits of `biased`.
template <class Real>
struct Power {
  Real mantissa, biased;

  // The parts are multiplied, not put together bit by bit, so that NaN stays NaN.
  XENT_LANE Real value() const { return mantissa * power_of_two(biased); }
  XENT_LANE Real added_to(Real sum) const { return fused(mantissa, power_of_two(biased), sum); }
  XENT_LANE Real times_normal(Real factor) const {
    return (mantissa * factor) * power_of_two(biased);
  }
  XENT_LANE Real times_normal_plus(Real factor, Real sum) const {
    return fused(mantissa * factor, power_of_two(biased), sum);
  }

  // The product with a factor, right for subnormal results, too. The power is applied in two
  // halves, so that only the last product rounds there (the one before does so only for a factor
  // below 2^-100). A processor needs a hundred cycles for a subnormal product, and logits spread
  // over 90 nats give almost only such products: the backward pass would take 4 to 12 times as
  // long. So the last product is formed 2^lift too large, and an addition rounds it: subnormal
  // numbers have a fixed point, and are plain integers in bits.
  XENT_LANE Real times(Real factor) const {
    using E = Exp<Real>;
    using Int = typename E::Int;
    constexpr int lift = 32, exponents = 2 * E::bias + 1;
    const Int of_factor = ((bits<Int>(factor) >> E::mantissa) & exponents) - E::bias;
    const Int nothing = -(E::bias + E::mantissa + 3) - of_factor;  // for this k and below it is 0
    const Int wanted = Int(bits<typename E::UInt>(biased) - bits<typename E::UInt>(E::magic));
    const Int k = wanted > nothing ? wanted : nothing, half = k >> 1;
    const Real product = mantissa * factor * exact_power<Real>(half);
    const Real lifted = product * exact_power<Real>(k - half + lift);
    const Real smallest = exact_power<Real>(1 - E::bias + lift);  // of the normal ones
    const Int sign = bits<Int>(lifted) & bits<Int>(Real(-0.0));
    const Real size = bits<Real>(Int(bits<Int>(lifted) ^ sign));
    const Int subnormal = size < smallest ? -1 : 0;  // a mask; a choice would be computed both ways
    const Int fixed = (bits<Int>(size + smallest) - bits<Int>(smallest)) | sign;
    const Real kept = bits<Real>(Int(bits<Int>(product) & ~subnormal));
    const Real normal = kept * exact_power<Real>(k - half);
    return bits<Real>(Int(bits<Int>(normal) | (fixed & subnormal)));
  }
};

template <class Real>
XENT_LANE Power<Real> exponential(Real x) {
  using E = Exp<Real>;
  const Real biased = fused(x, E::log2e, E::magic);
  const Real f = fused(x, E::log2e_low, fused(x, E::log2e, E::magic - biased));
  return {polynomial(f, E::power), biased};
}

// e^x for x <= 0; below the normal numbers it stays at the smallest of them.
template <class Real>
XENT_LANE Real exp_clamped(Real x) {
  constexpr Real low = Exp<Real>::lowest / Exp<Real>::log2e;
  return exponential(low > x ? low : x).value();
}

// factor * e^x where neither overflows, right for subnormal results, too; 0 for x = -inf and every
// factor. The maximum is written as `low > x ? low : x`. Compilers would drop `x < low ? low : x`,
// because the result is masked by x < low, and would compute with an x that is too low.
template <class Real>
XENT_LANE Real exp_scaled(Real x, Real factor) {
  constexpr Real low = Exp<Real>::vanished / Exp<Real>::log2e;
  const Real value = exponential(low > x ? low : x).times(factor);
  return x < low ? Real(0) : value;
}

// The shift of a row's exponentials. With shift = exponent / log2(e) for an integer exponent,
// e^(z - shift) = 2^(z log2(e) - exponent) needs no subtraction, which would round. Nor does it
// need the second part of log2(e), which would scale the row as a whole and change it by 1e-8 per
// nat below the shift. That saves a quarter of the work per class. Where logits are large, `offset`
// is subtracted first. So it is in float64, whose digits would show the rounding of the shift.
template <class Real>
struct Base {
  double shift;
  Real offset, exponent;

  // The base whose shift is nearest to `wanted`, or `wanted` itself if it must be exact.
  XENT_LANE explicit Base(double wanted, bool exact = sizeof(Real) == 8) {
    constexpr double far = 0x1p20, log2e = double(Exp<Real>::log2e), magic = Exp<double>::magic;
    const bool near = (!exact && sizeof(Real) < 8) & ((wanted < 0 ? -wanted : wanted) < far);
    const double nearest = (wanted * log2e + magic) - magic;
    exponent = near ? Real(nearest) : Real(0);
    offset = (near | (wanted == -__builtin_huge_val())) ? Real(0) : Real(wanted);
    shift = near ? nearest / log2e : double(Real(wanted));
  }

  // The exponent; NaN if the exponentials are not relative to a power of two.
  XENT_LANE Real exponent_or_nan() const {
    return offset == 0 ? exponent : Real(__builtin_nan(""));
  }
  XENT_LANE Real magic() const { return Exp<Real>::magic - exponent; }
  // The logit, less the offset, whose exponential is 2^k.
  XENT_LANE Real logit_of(int k) const { return (exponent + Real(k)) / Exp<Real>::log2e; }
  XENT_LANE Real lowest() const { return logit_of(Exp<Real>::lowest); }
  XENT_LANE Real vanished() const { return logit_of(Exp<Real>::vanished); }
  // The lowest logit for which Power::times_normal(factor) is right; +inf if it never is.
  XENT_LANE Real normal_floor(Real factor) const {
    using E = Exp<Real>;
    using Int = typename E::Int;
    const int of_factor = int((bits<Int>(factor) >> E::mantissa) & (2 * E::bias + 1));
    const bool normal = (of_factor > 1) & (of_factor < 2 * E::bias);
    const Real floor = logit_of(2 - of_factor > E::lowest ? 2 - of_factor : E::lowest);
    return normal ? floor : Real(__builtin_huge_val());
  }
};

// e^(z - shift) for the base with this magic, z being less its offset.
template <class Real>
XENT_LANE Power<Real> exponential(Real z, Real magic) {
  using E = Exp<Real>;
  const Real biased = fused(z, E::log2e, magic);
  return {polynomial(fused(z, E::log2e, magic - biased), E::power), biased};
}

// tanh: an odd minimax polynomial near 0, where 1 - e^-2a would cancel, the exponential beyond.
// clang-format off
constexpr float kTanhTailF[] = {-0.3333333089354224f, 0.1333320921396320f, -0.0539471308563843f,
                                0.0217025453461810f,  -0.0081815862462787f, 0.0021465029921655f};
constexpr double kTanhTailD[] = {
    -0.33333333333333313543,    0.1333333333332984983,      -5.3968253966113112822e-2,
    2.1869488470079612179e-2,   -8.8632343324833989e-3,     3.5921141822323457262e-3,
    -1.4557270412743500783e-3,  5.8945615290827820994e-4,   -2.37023148695355009e-4,
    9.1577356076563475166e-5,   -3.020523896938559647e-5,   6.0499526823748638534e-6};
// clang-format on
XENT_LANE float tanh_tail(float u) { return polynomial(u, kTanhTailF); }
XENT_LANE double tanh_tail(double u) { return polynomial(u, kTanhTailD); }
template <class Real>
XENT_LANE Real tanh_lane(Real x) {
  const Real a = x < 0 ? -x : x;
  const Real u = x * x;
  const Real near_zero = fused(x * u, tanh_tail(u), x);
  const Real e = exp_clamped(Real(-2) * a);
  const Real beyond = (Real(1) - e) / (Real(1) + e);
  return a < Real(0.625) ? near_zero : (x < 0 ? -beyond : beyond);
}

constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
// clang-format off
constexpr double kLogTail[] = {0.6666666666666734514, 0.39999999999413938364,
                               0.28571428742566592859, 0.2222219855339807394,
                               0.18183565425232764437, 0.15314020692657148034,
                               0.14796265218331786987};
// clang-format on

// log(x) = k ln(2) + log(1 + f) with 1 + f in [sqrt(1/2), sqrt(2)) and
// log(1 + f) = f - s (f - R(s^2)), s = f / (2 + f); R a minimax fit, error 2e-18.
// For normal numbers and 0. Infinity and NaN are returned as they are.
XENT_LANE double log_lane(double x) {
  constexpr uint64_t half_root = 0x3fe6a09e667f3bcd;  // the bits of sqrt(1/2)
  constexpr uint64_t offset = uint64_t{2048} << 52;   // keeps the shift among positive numbers
  const uint64_t u = bits<uint64_t>(x) - half_root;
  const uint64_t exponent = ((u + offset) >> 52) - 2048;
  const double k = bits<double>(exponent + bits<uint64_t>(Exp<double>::magic)) - Exp<double>::magic;
  const double f = bits<double>((u & 0x000fffffffffffff) + half_root) - 1.0;
  const double s = f / (2.0 + f), z = s * s;
  const double tail = z * polynomial(z, kLogTail);
  const double square = 0.5 * f * f;
  const double small = fused(s, square + tail, k * kLn2Low);
  const double value = fused(k, kLn2High, f - (square - small));
  const double finite = x < __builtin_huge_val() ? value : x;
  const double nothing = x == 0 ? -__builtin_huge_val() : x;
  return x > 0 ? finite : nothing;  // one condition at a time, or it is not vectorised
}

// log(1 + u) for 0 <= u < 2^53. What 1 + u rounds away is added to first order.
XENT_LANE double log1p_lane(double u) {
  const double sum = 1.0 + u;
  return log_lane(sum) + (u - (sum - 1.0)) / sum;
}

// log(1 + e^-|d|), the part that log sigmoid(d) and log sigmoid(-d) share.
XENT_LANE double overlap_lane(double d) { return log1p_lane(exp_scaled(d < 0 ? d : -d, 1.0)); }

// What a - b = difference has rounded away, exactly (Knuth); 0 where the difference is infinite.
XENT_LANE double lost_in_difference(double a, double b, double difference) {
  const double minus_b = difference - a;
  const double lost = (a - (difference - minus_b)) - (b + minus_b);
  return lost - lost == 0 ? lost : 0.0;
}

// 1 - e^-x for x >= 0, computed from tanh, so that nothing cancels near 0.
XENT_LANE double one_minus_exp(double x) {
  const double t = tanh_lane(0.5 * x);
  return 2.0 * t / (1.0 + t);
}

}  // namespace
