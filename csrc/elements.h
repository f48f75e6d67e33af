// Arguments and results of the element-wise kernel: losses of single logits with a target in [0, 1]
// each. The kernel is compiled once per instruction set, as those of rows.h.
#pragma once

#include "rows.h"

namespace xent {

// A tensor that broadcasts: element i of the problem is data[i / repeat % period].
struct Operand {
  const void* data;
  Type type;
  int64_t repeat, period;
  bool is_one = false;  // a single 1 for all elements
};

// The memory of results, one per element; null: not wanted.
struct Output {
  void* data;
  Type type;
};

// For a logit z with p = sigmoid(z), q = 1 - p and its target t:
//
//   weight share |t q + side (1 - t) p|^gamma
//          (pos_weight t softplus(-z) + (1 - t) softplus(z))
//
// where share = positive t + negative (1 - t). Targets above `plain_above` have the share t and no
// power. With a margin, r = max(p - margin, 0) takes the place of p in the terms of 1 - t, and
// gamma is gamma t + gamma_negative (1 - t). With `excess` there is only the weight, and the
// entropy of t is subtracted: weight (t log(t / p) + (1 - t) log((1 - t) / q)).
struct Elements {
  int64_t count;
  Operand logits, target, weight, pos_weight;
  double positive, negative, gamma, side, plain_above;
  double gamma_negative, margin;  // a margin below 0 stands for none
  bool detached;                  // with a margin: the gradient takes the power for a constant
  bool excess;
  double ignored;    // a target that marks elements to leave out, or NaN
  double smoothing;  // the part of its distance to 1/2 that each target moves first

  double* sums;  // sums of the values, one per block; null: not wanted
  Output values;
  Output gradient;
  Operand upstream;  // the gradient is multiplied by this
  double scale;      // and by this number
  bool streams;      // true if the gradient is stored past the caches

  // Results, gathered over all threads.
  double bad_target;  // a target outside [0, 1]
  bool has_bad_target;
};

constexpr int64_t kElementBlock = 2048;  // elements in one partial sum, for any number of threads

// The kernel of each instruction set, for the blocks [begin, end) of a problem.
namespace baseline {
void sweep_elements(Elements&, int64_t begin, int64_t end);
}
namespace avx2 {
void sweep_elements(Elements&, int64_t begin, int64_t end);
}
namespace avx512 {
void sweep_elements(Elements&, int64_t begin, int64_t end);
}

}  // namespace xent
