// Arguments and results of the kernels of dense losses: losses that need all logits of a row,
// because no few statistics suffice. Each kind of loss has one value per row, its gradient by the
// logits, and by the logits of a teacher where there is one. The kernels are compiled once per
// instruction set, as those of rows.h.
#pragma once

#include "rows.h"

namespace xent {

// The kinds of losses, in the order of engines/dense/problem.py: KINDS. The numbers of a divergence
// are the inverse of the temperature and the share of the teacher in the mixture. Those of the last
// two kinds are the temperatures of the logarithm and of the softmax.
enum class DenseKind : int { forward, reverse, jensen_shannon, fenchel_young, bi_tempered };

constexpr int kDenseNumbers = 4;

struct Dense {
  int64_t rows, classes;
  Matrix logits;
  Matrix teacher;         // for divergences
  const int64_t* labels;  // the class of each row, for the other kinds; null for divergences
  int64_t ignore_index;
  const double* row_weight;  // one per row, or null: 1. Rows of weight 0 are left out, not read

  DenseKind kind;
  double number[kDenseNumbers];  // of the loss
  double scale;                  // a factor on every value
  double seed;                   // d loss / d (value times scale times weight)

  double* values;           // results: the value of every row, times scale and weight
  Matrix gradient;          // by the logits; data is null if it is not wanted
  Matrix teacher_gradient;  // likewise
  bool streams;             // true if gradients are stored past the caches

  bool leaves_out(int64_t row) const {
    return (labels && labels[row] == ignore_index) || (row_weight && row_weight[row] == 0);
  }
  double weight(int64_t row) const { return row_weight ? scale * row_weight[row] : scale; }
};

// The kernel of each instruction set, for the rows [begin, end) of a problem. Labels have been
// checked. Returns false if there is not enough memory for the numbers of a row.
namespace baseline {
bool sweep_dense(const Dense&, int64_t begin, int64_t end);
}
namespace avx2 {
bool sweep_dense(const Dense&, int64_t begin, int64_t end);
}
namespace avx512 {
bool sweep_dense(const Dense&, int64_t begin, int64_t end);
}

}  // namespace xent
