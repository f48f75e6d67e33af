// Moves blocks of rows between memory and a buffer in the first-level cache, for every dtype, all
// strides and every transform of the logits.
#pragma once

#include "memory.h"
#include "rows.h"

namespace {

using xent::Matrix;
using xent::Partials;
using xent::PerRow;
using xent::Problem;
using xent::size_of;
using xent::Type;

constexpr double kInfinity = __builtin_huge_val();
constexpr double kNaN = __builtin_nan("");

constexpr int kBuffer = 2048;  // numbers in a buffer: a part of one row, or several shorter rows

// Some neighbouring rows of a matrix. The address of the first is computed once for all of them,
// because it takes a division.
struct Strip {
  char* data;
  Type type;
  int64_t row_step, class_step;  // in elements

  Strip(const Matrix& m, int64_t row)
      : type(m.type), row_step(m.inner_stride), class_step(m.class_stride) {
    const int64_t offset = row / m.inner * m.outer_stride + row % m.inner * m.inner_stride;
    data = static_cast<char*>(m.data) + offset * size_of(type);
  }
  template <class Stored>
  Stored* at(int r, int64_t first) const {
    return reinterpret_cast<Stored*>(data) + r * row_step + first * class_step;
  }
  bool adjacent() const { return class_step == 1; }
};

bool adjacent(const Problem& p) { return p.logits.class_stride == 1; }

// The number of rows in the strip that begins at `row`. A strip ends with its outer index, because
// the step to the next row is another one there.
inline int strip_height(const Problem& p, int64_t row, int64_t end) {
  int64_t height = kStrip;
  if (height > end - row) height = end - row;
  const int64_t left = p.logits.inner - row % p.logits.inner;
  return int(height < left ? height : left);
}

// `n` rounded up to whole vectors.
int padded(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

// `height` rows of a strip from row `r` on, and `width` classes from class `first` on. In the
// buffer a row takes `pitch` numbers.
struct Block {
  int r, height;
  int64_t first;
  int width, pitch;
};

// Hands the rows of a block in the buffer to `seen`, which finds their extremes.
template <class Real, class Seen>
void look(const Block& b, const Real* buffer, Seen& seen) {
  for (int r = 0; r < b.height; ++r) seen.look(r, buffer + r * b.pitch, b.width);
}

// buffer = then(number, class in the block); `seen` finds the extremes of the results.
template <class Stored, class Real, class Then, class Seen>
void gather(const Strip& strip, const Block& b, Real* buffer, Then then, Seen& seen) {
  const Stored* at = strip.at<const Stored>(b.r, b.first);
  const auto one = [=](Stored x, Real& to, int j) { to = then(Real(widen(x)), j); };
  if (strip.adjacent()) {
    for (int r = 0; r < b.height; ++r, at += strip.row_step) {
      auto row = seen.row();
      convert_each(at, buffer + r * b.pitch, b.width, one, row);
      seen.put(r, row);
    }
  } else {
    for (int j = 0; j < b.width; ++j, at += strip.class_step)
      for (int r = 0; r < b.height; ++r) one(at[r * strip.row_step], buffer[r * b.pitch + j], j);
    look(b, buffer, seen);
  }
}

template <class Stored, class Real>
void scatter(const Strip& strip, const Block& b, const Real* buffer) {
  Stored* at = strip.at<Stored>(b.r, b.first);
  if (strip.adjacent()) {
    for (int r = 0; r < b.height; ++r, at += strip.row_step)
      convert(buffer + r * b.pitch, at, b.width, [](Real x, Stored& to) { narrow(x, to); });
  } else {
    for (int j = 0; j < b.width; ++j, at += strip.class_step)
      for (int r = 0; r < b.height; ++r) narrow(buffer[r * b.pitch + j], at[r * strip.row_step]);
  }
}

// Logits of float64 are swept in float64, all others in float32. A soft target may have any type.
template <class Real, class Then, class Seen>
void load(const Strip& strip, const Block& b, Real* buffer, Then then, Seen& seen) {
  switch (strip.type) {
    case Type::f32: return gather<float>(strip, b, buffer, then, seen);
    case Type::f64: return gather<double>(strip, b, buffer, then, seen);
    case Type::bf16: return gather<bf16>(strip, b, buffer, then, seen);
    case Type::f16: return gather<f16>(strip, b, buffer, then, seen);
  }
}

template <class Real, class Seen>
void load(const Strip& strip, const Block& b, Real* buffer, Seen& seen) {
  load(strip, b, buffer, [](Real x, int) { return x; }, seen);
}

inline void store(const Strip& strip, const Block& b, const double* buffer) {
  scatter<double>(strip, b, buffer);
}

inline void store(const Strip& strip, const Block& b, const float* buffer) {
  switch (strip.type) {
    case Type::f32: return scatter<float>(strip, b, buffer);
    case Type::bf16: return scatter<bf16>(strip, b, buffer);
    case Type::f16: return scatter<f16>(strip, b, buffer);
    case Type::f64: return;  // swept in float64
  }
}

double row_scale(const Problem& p, int64_t row) {
  return p.scale ? p.scale[row * p.scale_step] : 1.0;
}

// z = softcap * tanh(z / softcap); `slope`, unless it is null, receives the derivative.
template <class Real>
void apply_cap(const Problem& p, int n, Real* __restrict z, Real* __restrict slope) {
  const Real cap = Real(p.softcap), inverse = Real(1 / p.softcap);
  // A masked class stays masked: the cap would lift it from -inf to -cap.
  const Real out = Real(-kInfinity);
  if (slope)
    for (int j = 0; j < n; ++j) {
      const Real t = tanh_lane(z[j] * inverse), square = Real(1) - t * t;
      slope[j] = z[j] == out ? Real(0) : square;
      z[j] = z[j] == out ? out : t * cap;
    }
  else
    for (int j = 0; j < n; ++j) {
      const Real t = tanh_lane(z[j] * inverse);
      z[j] = z[j] == out ? out : t * cap;
    }
}

// Loads a block of logits and applies scale, softcap, class scale and bias. The rest of the last
// vector of a row becomes -inf. `row` is the number of the strip's first row. `slope` receives the
// derivative of the cap. `seen` finds the extremes of the logits.
template <class Real, class Seen>
[[gnu::noinline]] void load_logits(const Problem& p, const Strip& strip, int64_t row,
                                   const Block& b, Real* buffer, Real* slope, Seen& seen) {
  for (int r = 0; r < b.height; ++r)  // a whole vector; the row, loaded next, covers a part of it
    XENT_FOR(i, kLanes) buffer[r * b.pitch + padded(b.width) - kLanes + i] = Real(-kInfinity);
  const Real* factor = p.class_scale ? static_cast<const Real*>(p.class_scale) + b.first : nullptr;
  const Real* bias = p.class_bias ? static_cast<const Real*>(p.class_bias) + b.first : nullptr;
  if (p.scale || p.softcap > 0) {
    NoExtremes none;  // these numbers are not the logits yet
    load(strip, b, buffer, none);
    for (int r = 0; r < b.height; ++r) {
      Real* z = buffer + r * b.pitch;
      if (p.scale) {
        const Real scale = Real(row_scale(p, row + b.r + r));
        for (int j = 0; j < b.width; ++j) z[j] *= scale;
      }
      if (p.softcap > 0) apply_cap(p, b.width, z, slope ? slope + r * b.pitch : nullptr);
      if (factor)
        for (int j = 0; j < b.width; ++j) z[j] *= factor[j];
      if (bias)
        for (int j = 0; j < b.width; ++j) z[j] += bias[j];
    }
    look(b, buffer, seen);
  } else if (factor && bias) {  // while the block is loaded, which takes half the time
    load(strip, b, buffer, [=](Real x, int j) { return x * factor[j] + bias[j]; }, seen);
  } else if (factor) {
    load(strip, b, buffer, [=](Real x, int j) { return x * factor[j]; }, seen);
  } else if (bias) {
    load(strip, b, buffer, [=](Real x, int j) { return x + bias[j]; }, seen);
  } else {
    load(strip, b, buffer, seen);
  }
}

// Loads a block of soft targets times the class weights, padded with zeros. Line `line[r]` of the
// matrix belongs to row r of the block. If `line` is null, the matrix has a line for every row, and
// `row` is the first of the strip.
template <class Real>
[[gnu::noinline]] void load_soft(const Problem& p, int64_t row, const int64_t* line, const Block& b,
                                 Real* buffer) {
  NoExtremes none;
  if (line)
    for (int r = 0; r < b.height; ++r)
      load(Strip(p.soft, line[r]), {0, 1, b.first, b.width, b.pitch}, buffer + r * b.pitch, none);
  else
    load(Strip(p.soft, row), b, buffer, none);
  const Real* weight = static_cast<const Real*>(p.class_weight);
  for (int r = 0; r < b.height; ++r) {
    Real* q = buffer + r * b.pitch;
    if (weight)
      for (int j = 0; j < b.width; ++j) q[j] *= weight[b.first + j];
    for (int j = b.width; j < padded(b.width); ++j) q[j] = 0;
  }
}

// The soft target of class j of a line, times the class weight.
template <class Real>
Real soft_at(const Problem& p, int64_t line, int64_t j) {
  const Strip strip(p.soft, line);
  const auto at = [&](auto type) { return Real(widen(*strip.at<const decltype(type)>(0, j))); };
  const Real q = strip.type == Type::f32    ? at(float())
                 : strip.type == Type::f64  ? at(double())
                 : strip.type == Type::bf16 ? at(bf16())
                                            : at(f16());
  return p.class_weight ? q * static_cast<const Real*>(p.class_weight)[j] : q;
}

// A panel holds a block transposed: for each class the numbers of all rows of the strip. Rows that
// lie side by side in memory, too, are loaded without a step between them.
template <class Stored, class Real>
void gather_panel(const Strip& strip, const Block& b, Real* panel) {
  const Stored* at = strip.at<const Stored>(b.r, b.first);
  for (int j = 0; j < b.width; ++j, at += strip.class_step)
    if (b.height == kStrip && strip.row_step == 1)
      for (int r = 0; r < kStrip; ++r) panel[j * kStrip + r] = Real(widen(at[r]));
    else
      for (int r = 0; r < b.height; ++r)
        panel[j * kStrip + r] = Real(widen(at[r * strip.row_step]));
}

template <class Stored, class Real>
void scatter_panel(const Strip& strip, const Block& b, const Real* panel) {
  Stored* at = strip.at<Stored>(b.r, b.first);
  for (int j = 0; j < b.width; ++j, at += strip.class_step)
    if (b.height == kStrip && strip.row_step == 1)
      for (int r = 0; r < kStrip; ++r) narrow(panel[j * kStrip + r], at[r]);
    else
      for (int r = 0; r < b.height; ++r) narrow(panel[j * kStrip + r], at[r * strip.row_step]);
}

#if defined(__clang__) || __GNUC__ >= 12
#define XENT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define XENT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourInts{__VA_ARGS__})
#endif

// to[c][r] = from[r][c], by squares of four by four, which fit the registers of every vector unit.
// It takes a third of the time of single numbers.
template <class Real>
void transpose(const Real* from, int from_pitch, int rows, int columns, Real* to, int to_pitch) {
  typedef Real Four __attribute__((vector_size(4 * sizeof(Real)), aligned(sizeof(Real))));
  [[maybe_unused]] typedef typename Exp<Real>::Int FourInts
      __attribute__((vector_size(4 * sizeof(Real))));
  for (int r = 0; r < rows; r += 4)
    for (int c = 0; c < columns; c += 4) {
      Four in[4];
      for (int i = 0; i < 4; ++i)
        in[i] = *reinterpret_cast<const Four*>(from + (r + i) * from_pitch + c);
      const Four a = XENT_SHUFFLE(in[0], in[1], 0, 4, 1, 5);
      const Four b = XENT_SHUFFLE(in[0], in[1], 2, 6, 3, 7);
      const Four d = XENT_SHUFFLE(in[2], in[3], 0, 4, 1, 5);
      const Four e = XENT_SHUFFLE(in[2], in[3], 2, 6, 3, 7);
      Real* at = to + c * to_pitch + r;
      *reinterpret_cast<Four*>(at) = XENT_SHUFFLE(a, d, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(at + to_pitch) = XENT_SHUFFLE(a, d, 2, 3, 6, 7);
      *reinterpret_cast<Four*>(at + 2 * to_pitch) = XENT_SHUFFLE(b, e, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(at + 3 * to_pitch) = XENT_SHUFFLE(b, e, 2, 3, 6, 7);
    }
}

template <class Real>
void gather_any(const Strip& strip, const Block& b, Real* panel) {
  switch (strip.type) {
    case Type::f32: return gather_panel<float>(strip, b, panel);
    case Type::f64: return gather_panel<double>(strip, b, panel);
    case Type::bf16: return gather_panel<bf16>(strip, b, panel);
    case Type::f16: return gather_panel<f16>(strip, b, panel);
  }
}

template <class Real>
void load_panel(const Problem& p, const Strip& strip, int64_t row, const Block& b, Real* buffer,
                Real* slope, Real* panel) {
  if (!adjacent(p)) return gather_any(strip, b, panel);
  NoExtremes none;
  load_logits(p, strip, row, b, buffer, slope, none);
  transpose(buffer, b.pitch, kStrip, b.width, panel, kStrip);
}

// The same for soft targets times the class weights; see `load_soft`.
template <class Real>
[[gnu::noinline]] void load_soft_panel(const Problem& p, int64_t row, const int64_t* line,
                                       const Block& b, Real* buffer, Real* panel) {
  if (line || p.soft.class_stride == 1) {
    load_soft(p, row, line, b, buffer);
    return transpose(buffer, b.pitch, kStrip, b.width, panel, kStrip);
  }
  gather_any(Strip(p.soft, row), b, panel);
  if (const Real* weight = static_cast<const Real*>(p.class_weight))
    for (int j = 0; j < b.width; ++j)
      for (int r = 0; r < b.height; ++r) panel[j * kStrip + r] *= weight[b.first + j];
}

// The derivative of the transform of a block of logits, without the scale of the row: one factor
// per class, or one per logit. The last step of the chain rule multiplies the gradient by it.
template <class Real>
struct TransformSlopes {
  const Real* at = nullptr;  // null: 1
  int pitch = 0;

  const Real* row(int r) const { return at + r * pitch; }
  Real of(int r, int64_t j, Real g) const { return at ? g * row(r)[j] : g; }
};

// The class scale times the derivatives of the cap, as far as a problem has them.
template <class Real>
TransformSlopes<Real> transform_slopes(const Problem& p, const Block& b, Real* cap_slopes) {
  const Real* factor = static_cast<const Real*>(p.class_scale);
  if (!(p.softcap > 0)) return {factor ? factor + b.first : nullptr, 0};
  if (factor)
    for (int r = 0; r < b.height; ++r)
      for (int j = 0; j < b.width; ++j) cap_slopes[r * b.pitch + j] *= factor[b.first + j];
  return {cap_slopes, b.pitch};
}

// Numbers that belong to the classes of a block, besides the logits.
template <class Real>
struct PerClass {
  Real* soft;          // soft targets, in the layout of the block
  int pitch;           // numbers from row to row of them
  const Real* weight;  // the weights of the classes in the mean; null: 1
  TransformSlopes<Real> transform;
};

template <class Real>
void store_rows(const Strip& out, const Block& b, Real* buffer,
                const TransformSlopes<Real>& transform) {
  if (transform.at)
    for (int r = 0; r < b.height; ++r) {
      const Real* slope = transform.row(r);
      Real* g = buffer + r * b.pitch;  // 0 in ignored rows, whose slope may be NaN
      for (int j = 0; j < b.width; ++j) g[j] = g[j] == 0 ? Real(0) : g[j] * slope[j];
    }
  store(out, b, buffer);
}

inline void scatter_any(const Strip& out, const Block& b, const double* panel) {
  scatter_panel<double>(out, b, panel);
}
inline void scatter_any(const Strip& out, const Block& b, const float* panel) {
  switch (out.type) {
    case Type::f32: return scatter_panel<float>(out, b, panel);
    case Type::bf16: return scatter_panel<bf16>(out, b, panel);
    case Type::f16: return scatter_panel<f16>(out, b, panel);
    case Type::f64: return;
  }
}

template <class Real>
void store_panel(const Problem& p, const Strip& out, const Block& b, const Real* panel,
                 Real* buffer, const TransformSlopes<Real>& transform) {
  if (!adjacent(p)) return scatter_any(out, b, panel);
  transpose(panel, kStrip, b.width, kStrip, buffer, b.pitch);
  store_rows(out, b, buffer, transform);
}

inline Prefetch prefetch_at(const Strip& s, int64_t row, int64_t first) {
  const int64_t size = size_of(s.type);
  return {s.data + (row * s.row_step + first * s.class_step) * size, s.row_step * size,
          s.class_step * size};
}

// A panel is swept class by class. Short rows whose classes are adjacent lie in memory one after
// the other, so each step of the sweep fetches kStrip numbers.
inline Prefetch prefetch_of_panel(const Strip& s, int64_t row, int64_t first) {
  Prefetch prefetch = prefetch_at(s, row, first);
  if (s.adjacent()) prefetch.class_step *= kStrip;
  return prefetch;
}

}  // namespace
