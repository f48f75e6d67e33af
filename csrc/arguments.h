// The arguments of the binding: numbers and tuples of numbers as Python passes them, and the
// structs that the kernels get.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <tuple>

#include "binding.h"
#include "lanes.h"
#include "rows.h"

namespace xent {
namespace {

// (address, type, outer step, inner count, inner step, class step), steps in elements
using MatrixArguments = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t, int64_t>;

inline Matrix make_matrix(const MatrixArguments& m, int64_t rows) {
  auto [data, type, outer_step, inner, inner_step, class_step] = m;
  if (inner == 1) {  // one row per outer index: the rows become the inner index of one outer index
    inner = rows > 0 ? rows : 1;
    inner_step = outer_step;
  }
  return {pointer<void>(data), Type(type), inner, outer_step, inner_step, class_step};
}

// (scale, one per row?, softcap, class scale, class bias)
using TransformArguments = std::tuple<uintptr_t, bool, double, uintptr_t, uintptr_t>;
// (class weight, weight of the mean)
using WeightArguments = std::tuple<uintptr_t, uintptr_t>;
// (address or 0, ignore_index, first class, sharded?)
using LabelArguments = std::tuple<uintptr_t, int64_t, int64_t, bool>;

inline Problem make_problem(const MatrixArguments& logits, int64_t rows, int64_t classes,
                            const LabelArguments& labels, const MatrixArguments& soft,
                            const TransformArguments& transform, const WeightArguments& weights) {
  Problem p{};
  p.logits = make_matrix(logits, rows);
  p.soft = make_matrix(soft, std::get<0>(labels) ? classes : rows);
  p.rows = rows;
  p.classes = classes;
  p.labels = pointer<const int64_t>(std::get<0>(labels));
  p.ignore_index = std::get<1>(labels);
  p.first_class = std::get<2>(labels);
  p.sharded = std::get<3>(labels);
  p.scale = pointer<const double>(std::get<0>(transform));
  p.scale_step = std::get<1>(transform);
  p.softcap = std::get<2>(transform);
  p.class_scale = pointer<const void>(std::get<3>(transform));
  p.class_bias = pointer<const void>(std::get<4>(transform));
  p.class_weight = pointer<const void>(std::get<0>(weights));
  p.mean_weight = pointer<const void>(std::get<1>(weights));
  return p;
}

// Calls function(begin, end) for ranges of rows, on several threads if there is enough work.
template <class Function>
void for_rows(const Problem& p, Function function) {
  for_range(p.rows, kGrain / (p.classes > 0 ? p.classes : 1) + 1, function);
}

// True if the gradient should be written past the caches. An ordinary store first reads its cache
// line; a store past the caches does not. That saves a third of the time if each line is written
// while the next line is computed, and nothing in a loop of its own. Gradients that fit a cache and
// rows shorter than 16 KB get slower by it. No number may lie across two cache lines.
inline bool worth_streaming(const Matrix& gradient, int64_t row_bytes, int64_t rows) {
  const bool aligned = uintptr_t(gradient.data) % size_of(gradient.type) == 0;
  return aligned && row_bytes >= 16384 && row_bytes * rows >= int64_t{8} << 20;
}

// Sets where the gradient of a problem goes.
inline void set_gradient(Problem& p, const MatrixArguments& gradient) {
  p.gradient = make_matrix(gradient, p.rows);
  const int64_t row_bytes = p.classes * size_of(p.gradient.type);
  p.streams = worth_streaming(p.gradient, row_bytes, p.rows);
}

inline void write_scalar(uintptr_t data, Type type, double value) {
  switch (type) {
    case Type::f64: return narrow(value, *pointer<double>(data));
    case Type::f32: return narrow(float(value), *pointer<float>(data));
    case Type::bf16: return narrow(float(value), *pointer<bf16>(data));
    case Type::f16: return narrow(float(value), *pointer<f16>(data));
  }
}

}  // namespace
}  // namespace xent
