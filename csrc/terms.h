// What a loss may ask for beside the sum of exponentials. A sweep is compiled for the sets of these
// that are common and for one that holds them all, so that nobody pays for what others ask for.
#pragma once

namespace {

enum Term : unsigned {
  kPlain = 0,
  kMean = 1,     // the mean logit
  kWeights = 2,  // of the classes in that mean
  kEntropy = 4,
  kSquares = 8,  // of the exponentials
  kCubes = 16,
  kSoft = 32,       // a soft target
  kTransform = 64,  // gradient: what the last step of the chain rule multiplies it by
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

// The sets that are compiled, beside those of everything.
template <unsigned... sets>
struct Compiled {
  // The smallest that holds what is wanted.
  static unsigned find(unsigned wanted) {
    const bool known = ((wanted == sets) || ...);
    return known ? wanted : all_of(wanted);
  }

  // visit(Constant<set>)
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
