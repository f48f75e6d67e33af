// Arguments and results of the kernel pair: the contract between the kernels (rows.cpp, compiled
// once per instruction set) and their callers (module.cpp, loss_binding.cpp). It has only plain
// structs and pointers, and nothing of torch, Python or the C++ standard library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xent {

enum class Type : int { f32, f64, bf16, f16 };

// The bytes of a number. `static`, because kernels of different instruction sets must not share the
// function.
static inline int64_t size_of(Type type) {
  return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2;
}

// N rows of V numbers in memory. Row n lies at (n / inner) * outer_stride + (n % inner) *
// inner_stride elements, so that classes on a middle axis, (N, C, d), need no copy.
struct Matrix {
  void* data;
  Type type;
  int64_t inner;
  int64_t outer_stride;
  int64_t inner_stride;
  int64_t class_stride;
};

// The table of statistics: one float64 per row and field. A field that is null is not computed.
// The pivot is the class left out of the sum: the class of an index target, or the largest class of
// a soft target. `sum` is the sum of exp(z_j - shift) over every other class.
struct Statistics {
  double* shift;
  double* sum;
  double* log_odds;
  double* log_prob;
  double* target;
  double* lse;
  double* mass;  // the class weight of the target, or the sum of the soft target
  double* top;   // the class of the largest logit
  double* top_logit;
  double* pivot_log_odds;  // under a soft target: the log-odds of the pivot
  double* entropy;
  double* log_sum;  // log(sum), with digits that a `sum` near 1 lacks
  double* mean;
  double* support;    // number of classes that are not masked by -inf
  double* mean_mass;  // the sum of the weights in `mean`, divided by the support
  double* rest_top;   // under an index target: the class of the largest logit of the rest
  double* rest_top_logit;
  double* rest_squares;  // sums of squared and of cubed probabilities, over the rest
  double* rest_cubes;
};
constexpr int kFields = sizeof(Statistics) / sizeof(double*);

// Pointers to the fields of a table that has only those whose bits are set, `rows` numbers each;
// null for the others. The order is that of row_statistics.FIELDS.
static inline Statistics statistics_in(double* table, int64_t rows, uint32_t fields) {
  double* field[kFields];
  for (int k = 0; k < kFields; ++k) {
    const bool wanted = fields >> k & 1;
    field[k] = wanted ? table : nullptr;
    table += wanted ? rows : 0;
  }
  Statistics statistics;
  static_assert(sizeof statistics == sizeof field, "one pointer per field");
  __builtin_memcpy(&statistics, field, sizeof field);
  return statistics;
}

// One float64 per row (step 1), or one for all rows (step 0).
struct PerRow {
  const double* at;
  int64_t step;
};

// The statistics by which a loss has a derivative.
#define XENT_DIFFERENTIABLE(each)                                               \
  each(log_odds) each(log_prob) each(target) each(lse) each(entropy) each(mean) \
      each(rest_top_logit) each(rest_squares) each(rest_cubes)
#define XENT_FIELD(name) (offsetof(Statistics, name) / sizeof(double*))

// d loss / d statistic; null stands for zero.
struct Partials {
#define XENT_MEMBER(name) PerRow name;
  XENT_DIFFERENTIABLE(XENT_MEMBER)
#undef XENT_MEMBER
};

// The partial derivatives, chosen from one entry for each field.
static inline Partials partials_of(const PerRow* field) {
#define XENT_PARTIAL(name) field[XENT_FIELD(name)],
  return {XENT_DIFFERENTIABLE(XENT_PARTIAL)};
#undef XENT_PARTIAL
}

static inline bool is_differentiable(int field) {
#define XENT_BIT(name) | uint32_t{1} << XENT_FIELD(name)
  return (0 XENT_DIFFERENTIABLE(XENT_BIT)) >> field & 1;
#undef XENT_BIT
}

// Numbers beyond the last class that a sweep may read, because it reads whole vectors.
constexpr int kBeyond = 32;

struct Problem {
  Matrix logits;
  int64_t rows;
  int64_t classes;

  // z = softcap * tanh(scale * x / softcap) * class_scale + class_bias
  const double* scale;      // null: 1
  int64_t scale_step;       // 1: one per row, 0: one for all
  double softcap;           // 0: none
  const void* class_scale;  // V positive numbers of the sweep's type, then kBeyond 0s; null: 1
  const void* class_bias;   // V numbers of the sweep's type, or null

  const int64_t* labels;  // a class per row; null for a soft target
  int64_t ignore_index;
  int64_t first_class;       // the number of the first class of these logits
  bool sharded;              // labels of other shards are no errors: such rows have no pivot
  Matrix soft;               // soft targets: a row each or, with labels, a row per label; or null
  const void* class_weight;  // V numbers of the sweep's type; null: 1
  const void* mean_weight;   // weights in `mean`: V such numbers, then kBeyond 0s; null: 1

  Statistics statistics;
  Partials partials;
  Matrix gradient;
  bool streams;  // true if the gradient is stored past the caches

  // Results, gathered over all threads.
  int64_t kept;       // number of rows that are not ignored
  int64_t bad_label;  // a label outside [0, V) that is not ignore_index
  bool has_bad_label;
};

struct Elements;  // elements.h
struct Dense;     // dense.h
struct Loss;      // loss.h

// The kernels of one instruction set. Each works on the rows [begin, end) of a problem. The result
// of a row does not depend on other rows, so any split of the rows over calls and threads gives the
// same bits.
struct Kernels {
  const char* name;
  void (*row_statistics)(Problem&, int64_t begin, int64_t end);
  void (*row_gradient)(const Problem&, int64_t begin, int64_t end);
  void (*loss)(const Loss&, int64_t begin, int64_t end);
  void (*elements)(Elements&, int64_t begin, int64_t end);  // blocks of elements
  bool (*dense)(const Dense&, int64_t begin, int64_t end);  // rows of a dense loss
  bool (*scale)(void* data, Type, int64_t begin, int64_t end, int exponent, bool unchecked);
};

extern const Kernels baseline_kernels;
#ifdef XENT_X86_VARIANTS
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

}  // namespace xent
