// Tsallis' exponential exp_t(x) = [1 + (1 - t) x]_+^(1 / (1 - t)) for x <= 0, and what losses need
// of it. With the base u = 1 + (1 - t) x, a probability is p = u^n for n = 1 / (1 - t).
//
// Where n is a small whole number a power is a few products: sparsemax (n = 1), entmax of 1.5 (2),
// a temperature of 1.2 (-5). All others take a logarithm and an exponential, which is ten times as
// slow.
#pragma once

#include "elementary.h"

namespace {

// The temperatures of a loss: t1 of its logarithm, t2 of its exponential.
struct Temperatures {
  double t2, c, gamma, beta;  // c = 1 - t2, gamma = 1 - t1, beta = 2 - t1

  Temperatures(double t1, double t2) : t2(t2), c(1 - t2), gamma(1 - t1), beta(2 - t1) {}

  // Logits further than this below the largest have probability 0.
  double reach() const { return t2 < 1 ? 1 / c : __builtin_huge_val(); }

  double base(double x) const { return t2 == 1 ? 1.0 : 1.0 + c * x; }
  // log(exp_t(x)) for the temperature t2
  double log_exp(double x) const {
    if (t2 == 1) return x;
    return c * x <= -1 ? -__builtin_huge_val() : log1p_of(c * x) / c;
  }

  // True if p = u^n and p^gamma = u^m, up to the rounding of the temperatures.
  bool are_powers(int n, int m) const {
    const auto near = [](double x, double whole) { return __builtin_fabs(x - whole) < 1e-14; };
    return c != 0 && near(1 / c, n) && near(gamma / c, m);
  }
};

// Of one class, whose logit is x above the normaliser: the probability p, its derivative p^t2, and
// p^gamma.
struct ClassPowers {
  double p, slope, gain;
};

// log_t(s) / (d log_t(s) / d s) for s = 1 + excess
double rise_of(double excess, double c) {
  return (1.0 + excess) * expm1_of(-c * log1p_of(excess)) / -c;
}

template <int k>
XENT_LANE double whole_power(double x) {
  if constexpr (k == 0)
    return 1.0;
  else if constexpr (k % 2 == 0)
    return whole_power<k / 2>(x * x);
  else
    return x * whole_power<k - 1>(x);
}

// p = u^n and p^gamma = u^m for whole numbers of the same sign. `exp_less_1` is exp_t(x) - 1, which
// keeps its digits near 0.
template <int n, int m>
struct WholePowers {
  static constexpr bool heavy = n < 0;  // t2 > 1
  double c, gamma;

  explicit WholePowers(const Temperatures& t) : c(t.c), gamma(t.gamma) {}

  XENT_LANE ClassPowers operator()(double x) const {
    const double u = 1.0 + c * x;
    if constexpr (heavy) {
      const double v = 1.0 / u, p = whole_power<-n>(v);
      return {p, p * v, whole_power<-m>(v)};
    } else {
      const double v = u > 0 ? u : 0.0;
      const double slope = n == 1 ? (u > 0 ? 1.0 : 0.0) : whole_power<n - 1>(v);
      return {slope * v, slope, whole_power<m>(v)};
    }
  }

  double exp_less_1(double x) const {
    const double v = c * x;
    if (n == 1) return v;
    if (n == 2) return v * (2.0 + v);
    return expm1_of(log1p_of(v) / c);
  }
  double rise(double excess) const {
    if (n == 1) return excess;
    if (n != 2) return rise_of(excess, c);
    const double root = __builtin_sqrt(1.0 + excess);
    return 2.0 * root * excess / (1.0 + root);
  }
};

// e^x for x of at most 700, and 0 where that is below the normal numbers.
XENT_LANE double exp_or_zero(double x) {
  constexpr double low = -700;
  const double value = exponential(low > x ? low : x).value();
  return x < low ? 0.0 : value;
}

struct AnyPowers {
  double t2, c, inverse, gamma;  // inverse = 1 / c

  explicit AnyPowers(const Temperatures& t)
      : t2(t.t2), c(t.c), inverse(t.c == 0 ? 0.0 : 1 / t.c), gamma(t.gamma) {}

  XENT_LANE ClassPowers operator()(double x) const {
    const double scaled = c * x, u = 1.0 + scaled;
    const bool possible = (u > 0) & (u < __builtin_huge_val());
    const double v = possible ? u : 1.0, part = 1.0 / v;
    const double lost = (possible ? scaled : 0.0) - (v - 1.0);  // what 1 + scaled has rounded away
    const double log_v = log_lane(v) + lost * part;
    const double log_p = c == 0 ? x : log_v * inverse, p = exp_or_zero(log_p);
    const double gain = gamma == 0 ? 1.0 : exp_or_zero(gamma * log_p);
    return {possible ? p : 0.0, possible ? p * part : 0.0, (possible | (gamma == 0)) ? gain : 0.0};
  }

  double exp_less_1(double x) const { return expm1_of(t2 == 1 ? x : log1p_of(c * x) / c); }
  double rise(double excess) const { return rise_of(excess, c); }
};

// The Bregman divergence of a prediction from a class with the log-probability `log_p`, without the
// part of the other classes:
//
//   (1 - p^gamma) / gamma - (1 - p^beta) / beta
//
// Near p = 1 the two nearly cancel, so a series in log p takes their place.
class ClassDivergence {
 public:
  explicit ClassDivergence(const Temperatures& t) : beta_(t.beta), gamma_(t.gamma) {
    double b = beta_, g = gamma_, factorial = 2;
    for (int k = 0; k < kTerms; ++k) {
      coefficient_[k] = (b - g) / factorial;
      b *= beta_, g *= gamma_, factorial *= k + 3;
    }
  }

  double of(double log_p) const {
    if (__builtin_fabs(beta_ * log_p) < 0.5) return log_p * log_p * polynomial(log_p, coefficient_);
    const double lost = gamma_ == 0 ? log_p : expm1_of(gamma_ * log_p) / gamma_;
    return expm1_of(beta_ * log_p) / beta_ - lost;
  }

 private:
  static constexpr int kTerms = 15;
  double beta_, gamma_, coefficient_[kTerms];
};

}  // namespace
