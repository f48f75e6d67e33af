// The binding: plain integers in, the kernels out. No torch at build time: Python hands over
// addresses, sizes and strides, and the address of torch's own parallel_for, so that the threads
// are torch's and obey torch.set_num_threads.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

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

// ---- the two functions of the engine ------------------------------------------------------------

// (address or 0, step) for each of them
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

// The number of rows kept, and a label out of range if there is one.
using Answer = std::tuple<int64_t, bool, int64_t>;

Answer run_statistics(Problem& p) {
  {
    nb::gil_scoped_release release;
    for_rows(p, [&](int64_t begin, int64_t end) { kernels->row_statistics(p, begin, end); });
  }
  return {p.kept, p.has_bad_label, p.bad_label};
}

// Memory for a large gradient. Half the time of one would go into the page faults of fresh memory,
// so the last block that was let go is kept for the next buffer: a training step frees its gradient
// before the next one wants it. While a block waits it is marked MADV_FREE, so the kernel takes its
// pages as soon as anybody needs them.
struct Block {
  void* data = nullptr;
  size_t bytes = 0;
};

class Buffer {
 public:
  explicit Buffer(size_t bytes) : block_(take(bytes)) {
    if (block_.data) return;
    constexpr size_t huge = size_t{1} << 21;
    block_.bytes = (bytes + huge - 1) / huge * huge;
    block_.data = std::aligned_alloc(huge, block_.bytes);
    if (!block_.data) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
#ifdef MADV_FREE
    madvise(block_.data, block_.bytes, MADV_FREE);
#endif
    std::lock_guard<std::mutex> lock(mutex);
    std::swap(block_, idle);
    std::free(block_.data);
  }
  uintptr_t address() const { return uintptr_t(block_.data); }

  static void trim() {
    std::lock_guard<std::mutex> lock(mutex);
    std::free(std::exchange(idle, Block{}).data);
  }

 private:
  static Block take(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    const bool fits = idle.bytes >= bytes && idle.bytes - bytes <= bytes / 2;
    return fits ? std::exchange(idle, Block{}) : Block{};
  }

  static inline std::mutex mutex;
  static inline Block idle;
  Block block_;
};

void run_gradient(Problem& p, const MatrixArguments& gradient) {
  nb::gil_scoped_release release;
  set_gradient(p, gradient);
  for_rows(p, [&](int64_t begin, int64_t end) { kernels->row_gradient(p, begin, end); });
}

Answer row_statistics(const MatrixArguments& logits, int64_t rows, int64_t classes,
                      const LabelArguments& labels, const MatrixArguments& soft,
                      const TransformArguments& transform, const WeightArguments& weights,
                      uintptr_t statistics, unsigned fields) {
  Problem p = make_problem(logits, rows, classes, labels, soft, transform, weights);
  p.statistics = statistics_in(pointer<double>(statistics), rows, fields);
  return run_statistics(p);
}

void row_gradient(const MatrixArguments& logits, int64_t rows, int64_t classes,
                  const LabelArguments& labels, const MatrixArguments& soft,
                  const TransformArguments& transform, const WeightArguments& weights,
                  uintptr_t statistics, unsigned fields, const PartialArguments& partials,
                  const MatrixArguments& gradient) {
  Problem p = make_problem(logits, rows, classes, labels, soft, transform, weights);
  p.statistics = statistics_in(pointer<double>(statistics), rows, fields);
  p.partials = make_partials(partials, fields);
  run_gradient(p, gradient);
}

// ---- the plain case in one call -----------------------------------------------------------------

// Mean or sum of -log p over contiguous rows of index targets. What takes the general path a dozen
// small tensor operations is done here in one call each way; PyTorch's own cross_entropy is
// otherwise faster on small batches (40 us forward and backward at 32 x 10).

constexpr int kPlainCount = 4;  // shift, sum, log_odds, log_prob
constexpr unsigned kPlainFields = (1u << kPlainCount) - 1;

double read_scalar(uintptr_t data, Type type) {
  return with_type(type, [=](auto kind) { return double(widen(*pointer<decltype(kind)>(data))); });
}

// What the gradient needs of the forward pass. Lives in the core, because a tensor would cost more
// than the sweep of a small batch.
struct PlainTable {
  Type type;
  int64_t rows, classes, ignore_index;
  bool mean;
  int64_t kept = 0;
  std::vector<double> fields;

  Problem problem(uintptr_t logits, uintptr_t labels) {
    Problem p{};
    p.logits = make_matrix(matrix(logits), rows);
    p.rows = rows;
    p.classes = classes;
    p.labels = pointer<const int64_t>(labels);
    p.ignore_index = ignore_index;
    p.statistics = statistics_in(fields.data(), rows, kPlainFields);
    return p;
  }
  MatrixArguments matrix(uintptr_t data) const { return {data, int(type), classes, 1, 0, 1}; }
  double divisor() const { return mean ? double(kept) : 1.0; }
};

// In a fixed order, whatever the number of threads.
double negative_sum(const double* value, int64_t n) {
  constexpr int lanes = 8;
  double lane[lanes] = {}, sum = 0;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int k = 0; k < lanes; ++k) lane[k] -= value[i + k];
  for (; i < n; ++i) lane[0] -= value[i];
  for (double part : lane) sum += part;
  return sum;
}

// The table, or the offending label if there is one.
std::variant<std::unique_ptr<PlainTable>, int64_t> plain_loss(
    uintptr_t logits, int type, int64_t rows, int64_t classes, uintptr_t labels,
    int64_t ignore_index, bool mean, uintptr_t loss) {
  auto table = std::make_unique<PlainTable>(
      PlainTable{Type(type), rows, classes, ignore_index, mean, 0, {}});
  table->fields.resize(kPlainCount * rows);
  Problem p = table->problem(logits, labels);
  run_statistics(p);
  if (p.has_bad_label) return p.bad_label;
  table->kept = p.kept;
  const double sum = negative_sum(p.statistics.log_prob, rows);
  write_scalar(loss, table->type, sum / table->divisor());
  return table;
}

void plain_gradient(PlainTable& table, uintptr_t logits, uintptr_t labels, uintptr_t grad_output,
                    uintptr_t gradient) {
  Problem p = table.problem(logits, labels);
  const double slope = -read_scalar(grad_output, table.type) / table.divisor();
  p.partials.log_prob = {&slope, 0};
  run_gradient(p, table.matrix(gradient));
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The kernel pair of xent on CPU. Addresses in, float64 statistics and gradients out.";
  // A gradient may outlive the interpreter's end and keep its buffer; that is no leak.
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
  nb::class_<Buffer>(m, "Buffer", "Memory for a large gradient, reused when it is let go.")
      .def(nb::init<size_t>(), nb::arg("bytes"))
      .def_prop_ro("address", &Buffer::address);
  m.def("trim", &Buffer::trim, "Give the kept buffer back to the system.");
  m.def("fused", [] { return kernels != &baseline_kernels || kBaselineFused; },
        "Whether the instruction set in use has fused multiply-add; without, it is slow.");
  m.def("row_statistics", &row_statistics);
  m.def("row_gradient", &row_gradient);
  nb::class_<PlainTable>(m, "PlainTable", "What plain_gradient needs of plain_loss.")
      .def_ro("ignore_index", &PlainTable::ignore_index)
      .def_prop_ro("divisor", &PlainTable::divisor, "What the sum over rows was divided by.");
  m.def("plain_loss", &plain_loss);
  m.def("plain_gradient", &plain_gradient);
  bind_loss(m);
  bind_elements(m);
}
