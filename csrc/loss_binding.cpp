// A loss of rows as Python calls it: its program, the divisor of its sum, and the call that
// computes loss and gradient.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "counts.h"
#include "loss.h"

namespace nb = nanobind;
using namespace xent;

namespace {

// ---- the program --------------------------------------------------------------------------------

// Facts about an operation, from the table in operations.h.
struct OperationFacts {
  const char* name;
  int operands;  // number of registers that it reads
  int sloped;    // bits of the operands by which it has a derivative: 1 for a, 2 for b, 4 for c
};

const OperationFacts facts[] = {
#define XENT_SOURCE(name) {#name, 0, 0},
#define XENT_ONE(name, ...) {#name, 1, 1},
#define XENT_FLAT_ONE(name, ...) {#name, 1, 0},
#define XENT_TWO(name, ...) {#name, 2, 3},
#define XENT_FLAT_TWO(name, ...) {#name, 2, 0},
#define XENT_THREE(name) {#name, 3, 6},
    XENT_SOURCES(XENT_SOURCE) XENT_UNARY(XENT_ONE) XENT_FLAT_UNARY(XENT_FLAT_ONE)
        XENT_BINARY(XENT_TWO) XENT_FLAT_BINARY(XENT_FLAT_TWO) XENT_CHOICE(XENT_THREE)};
constexpr int kOperations = sizeof facts / sizeof facts[0];

std::vector<std::string> operations() {
  std::vector<std::string> names;
  for (const OperationFacts& each : facts) names.emplace_back(each.name);
  return names;
}

// (operation, a, b, c, constant)
using InstructionArguments = std::tuple<int, int, int, int, double>;

class Program {
 public:
  explicit Program(const std::vector<InstructionArguments>& instructions) {
    if (instructions.empty() || instructions.size() > kInstructions)
      throw nb::value_error(("a program has 1 to " + std::to_string(kInstructions) +
                             " instructions, got " + std::to_string(instructions.size()))
                                .c_str());
    for (const auto& [operation, a, b, c, constant] : instructions)
      add({Operation(operation), a, b, c, constant, false});
    drop_unused_derivatives();
  }

  const Instruction* steps() const { return steps_; }
  int length() const { return length_; }
  uint32_t fields() const { return fields_; }
  size_t inputs() const { return inputs_; }

 private:
  static const OperationFacts& facts_of(const Instruction& step) {
    return facts[int(step.operation)];
  }

  void add(Instruction step) {
    const int code = int(step.operation), operand[] = {step.a, step.b, step.c};
    if (code < 0 || code >= kOperations) refuse("no operation has the code", code);
    for (int k = 0; k < facts[code].operands; ++k) {
      if (operand[k] < 0 || operand[k] >= length_) refuse("not a register before it:", operand[k]);
      if (facts[code].sloped >> k & 1) step.varies |= steps_[operand[k]].varies;
    }
    if (step.operation == Operation::field) {
      if (step.a < 0 || step.a >= kFields) refuse("no field has the number", step.a);
      fields_ |= uint32_t{1} << step.a;
      step.varies = is_differentiable(step.a);
    }
    if (step.operation == Operation::input) {
      if (step.a < 0) refuse("no input has the number", step.a);
      if (size_t(step.a) >= inputs_) inputs_ = size_t(step.a) + 1;
    }
    if (facts[code].operands < 3) step.c = 0;
    if (facts[code].operands < 2) step.b = 0;
    if (is_square(step)) step.operation = Operation::mul, step.b = step.a;
    steps_[length_++] = step;
  }

  // True for a power with the constant exponent 2. As a product it takes a tenth of the time, with
  // the same bits.
  bool is_square(const Instruction& step) const {
    const Instruction& exponent = steps_[step.b];
    return step.operation == Operation::pow && exponent.operation == Operation::constant &&
           exponent.constant == 2;
  }

  void refuse(const char* what, int number) const {
    const std::string where = "instruction " + std::to_string(length_) + ": ";
    throw nb::value_error((where + what + " " + std::to_string(number)).c_str());
  }

  // Clears `varies` of the instructions that the value does not depend on.
  void drop_unused_derivatives() {
    bool read[kInstructions] = {};
    read[length_ - 1] = true;
    for (int k = length_ - 1; k >= 0; --k) {
      Instruction& step = steps_[k];
      step.varies &= read[k];
      const int operand[] = {step.a, step.b, step.c};
      for (int i = 0; step.varies && i < facts_of(step).operands; ++i)
        if (facts_of(step).sloped >> i & 1) read[operand[i]] = true;
    }
  }

  Instruction steps_[kInstructions];
  int length_ = 0;
  uint32_t fields_ = 0;
  size_t inputs_ = 0;
};

// ---- the loss -----------------------------------------------------------------------------------

// (address, step) for each input
using InputArguments = std::vector<std::tuple<uintptr_t, int64_t>>;

std::vector<PerRow> make_inputs(const InputArguments& inputs) {
  std::vector<PerRow> made;
  for (const auto& [address, step] : inputs) made.push_back({pointer<const double>(address), step});
  return made;
}

void check(const Program& program, uint32_t fields, size_t inputs) {
  if (program.fields() & ~fields)
    throw nb::value_error("the program reads fields that are not computed");
  if (program.inputs() > inputs)
    throw nb::value_error(("the program reads " + std::to_string(program.inputs()) +
                           " inputs, got " + std::to_string(inputs))
                              .c_str());
}

// (number of kept rows, is there a label out of range?, that label, divisor of the sum)
using Answer = std::tuple<int64_t, bool, int64_t, double>;

// Computes the loss if `result` is an address, and the gradient times `slope` if `gradient` has an
// address. Computes nothing if a label is out of range.
Answer run(const Program& program, const MatrixArguments& logits, int64_t rows, int64_t classes,
           const LabelArguments& labels, const MatrixArguments& soft,
           const TransformArguments& transform, const WeightArguments& weights, uint32_t fields,
           const InputArguments& inputs, uintptr_t row_weight, const DivisorArguments& divisor,
           double slope, uintptr_t result, int result_type, const MatrixArguments& gradient) {
  check(program, fields, inputs.size());
  const std::vector<PerRow> given = make_inputs(inputs);
  Loss loss{};
  loss.problem = make_problem(logits, rows, classes, labels, soft, transform, weights);
  loss.fields = fields;
  loss.program = program.steps();
  loss.length = program.length();
  loss.inputs = given.data();
  loss.row_weight = pointer<const double>(row_weight);
  nb::gil_scoped_release release;
  const Problem& p = loss.problem;
  const RowsToCount counted = {
      rows,           classes,         p.labels,
      p.ignore_index, loss.row_weight, p.soft.data ? nullptr : p.class_weight,
      p.logits.type};
  const RowCounts counts = count_all(counted);
  const double divide_by = divisor_of(counts, divisor);
  if (counts.bad >= 0) return {counts.kept, true, loss.problem.labels[counts.bad], divide_by};
  loss.seed = slope / divide_by;
  if (std::get<0>(gradient)) set_gradient(loss.problem, gradient);
  const std::unique_ptr<double[]> values(new double[rows]);
  loss.values = values.get();
  for_rows(loss.problem, [&](int64_t begin, int64_t end) { kernels->loss(loss, begin, end); });
  if (result) write_scalar(result, Type(result_type), sum_of(loss.values, rows) / divide_by);
  return {counts.kept, false, 0, divide_by};
}

// ---- another slope ------------------------------------------------------------------------------

constexpr int64_t kScaleBlock = 8192;

// Multiplies contiguous numbers by a slope, and returns true, if the slope is a power of two and
// the products are the numbers that a computation with that slope would give. Otherwise returns
// false and leaves the numbers as they are.
bool scale_exactly(uintptr_t address, int type, int64_t count, double slope) {
  int exponent = 0;
  if (std::frexp(slope, &exponent) != 0.5) return false;
  if (--exponent == 0) return true;
  const int64_t blocks = (count + kScaleBlock - 1) / kScaleBlock;
  const auto scale = [&](int64_t b, int by, bool unchecked) {
    const int64_t begin = b * kScaleBlock, end = begin + kScaleBlock;
    const int64_t last = end < count ? end : count;
    return kernels->scale(pointer<void>(address), Type(type), begin, last, by, unchecked);
  };
  nb::gil_scoped_release release;
  std::vector<char> done(blocks);
  std::atomic<bool> exact{true};
  for_range(blocks, kGrain / kScaleBlock, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end && exact; ++b) {
      done[b] = scale(b, exponent, false);
      if (!done[b]) exact = false;
    }
  });
  for (int64_t b = 0; b < blocks && !exact; ++b)
    if (done[b]) scale(b, -exponent, true);
  return exact;
}

}  // namespace

void xent::bind_loss(nb::module_& m) {
  m.attr("OPERATIONS") = operations();
  nb::class_<Program>(m, "Program", "The value of a row, in steps of one operation each.")
      .def(nb::init<const std::vector<InstructionArguments>&>(), nb::arg("instructions"));
  m.def("loss", &run);
  m.def("scale_exactly", &scale_exactly);
}
