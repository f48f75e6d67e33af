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

#if defined(XENT_X86_VARIANTS)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

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

// The 16-bit types whose matrices the processor multiplies by instructions made for that, with sums
// in float32. The bits are read here because older compilers do not know the names of all of them.
std::vector<std::string> products() {
  std::vector<std::string> types;
#if defined(XENT_X86_VARIANTS)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  // The operating system must keep the wide registers, too, which this asks.
  if (!__builtin_cpu_supports("avx512vl") || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
    return types;
  const unsigned subleaves = eax, features = edx;
  if (subleaves < 1 || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) eax = 0;
  const bool avx512_bf16 = eax >> 5 & 1, amx_fp16 = eax >> 21 & 1;
  const bool amx_bf16 = features >> 22 & 1, avx512_fp16 = features >> 23 & 1;
  if (avx512_bf16 || amx_bf16) types.emplace_back("bfloat16");
  if (avx512_fp16 || amx_fp16) types.emplace_back("float16");
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long bf16 = 1UL << 14;  // HWCAP2_BF16, which old headers lack
  if (getauxval(AT_HWCAP2) & bf16) types.emplace_back("bfloat16");
#elif defined(__aarch64__) && defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  if (sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has)
    types.emplace_back("bfloat16");
#endif
  return types;
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
  m.def("products", &products, "Types of 16 bits that the processor multiplies in hardware.");
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
  bind_dense(m);
}
