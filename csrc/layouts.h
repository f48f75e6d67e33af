// Two layouts of a block of logits in the first-level cache, with the same functions. Each function
// works on all rows of a block, so that steps which depend on each other within a row (folding
// lanes, logarithms, coefficients) run for many rows side by side. That halves the time at 100
// classes.
#pragma once

#include "blocks.h"

namespace {

// The accumulators of lane i, one for each sum.
template <class Real, int lanes>
struct Sums {
  Real (*at)[lanes];
  int i;
  XENT_LANE Real& operator()(int k) const { return at[k][i]; }
};

struct Plus {
  XENT_LANE double operator()(double a, double b) const { return a + b; }
};

// Folds kLanes numbers of each row into one: down to four within the row, then for all rows side by
// side.
template <class Real, class Number, class Operation>
void fold(const Real (*lane)[kLanes], int count, Operation operation, Number* out) {
  Number half[kStrip][8], quad[4][kStrip];
  for (int r = 0; r < count; ++r) {
    XENT_FOR(i, 8) half[r][i] = operation(Number(lane[r][i]), Number(lane[r][i + 8]));
    XENT_FOR(i, 4) half[r][i] = operation(half[r][i], half[r][i + 4]);
  }
  for (int r = count; r % 4 > 0; ++r)  // `transpose` takes four rows at a time
    for (int i = 0; i < 4; ++i) half[r][i] = 0;
  transpose(half[0], 8, count, 4, quad[0], kStrip);
  for (int r = 0; r < count; ++r)
    out[r] = operation(operation(quad[0][r], quad[2][r]), operation(quad[1][r], quad[3][r]));
}

// Rows lie one after the other, and the lanes run along the classes. Loops include the padding.
template <class Real, class Operation>
struct RowsLayout {
  static constexpr bool is_panel = false, keeps = false;
  static constexpr int class_step = 1;
  Real* z;
  int height, width, pitch;
  Extremes<Real, Operation>& extremes;  // found when the block was loaded

  Real& at(int r, int64_t j) const { return z[r * pitch + j]; }
  int padding() const { return padded(width) - width; }

  // Writes `value` into the places of row r that hold no class of the rest: those beyond its end,
  // and `place`, the place of the pivot, unless that is negative.
  void fill_empty_places(int r, int64_t place, Real value) const {
    Real* last = z + r * pitch + padded(width) - kLanes;
    const int end = width - (padded(width) - kLanes);
    XENT_FOR(i, kLanes) last[i] = i < end ? last[i] : value;
    if (place >= 0) at(r, place) = value;
  }

  // out[r] = the extreme of row r
  template <class Next>
  void extreme(const Next&, Real* out) const {
    fold(extremes.lane, height, Operation(), out);
  }
  // Finds the extreme of row r again, after a change of the row.
  void look_again(int r) const { extremes.look(r, z + r * pitch, width); }

  // out[r] = the first class of row r whose logit is value[r]. The loop runs backwards, so that the
  // last class found is the first one.
  void find(const Real* value, Real* out) const {
    Real lane[kStrip][kLanes];
    for (int r = 0; r < height; ++r) {
      const Real* at = z + r * pitch;
      const Real wanted = value[r];
      Real found[kLanes];
      XENT_FOR(i, kLanes) found[i] = Real(kBuffer);
      for (int j = padded(width) - kLanes; j >= 0; j -= kLanes)
        XENT_FOR(i, kLanes) found[i] = at[j + i] == wanted ? Real(j + i) : found[i];
      XENT_FOR(i, kLanes) lane[r][i] = found[i];
    }
    fold(lane, height, Less(), out);
  }

  // out[k][r] = the k-th of n sums over row r; step(r)(logit, class, sums) adds a class to them.
  // Lanes are added up in float64, because the last few additions would round the sum of the row.
  template <int n, class Step, class Next>
  void sums(Step step, const Next& next, double (*out)[kStrip]) const {
    Real lane[n][kStrip][kLanes];
    for (int r = 0; r < height; ++r)
      sum_row<n>(r, step(r), next, [&](int k) { return lane[k][r]; });
    for (int k = 0; k < n; ++k) fold(lane[k], height, Plus(), out[k]);
  }

  // The same sums, for the marked rows only.
  template <int n, class Step, class Next>
  void sums_of(const bool* marked, Step step, const Next& next, double (*out)[kStrip]) const {
    Real lane[n][kStrip][kLanes];
    double own[kStrip];
    int row[kStrip], count = 0;
    for (int r = 0; r < height; ++r) {
      row[count] = r;
      count += marked[r];
    }
    for (int m = 0; m < count; ++m)
      sum_row<n>(row[m], step(row[m]), next, [&](int k) { return lane[k][m]; });
    for (int k = 0; k < n; ++k) {
      fold(lane[k], count, Plus(), own);
      for (int m = 0; m < count; ++m) out[k][row[m]] = own[m];
    }
  }

  // z = step(r)(z, class)
  template <class Step>
  void map(Step step) const {
    for (int r = 0; r < height; ++r) {
      const auto one = step(r);
      Real* at = z + r * pitch;
      for (int j = 0; j < width; j += kLanes) XENT_FOR(i, kLanes) at[j + i] = one(at[j + i], j + i);
    }
  }

  // Stores step(r)(z, class) in rows of `out`, cache line by cache line, and fetches `next`.
  template <bool streams, class Stored, class Step, class Next>
  void map_to(const Strip& out, const Block& b, Step step, const Next& next) const {
    constexpr int lanes = 64 / sizeof(Stored);
    for (int r = 0; r < height; ++r) {
      const auto one = step(r);
      const auto prefetch = next.row(r);
      const Real* at = z + r * pitch;
      Stored* to = out.at<Stored>(b.r + r, b.first);
      const auto compute = [&](int j, Stored* __restrict into) XENT_INLINE {
        for (int i = 0; i < lanes; i += kLanes) prefetch.fetch(j + i);
        XENT_FOR(i, lanes) narrow(one(at[j + i], j + i), into[i]);
      };
      alignas(64) Stored line[lanes];
      const auto some = [&](int j, int n) {
        if (n <= 0) return;
        compute(j, line);
        for (int i = 0; i < n; ++i) to[j + i] = line[i];
      };
      const int whole = int((-reinterpret_cast<uintptr_t>(to) & 63) / sizeof(Stored));
      int j = streams ? (whole < width ? whole : width) : 0;
      some(0, j);
      for (; j + lanes <= width; j += lanes) {
        if (!streams) __builtin_prefetch(to + j + 512, 1);
        compute(j, streams ? line : to + j);
        if (streams) stream_line(line, to + j);
      }
      if (streams || width < lanes)
        some(j, width - j);
      else if (j < width)  // a line that overlaps the one before, instead of single numbers
        compute(width - lanes, to + width - lanes);
    }
  }

 private:
  // lane(k)[i] = the part of the k-th sum over row r that lane i has added up
  template <int n, class One, class Next, class Lane>
  XENT_LANE void sum_row(int r, One one, const Next& next, Lane lane) const {
    Real* at = z + r * pitch;
    const auto prefetch = next.row(r);
    Real a[n][kLanes] = {}, b[1][kLanes] = {};
    int j = 0;
    if constexpr (n == 1)  // two sets of lanes take turns: an addition must wait for the one before
      for (; j + kLanes < width; j += 2 * kLanes) {
        prefetch.fetch(j), prefetch.fetch(j + kLanes);
        XENT_FOR(i, kLanes) one(at[j + i], j + i, Sums<Real, kLanes>{a, i});
        XENT_FOR(i, kLanes) one(at[j + kLanes + i], j + kLanes + i, Sums<Real, kLanes>{b, i});
      }
    for (; j < width; j += kLanes) {
      if (n > 1) prefetch.fetch(j);
      XENT_FOR(i, kLanes) one(at[j + i], j + i, Sums<Real, kLanes>{a, i});
    }
    for (int k = 0; k < n; ++k)
      XENT_FOR(i, kLanes) lane(k)[i] = n == 1 ? a[k][i] + b[0][i] : a[k][i];
  }
};

// The rows of a strip lie side by side, class after class. So there are no sums across lanes and no
// padding, which would be most of the work for rows of ten classes.
template <class Real, class Operation>
struct PanelLayout {
  static constexpr bool is_panel = true, keeps = false;
  static constexpr int class_step = kStrip;
  Real* z;
  int height, width;

  Real& at(int r, int64_t j) const { return z[j * kStrip + r]; }
  int padding() const { return 0; }

  void fill_empty_places(int r, int64_t place, Real value) const {
    if (place >= 0) at(r, place) = value;
  }

  // Finds the extremes by a loop over the panel, which also fetches the next block.
  template <class Next>
  void extreme(const Next& next, Real* out) const {
    Real lane[kStrip];
    const auto prefetch = next.row(0);
    for (int r = 0; r < kStrip; ++r) lane[r] = z[r];
    for (int j = 1; j < width; ++j) {
      prefetch.fetch(j);
      for (int r = 0; r < kStrip; ++r) lane[r] = Operation()(z[j * kStrip + r], lane[r]);
    }
    for (int r = 0; r < height; ++r) out[r] = lane[r];
  }

  void find(const Real* value, Real* out) const {
    Real found[kStrip];
    for (int r = 0; r < kStrip; ++r) found[r] = Real(kBuffer);
    for (int j = width - 1; j >= 0; --j)
      for (int r = 0; r < height; ++r)
        found[r] = z[j * kStrip + r] == value[r] ? Real(j) : found[r];
    for (int r = 0; r < height; ++r) out[r] = found[r];
  }

  // Two classes at a time are added in the type of the logits, and these pairs in float64.
  template <int n, class Step, class Next>
  void sums(Step step, const Next&, double (*out)[kStrip]) const {
    double lane[n][kStrip] = {};
    for (int j = 0; j < width; j += 2) {
      Real pair[n][kStrip] = {};
      for (int r = 0; r < kStrip; ++r) step(r)(z[j * kStrip + r], j, Sums<Real, kStrip>{pair, r});
      if (j + 1 < width)
        for (int r = 0; r < kStrip; ++r)
          step(r)(z[(j + 1) * kStrip + r], j + 1, Sums<Real, kStrip>{pair, r});
      for (int k = 0; k < n; ++k)
        for (int r = 0; r < kStrip; ++r) lane[k][r] += double(pair[k][r]);
    }
    for (int k = 0; k < n; ++k)
      for (int r = 0; r < height; ++r) out[k][r] = lane[k][r];
  }

  template <int n, class Step, class Next>
  void sums_of(const bool* marked, Step step, const Next& next, double (*out)[kStrip]) const {
    double own[n][kStrip];
    sums<n>(step, next, own);
    for (int k = 0; k < n; ++k)
      for (int r = 0; r < height; ++r) out[k][r] = marked[r] ? own[k][r] : out[k][r];
  }

  template <class Step>
  void map(Step step) const {
    for (int j = 0; j < width; ++j)
      for (int r = 0; r < kStrip; ++r) z[j * kStrip + r] = step(r)(z[j * kStrip + r], j);
  }
};

// Subtracts the offset of each row from its logits, if any row has an offset.
template <class Real, class Layout>
void subtract_offsets(const Layout& block, const Real* offset) {
  bool any = false;
  for (int r = 0; r < block.height; ++r) any |= offset[r] != 0;
  if (any) block.map([=](int r) { return [x = offset[r]](Real z, int) { return z - x; }; });
}

}  // namespace
