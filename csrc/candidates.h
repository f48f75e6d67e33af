// The classes of a row that can have a probability. Sparse predictions give one to logits within
// some reach of the largest only. So a sweep over the row keeps these logits apart, and all further
// work is on them.
#pragma once

#include "dense_rows.h"

namespace {

template <class Real>
class Candidates {
 public:
  explicit Candidates(int64_t classes)
      : classes_(classes), z_(allocate<Real>(classes)), class_(allocate<int32_t>(classes)) {}
  Candidates(const Candidates&) = delete;
  ~Candidates() { free(z_), free(class_); }

  bool are_there() const { return z_ && class_; }

  // Finds the largest logit of a row. The candidates become the largest of each block, without the
  // largest of all: a sample of the row that has all its sure classes. Returns false if no logit is
  // finite, or one is +inf.
  bool find_largest(const Strip& row) {
    largest_ = Real(-kInfinity);
    count_ = 0;
    int64_t top_block = 0;
    for (int64_t first = 0; first < classes_; first += kBuffer) {
      const int width = width_at(first);
      Extremes<Real, Greater> extremes;
      extremes.look(0, view_(row, block_of_row(first, classes_)), width);
      fold(extremes.lane, 1, Greater(), z_ + count_);
      if (z_[count_] > largest_) largest_ = z_[count_], top_block = count_;
      ++count_;
    }
    z_[top_block] = Real(-kInfinity);
    top_block_ = top_block * kBuffer;
    pad();
    return largest_ - largest_ == 0;
  }

  // Keeps the classes of a row whose logits are less than `reach` below the largest one, without
  // the first of the largest. Returns false if the row holds NaN.
  bool collect(const Strip& row, double reach) {
    const Real floor = floor_at(reach);
    count_ = 0;
    for (int64_t first = 0; first < classes_; first += kBuffer) {
      const int width = width_at(first);
      const Real* z = view_(row, block_of_row(first, classes_));
      if (first == top_block_) top_ = first + place_of_largest(z);
      keep_above(z, floor, first, width);
    }
    if (const int64_t place = place_of(top_); place >= 0) z_[place] = Real(-kInfinity);
    pad();
    return !has_nan();
  }

  // Drops the candidates that are `reach` or more below the largest logit, if that is worth its
  // time.
  void drop(double reach) {
    const Real floor = floor_at(reach);
    typename Exp<Real>::Int above[kLanes] = {};
    for (int64_t j = 0; j < count_; j += kLanes)
      XENT_FOR(i, kLanes) above[i] += z_[j + i] > floor ? 1 : 0;
    int64_t kept = 0;
    for (int i = 0; i < kLanes; ++i) kept += int64_t(above[i]);
    if (8 * kept > count_) return;
    const int64_t count = count_;
    count_ = 0;
    for (int64_t j = 0; j < count; j += kGroup)
      append(z_ + j, mask_above(z_ + j, floor), [&](int i) { return class_[j + i]; });
    pad();
  }

  int64_t count() const { return count_; }
  double largest() const { return double(largest_); }
  int64_t top() const { return top_; }  // the first class with the largest logit

  // The logits of the candidates, then -inf up to whole vectors. The caller may overwrite them.
  Real* logits() { return z_; }

  // The place of a class among the candidates, or -1.
  int64_t place_of(int64_t wanted) const {
    int64_t low = 0, high = count_;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (class_[middle] < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    return low < count_ && class_[low] == wanted ? low : -1;
  }

  // Stores a row: the numbers in the places of the candidates, 0 for all other classes, and the
  // numbers of two classes, of which the second counts if they are the same. Fetches `next`.
  void store(const Strip& out, bool streams, int64_t one, double at_one, int64_t two, double at_two,
             const Strip& next) {
    int64_t place = 0;
    for (int64_t first = 0; first < classes_; first += kBuffer) {
      const int width = width_at(first);
      const int64_t begin = place;
      if (begin + width <= count_ && class_[begin + width - 1] == first + width - 1) {
        place += width;  // all classes of the block, in their order
        put(z_ + begin, one - first, width, at_one);
        put(z_ + begin, two - first, width, at_two);
        store_block(out, streams, first, width, z_ + begin, next);
        continue;
      }
      for (; place < count_ && class_[place] < first + width; ++place)
        zeros_[class_[place] - first] = z_[place];
      put(zeros_, one - first, width, at_one);
      put(zeros_, two - first, width, at_two);
      store_block(out, streams, first, width, zeros_, next);
      for (int64_t k = begin; k < place; ++k) zeros_[class_[k] - first] = 0;
      put(zeros_, one - first, width, 0);
      put(zeros_, two - first, width, 0);
    }
  }

  // Stores the same number for all classes.
  void store_all(const Strip& out, bool streams, double value, const Strip& next) {
    alignas(64) Real block[kBuffer];
    for (Real& x : block) x = Real(value);
    for (int64_t first = 0; first < classes_; first += kBuffer)
      store_block(out, streams, first, width_at(first), block, next);
  }

 private:
  // Classes that are compared with the floor at once.
  static constexpr int kGroup = BlockView<Real>::kGroup;

  template <class Number>
  static Number* allocate(int64_t count) {
    constexpr size_t line = 64;
    const size_t size = size_t(count + 2 * kGroup) * sizeof(Number);
    return static_cast<Number*>(aligned_alloc(line, (size + line - 1) / line * line));
  }

  int width_at(int64_t first) const {
    const int64_t left = classes_ - first;
    return int(left < kBuffer ? left : kBuffer);
  }

  // A number that no logit less than `reach` below the largest is below, in spite of rounding.
  Real floor_at(double reach) const {
    const double floor = double(largest_) - reach;
    return Real(floor - __builtin_fabs(floor) * (sizeof(Real) == 4 ? 0x1p-22 : 0x1p-51));
  }

  int place_of_largest(const Real* z) const {
    int j = 0;
    while (z[j] != largest_) ++j;
    return j;
  }

  // Returns a bit for each of kGroup numbers: 1 if it is above the floor, or NaN.
  XENT_LANE static uint32_t mask_above(const Real* z, Real floor) {
    uint32_t above = 0;
    for (int i = 0; i < kGroup; ++i) above |= (z[i] <= floor ? 0u : 1u) << i;
    return above;
  }

  // Appends kGroup numbers, of which those are candidates whose bits are set. The numbers may be
  // part of this list itself. If many are candidates, all are appended: to move a whole group takes
  // less time than to choose, and a class that has no probability changes no sum.
  template <class ClassOf>
  XENT_LANE void append(const Real* z, uint32_t mask, ClassOf class_of) {
    if (__builtin_popcount(mask) > kGroup / 4) {
      Real group[kGroup];
      int32_t number[kGroup];
      for (int i = 0; i < kGroup; ++i) group[i] = z[i], number[i] = class_of(i);
      for (int i = 0; i < kGroup; ++i) z_[count_ + i] = group[i], class_[count_ + i] = number[i];
      count_ += kGroup;
    } else {
      for (; mask; mask &= mask - 1) {
        const int i = __builtin_ctz(mask);
        z_[count_] = z[i];
        class_[count_++] = class_of(i);
      }
    }
  }

  void keep_above(const Real* z, Real floor, int64_t first, int width) {
    for (int j = 0; j < width; j += kGroup)
      append(z + j, mask_above(z + j, floor), [=](int i) { return int32_t(first) + j + i; });
  }

  void pad() {
    for (int i = 0; i < kGroup; ++i) z_[count_ + i] = Real(-kInfinity);
  }

  bool has_nan() const {
    typename Exp<Real>::Int found[kLanes] = {};
    for (int64_t j = 0; j < count_; j += kLanes)
      XENT_FOR(i, kLanes) found[i] |= z_[j + i] == z_[j + i] ? 0 : 1;
    int any = 0;
    for (int i = 0; i < kLanes; ++i) any |= int(found[i]);
    return any;
  }

  static void put(Real* block, int64_t j, int width, double value) {
    if (j >= 0 && j < width) block[j] = Real(value);
  }

  static void store_block(const Strip& out, bool streams, int64_t first, int width, Real* from,
                          const Strip& next) {
    const auto same = [](Real x, int) XENT_INLINE { return x; };
    store_row(out, {0, 1, first, width, kBuffer}, streams, from, same, prefetch_at(next, 0, first));
  }

  const int64_t classes_;
  Real* const z_;
  int32_t* const class_;
  int64_t count_ = 0, top_ = -1, top_block_ = 0;
  Real largest_ = 0;
  BlockView<Real> view_;
  alignas(64) Real zeros_[kBuffer] = {};
};

}  // namespace
