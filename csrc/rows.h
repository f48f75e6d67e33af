// What the kernel pair is told and what it answers: the contract between the kernels (rows.cpp,
// compiled once per instruction set) and everyone who calls them (module.cpp).
// No torch, no Python, no C++ standard library: only plain structs and pointers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xent {

enum class Type : int { f32, f64, bf16, f16 };

// `static`: kernels of different instruction sets must not share it.
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

// One float64 per row and field; a field that is null is not computed.
// The pivot is the class left out of the sum: the target class of an index target, the largest
// class of a soft one. (shift, sum) is the sum of exp(z_j - shift) over every other class.
struct Statistics {
  double* shift;
  double* sum;
  double* log_odds;
  double* log_prob;
  double* target;
  double* lse;
  double* mass;  // the row's weight: of its target class, or the sum of its soft target
  double* top;   // the class of the largest logit
  double* top_logit;
  double* pivot_log_odds;  // of the pivot of a soft target
  double* entropy;
  double* log_sum;  // what the gradient of the entropy needs, where `sum` is 1 and a little
  double* mean;
  double* support;    // how many classes are not masked by -inf
  double* mean_mass;  // what the coefficients of `mean` sum to
  double* rest_top;   // of an index target: the class of the largest logit but the pivot's
  double* rest_top_logit;
  double* rest_squares;  // sums of squared and cubed probabilities
  double* rest_cubes;
};
constexpr int kFields = sizeof(Statistics) / sizeof(double*);

// The fields whose bits are set, one after the other in a table of `rows` each; else null.
// The order is that of row_statistics.FIELDS.
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

// float64 per row, or one for all of them (step 0).
struct PerRow {
  const double* at;
  int64_t step;
};

// The statistics that have a derivative.
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

// Out of one for each field.
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

// How far beyond the last class the sweeps look, which go by whole vectors.
constexpr int kBeyond = 32;

struct Problem {
  Matrix logits;
  int64_t rows;
  int64_t classes;

  // z = softcap * tanh(scale * x / softcap) * class_scale + class_bias
  const double* scale;      // null: 1
  int64_t scale_step;       // 1: one per row, 0: one for all
  double softcap;           // 0: none
  const void* class_scale;  // V positive numbers of the sweep's type and kBeyond 0s, or null: 1
  const void* class_bias;   // V numbers of the sweep's type, or null

  const int64_t* labels;  // the target's classes, or null for a soft target
  int64_t ignore_index;
  int64_t first_class;       // the number of the first class here
  bool sharded;              // labels of other shards are not errors: their rows have no pivot
  Matrix soft;               // a row each; with labels a table of a row for each class; or null
  const void* class_weight;  // V numbers of the sweep's type, or null: 1
  const void* mean_weight;   // what `mean` weighs them by: likewise, and kBeyond 0s

  Statistics statistics;
  Partials partials;
  Matrix gradient;
  bool streams;  // past the caches

  // Answers, gathered over all threads.
  int64_t kept;       // rows that are not ignored
  int64_t bad_label;  // a label outside [0, V) that is not ignore_index
  bool has_bad_label;
};

struct Elements;  // elements.h
struct Loss;      // loss.h

// Rows [begin, end) of a problem. Row-wise work never looks at another row, so any split of the
// rows over calls and threads gives the same bits.
struct Kernels {
  const char* name;
  void (*row_statistics)(Problem&, int64_t begin, int64_t end);
  void (*row_gradient)(const Problem&, int64_t begin, int64_t end);
  void (*loss)(const Loss&, int64_t begin, int64_t end);
  void (*elements)(Elements&, int64_t begin, int64_t end);  // blocks of them
  bool (*scale)(void* data, Type, int64_t begin, int64_t end, int exponent, bool unchecked);
};

extern const Kernels baseline_kernels;
#ifdef XENT_X86_VARIANTS
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

}  // namespace xent
