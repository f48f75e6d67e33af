// The divisor of a sum over rows, from counts that are taken before any logit is read; and the sum.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "arguments.h"

namespace xent {
namespace {

enum class Divide { by_nothing, by_number, by_weight, by_count };
// (kind, number, use 1 in the place of 0?)
using DivisorArguments = std::tuple<int, double, bool>;

// Counts of some rows, taken before any logit is read.
struct RowCounts {
  int64_t rows = 0;  // rows whose label is not ignore_index
  int64_t kept = 0;  // those of them whose row weight is not 0
  double mass = 0;   // sum of row weight times class weight over the kept rows
  int64_t bad = -1;  // the first kept row with a label out of range; -1: none

  void add(const RowCounts& later) {
    rows += later.rows;
    kept += later.kept;
    mass += later.mass;
    if (bad < 0) bad = later.bad;
  }
};

struct RowsToCount {
  int64_t rows, classes;
  const int64_t* labels;  // a class per row, or null
  int64_t ignore_index;
  const double* row_weight;  // one per row, or null: 1
  const void* class_weight;  // of the type of the sweep, or null: 1
  Type logits;               // the type of the logits
};

constexpr int64_t kCountedRows = 4096;  // rows in one partial sum, for any number of threads

// Counts the rows [begin, end). Class weights have the type of the sweep.
template <class Real>
RowCounts count(const RowsToCount& p, int64_t begin, int64_t end) {
  const Real* class_weight = p.labels ? static_cast<const Real*>(p.class_weight) : nullptr;
  RowCounts found;
  for (int64_t n = begin; n < end; ++n) {
    const int64_t label = p.labels ? p.labels[n] : 0;
    const double weight = p.row_weight ? p.row_weight[n] : 1.0;
    if (p.labels && label == p.ignore_index) continue;
    ++found.rows;
    if (weight == 0) continue;
    ++found.kept;
    if (uint64_t(label) >= uint64_t(p.classes)) {
      if (found.bad < 0) found.bad = n;
      continue;
    }
    found.mass += (class_weight ? double(class_weight[label]) : 1.0) * weight;
  }
  return found;
}

inline RowCounts count_all(const RowsToCount& p) {
  const int64_t blocks = (p.rows + kCountedRows - 1) / kCountedRows;
  std::vector<RowCounts> part(blocks);
  for_range(blocks, kGrain / kCountedRows, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t from = b * kCountedRows, to = from + kCountedRows;
      const int64_t last = to < p.rows ? to : p.rows;
      part[b] = p.logits == Type::f64 ? count<double>(p, from, last) : count<float>(p, from, last);
    }
  });
  RowCounts all;
  for (const RowCounts& one : part) all.add(one);
  return all;
}

inline double divisor_of(const RowCounts& counts, const DivisorArguments& divisor) {
  const auto [kind, number, never_zero] = divisor;
  double value = 1;
  switch (Divide(kind)) {
    case Divide::by_nothing: return 1;
    case Divide::by_number: value = number; break;
    case Divide::by_weight: value = counts.mass; break;
    case Divide::by_count: value = double(counts.rows); break;
  }
  return never_zero && value == 0 ? 1 : value;
}

// The sum of n values, in a fixed order for any number of threads.
inline double sum_of(const double* value, int64_t n) {
  constexpr int lanes = 8;
  double lane[lanes] = {}, sum = 0;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int k = 0; k < lanes; ++k) lane[k] += value[i + k];
  for (; i < n; ++i) lane[0] += value[i];
  for (double part : lane) sum += part;
  return sum;
}

}  // namespace
}  // namespace xent
