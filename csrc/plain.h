// The common case, a strip of rows at a time: index targets, and nothing asked for but what follows
// from the sum of exponentials. What is a chain of dependent steps for one row (folding lanes,
// logarithms, the base) is done for the rows of the strip side by side.
#pragma once

#include "gradient.h"
#include "statistics.h"

namespace {

// ---- two layouts of a block, with the same two sweeps -------------------------------------------

// Rows one after the other, lanes along the classes. The padding is swept too.
template <class Real>
struct RowsLayout {
  Real* z;
  int height, width, pitch;

  // A block is swept twice; each sweep fetches one half of the next block.

  // out[r] = the extreme of row r by an operation that may see a class twice.
  template <class Operation>
  void extreme(Operation operation, const Ahead& next, Real* out) const {
    Real lane[kStrip][kLanes];
    const int end = padded(width) - kLanes;
    for (int r = 0; r < height; ++r) {
      const Real* at = z + r * pitch;
      Real a[kLanes], b[kLanes];  // two, because an extreme takes less time than its latency
      XENT_FOR(i, kLanes) a[i] = at[i];
      XENT_FOR(i, kLanes) b[i] = at[end + i];
      for (int j = kLanes; j < end; j += 2 * kLanes) {
        next.fetch(r, j / 2);
        XENT_FOR(i, kLanes) a[i] = operation(at[j + i], a[i]);
        XENT_FOR(i, kLanes) b[i] = operation(at[j + kLanes + i], b[i]);
      }
      XENT_FOR(i, kLanes) lane[r][i] = operation(a[i], b[i]);
    }
    fold(lane, operation, out);
  }

  // out[r] = the sum over row r of step(r)(logit). Lanes are added up in float64: it is the last
  // few additions that round what all of the row is in.
  template <class Step>
  void sum(Step step, const Ahead& next, double* out) const {
    Real lane[kStrip][kLanes];
    for (int r = 0; r < height; ++r) {
      const auto one = step(r);
      const Real* at = z + r * pitch;
      Real a[kLanes] = {}, b[kLanes] = {};
      int j = 0;
      for (; j + kLanes < width; j += 2 * kLanes) {
        next.fetch(r, (width + j) / 2);
        XENT_FOR(i, kLanes) a[i] = one(at[j + i]).added_to(a[i]);
        XENT_FOR(i, kLanes) b[i] = one(at[j + kLanes + i]).added_to(b[i]);
      }
      if (j < width) XENT_FOR(i, kLanes) a[i] = one(at[j + i]).added_to(a[i]);
      XENT_FOR(i, kLanes) lane[r][i] = a[i] + b[i];
    }
    fold(lane, [](double a, double b) { return a + b; }, out);
  }

  // z = step(r)(z)
  template <class Step>
  void map(Step step) const {
    for (int r = 0; r < height; ++r) {
      const auto one = step(r);
      Real* at = z + r * pitch;
      for (int j = 0; j < width; j += kLanes) XENT_FOR(i, kLanes) at[j + i] = one(at[j + i]);
    }
  }

  // to(r)[j] = step(r)(z), cache line by cache line, `next` being fetched meanwhile.
  template <bool streams, class Stored, class Step>
  void map_to(const Strip& out, const Block& b, Step step, const Ahead& next) const {
    constexpr int lanes = 64 / sizeof(Stored);
    for (int r = 0; r < height; ++r) {
      const auto one = step(r);
      const Real* at = z + r * pitch;
      Stored* to = out.at<Stored>(b.r + r, b.first);
      const auto compute = [&](int j, Stored* __restrict into) {
        if (lanes > kLanes || j / kLanes % 2 == 0) next.fetch(r, (width + j) / 2);
        XENT_FOR(i, lanes) narrow(one(at[j + i]), into[i]);
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
      some(j, width - j);
    }
  }

  Real& at(int r, int64_t j) const { return z[r * pitch + j]; }

 private:
  // From kLanes numbers a row to one: in the row down to four, then side by side.
  template <class Number, class Operation>
  void fold(const Real (*lane)[kLanes], Operation operation, Number* out) const {
    Number half[kStrip][8], quad[4][kStrip];
    for (int r = 0; r < height; ++r) {
      XENT_FOR(i, 8) half[r][i] = operation(Number(lane[r][i]), Number(lane[r][i + 8]));
      XENT_FOR(i, 4) half[r][i] = operation(half[r][i], half[r][i + 4]);
    }
    for (int r = height; r % 4 > 0; ++r)  // `transpose` takes four rows at a time
      for (int i = 0; i < 4; ++i) half[r][i] = 0;
    transpose(half[0], 8, height, 4, quad[0], kStrip);
    for (int r = 0; r < height; ++r)
      out[r] = operation(operation(quad[0][r], quad[2][r]), operation(quad[1][r], quad[3][r]));
  }
};

// The rows of a strip side by side, class after class: no sums across lanes and no padding, which
// is most of the work for rows of ten classes.
template <class Real>
struct PanelLayout {
  Real* z;
  int height, width;

  template <class Operation>
  void extreme(Operation operation, const Ahead& next, Real* out) const {
    Real lane[kStrip];
    for (int r = 0; r < kStrip; ++r) lane[r] = z[r];
    for (int j = 1; j < width; ++j) {
      next.fetch(0, j);
      for (int r = 0; r < kStrip; ++r) lane[r] = operation(z[j * kStrip + r], lane[r]);
    }
    for (int r = 0; r < height; ++r) out[r] = lane[r];
  }

  template <class Step>
  void sum(Step step, const Ahead&, double* out) const {
    double lane[kStrip] = {};
    const auto value = [&](int j, int r) { return step(r)(z[j * kStrip + r]).value(); };
    for (int j = 0; j + 1 < width; j += 2)
      for (int r = 0; r < kStrip; ++r) lane[r] += double(value(j, r) + value(j + 1, r));
    if (width % 2)
      for (int r = 0; r < kStrip; ++r) lane[r] += double(value(width - 1, r));
    for (int r = 0; r < height; ++r) out[r] = lane[r];
  }

  template <class Step>
  void map(Step step) const {
    for (int j = 0; j < width; ++j)
      for (int r = 0; r < kStrip; ++r) z[j * kStrip + r] = step(r)(z[j * kStrip + r]);
  }

  Real& at(int r, int64_t j) const { return z[j * kStrip + r]; }
};

// Where logits are large, their offset is subtracted first.
template <class Real, class Layout>
void subtract_offsets(const Layout& block, const Real* offset) {
  bool any = false;
  for (int r = 0; r < block.height; ++r) any |= offset[r] != 0;
  if (any) block.map([=](int r) { return [x = offset[r]](Real z) { return z - x; }; });
}

// ---- statistics ---------------------------------------------------------------------------------

template <class Real>
struct PlainRows {
  Real largest[kStrip];
  double pivot[kStrip], shift[kStrip], sum[kStrip];

  PlainRows() {
    for (int r = 0; r < kStrip; ++r) {
      largest[r] = Real(-kInfinity);
      pivot[r] = shift[r] = -kInfinity;
      sum[r] = 0;
    }
  }
};

// Classes from `first` on of the rows from `from` on.
template <class Real, class Layout>
void absorb_plain(PlainRows<Real>& rows, const Layout& block, const Label* label, int from,
                  int64_t first, const Ahead& next) {
  const int height = block.height;
  Real top[kStrip], lowest[kStrip] = {}, magic[kStrip] = {}, offset[kStrip] = {};
  double shift[kStrip], sum[kStrip];
  for (int r = 0; r < height; ++r) {
    const int64_t j = label[from + r].pivot - first;
    if (j < 0 || j >= block.width) continue;
    rows.pivot[from + r] = double(block.at(r, j));
    block.at(r, j) = Real(-kInfinity);
  }
  const auto greater = [](Real a, Real b) { return a > b ? a : b; };
  block.extreme(greater, next, top);
  for (int r = 0; r < height; ++r) {
    top[r] = greater(top[r], rows.largest[from + r]);
    const Base<Real> base{double(top[r])};
    shift[r] = base.shift;
    magic[r] = base.magic();
    offset[r] = base.offset;
    lowest[r] = base.lowest();
  }
  subtract_offsets(block, offset);
  block.sum(
      [&](int r) {
        return [low = lowest[r], magic = magic[r]](Real z) {
          return exponential(low > z ? low : z, magic);
        };
      },
      next, sum);
  // Where everything is masked, only a NaN may leave a trace.
  for (int r = 0; r < height; ++r)
    sum[r] = top[r] == Real(-kInfinity) && sum[r] == sum[r] ? 0.0 : sum[r];
  if (first > 0)
    for (int r = 0; r < height; ++r) {
      const double before = rows.sum[from + r];
      const double factor = exp_scaled(rows.shift[from + r] - shift[r], 1.0);
      sum[r] += before == 0 ? 0.0 : before * factor;
    }
  for (int r = 0; r < height; ++r) {
    rows.largest[from + r] = top[r];
    rows.shift[from + r] = shift[r];
    rows.sum[from + r] = sum[r];
  }
}

template <class Real>
void collect(const PlainRows<Real>& rows, int height, Sums& s) {
  for (int r = 0; r < height; ++r) {
    s.pivot[r] = rows.pivot[r];
    s.shift[r] = rows.shift[r];
    s.sum[r] = rows.sum[r];
    s.log_sum[r] = log_lane(rows.sum[r]);
  }
}

// ---- gradient -----------------------------------------------------------------------------------

// apply(step) with the step(row) that turns a block of logits into gradient, but for the pivots. Rows
// without any gradient become 0.
template <class Real, class Layout, class Apply>
void differentiate_plain(const Slopes<Real>& slopes, const Layout& block, int from,
                         const Ahead& next, Apply apply) {
  const int height = block.height;
  Real factor[kStrip] = {}, vanished[kStrip] = {}, magic[kStrip] = {}, offset[kStrip] = {};
  Real low[kStrip], floor[kStrip];
  for (int r = 0; r < height; ++r) {
    const Base<Real> base{slopes.shift[from + r]};
    magic[r] = base.magic();
    offset[r] = base.offset;
    vanished[r] = base.vanished();
    factor[r] = slopes.exp_[from + r];
    floor[r] = base.normal_floor(factor[r]);
  }
  subtract_offsets(block, offset);
  block.extreme([](Real a, Real b) { return a < b ? a : b; }, next, low);
  bool tame = true;  // not with an ignored row, which may hold NaN
  for (int r = 0; r < height; ++r) tame &= low[r] >= floor[r] && factor[r] != 0;
  if (tame)
    apply([&](int r) {
      return [magic = magic[r], f = factor[r]](Real z) {
        return exponential(z, magic).times_normal(f);
      };
    });
  else
    apply([&](int r) {
      return [magic = magic[r], v = vanished[r], f = factor[r]](Real z) {
        const Real g = exp_scaled(z, magic, v, f);
        return f == 0 || f != f ? f : g;  // a row with NaN is NaN where it is masked, too
      };
    });
}

// The place of row r's pivot in a block; negative where it has none.
template <class Real>
int64_t pivot_place(const Slopes<Real>& slopes, const Block& b, int r) {
  const int64_t j = slopes.pivot[b.r + r] - b.first;
  return j < b.width ? j : -1;
}

template <class Real, class Layout>
void put_pivots(const Slopes<Real>& slopes, const Block& b, const Layout& block) {
  for (int r = 0; r < b.height; ++r) {
    const int64_t j = pivot_place(slopes, b, r);
    if (j >= 0) block.at(r, j) = Real(slopes.at_pivot[b.r + r]);
  }
}

template <class Stored, class Real>
void differentiate_to(const Strip& out, const Block& b, bool streams, const Slopes<Real>& slopes,
                      const RowsLayout<Real>& block, const Ahead& next) {
  differentiate_plain(slopes, block, b.r, next, [&](auto step) {
    if (streams)
      block.template map_to<true, Stored>(out, b, step, next);
    else
      block.template map_to<false, Stored>(out, b, step, next);
  });
  for (int r = 0; r < b.height; ++r) {
    const int64_t j = pivot_place(slopes, b, r);
    if (j >= 0) narrow(Real(slopes.at_pivot[b.r + r]), out.at<Stored>(b.r + r, b.first)[j]);
  }
}

void differentiate_to_any(const Strip& out, const Block& b, bool streams,
                          const Slopes<double>& slopes, const RowsLayout<double>& block,
                          const Ahead& next) {
  differentiate_to<double>(out, b, streams, slopes, block, next);
}
void differentiate_to_any(const Strip& out, const Block& b, bool streams,
                          const Slopes<float>& slopes, const RowsLayout<float>& block,
                          const Ahead& next) {
  switch (out.type) {
    case Type::f32: return differentiate_to<float>(out, b, streams, slopes, block, next);
    case Type::bf16: return differentiate_to<bf16>(out, b, streams, slopes, block, next);
    case Type::f16: return differentiate_to<f16>(out, b, streams, slopes, block, next);
    case Type::f64: return;  // swept in float64
  }
}

}  // namespace
