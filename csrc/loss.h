// What the kernel of a loss is told and what it answers. The value of a row is a program on the
// row's statistics; so loss and gradient take one call, strip by strip while the strip is in the
// cache:
//
//   sweep of the logits -> fields -> program -> value -> program backwards -> partial derivatives
//   -> sweep of the logits -> gradient
#pragma once

#include "operations.h"
#include "rows.h"

namespace xent {

struct Loss {
  Problem problem;  // without a gradient where nobody wants one; its tables are not used
  uint32_t fields;  // the statistics to compute, as bits in the order of the struct

  const Instruction* program;  // the last one is the value of the row
  int length;
  const PerRow* inputs;      // what the program takes beside the statistics
  const double* row_weight;  // one per row, or null: 1. Rows of weight 0 are left out
  double seed;               // d loss / d (value of a row times its weight)
  double* values;            // of every row, times its weight
};

}  // namespace xent
