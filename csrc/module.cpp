// The binding: calls the kernels with arguments that are plain integers. It is built without torch:
// Python passes addresses, sizes and strides. Python also passes the address of torch's own
// parallel_for, so that the threads are those of torch and obey torch.set_num_threads.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "arguments.h"
#include "binding.h"

namespace nb = nanobind;
using namespace xent;

const Kernels* xent::kernels = nullptr;
ParallelFor xent::parallel_for = nullptr;

namespace {

// ---- which instruction set ----------------------------------------------------------------------

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found = {&baseline_kernels};
#ifdef XENT_X86_VARIANTS
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("sse4.2")) throw nb::import_error("xent needs SSE 4.2");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  if (avx2) found.push_back(&avx2_kernels);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512_kernels);
#endif
  return found;
}

#ifdef XENT_X86_VARIANTS
constexpr bool kBaselineFused = false;
#else
constexpr bool kBaselineFused = true;
#endif

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* k : available_kernels()) names.emplace_back(k->name);
  return names;
}

void set_isa(const std::string& name) {
  for (const Kernels* k : available_kernels())
    if (name == k->name) {
      kernels = k;
      return;
    }
  std::string message = "isa must be one of";
  for (const std::string& known : isas()) message += " '" + known + "'";
  throw nb::value_error((message + " on this machine, got '" + name + "'").c_str());
}

// ---- memory -------------------------------------------------------------------------------------

// Asks the system for 2 MB pages, of which 26 MB of fresh memory need 1.4 ms instead of 11.
void prefer_huge_pages(uintptr_t address, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t huge = uintptr_t{1} << 21;
  const uintptr_t begin = (address + huge - 1) / huge * huge;
  const uintptr_t end = (address + uintptr_t(bytes)) / huge * huge;
  if (end > begin) madvise(pointer<void>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

// ---- the two functions of the engine ------------------------------------------------------------

// (address or 0, step) for each field
using PartialArguments = std::vector<std::tuple<uintptr_t, int64_t>>;

Partials make_partials(const PartialArguments& partials, unsigned fields) {
  PerRow field[kFields] = {};
  size_t row = 0;
  for (int k = 0; k < kFields; ++k)
    if (fields >> k & 1) {
      auto [address, step] = partials.at(row++);
      field[k] = {pointer<const double>(address), step};
    }
  return partials_of(field);
}

// (number of kept rows, is there a label out of range?, that label)
using Answer = std::tuple<int64_t, bool, int64_t>;

Answer row_statistics(const MatrixArguments& logits, int64_t rows, int64_t classes,
                      const LabelArguments& labels, const MatrixArguments& soft,
                      const TransformArguments& transform, const WeightArguments& weights,
                      uintptr_t statistics, unsigned fields) {
  Problem p = make_problem(logits, rows, classes, labels, soft, transform, weights);
  p.statistics = statistics_in(pointer<double>(statistics), rows, fields);
  nb::gil_scoped_release release;
  for_rows(p, [&](int64_t begin, int64_t end) { kernels->row_statistics(p, begin, end); });
  return {p.kept, p.has_bad_label, p.bad_label};
}

void row_gradient(const MatrixArguments& logits, int64_t rows, int64_t classes,
                  const LabelArguments& labels, const MatrixArguments& soft,
                  const TransformArguments& transform, const WeightArguments& weights,
                  uintptr_t statistics, unsigned fields, const PartialArguments& partials,
                  const MatrixArguments& gradient) {
  Problem p = make_problem(logits, rows, classes, labels, soft, transform, weights);
  p.statistics = statistics_in(pointer<double>(statistics), rows, fields);
  p.partials = make_partials(partials, fields);
  nb::gil_scoped_release release;
  set_gradient(p, gradient);
  for_rows(p, [&](int64_t begin, int64_t end) { kernels->row_gradient(p, begin, end); });
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The kernel pair of xent on CPU. Addresses in, float64 statistics and gradients out.";
  // Programs that are kept for later calls still live when the interpreter ends; that is no leak.
  nb::set_leak_warnings(false);
  kernels = available_kernels().back();
  if (const char* wanted = std::getenv("XENT_ISA")) set_isa(wanted);
  m.def("isas", &isas, "Instruction sets compiled in that this machine can run, best last.");
  m.def("isa", [] { return std::string(kernels->name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa, nb::arg("name"), "Choose one of isas().");
  m.def(
      "set_parallel_for",
      [](uintptr_t f) { parallel_for = pointer<std::remove_pointer_t<ParallelFor>>(f); },
      nb::arg("address"), "Address of torch_parallel_for, or 0 to stay on one thread.");
  m.def("prefer_huge_pages", &prefer_huge_pages, "Ask for huge pages, before memory is written.");
  m.def(
      "fused", [] { return kernels != &baseline_kernels || kBaselineFused; },
      "Whether the instruction set in use has fused multiply-add; without, it is slow.");
  m.def("row_statistics", &row_statistics);
  m.def("row_gradient", &row_gradient);
  bind_loss(m);
  bind_elements(m);
}
