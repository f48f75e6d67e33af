// The terms that a loss may ask for, besides the sum of exponentials. A sweep is compiled for the
// common sets of terms and for one that has them all. So a common loss takes no time for terms that
// other losses need.
#pragma once

namespace {

enum Term : unsigned {
  kPlain = 0,
  kMean = 1,     // the mean logit
  kWeights = 2,  // weights of the classes in that mean
  kEntropy = 4,
  kSquares = 8,  // squares and cubes of the exponentials
  kCubes = 16,
  kSoft = 32,       // a soft target
  kTransform = 64,  // gradient only: the derivative of the softcap and the class scale
};
constexpr unsigned kPowers = kSquares | kCubes;
constexpr unsigned kAnyIndex = kMean | kWeights | kEntropy | kPowers;
constexpr unsigned kAnySoft = kMean | kWeights | kEntropy | kSoft;
constexpr unsigned all_of(unsigned wanted) { return wanted & kSoft ? kAnySoft : kAnyIndex; }
constexpr bool is_all(unsigned set) { return set == kAnyIndex || set == kAnySoft; }

template <unsigned n>
struct Constant {
  static constexpr unsigned value = n;
};

// The sets that are compiled, besides the two that have all terms.
template <unsigned... sets>
struct Compiled {
  // The smallest compiled set that has the wanted terms.
  static unsigned find(unsigned wanted) {
    const bool known = ((wanted == sets) || ...);
    return known ? wanted : all_of(wanted);
  }

  // Calls visit(Constant<set>()).
  template <class Visit>
  static void with(unsigned set, Visit visit) {
    const auto visit_if = [&](auto one) {
      if (set == one.value) visit(one);
    };
    (visit_if(Constant<sets>()), ...);
    visit_if(Constant<kAnyIndex>());
    visit_if(Constant<kAnySoft>());
  }
};

}  // namespace
