// The element-wise kernel as Python calls it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <limits>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "elements.h"

namespace nb = nanobind;
using namespace xent;

namespace {

// (address, type, repeat, period)
using OperandArguments = std::tuple<uintptr_t, int, int64_t, int64_t>;
// (address or 0, type)
using OutputArguments = std::tuple<uintptr_t, int>;
// (positive, negative, gamma, side, plain_above, gamma_negative, margin, detached?, excess?)
using FormArguments =
    std::tuple<double, double, double, double, double, double, double, double, double>;

constexpr double kOne = 1;

// An operand without an address is 1 everywhere.
Operand make_operand(const OperandArguments& o) {
  auto [data, type, repeat, period] = o;
  if (!data) return {&kOne, Type::f64, std::numeric_limits<int64_t>::max(), 1, true};
  return {pointer<const void>(data), Type(type), repeat, period};
}

Output make_output(const OutputArguments& o) {
  return {pointer<void>(std::get<0>(o)), Type(std::get<1>(o))};
}

// The sum of all parts, in a fixed order for any number of threads.
double sum_of(std::vector<double>& part) {
  for (size_t n = part.size(); n > 1; n = (n + 1) / 2)
    for (size_t i = 0; i < n / 2; ++i) part[i] += part[n - 1 - i];
  return part.empty() ? 0.0 : part[0];
}

// Computes the sum of all values by the divisor, the values, and the gradient by the divisor; each
// if its output has an address. Returns (is there a target outside [0, 1]?, such a target).
std::tuple<bool, double> sweep(int64_t count, const OperandArguments& logits,
                               const OperandArguments& target, const OperandArguments& weight,
                               const OperandArguments& pos_weight, const FormArguments& form,
                               double ignored, double smoothing, const OutputArguments& loss,
                               const OutputArguments& values, const OutputArguments& gradient,
                               const OperandArguments& upstream, double slope, double divisor) {
  const int64_t blocks = (count + kElementBlock - 1) / kElementBlock;
  const Output total = make_output(loss);
  std::vector<double> partial(total.data ? blocks : 0);
  Elements e{};
  e.count = count;
  e.logits = make_operand(logits);
  e.target = make_operand(target);
  e.weight = make_operand(weight);
  e.pos_weight = make_operand(pos_weight);
  double detached = 0, excess = 0;
  std::tie(e.positive, e.negative, e.gamma, e.side, e.plain_above, e.gamma_negative, e.margin,
           detached, excess) = form;
  e.detached = detached != 0;
  e.excess = excess != 0;
  e.ignored = ignored;
  e.smoothing = smoothing;
  e.sums = total.data ? partial.data() : nullptr;
  e.values = make_output(values);
  e.gradient = make_output(gradient);
  e.upstream = make_operand(upstream);
  e.scale = slope / divisor;
  {
    nb::gil_scoped_release release;
    if (e.gradient.data) {
      const int64_t bytes = count * size_of(e.gradient.type);
      e.streams = uintptr_t(e.gradient.data) % 64 == 0 && bytes >= int64_t{8} << 20;
    }
    for_range(blocks, kGrain / kElementBlock,
              [&](int64_t begin, int64_t end) { kernels->elements(e, begin, end); });
  }
  if (total.data) write_scalar(uintptr_t(total.data), total.type, sum_of(partial) / divisor);
  return {e.has_bad_target, e.bad_target};
}

}  // namespace

void xent::bind_elements(nb::module_& m) { m.def("element_sweep", &sweep); }
