// The kernel pair: statistics of rows, and their gradient. This source is compiled once per
// instruction set (CMakeLists.txt). It is plain loops over blocks that stay in the first-level
// cache:
//
//   statistics:  load a block and find its largest logits -> take the pivot out
//                -> add the rest to the running sums
//   gradient:    load a block and find its smallest logits -> one exp per class
//                -> put the pivot in -> store
//
// Loading (blocks.h) converts to the type of the sweep and applies the transform, for all strides.
// So every dtype, layout and transform shares the loops that follow. Sums run over lanes in a fixed
// order and are added up per block in float64: the bits depend on the row alone.
//
//   loss:  statistics of a strip -> its program -> the program backwards -> gradient (loss.h)
//          Where that is faster, the exponentials of the first sweep stay in the cache for the
//          second (exponentials.h): then a logit is loaded once and has one exponential.
//
//   lanes.h          arithmetic of one lane
//   elementary.h     functions for every argument
//   memory.h         moves runs of numbers between memory and the cache
//   extremes.h       the largest and smallest logits, found while a block is loaded
//   blocks.h         moves blocks of rows, with any strides and transform
//   layouts.h        loops over a block, in its two layouts
//   terms.h          the terms that a loss may ask for
//   statistics.h     the forward sweep
//   sums.h           adds one class to the sums of its row
//   fields.h         computes the fields from the sums
//   differentiate.h  the backward sweep
//   gradient.h       computes the coefficients of the gradient from the fields
//   exponentials.h   the exponentials that the first sweep keeps for the second
//   sweeps.h         both sweeps of a strip
//   program.h        runs the program of a loss on the fields
//   operations.h     the table of the operations of programs
//   scaling.h        multiplies a gradient by a power of two
#include "rows.h"

#include "dense.h"
#include "elements.h"
#include "program.h"
#include "scaling.h"
#include "sweeps.h"

#ifndef XENT_VARIANT
#define XENT_VARIANT baseline
#endif
#define XENT_TABLE_(variant) variant##_kernels
#define XENT_TABLE(variant) XENT_TABLE_(variant)
#define XENT_NAME_(variant) #variant
#define XENT_NAME(variant) XENT_NAME_(variant)

namespace {

template <class Real>
void row_statistics(Problem& p, int64_t begin, int64_t end) {
  Buffers<Real> buffers;
  Label label[kStrip];
  const StatisticsSweep<Real> statistics(p);
  int64_t kept = 0;
  for (int64_t n = begin; n < end;) {
    const int height = strip_height(p, n, end);
    for (int r = 0; r < height; ++r) label[r] = read_label(p, n + r);
    statistics.run(p, n, height, label, buffers);
    for (int r = 0; r < height; ++r) {
      kept += label[r].kind == LabelKind::kept;
      if (label[r].kind != LabelKind::bad) continue;
      __atomic_store_n(&p.bad_label, p.labels[n + r], __ATOMIC_RELAXED);
      __atomic_store_n(&p.has_bad_label, true, __ATOMIC_RELAXED);
    }
    n += height;
  }
  __atomic_fetch_add(&p.kept, kept, __ATOMIC_RELAXED);
}

template <class Real>
void row_gradient(const Problem& p, int64_t begin, int64_t end) {
  Buffers<Real> buffers;
  Label label[kStrip];
  GradientSweep<Real> gradient(p);
  for (int64_t n = begin; n < end;) {
    const int height = strip_height(p, n, end);
    for (int r = 0; r < height; ++r) label[r] = read_label(p, n + r);
    gradient.run(p, n, height, label, buffers);
    n += height;
  }
  if (p.streams) finish_streams();
}

// ---- a loss and its gradient --------------------------------------------------------------------

// The part of a matrix that begins at a row; good for one strip.
Matrix from_row(const Matrix& m, int64_t row) {
  if (!m.data) return m;
  return {Strip(m, row).data, m.type, kStrip, 0, m.inner_stride, m.class_stride};
}

// Makes `strip` the part of a problem that begins at row n: row n is row 0 of the strip.
void move_to(const Problem& p, int64_t n, Problem& strip) {
  strip.logits = from_row(p.logits, n);
  strip.gradient = from_row(p.gradient, n);
  if (p.labels)
    strip.labels = p.labels + n;
  else
    strip.soft = from_row(p.soft, n);
  if (p.scale) strip.scale = p.scale + n * p.scale_step;
}

template <class Real>
class LossSweep {
 public:
  explicit LossSweep(const Loss& loss)
      : loss_(loss), runner_(loss), strip_(with_tables(loss.problem, runner_)), statistics_(strip_),
        gradient_(strip_), keeps_(keeps_exponentials()), tallest_(tallest()),
        exponentials_(keeps_ ? loss.problem.classes : 0, keeps_ ? tallest_ : 0) {}

  void run(int64_t begin, int64_t end) {
    const Problem& p = loss_.problem;
    for (int64_t n = begin; n < end;) {
      const int fits = strip_height(p, n, end), height = fits < tallest_ ? fits : tallest_;
      move_to(p, n, strip_);
      read_labels(n, height);
      statistics_.run(strip_, 0, height, label_, buffers_, exponentials_.get());
      evaluate(n, height);
      if (p.gradient.data) {
        runner_.differentiate(seed_);
        gradient_.run(strip_, 0, height, label_, buffers_, exponentials_.get());
      }
      n += height;
    }
    if (p.streams) finish_streams();
  }

 private:
  static Problem with_tables(const Problem& p, ProgramRunner& runner) {
    Problem strip = p;
    strip.statistics = runner.statistics();
    strip.partials = runner.partials();
    return strip;
  }

  // True if it is faster to keep the exponentials of the first sweep. For 16-bit logits that is so
  // if the exponentials of a row fit the second-level cache. For float32, where the bandwidth of
  // memory limits the speed, those of a whole strip must fit: a fifth of the time is saved for rows
  // of 1000 classes, nothing for 4000.
  bool keeps_exponentials() const {
    const Problem& p = loss_.problem;
    if (sizeof(Real) == 8 || !p.gradient.data || !gradient_.is_plain()) return false;
    const int64_t most = size_of(p.logits.type) == 2 ? 160000 : kBuffer;
    return statistics_.terms() == kPlain && p.classes <= most;
  }

  // The most rows of a strip. Strips of long rows have few, so that the second sweep finds them in
  // the cache. Strips of short rows have as many as possible: computations once per row run for all
  // rows of a strip side by side, and would take several times as long for fewer.
  int tallest() const {
    const Problem& p = loss_.problem;
    constexpr int64_t room = int64_t{256} << 10;
    const int64_t bytes = p.classes * (keeps_ ? int64_t{sizeof(Real)} : size_of(p.logits.type));
    if (!p.gradient.data || !adjacent(p) || bytes * kStrip <= room) return kStrip;
    return bytes < room ? int(room / bytes) : 1;
  }

  double weight(int64_t row) const { return loss_.row_weight ? loss_.row_weight[row] : 1.0; }

  void read_labels(int64_t n, int height) {
    for (int r = 0; r < height; ++r) {
      label_[r] = read_label(strip_, r);
      if (weight(n + r) == 0) label_[r] = {LabelKind::ignored, -1};
    }
  }

  void evaluate(int64_t n, int height) {
    const double* value = runner_.evaluate(n, height);
    for (int r = 0; r < height; ++r) {
      const bool kept = label_[r].kind == LabelKind::kept;
      loss_.values[n + r] = kept ? value[r] * weight(n + r) : 0.0;
      seed_[r] = kept ? loss_.seed * weight(n + r) : 0.0;
    }
  }

  const Loss& loss_;
  ProgramRunner runner_;
  Problem strip_;  // the problem of the rows of one strip, the first of them row 0
  const StatisticsSweep<Real> statistics_;
  GradientSweep<Real> gradient_;
  const bool keeps_;
  const int tallest_;
  Exponentials<Real> exponentials_;
  Buffers<Real> buffers_;
  Label label_[kStrip];
  double seed_[kStrip] = {};
};

bool sweeps_in_double(const Problem& p) { return p.logits.type == Type::f64; }

void statistics_entry(Problem& p, int64_t begin, int64_t end) {
  sweeps_in_double(p) ? row_statistics<double>(p, begin, end)
                      : row_statistics<float>(p, begin, end);
}

void gradient_entry(const Problem& p, int64_t begin, int64_t end) {
  sweeps_in_double(p) ? row_gradient<double>(p, begin, end) : row_gradient<float>(p, begin, end);
}

void loss_entry(const Loss& loss, int64_t begin, int64_t end) {
  sweeps_in_double(loss.problem) ? LossSweep<double>(loss).run(begin, end)
                                 : LossSweep<float>(loss).run(begin, end);
}

}  // namespace

namespace xent {
extern const Kernels XENT_TABLE(XENT_VARIANT);
const Kernels XENT_TABLE(XENT_VARIANT) = {
    XENT_NAME(XENT_VARIANT),      statistics_entry,          gradient_entry, loss_entry,
    XENT_VARIANT::sweep_elements, XENT_VARIANT::sweep_dense, scale_entry};
}  // namespace xent
