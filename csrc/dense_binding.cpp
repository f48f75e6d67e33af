// The kernels of dense losses as Python calls them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <new>
#include <tuple>

#include "counts.h"
#include "dense.h"

namespace nb = nanobind;
using namespace xent;

namespace {

// (kind, its numbers)
using KindArguments = std::tuple<int, double, double, double, double>;
// (address or 0, ignore_index)
using ClassArguments = std::tuple<uintptr_t, int64_t>;
// (factor on every value, slope)
using FactorArguments = std::tuple<double, double>;
// (is there a label out of range?, that label)
using Answer = std::tuple<bool, int64_t>;

Matrix optional_matrix(const MatrixArguments& m, int64_t rows) {
  return std::get<0>(m) ? make_matrix(m, rows) : Matrix{};
}

// Computes the values of all rows if `values` is an address, their sum by the divisor if `result`
// is one, and gradients times slope by the divisor where they have an address. Computes nothing if
// a label is out of range.
Answer run(const KindArguments& kind, const MatrixArguments& logits, const MatrixArguments& teacher,
           int64_t rows, int64_t classes, const ClassArguments& labels, uintptr_t row_weight,
           const FactorArguments& factors, const DivisorArguments& divisor, uintptr_t values,
           uintptr_t result, int result_type, const MatrixArguments& gradient,
           const MatrixArguments& teacher_gradient) {
  Dense d{};
  int code = 0;
  std::tie(code, d.number[0], d.number[1], d.number[2], d.number[3]) = kind;
  d.kind = DenseKind(code);
  d.rows = rows;
  d.classes = classes;
  d.logits = make_matrix(logits, rows);
  d.teacher = optional_matrix(teacher, rows);
  d.labels = pointer<const int64_t>(std::get<0>(labels));
  d.ignore_index = std::get<1>(labels);
  d.row_weight = pointer<const double>(row_weight);
  nb::gil_scoped_release release;
  const RowCounts counts =
      count_all({rows, classes, d.labels, d.ignore_index, d.row_weight, nullptr, d.logits.type});
  if (counts.bad >= 0) return {true, d.labels[counts.bad]};
  const double divide_by = divisor_of(counts, divisor);
  double slope = 1;
  std::tie(d.scale, slope) = factors;
  d.seed = slope / divide_by;
  d.gradient = optional_matrix(gradient, rows);
  d.teacher_gradient = optional_matrix(teacher_gradient, rows);
  const Matrix& written = d.gradient.data ? d.gradient : d.teacher_gradient;
  d.streams = written.data && worth_streaming(written, classes * size_of(written.type), rows);
  const std::unique_ptr<double[]> own(values ? nullptr : new double[rows]);
  d.values = values ? pointer<double>(values) : own.get();
  std::atomic<bool> complete{true};
  for_range(rows, kGrain / std::max<int64_t>(classes, 1) + 1, [&](int64_t begin, int64_t end) {
    if (!kernels->dense(d, begin, end)) complete = false;
  });
  if (!complete) throw std::bad_alloc();  // here, as no exception may leave a thread
  if (result) write_scalar(result, Type(result_type), sum_of(d.values, rows) / divide_by);
  return {false, 0};
}

}  // namespace

void xent::bind_dense(nb::module_& m) { m.def("dense", &run); }
