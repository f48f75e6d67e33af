// Runs a program on the statistics of a strip of rows, forwards and backwards. Each instruction is
// a loop over the rows.
#pragma once

#include "blocks.h"
#include "elementary.h"
#include "loss.h"

namespace {

using xent::Instruction;
using xent::kFields;
using xent::Loss;
using xent::Operation;

class ProgramRunner {
 public:
  explicit ProgramRunner(const Loss& loss) : loss_(loss), fields_(statistics()) {}

  // The memory where the program expects the fields of a strip, its first row at 0.
  xent::Statistics statistics() { return xent::statistics_in(table_[0], kStrip, loss_.fields); }

  // The memory where `differentiate` leaves the partial derivatives by the fields.
  Partials partials() const {
    PerRow field[kFields] = {};
    for (int k = 0; k < loss_.length; ++k) {
      const Instruction& step = loss_.program[k];
      if (step.operation == Operation::field && step.varies) field[step.a] = {partial_[step.a], 1};
    }
    return xent::partials_of(field);
  }

  // The values of the rows from n on.
  const double* evaluate(int64_t n, int height) {
    first_ = n, height_ = height;
    count_ = (height + kVector - 1) / kVector * kVector;
    for (int k = 0; k < loss_.length; ++k) compute(loss_.program[k], value_[k]);
    return value_[loss_.length - 1];
  }

  // Finds the partial derivatives of the rows that were evaluated last; `slope` is
  // d loss / d value.
  void differentiate(const double* slope) {
    const int last = loss_.length - 1;
    for (int k = 0; k <= last; ++k)
      if (loss_.program[k].varies) fill(slope_of(k), -0.0);  // -0.0 + x is x, also for x = -0.0
    if (!loss_.program[last].varies) return;
    add_to(last, [=](int r) { return slope[r]; });
    for (int k = last; k >= 0; --k)
      if (loss_.program[k].varies) pass_on(loss_.program[k], value_[k], slope_of(k));
  }

 private:
  static constexpr int kVector = 8;  // rows are computed in multiples of this number

  void fill(double* row, double value) const {
    for (int r = 0; r < count_; ++r) row[r] = value;
  }

  // The derivatives of the loss by register k. All registers that read one field share them.
  double* slope_of(int k) {
    const Instruction& step = loss_.program[k];
    return step.operation == Operation::field ? partial_[step.a] : slope_[k];
  }

  void read(const double* from, int64_t step, double* y) const {
    fill(y, 0);
    for (int r = 0; r < height_; ++r) y[r] = from[r * step];
  }

  const double* field(int k) const {
    const double* at[kFields];
    __builtin_memcpy(at, &fields_, sizeof at);
    return at[k];
  }

  template <class Value>
  XENT_LANE void set(double* __restrict y, Value value) const {
    for (int r = 0; r < count_; ++r) y[r] = value(r);
  }

  template <class Slope>
  XENT_LANE void add_to(int k, Slope slope) {
    if (!loss_.program[k].varies) return;
    double* __restrict sum = slope_of(k);
    for (int r = 0; r < count_; ++r) sum[r] += slope(r);
  }

  // A formula of the table as a function of the row.
  // clang-format off
#define XENT_ROWS(formula)                                                    \
  [=](int r) {                                                                \
    [[maybe_unused]] const double a = a_[r], b = b_[r], y = y_[r], g = g_[r]; \
    return formula;                                                           \
  }
#define XENT_SET(name, value, ...) \
  case Operation::name: return set(to, XENT_ROWS(value));
#define XENT_ADD_ONE(name, value, by_a) \
  case Operation::name: return add_to(step.a, XENT_ROWS(by_a));
#define XENT_ADD_TWO(name, value, by_a, by_b) \
  case Operation::name: add_to(step.a, XENT_ROWS(by_a)); return add_to(step.b, XENT_ROWS(by_b));

  void compute(const Instruction& step, double* to) const {
    const double *a_ = value_[step.a], *b_ = value_[step.b], *c_ = value_[step.c];
    const double *y_ = a_, *g_ = a_;
    switch (step.operation) {
      case Operation::field: return read(field(step.a), 1, to);
      case Operation::input: {
        const PerRow& input = loss_.inputs[step.a];
        return read(input.at + first_ * input.step, input.step, to);
      }
      case Operation::constant: return fill(to, step.constant);
      case Operation::where: return set(to, [=](int r) { return a_[r] != 0 ? b_[r] : c_[r]; });
      XENT_UNARY(XENT_SET) XENT_FLAT_UNARY(XENT_SET)
      XENT_BINARY(XENT_SET) XENT_FLAT_BINARY(XENT_SET)
    }
  }

  void pass_on(const Instruction& step, const double* y_, const double* g_) {
    const double *a_ = value_[step.a], *b_ = value_[step.b];
    switch (step.operation) {
      case Operation::where:
        add_to(step.b, [=](int r) { return a_[r] != 0 ? g_[r] : 0.0; });
        return add_to(step.c, [=](int r) { return a_[r] != 0 ? 0.0 : g_[r]; });
      XENT_UNARY(XENT_ADD_ONE) XENT_BINARY(XENT_ADD_TWO)
      default: return;
    }
  }
// clang-format on
#undef XENT_ROWS
#undef XENT_SET
#undef XENT_ADD_ONE
#undef XENT_ADD_TWO

  const Loss& loss_;
  int64_t first_ = 0;
  int height_ = 0, count_ = 0;
  alignas(64) double table_[kFields][kStrip], partial_[kFields][kStrip];
  alignas(64) double value_[xent::kInstructions][kStrip], slope_[xent::kInstructions][kStrip];
  const xent::Statistics fields_;
};

}  // namespace
