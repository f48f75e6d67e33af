// What the element-wise kernel is told and what it answers: losses of a number in [0, 1] for every
// logit. Compiled once per instruction set, as the kernels of rows.h.
#pragma once

#include "rows.h"

namespace xent {

// A tensor that broadcasts: element i of the problem is data[i / repeat % period].
struct Operand {
  const void* data;
  Type type;
  int64_t repeat, period;
};

// Where results go, one per element; null: not wanted.
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
// gamma is gamma t + gamma_negative (1 - t).
struct Elements {
  int64_t count;
  Operand logits, target, weight, pos_weight;
  double positive, negative, gamma, side, plain_above;
  double gamma_negative, margin;  // a margin below 0 is none
  bool detached;                  // with a margin: the power counts as a constant in the gradient
  double ignored;                 // a target that marks elements to leave out, or NaN

  double* sums;  // of the values, one per block; null: not wanted
  Output values;
  Output gradient;
  Operand upstream;  // what the gradient is multiplied by, and
  double scale;      // this too
  bool streams;      // the gradient, past the caches

  // Answers, gathered over all threads.
  double bad_target;  // one outside [0, 1]
  bool has_bad_target;
};

constexpr int64_t kElementBlock = 2048;  // elements added up in one sum, whatever the threads

// Blocks [begin, end) of a problem, by the instruction set of this name.
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
