// Adds one class to the sums of its row.
#pragma once

#include "layouts.h"
#include "terms.h"

namespace {

// How a row is added up. The quick way is wrong where classes are masked. The careful way counts
// classes at the shift instead of adding their exponentials, so that the others keep their digits.
enum class Way { quick, checks_masks, careful };

// The places of the sums of a set of terms among the accumulators.
template <unsigned set>
struct Places {
  static constexpr int sum = 0;           // of exponentials
  static constexpr int spread = sum + 1;  // of (shift - z) e^(z - shift), for the entropy
  static constexpr int squares = spread + bool(set & kEntropy);
  static constexpr int cubes = squares + bool(set & kSquares);
  static constexpr int weighted_sum = cubes + bool(set & kCubes);  // of c_j (z_j - offset)
  static constexpr int weight = weighted_sum + bool(set & kMean);  // of c_j
  static constexpr int mass = weight + bool(set & kWeights);       // of q_j
  static constexpr int deficit = mass + bool(set & kSoft);         // of q_j (shift - z_j)
  static constexpr int quick_count = deficit + bool(set & kSoft);
  static constexpr int support = quick_count;  // number of classes that are not masked
  static constexpr int ties = support + 1;     // number of classes at the shift
  static constexpr int count(Way way) {
    return quick_count + (way != Way::quick) + (way == Way::careful);
  }
};

// True if sums have terms of z - shift, which must then be exact.
constexpr bool exact_sums(unsigned set) { return set & (kMean | kEntropy | kSoft); }

// Adds a class of a row to its sums. `class_step` is that of the soft targets.
template <unsigned set, Way way, int class_step, class Real>
struct Adder {
  Real offset, magic, low;
  const Real *weight, *soft;

  template <class Sums>
  XENT_LANE void operator()(Real z, int j, Sums sum) const {
    using At = Places<set>;
    const Real x = exact_sums(set) ? z - offset : z;
    if constexpr (way == Way::careful) {
      const bool vanishes = x < low;
      const Real y = low > x ? low : x, power = exponential(y, magic).times(Real(1));
      const Real e = vanishes ? Real(0) : power;
      sum(At::sum) += x == 0 ? Real(0) : e;
      sum(At::ties) += x == 0 ? Real(1) : Real(0);
      add_more(y, e, sum);
    } else {
      const Real y = low > x ? low : x;
      const Power<Real> power = exponential(y, magic);
      if constexpr (set & (kEntropy | kPowers)) {
        sum(At::sum) += power.value();
        add_more(y, power.value(), sum);
      } else {
        sum(At::sum) = power.added_to(sum(At::sum));
      }
    }
    const bool out = way != Way::quick && z == Real(-kInfinity);
    if constexpr (set & kWeights) {
      const Real c = out ? Real(0) : weight[j];
      sum(At::weight) += c;
      sum(At::weighted_sum) += out ? Real(0) : c * x;
    } else if constexpr (set & kMean) {
      sum(At::weighted_sum) += out ? Real(0) : x;
    }
    if constexpr (way != Way::quick) sum(At::support) += out ? Real(0) : Real(1);
    if constexpr (set & kSoft) {
      const Real q = soft[j * class_step];
      sum(At::mass) += q;
      sum(At::deficit) += way != Way::quick && q == 0 ? Real(0) : -x * q;
    }
  }

  template <class Sums>
  XENT_LANE void add_more(Real y, Real e, Sums sum) const {
    using At = Places<set>;
    if constexpr (set & kEntropy) sum(At::spread) = fused(-y, e, sum(At::spread));
    constexpr Real faint = Real(0x1p-41);  // its powers are lost beside the 1 of the largest logit
    const Real f = is_all(set) && faint > e ? faint : e;
    if constexpr (set & kSquares) sum(At::squares) = fused(f, f, sum(At::squares));
    if constexpr (set & kCubes) sum(At::cubes) = fused(f * f, f, sum(At::cubes));
  }
};

// Adds the exponential of a class to the sum, and stores it in the place of the logit.
template <class Real>
struct Keeper {
  Real magic, low;

  template <class Sums>
  XENT_LANE void operator()(Real& z, int, Sums sum) const {
    const Real y = low > z ? low : z;
    z = exponential(y, magic).value();
    sum(0) += z;
  }
};

}  // namespace
