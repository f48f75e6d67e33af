// The largest or the smallest logit of every row of a block, found while the block is loaded. A
// separate loop would take a tenth of the time of the sweep.
#pragma once

#include "lanes.h"

namespace {

constexpr int kStrip = 32;  // most rows of a strip

// A comparison with NaN is false, so the extremes ignore NaN.
struct Less {
  static constexpr double none = __builtin_huge_val();
  template <class Real>
  XENT_LANE Real operator()(Real a, Real b) const {
    return a < b ? a : b;
  }
};
struct Greater {
  static constexpr double none = -__builtin_huge_val();
  template <class Real>
  XENT_LANE Real operator()(Real a, Real b) const {
    return a > b ? a : b;
  }
};

// The extreme of a row where none is wanted.
struct NoRowExtreme {
  template <class Number>
  XENT_LANE void see(const Number*) {}
  template <class Number>
  XENT_LANE void see_short(const Number*, int) {}
};

// The extreme of one row, lane by lane. Two sets of lanes take turns, because a comparison must
// wait for the one before in its lane. The same number may be seen twice.
template <class Real, class Operation>
struct RowExtreme {
  Real lane[2][kLanes];

  XENT_LANE RowExtreme() {
    for (int k = 0; k < 2; ++k) XENT_FOR(i, kLanes) lane[k][i] = Real(Operation::none);
  }

  // Sees the next 2 kLanes numbers of the row.
  XENT_LANE void see(const Real* z) {
    see_lanes(z, 0);
    see_lanes(z + kLanes, 1);
  }

  // Sees a whole row of n numbers, n < 2 kLanes.
  XENT_LANE void see_short(const Real* z, int n) {
    Real all[2 * kLanes];
    for (int j = 0; j < 2 * kLanes; ++j) all[j] = z[j < n ? j : 0];
    see(all);
  }

 private:
  // The 0 makes GCC compare floating-point numbers. Without it GCC sees the shifted bits of a
  // bfloat16 and selects by a mask, which takes twice the time. It also turns -0 into 0.
  XENT_LANE void see_lanes(const Real* z, int k) {
    XENT_FOR(i, kLanes) lane[k][i] = Operation()(z[i] + Real(0), lane[k][i]);
  }
};

// The extremes of the rows of a block, lane by lane.
template <class Real, class Operation>
struct Extremes {
  Real lane[kStrip][kLanes];

  RowExtreme<Real, Operation> row() const { return {}; }

  XENT_LANE void put(int r, const RowExtreme<Real, Operation>& row) {
    XENT_FOR(i, kLanes) lane[r][i] = Operation()(row.lane[0][i], row.lane[1][i]);
  }

  // Finds the extreme of row r, whose n numbers are in the first-level cache.
  void look(int r, const Real* z, int n) {
    constexpr int step = 2 * kLanes;
    RowExtreme<Real, Operation> one;
    if (n < step) {
      one.see_short(z, n);
    } else {
      for (int j = 0; j + step <= n; j += step) one.see(z + j);
      one.see(z + n - step);
    }
    put(r, one);
  }
};

// The smallest and the largest logits of the rows of a block, found together.
template <class Real>
struct BothExtremes {
  Extremes<Real, Less>& smallest;
  Extremes<Real, Greater>& largest;

  struct Row {
    RowExtreme<Real, Less> low;
    RowExtreme<Real, Greater> high;
    XENT_LANE void see(const Real* z) { low.see(z), high.see(z); }
    XENT_LANE void see_short(const Real* z, int n) { low.see_short(z, n), high.see_short(z, n); }
  };
  Row row() const { return {}; }
  XENT_LANE void put(int r, const Row& row) { smallest.put(r, row.low), largest.put(r, row.high); }
  void look(int r, const Real* z, int n) { smallest.look(r, z, n), largest.look(r, z, n); }
};

// Takes the place of Extremes where no extremes are wanted.
struct NoExtremes {
  NoRowExtreme row() const { return {}; }
  void put(int, NoRowExtreme) {}
  template <class Real>
  void look(int, const Real*, int) {}
};

}  // namespace
