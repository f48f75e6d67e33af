// Arguments and results of the kernel of a loss. A program computes the value of a row from its
// statistics. So one call finds loss and gradient, strip by strip while the strip is in the cache:
//
//   sweep of the logits -> fields -> program -> value -> program backwards -> partial derivatives
//   -> sweep of the logits -> gradient
#pragma once

#include "operations.h"
#include "rows.h"

namespace xent {

struct Loss {
  Problem problem;  // gradient.data is null if no gradient is wanted; its tables are not used
  uint32_t fields;  // the statistics to compute, as bits in the order of the struct

  const Instruction* program;  // the last one is the value of the row
  int length;
  const PerRow* inputs;      // numbers of the row that the program reads besides the statistics
  const double* row_weight;  // one per row, or null: 1. Rows of weight 0 are left out
  double seed;               // d loss / d (value of a row times its weight)
  double* values;            // results: the value of every row, times its weight
};

}  // namespace xent
