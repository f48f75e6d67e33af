// What the kernels of dense losses share: float64 numbers for all classes of a row, and loading and
// storing such rows.
#pragma once

#include <stdlib.h>

#include <type_traits>

#include "dense.h"
#include "layouts.h"

namespace {

using xent::Dense;

// Float64 numbers for the classes of a row, a few for each class. They stay in the second-level
// cache for rows of up to some 40,000 classes.
class RowNumbers {
 public:
  RowNumbers(int64_t classes, int count)
      : pitch_((classes + xent::kBeyond + 2 * kLanes - 1) / kLanes * kLanes),
        data_(static_cast<double*>(aligned_alloc(64, size_t(count * pitch_) * sizeof(double)))) {
    for (int k = 0; data_ && k < count; ++k)
      for (int64_t j = classes; j < pitch_; ++j) (*this)[k][j] = 0;  // loops end beyond a row
  }
  RowNumbers(const RowNumbers&) = delete;
  ~RowNumbers() { free(data_); }

  bool are_there() const { return data_; }
  double* operator[](int k) const { return data_ + k * pitch_; }

 private:
  const int64_t pitch_;
  double* const data_;
};

// A sum over the classes of a row, lane by lane.
struct LaneSum {
  double lane[kLanes] = {};

  double total() const {
    double half[kLanes];
    for (int i = 0; i < kLanes; ++i) half[i] = lane[i];
    for (int n = kLanes / 2; n > 0; n /= 2)
      for (int i = 0; i < n; ++i) half[i] += half[i + n];
    return half[0];
  }
};

// The classes of a row that are worked on together.
Block block_of_row(int64_t first, int64_t classes) {
  const int64_t left = classes - first;
  const int width = int(left < kBuffer ? left : kBuffer);
  return {0, 1, first, width, padded(width)};
}

// Gives blocks of a row as numbers of one type, padded with -inf to whole groups of kGroup: in
// memory if they can be read there, else in a buffer.
template <class Real>
class BlockView {
 public:
  static constexpr int kGroup = 2 * kLanes;

  const Real* operator()(const Strip& row, const Block& b) {
    constexpr Type own = sizeof(Real) == 8 ? Type::f64 : Type::f32;
    if (row.type == own && row.adjacent() && b.width % kGroup == 0)
      return row.at<const Real>(0, b.first);
    NoExtremes none;
    load(row, b, buffer_, none);
    for (int j = b.width; j % kGroup > 0; ++j) buffer_[j] = Real(-kInfinity);
    return buffer_;
  }

 private:
  alignas(64) Real buffer_[kBuffer];
};

struct Range {
  float smallest, largest;
};

// The smallest and the largest of some numbers; NaN is ignored.
inline Range range_of(const float* z, int count) {
  Extremes<float, Less> smallest;
  Extremes<float, Greater> largest;
  BothExtremes<float>{smallest, largest}.look(0, z, count);
  Range found;
  fold(smallest.lane, 1, Less(), &found.smallest);
  fold(largest.lane, 1, Greater(), &found.largest);
  return found;
}

// The largest of some numbers, in whole vectors; NaN is ignored.
inline double largest_of(const double* z, int64_t count) {
  double lane[kLanes];
  XENT_FOR(i, kLanes) lane[i] = z[i];
  for (int64_t j = 0; j < count; j += kLanes)
    XENT_FOR(i, kLanes) lane[i] = Greater()(z[j + i], lane[i]);
  double top = lane[0];
  for (int i = 1; i < kLanes; ++i) top = Greater()(lane[i], top);
  return top;
}

// Stores step(number, class in the block) of each of the numbers of a block.
template <class Stored, class Real, class Step>
void store_row_as(const Strip& out, const Block& b, bool streams, Real* numbers, Step step,
                  const Prefetch& next) {
  using Rounded = std::conditional_t<sizeof(Stored) == 8, double, float>;
  const auto one = [=](Real x, int j) XENT_INLINE { return Rounded(step(x, j)); };
  if (!out.adjacent()) {
    Stored* at = out.at<Stored>(0, b.first);
    for (int j = 0; j < b.width; ++j) narrow(one(numbers[j], j), at[j * out.class_step]);
    return;
  }
  Extremes<Real, Greater> unused;
  const RowsLayout<Real, Greater> row{numbers, 1, b.width, b.pitch, unused};
  const auto of_row = [&](int) { return one; };
  if (streams)
    row.template map_to<true, Stored>(out, b, of_row, next);
  else
    row.template map_to<false, Stored>(out, b, of_row, next);
}

template <class Real, class Step>
void store_row(const Strip& out, const Block& b, bool streams, Real* numbers, Step step,
               const Prefetch& next) {
  switch (out.type) {
    case Type::f32: return store_row_as<float>(out, b, streams, numbers, step, next);
    case Type::f64: return store_row_as<double>(out, b, streams, numbers, step, next);
    case Type::bf16: return store_row_as<bf16>(out, b, streams, numbers, step, next);
    case Type::f16: return store_row_as<f16>(out, b, streams, numbers, step, next);
  }
}

// Calls a function with each block of a row.
template <class Function>
void for_blocks(int64_t classes, Function function) {
  for (int64_t first = 0; first < classes; first += kBuffer) function(block_of_row(first, classes));
}

// Stores one number of a row, over what is there.
inline void store_number(const Strip& out, int64_t j, double value) {
  switch (out.type) {
    case Type::f32: return narrow(float(value), *out.at<float>(0, j));
    case Type::f64: return narrow(value, *out.at<double>(0, j));
    case Type::bf16: return narrow(float(value), *out.at<bf16>(0, j));
    case Type::f16: return narrow(float(value), *out.at<f16>(0, j));
  }
}

// Stores a gradient of zeros for a row that is left out.
void store_zeros(const Matrix& gradient, int64_t row, int64_t classes) {
  if (!gradient.data) return;
  const Strip out(gradient, row);
  double nothing[kBuffer + xent::kBeyond + 2 * kLanes] = {};
  const auto zero = [](double, int) { return 0.0; };
  for_blocks(classes, [&](const Block& b) { store_row(out, b, false, nothing, zero, {}); });
}

}  // namespace
