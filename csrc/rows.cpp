// The kernel pair. One source, compiled once per instruction set (CMakeLists.txt), nothing but
// plain loops over blocks that stay in the first-level cache:
//
//   statistics:  load a block -> take the pivot out -> absorb the rest into the running sums
//   gradient:    load a block -> one exp per class -> put the pivot in -> store
//
// Loading widens, scales, caps and adds the class bias, whatever the strides; so every dtype,
// layout and transform shares the loops that follow. Sums run over kLanes accumulators in a fixed
// order and are added up per block in float64: the bits depend on the row alone.
#include "rows.h"

#include "lanes.h"

#ifndef XENT_VARIANT
#define XENT_VARIANT baseline
#endif
#define XENT_TABLE_(variant) variant##_kernels
#define XENT_TABLE(variant) XENT_TABLE_(variant)
#define XENT_NAME_(variant) #variant
#define XENT_NAME(variant) XENT_NAME_(variant)

namespace {

using xent::Matrix;
using xent::Partials;
using xent::Problem;
using xent::Type;

constexpr double kInfinity = __builtin_huge_val();
constexpr double kNaN = __builtin_nan("");

constexpr int kTile = 2048;  // numbers in a tile: one row of a block, or kStrip rows of a shorter one
constexpr int kStrip = kLanes;  // rows finished together

int64_t size_of(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }

// Some adjacent rows of a matrix, found once so that no row pays for the division.
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

// Strips do not cross from one outer index to the next, where the step between rows changes.
int strip_height(const Problem& p, int64_t row, int64_t end) {
  int64_t height = kStrip;
  if (height > end - row) height = end - row;
  const int64_t left = p.logits.inner - row % p.logits.inner;
  return int(height < left ? height : left);
}

int padded(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

// ---- moving blocks ------------------------------------------------------------------------------

// Rows from `r` on, `height` of them, classes from `first` on, `width` of them.
struct Block {
  int r, height;
  int64_t first;
  int width, pitch;
};

template <class Stored, class Real>
void gather(const Strip& strip, const Block& b, Real* tile) {
  const Stored* at = strip.at<const Stored>(b.r, b.first);
  if (strip.adjacent()) {
    for (int r = 0; r < b.height; ++r, at += strip.row_step)
      for (int j = 0; j < b.width; ++j) tile[r * b.pitch + j] = Real(widen(at[j]));
  } else {
    for (int j = 0; j < b.width; ++j, at += strip.class_step)
      for (int r = 0; r < b.height; ++r) tile[r * b.pitch + j] = Real(widen(at[r * strip.row_step]));
  }
}

template <class Stored, class Real>
void scatter(const Strip& strip, const Block& b, const Real* tile) {
  Stored* at = strip.at<Stored>(b.r, b.first);
  if (strip.adjacent()) {
    for (int r = 0; r < b.height; ++r, at += strip.row_step)
      for (int j = 0; j < b.width; ++j) narrow(tile[r * b.pitch + j], at[j]);
  } else {
    for (int j = 0; j < b.width; ++j, at += strip.class_step)
      for (int r = 0; r < b.height; ++r) narrow(tile[r * b.pitch + j], at[r * strip.row_step]);
  }
}

// float64 is swept in float64, every other type in float32. A soft target may have any type.
template <class Real>
void load(const Strip& strip, const Block& b, Real* tile) {
  switch (strip.type) {
    case Type::f32: return gather<float>(strip, b, tile);
    case Type::f64: return gather<double>(strip, b, tile);
    case Type::bf16: return gather<bf16>(strip, b, tile);
    case Type::f16: return gather<f16>(strip, b, tile);
  }
}

void store(const Strip& strip, const Block& b, const double* tile) {
  scatter<double>(strip, b, tile);
}

void store(const Strip& strip, const Block& b, const float* tile) {
  switch (strip.type) {
    case Type::f32: return scatter<float>(strip, b, tile);
    case Type::bf16: return scatter<bf16>(strip, b, tile);
    case Type::f16: return scatter<f16>(strip, b, tile);
    case Type::f64: return;  // swept in float64
  }
}

double row_scale(const Problem& p, int64_t row) {
  return p.scale ? p.scale[row * p.scale_step] : 1.0;
}

// A block of logits after scale, softcap and class bias, padded with classes of probability 0;
// `row` is the number of the strip's first row. `slope` receives dz/dx without the row's scale.
template <class Real>
void load_logits(const Problem& p, const Strip& strip, int64_t row, const Block& b, Real* tile,
                 Real* slope) {
  load(strip, b, tile);
  const Real* bias = static_cast<const Real*>(p.class_bias);
  for (int r = 0; r < b.height; ++r) {
    Real* z = tile + r * b.pitch;
    if (p.scale) {
      const Real scale = Real(row_scale(p, row + b.r + r));
      for (int j = 0; j < b.width; ++j) z[j] *= scale;
    }
    if (p.softcap > 0) {
      const Real cap = Real(p.softcap), inverse = Real(1 / p.softcap);
      for (int j = 0; j < b.width; ++j) {
        const Real t = tanh_lane(z[j] * inverse);
        // A masked class stays masked: the cap would lift it from -inf to -cap.
        const bool masked = z[j] == Real(-kInfinity);
        z[j] = masked ? z[j] : t * cap;
        if (slope) slope[r * b.pitch + j] = masked ? Real(0) : Real(1) - t * t;
      }
    }
    if (bias)
      for (int j = 0; j < b.width; ++j) z[j] += bias[b.first + j];
    for (int j = b.width; j < padded(b.width); ++j) z[j] = Real(-kInfinity);
  }
}

// A block of soft targets times the class weights, padded with zeros.
template <class Real>
void load_soft(const Problem& p, const Strip& strip, const Block& b, Real* tile) {
  load(strip, b, tile);
  const Real* weight = static_cast<const Real*>(p.class_weight);
  for (int r = 0; r < b.height; ++r) {
    Real* q = tile + r * b.pitch;
    if (weight)
      for (int j = 0; j < b.width; ++j) q[j] *= weight[b.first + j];
    for (int j = b.width; j < padded(b.width); ++j) q[j] = 0;
  }
}

// What `mean` weighs the classes of a block by, padded with zeros.
template <class Real>
void load_mean(const Problem& p, const Block& b, Real* tile) {
  const Real* weight = static_cast<const Real*>(p.class_weight);
  for (int j = 0; j < b.width; ++j) tile[j] = weight ? weight[b.first + j] : Real(1);
  for (int j = b.width; j < padded(b.width); ++j) tile[j] = 0;
}

// A panel holds a block the other way round: the rows of a strip side by side, class after class.
// Where that is how they lie in memory, they are loaded as they are.
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

// Four by four, which every vector unit does in registers: a third of the time of single numbers.
template <class Real>
void transpose(const Real* from, int from_pitch, int rows, int columns, Real* to, int to_pitch) {
  typedef Real Four __attribute__((vector_size(4 * sizeof(Real)), aligned(sizeof(Real))));
  typedef typename Exp<Real>::Int FourInts __attribute__((vector_size(4 * sizeof(Real))));
  for (int r = 0; r < rows; r += 4)
    for (int c = 0; c < columns; c += 4) {
      Four in[4];
      for (int i = 0; i < 4; ++i)
        in[i] = *reinterpret_cast<const Four*>(from + (r + i) * from_pitch + c);
      const FourInts low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5},
                     second = {2, 3, 6, 7};
      const Four a = __builtin_shuffle(in[0], in[1], low), b = __builtin_shuffle(in[0], in[1], high);
      const Four d = __builtin_shuffle(in[2], in[3], low), e = __builtin_shuffle(in[2], in[3], high);
      *reinterpret_cast<Four*>(to + c * to_pitch + r) = __builtin_shuffle(a, d, first);
      *reinterpret_cast<Four*>(to + (c + 1) * to_pitch + r) = __builtin_shuffle(a, d, second);
      *reinterpret_cast<Four*>(to + (c + 2) * to_pitch + r) = __builtin_shuffle(b, e, first);
      *reinterpret_cast<Four*>(to + (c + 3) * to_pitch + r) = __builtin_shuffle(b, e, second);
    }
}

template <class Real>
void load_panel(const Problem& p, const Strip& strip, int64_t row, const Block& b, Real* tile,
                Real* slope, Real* panel) {
  if (adjacent(p)) {
    load_logits(p, strip, row, b, tile, slope);
    return transpose(tile, b.pitch, kStrip, b.width, panel, kStrip);
  }
  switch (strip.type) {
    case Type::f32: return gather_panel<float>(strip, b, panel);
    case Type::f64: return gather_panel<double>(strip, b, panel);
    case Type::bf16: return gather_panel<bf16>(strip, b, panel);
    case Type::f16: return gather_panel<f16>(strip, b, panel);
  }
}

// The last step of the chain rule, through the cap, and out.
template <class Real>
void store_rows(const Problem& p, const Strip& out, const Block& b, Real* tile, const Real* caps) {
  if (p.softcap > 0)
    for (int r = 0; r < b.height; ++r)
      for (int j = 0; j < b.width; ++j) tile[r * b.pitch + j] *= caps[r * b.pitch + j];
  store(out, b, tile);
}

void scatter_any(const Strip& out, const Block& b, const double* panel) {
  scatter_panel<double>(out, b, panel);
}
void scatter_any(const Strip& out, const Block& b, const float* panel) {
  switch (out.type) {
    case Type::f32: return scatter_panel<float>(out, b, panel);
    case Type::bf16: return scatter_panel<bf16>(out, b, panel);
    case Type::f16: return scatter_panel<f16>(out, b, panel);
    case Type::f64: return;
  }
}

template <class Real>
void store_panel(const Problem& p, const Strip& out, const Block& b, const Real* panel, Real* tile,
                 const Real* caps) {
  if (!adjacent(p)) return scatter_any(out, b, panel);
  transpose(panel, kStrip, b.width, kStrip, tile, b.pitch);
  store_rows(p, out, b, tile, caps);
}

// Memory that will be wanted soon, fetched step by step while something else is computed. Blocks
// are loaded in bursts, which the hardware's own prefetcher does not foresee (a third of the time
// of a large problem).
struct Ahead {
  const char* at;
  int64_t step;  // bytes; a step is at most two cache lines' worth of kLanes numbers

  void fetch(int k) const {
    __builtin_prefetch(at + k * step);
    __builtin_prefetch(at + k * step + 64);
  }
};

// One row from class `first` on.
Ahead ahead_in_row(const Strip& s, int r, int64_t first) {
  const int64_t size = size_of(s.type);
  return {s.data + (r * s.row_step + first * s.class_step) * size, kLanes * s.class_step * size};
}

// A panel from class `first` on, `row` rows further down.
Ahead ahead_in_panel(const Strip& s, int64_t row, int64_t first) {
  const int64_t size = size_of(s.type), step = s.adjacent() ? kStrip : s.class_step;
  return {s.data + (row * s.row_step + first * step) * size, step * size};
}

// ---- sums over one block ------------------------------------------------------------------------

template <int half, class Real, class Operation>
Real fold(Real* lane, Operation operation) {
  if constexpr (half == 0) {
    return lane[0];
  } else {
    for (int i = 0; i < half; ++i) lane[i] = operation(lane[i], lane[i + half]);
    return fold<half / 2>(lane, operation);
  }
}

template <class Real>
double total(Real* lane) {
  return double(fold<kLanes / 2>(lane, [](Real a, Real b) { return a + b; }));
}

template <class Real, class Operation>
Real extreme(const Real* z, int n, Operation operation) {
  Real lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = z[i];
  for (int j = kLanes; j < n; j += kLanes)
    for (int i = 0; i < kLanes; ++i) lane[i] = operation(z[j + i], lane[i]);
  return fold<kLanes / 2>(lane, operation);
}

// NaN where a block starts with one in some lane; both callers go on to see it in the sums.
template <class Real>
Real largest(const Real* z, int n) {
  return extreme(z, n, [](Real a, Real b) { return a > b ? a : b; });
}

template <class Real>
Real smallest(const Real* z, int n) {
  return extreme(z, n, [](Real a, Real b) { return a < b ? a : b; });
}

template <class Real>
int first_equal(const Real* z, int n, Real value) {
  int j = 0;
  while (j < n - 1 && z[j] != value) ++j;
  return j;
}

template <class Real>
double sum_of_exp(const Real* z, int n, Real shift, const Ahead& ahead) {
  Real lane[kLanes] = {};
  for (int j = 0; j < n; j += kLanes) {
    ahead.fetch(j / kLanes);
    for (int i = 0; i < kLanes; ++i) lane[i] += exp_clamped(z[j + i] - shift);
  }
  return total(lane);
}

// sum of (shift - z) exp(z - shift): what the entropy needs, all terms positive.
template <class Real>
double sum_of_spread(const Real* z, int n, Real shift) {
  Real lane[kLanes] = {};
  for (int j = 0; j < n; j += kLanes)
    for (int i = 0; i < kLanes; ++i) {
      Real x = z[j + i] - shift;
      x = x < Exp<Real>::lowest ? Exp<Real>::lowest : x;
      lane[i] -= x * exp_clamped(x);
    }
  return total(lane);
}

// 0, or NaN where the block holds one. `largest` does not see them.
template <class Real>
double nan_or_zero(const Real* z, int n) {
  double found = 0;
  for (int j = 0; j < n; ++j) found = z[j] == z[j] ? found : kNaN;
  return found;
}

// ---- one row ------------------------------------------------------------------------------------

// Everything but the pivot. The deficits are sums of c_j (shift - z_j), for which no digits are
// lost however large the logits.
template <class Real>
struct Rest {
  Real shift = Real(-kInfinity);
  double sum = 0, spread = 0;
  double soft_mass = 0, soft_deficit = 0;
  double mean_mass = 0, mean_deficit = 0, support = 0;

  void raise(Real to) {
    if (!(to > shift)) return;
    if (shift > Real(-kInfinity)) {
      const double delta = double(to) - double(shift), factor = exp_scaled(-delta, 1.0);
      spread = factor * (spread + delta * sum);
      sum *= factor;
      soft_deficit += delta * soft_mass;
      mean_deficit += delta * mean_mass;
    }
    shift = to;
  }
};

template <class Real>
struct Row {
  Rest<Real> rest;
  int64_t pivot = -1;
  double pivot_logit = -kInfinity;
  double pivot_soft = 0, pivot_mean = 0;  // the pivot's coefficients
  Real top_logit = Real(-kInfinity);
  int64_t top = 0;
};

struct Wanted {
  bool soft, mean, entropy, top;
  explicit Wanted(const Problem& p)
      : soft(!p.labels), mean(p.statistics.mean), entropy(p.statistics.entropy),
        top(p.statistics.top) {}
  bool plain() const { return !(soft || mean || entropy || top); }
};

template <class Real>
double class_weight(const Problem& p, int64_t j) {
  return p.class_weight ? double(static_cast<const Real*>(p.class_weight)[j]) : 1.0;
}

template <class Real>
void absorb_block(Rest<Real>& rest, const Wanted& want, const Real* z, const Real* soft,
                  const Real* mean, int n, const Ahead& ahead) {
  rest.raise(largest(z, n));
  const bool masked = rest.shift == Real(-kInfinity);
  const Real shift = masked ? Real(0) : rest.shift;
  rest.sum += masked ? nan_or_zero(z, n) : sum_of_exp(z, n, shift, ahead);
  if (want.entropy && !masked) rest.spread += sum_of_spread(z, n, shift);
  if (want.soft) {
    Real mass[kLanes] = {}, deficit[kLanes] = {};
    for (int j = 0; j < n; j += kLanes)
      for (int i = 0; i < kLanes; ++i) {
        const Real q = soft[j + i];
        mass[i] += q;
        deficit[i] += q == 0 ? Real(0) : q * (shift - z[j + i]);
      }
    rest.soft_mass += total(mass);
    rest.soft_deficit += total(deficit);
  }
  if (want.mean) {
    Real mass[kLanes] = {}, deficit[kLanes] = {}, support[kLanes] = {};
    for (int j = 0; j < n; j += kLanes)
      for (int i = 0; i < kLanes; ++i) {
        const bool out = z[j + i] == Real(-kInfinity);
        mass[i] += out ? Real(0) : mean[j + i];
        deficit[i] += out ? Real(0) : mean[j + i] * (shift - z[j + i]);
        support[i] += out ? Real(0) : Real(1);
      }
    rest.mean_mass += total(mass);
    rest.mean_deficit += total(deficit);
    rest.support += total(support);
  }
}

// The pivot of a soft target gives way to a larger logit and joins the rest.
template <class Real>
void release_pivot(Row<Real>& row) {
  if (!(row.pivot_logit > -kInfinity)) return;
  Rest<Real>& rest = row.rest;
  rest.raise(Real(row.pivot_logit));
  const double gap = double(rest.shift) - row.pivot_logit, e = exp_scaled(-gap, 1.0);
  rest.sum += e;
  rest.spread += gap * e;
  rest.soft_mass += row.pivot_soft;
  rest.soft_deficit += row.pivot_soft * gap;
  rest.mean_mass += row.pivot_mean;
  rest.mean_deficit += row.pivot_mean * gap;
  rest.support += 1;
}

template <class Real>
void take_pivot(Row<Real>& row, const Problem& p, int64_t first, int j, Real* z, Real* soft) {
  row.pivot = first + j;
  row.pivot_logit = double(z[j]);
  row.pivot_mean = class_weight<Real>(p, first + j);
  z[j] = Real(-kInfinity);
  if (soft) {
    row.pivot_soft = double(soft[j]);
    soft[j] = 0;
  }
}

template <class Real>
void absorb(Row<Real>& row, const Problem& p, const Wanted& want, int64_t first, Real* z,
            Real* soft, const Real* mean, int width, int64_t pivot, const Ahead& ahead) {
  if (want.soft || want.top) {
    const Real best = largest(z, padded(width));
    if (best > row.top_logit) {
      const int j = first_equal(z, width, best);
      row.top_logit = best;
      row.top = first + j;
      if (want.soft) {
        release_pivot(row);
        take_pivot(row, p, first, j, z, soft);
      }
    }
  }
  if (pivot >= first && pivot < first + width)
    take_pivot(row, p, first, int(pivot - first), z, static_cast<Real*>(nullptr));
  absorb_block(row.rest, want, z, soft, mean, padded(width), ahead);
}

// A zero factor wins over an infinite value: 0 * -inf = 0 for masked classes.
double times(double factor, double value) { return factor == 0 ? 0.0 : factor * value; }

void put(double* field, int64_t row, double value) {
  if (field) field[row] = value;
}

// What follows from the log-odds d of the pivot, for a strip of rows at once: logarithms and
// exponentials side by side cost a tenth of one after the other.
struct Odds {
  double d[kStrip];
  double above[kStrip];  // lse - pivot = -log sigmoid(d)
  double below[kStrip];  // lse - shift
};

template <class Real>
void find_odds(const Row<Real>* rows, Odds& odds) {
  double log_sum[kStrip], overlap[kStrip];
  for (int r = 0; r < kStrip; ++r) {
    // An infinite logit is an overflow upstream; it must not look like a sure prediction.
    const double pivot = rows[r].pivot_logit == kInfinity ? kNaN : rows[r].pivot_logit;
    odds.d[r] = pivot - double(rows[r].rest.shift);
    log_sum[r] = rows[r].rest.sum;
  }
  for (int r = 0; r < kStrip; ++r) log_sum[r] = log_lane(log_sum[r]);
  for (int r = 0; r < kStrip; ++r) odds.d[r] -= log_sum[r];
  for (int r = 0; r < kStrip; ++r) overlap[r] = overlap_lane(odds.d[r]);
  for (int r = 0; r < kStrip; ++r) {
    const double d = odds.d[r];
    odds.above[r] = (d < 0 ? -d : 0.0) + overlap[r];
    odds.below[r] = log_sum[r] + (d < 0 ? 0.0 : d) + overlap[r];
  }
}

template <class Real>
void finish(const Problem& p, const Wanted& want, const Row<Real>& row, double d, double above,
            double below, int64_t n) {
  const xent::Statistics& s = p.statistics;
  const Rest<Real>& rest = row.rest;
  const double shift = double(rest.shift), pivot = row.pivot_logit;
  put(s.shift, n, shift);
  put(s.sum, n, rest.sum);
  put(s.lse, n, d < 0 ? shift + below : pivot + above);
  const bool pivot_wins = !want.soft && (pivot > double(row.top_logit) ||
                                         (pivot == double(row.top_logit) && row.pivot < row.top));
  put(s.top, n, double(pivot_wins ? row.pivot : row.top));
  put(s.top_logit, n, pivot_wins ? pivot : double(row.top_logit));
  if (!want.soft) {
    put(s.log_odds, n, d);
    put(s.log_prob, n, -above);
    put(s.target, n, pivot);
    put(s.mass, n, row.pivot < 0 ? 0.0 : class_weight<Real>(p, row.pivot));
  } else {
    const double nll = times(row.pivot_soft, above) + rest.soft_deficit +
                       times(rest.soft_mass, below);
    put(s.log_prob, n, -nll);
    put(s.log_odds, n, -nll - log_lane(one_minus_exp(nll)));
    put(s.target, n, times(row.pivot_soft, pivot) + times(rest.soft_mass, shift) -
                         rest.soft_deficit);
    put(s.mass, n, row.pivot_soft + rest.soft_mass);
    put(s.pivot_log_odds, n, d);
  }
  if (want.entropy) {
    const double surprise = below + (rest.sum > 0 ? rest.spread / rest.sum : 0.0);
    put(s.entropy, n, times(sigmoid_lane(d), above) +
                          times(sigmoid_lane(-d), surprise));
  }
  if (want.mean) {
    const bool in = pivot != -kInfinity;
    const double support = rest.support + (in ? 1.0 : 0.0);
    const double sum = (in ? times(row.pivot_mean, pivot) : 0.0) + times(rest.mean_mass, shift);
    put(s.support, n, support);
    put(s.mean_mass, n, (rest.mean_mass + (in ? row.pivot_mean : 0.0)) / support);
    put(s.mean, n, (sum - rest.mean_deficit) / support);
  }
}

// An ignored row is a row predicted with certainty: no loss of the family sees it.
void finish_ignored(const xent::Statistics& s, int64_t n) {
  put(s.shift, n, 0);
  put(s.sum, n, 0);
  put(s.log_odds, n, kInfinity);
  put(s.log_prob, n, 0);
  put(s.target, n, 0);
  put(s.lse, n, 0);
  put(s.mass, n, 0);
  put(s.top, n, 0);
  put(s.top_logit, n, 0);
  put(s.entropy, n, 0);
  put(s.mean, n, 0);
  put(s.support, n, 1);
  put(s.mean_mass, n, 0);
}

// ---- short rows ---------------------------------------------------------------------------------

// With lanes across the rows of a strip there are no sums across lanes and no padding, which is
// most of the work for rows of a hundred classes (a third of the time at V = 10, half at 100).
// Only for the fields that every index target has.
template <class Real>
void absorb_panel(Rest<Real>* rest, const Real* z, int width, bool first, const Ahead& ahead) {
  Real shift[kStrip], top[kStrip], base[kStrip], part[kStrip] = {};
  double sum[kStrip], factor[kStrip];
  for (int r = 0; r < kStrip; ++r) top[r] = shift[r] = rest[r].shift;
  for (int j = 0; j < width; ++j)
    for (int r = 0; r < kStrip; ++r) {
      const Real x = z[j * kStrip + r];
      top[r] = x > top[r] ? x : top[r];
    }
  for (int r = 0; r < kStrip; ++r) base[r] = top[r] == Real(-kInfinity) ? Real(0) : top[r];
  for (int j = 0; j < width; ++j) {
    ahead.fetch(j);
    for (int r = 0; r < kStrip; ++r) part[r] += exp_clamped(z[j * kStrip + r] - base[r]);
  }
  // Where everything is masked, only a NaN may leave a trace.
  for (int r = 0; r < kStrip; ++r)
    sum[r] = top[r] == Real(-kInfinity) && part[r] == part[r] ? 0.0 : double(part[r]);
  if (!first) {
    for (int r = 0; r < kStrip; ++r)
      factor[r] = exp_scaled(double(shift[r]) - double(base[r]), 1.0);
    for (int r = 0; r < kStrip; ++r) sum[r] += factor[r] * rest[r].sum;
  }
  for (int r = 0; r < kStrip; ++r) rest[r].shift = top[r];
  for (int r = 0; r < kStrip; ++r) rest[r].sum = sum[r];
}

// ---- the answer ---------------------------------------------------------------------------------

enum class Kind { kept, ignored, bad };

// What the label of a row says; `pivot` is its class here, negative where there is none.
struct Label {
  Kind kind;
  int64_t pivot;
};

Label read_label(const Problem& p, int64_t row) {
  if (!p.labels) return {Kind::kept, -1};
  const int64_t label = p.labels[row], here = label - p.first_class;
  if (label == p.ignore_index) return {Kind::ignored, -1};
  if (here >= 0 && here < p.classes) return {Kind::kept, here};
  return {p.sharded ? Kind::kept : Kind::bad, -1};
}

// Short rows and rows that lie side by side are swept as panels, if nothing beyond the plain fields
// is asked for and no transform needs the rows one by one.
constexpr int64_t kShort = 384;

bool sweeps_panels(const Problem& p, bool plain) {
  if (!plain) return false;
  const bool transformed = p.scale || p.softcap > 0 || p.class_bias;
  return adjacent(p) ? p.classes <= kShort : !transformed;
}

int block_width(const Problem& p, bool panels) {
  return panels || !adjacent(p) ? kTile / kStrip : kTile;
}

template <class Real>
void sweep_panels(const Problem& p, const Strip& strip, int64_t n, int height, const Label* label,
                  Row<Real>* rows, Real* tile) {
  alignas(64) Real panel[kTile];
  for (int j = 0; j < kTile; ++j) panel[j] = 0;
  Rest<Real> rest[kStrip];
  const int pitch = block_width(p, true);
  for (int64_t first = 0; first < p.classes; first += pitch) {
    const int64_t left = p.classes - first;
    const Block block{0, height, first, int(left < pitch ? left : pitch), pitch};
    load_panel(p, strip, n, block, tile, static_cast<Real*>(nullptr), panel);
    for (int r = 0; r < height; ++r) {
      const int64_t j = label[r].pivot - first;
      if (j < 0 || j >= block.width) continue;
      rows[r].pivot = label[r].pivot;
      rows[r].pivot_logit = double(panel[j * kStrip + r]);
      panel[j * kStrip + r] = Real(-kInfinity);
    }
    absorb_panel(rest, panel, block.width, first == 0, ahead_in_panel(strip, kStrip, first));
  }
  for (int r = 0; r < height; ++r) rows[r].rest = rest[r];
}

template <class Real>
void sweep_rows(const Problem& p, const Wanted& want, const Strip& strip, int64_t n, int height,
                const Label* label, Row<Real>* rows, Real* tile) {
  alignas(64) Real softs[kTile];
  alignas(64) Real means[kTile];
  const Strip soft_strip(want.soft ? p.soft : p.logits, n);
  const int pitch = block_width(p, false);
  // Where classes are not adjacent, rows are loaded together, or every cache line would be fetched
  // once for each row it holds a number of.
  const int together = adjacent(p) ? 1 : height;
  for (int from = 0; from < height; from += together) {
    if (together == 1 && label[from].kind != Kind::kept) continue;
    for (int64_t first = 0; first < p.classes; first += pitch) {
      const int64_t left = p.classes - first;
      const Block block{from, together, first, int(left < pitch ? left : pitch), pitch};
      load_logits(p, strip, n, block, tile, static_cast<Real*>(nullptr));
      if (want.soft) load_soft(p, soft_strip, block, softs);
      if (want.mean) load_mean(p, block, means);
      for (int r = 0; r < together; ++r)
        if (label[from + r].kind == Kind::kept)
          absorb(rows[from + r], p, want, first, tile + r * pitch, softs + r * pitch, means,
                 block.width, label[from + r].pivot, ahead_in_row(strip, from + r, first + pitch));
    }
  }
}

template <class Real>
void row_statistics(Problem& p, int64_t begin, int64_t end) {
  alignas(64) Real tile[kTile] = {};
  const Wanted want(p);
  const bool panels = sweeps_panels(p, want.plain());
  Label label[kStrip];
  Odds odds;
  int64_t kept = 0;
  for (int64_t n = begin; n < end;) {
    const int height = strip_height(p, n, end);
    const Strip strip(p.logits, n);
    Row<Real> rows[kStrip];
    for (int r = 0; r < height; ++r) label[r] = read_label(p, n + r);
    if (panels)
      sweep_panels(p, strip, n, height, label, rows, tile);
    else
      sweep_rows(p, want, strip, n, height, label, rows, tile);
    find_odds(rows, odds);
    for (int r = 0; r < height; ++r) {
      if (label[r].kind == Kind::kept) {
        finish(p, want, rows[r], odds.d[r], odds.above[r], odds.below[r], n + r);
        ++kept;
      } else {
        finish_ignored(p.statistics, n + r);
      }
      if (label[r].kind == Kind::bad) {
        __atomic_store_n(&p.bad_label, p.labels[n + r], __ATOMIC_RELAXED);
        __atomic_store_n(&p.has_bad_label, true, __ATOMIC_RELAXED);
      }
    }
    n += height;
  }
  __atomic_fetch_add(&p.kept, kept, __ATOMIC_RELAXED);
}

// ---- gradient -----------------------------------------------------------------------------------

// d loss / d z_j = exp(z_j - shift) (exp_ + spread (shift - z_j)) + mean c_j + soft q_j for every
// class but the pivot, whose entry is formed in float64 from the log-odds: no "p - 1".
template <class Real>
struct Slopes {
  Real shift = 0, exp_ = 0, spread = 0, mean = 0, soft = 0;
  int64_t pivot = -1;
  double at_pivot = 0;
};

double get(const Partials& f, const double* field, int64_t row) {
  return field ? field[row * f.step] : 0.0;
}

template <class Real>
Slopes<Real> find_slopes(const Problem& p, int64_t n, int64_t label, double d, double pivot,
                         double rest) {
  const xent::Statistics& s = p.statistics;
  const Partials& f = p.partials;
  const int64_t at = p.labels ? label : int64_t(s.top[n]);
  const double lse = get(f, f.lse, n);
  double all = lse * rest, at_pivot = lse * pivot, soft = 0, spread = 0;
  if (p.labels) {
    const double slope = get(f, f.log_odds, n) + times(rest, get(f, f.log_prob, n));
    all -= slope;
    at_pivot += slope + get(f, f.target, n);
  } else {
    // log_odds is a function of log_prob = sum_j q_j log p_j; its derivative is 1 / (1 - prob).
    const double odds = get(f, f.log_odds, n), target = get(f, f.target, n), mass = s.mass[n];
    const double slope =
        get(f, f.log_prob, n) + (odds == 0 ? 0.0 : odds / one_minus_exp(-s.log_prob[n]));
    Real block[kLanes];
    load_soft(p, Strip(p.soft, n), {0, 1, at, 1, kLanes}, block);
    const double q = double(block[0]);
    all -= slope * mass * rest;
    at_pivot += slope * ((q - mass) + mass * rest) + target * q;
    soft = slope + target;
  }
  if (f.entropy) {
    // d H / d z_j = -p_j (log p_j + H)
    const double overlap = overlap_lane(d), entropy = get(f, f.entropy, n);
    const double above = (d < 0 ? -d : 0.0) + overlap;
    const double below = log_lane(s.sum[n]) + (d < 0 ? 0.0 : d) + overlap;
    all += times(rest, entropy * (below - s.entropy[n]));
    spread = entropy * rest;
    at_pivot += times(pivot, entropy * (above - s.entropy[n]));
  }
  const double mean = f.mean ? get(f, f.mean, n) / s.support[n] : 0.0;
  if (at >= 0) at_pivot += mean * class_weight<Real>(p, at);
  const double scale = row_scale(p, n), sum = s.sum[n];
  return {Real(s.shift[n]),   Real(scale * all / sum), Real(scale * spread / sum),
          Real(scale * mean), Real(scale * soft),      at,
          scale * at_pivot};
}

template <class Real>
void find_slopes(const Problem& p, int64_t n, int height, const Label* label, Slopes<Real>* out) {
  const double* log_odds = p.labels ? p.statistics.log_odds : p.statistics.pivot_log_odds;
  double d[kStrip] = {}, pivot[kStrip], rest[kStrip];
  for (int r = 0; r < height; ++r) d[r] = log_odds[n + r];
  for (int r = 0; r < kStrip; ++r) pivot[r] = sigmoid_lane(d[r]);
  for (int r = 0; r < kStrip; ++r) rest[r] = sigmoid_lane(-d[r]);
  for (int r = 0; r < height; ++r)
    if (label[r].kind == Kind::kept) out[r] = find_slopes<Real>(p, n + r, label[r].pivot, d[r], pivot[r], rest[r]);
}

// Turns a block of logits into a block of gradient, in place.
template <class Real>
void differentiate(const Problem& p, const Slopes<Real>& s, int64_t first, int width, Real* z,
                   const Real* soft, const Real* mean, const Ahead& ahead, const Ahead& out) {
  const int n = padded(width);
  for (int j = width; j < n; ++j) z[j] = s.shift;
  if (!p.labels || p.partials.mean || p.partials.entropy) {
    for (int j = 0; j < n; ++j) {
      const Real x = z[j] - s.shift;
      Real g = exp_scaled(x, s.exp_ - s.spread * x);
      if (p.partials.mean) g += x == Real(-kInfinity) ? Real(0) : s.mean * mean[j];
      if (!p.labels) g += s.soft * soft[j];
      z[j] = g;
    }
  } else if (smallest(z, n) - s.shift >= normal_floor(s.exp_)) {
    for (int j = 0; j < n; j += kLanes) {
      ahead.fetch(j / kLanes);
      out.fetch(j / kLanes);
      for (int i = 0; i < kLanes; ++i) z[j + i] = exp_normal(z[j + i] - s.shift, s.exp_);
    }
  } else {
    for (int j = 0; j < n; ++j) z[j] = exp_scaled(z[j] - s.shift, s.exp_);
  }
  if (s.pivot >= first && s.pivot < first + width) z[s.pivot - first] = Real(s.at_pivot);
}

// Turns a panel of logits into a panel of gradient, in place. Rows without a slope become 0.
template <class Real>
void differentiate_panel(const Slopes<Real>* s, int64_t first, int width, Real* z,
                         const Ahead& ahead, const Ahead& out) {
  Real shift[kStrip], factor[kStrip], low[kStrip];
  for (int r = 0; r < kStrip; ++r) shift[r] = s[r].shift;
  for (int r = 0; r < kStrip; ++r) factor[r] = s[r].exp_;
  for (int r = 0; r < kStrip; ++r) low[r] = Real(kInfinity);
  for (int j = 0; j < width; ++j)
    for (int r = 0; r < kStrip; ++r)
      low[r] = z[j * kStrip + r] < low[r] ? z[j * kStrip + r] : low[r];
  bool tame = true;
  for (int r = 0; r < kStrip; ++r)
    tame &= factor[r] == 0 || low[r] - shift[r] >= normal_floor(factor[r]);
  for (int j = 0; j < width; ++j) {
    Real* at = z + j * kStrip;
    ahead.fetch(j);
    out.fetch(j);
    if (tame)
      for (int r = 0; r < kStrip; ++r) {
        const Real g = exp_normal(at[r] - shift[r], factor[r]);
        at[r] = factor[r] == 0 ? Real(0) : g;
      }
    else
      for (int r = 0; r < kStrip; ++r) at[r] = exp_scaled(at[r] - shift[r], factor[r]);
  }
  for (int r = 0; r < kStrip; ++r)
    if (s[r].pivot >= first && s[r].pivot < first + width)
      z[(s[r].pivot - first) * kStrip + r] = Real(s[r].at_pivot);
}

template <class Real>
void gradient_of_panels(const Problem& p, const Strip& strip, const Strip& out, int64_t n,
                        int height, const Slopes<Real>* slopes, Real* tile, Real* caps) {
  alignas(64) Real panel[kTile];
  for (int j = 0; j < kTile; ++j) panel[j] = 0;
  const int pitch = block_width(p, true);
  for (int64_t first = 0; first < p.classes; first += pitch) {
    const int64_t left = p.classes - first;
    const Block block{0, height, first, int(left < pitch ? left : pitch), pitch};
    load_panel(p, strip, n, block, tile, caps, panel);
    differentiate_panel(slopes, first, block.width, panel, ahead_in_panel(strip, kStrip, first),
                        ahead_in_panel(out, 0, first));
    store_panel(p, out, block, panel, tile, caps);
  }
}

template <class Real>
void gradient_of_rows(const Problem& p, const Strip& strip, const Strip& out, int64_t n, int height,
                      const Label* label, const Slopes<Real>* slopes, Real* tile, Real* caps) {
  alignas(64) Real softs[kTile];
  alignas(64) Real means[kTile];
  const Strip soft_strip(p.labels ? p.logits : p.soft, n);
  const int pitch = block_width(p, false);
  const int together = adjacent(p) ? 1 : height;
  for (int from = 0; from < height; from += together)
    for (int64_t first = 0; first < p.classes; first += pitch) {
      const int64_t left = p.classes - first;
      const Block block{from, together, first, int(left < pitch ? left : pitch), pitch};
      const bool skip = together == 1 && label[from].kind != Kind::kept;
      if (!skip) load_logits(p, strip, n, block, tile, caps);
      if (!p.labels) load_soft(p, soft_strip, block, softs);
      if (p.partials.mean) load_mean(p, block, means);
      for (int r = 0; r < together; ++r) {
        Real* z = tile + r * pitch;
        if (label[from + r].kind != Kind::kept)
          for (int j = 0; j < block.width; ++j) z[j] = 0;
        else
          differentiate(p, slopes[from + r], first, block.width, z, softs + r * pitch, means,
                        ahead_in_row(strip, from + r, first + pitch), ahead_in_row(out, from + r, first));
      }
      store_rows(p, out, block, tile, caps);
    }
}

template <class Real>
void row_gradient(const Problem& p, int64_t begin, int64_t end) {
  alignas(64) Real tile[kTile] = {};
  alignas(64) Real caps[kTile];
  const bool panels =
      sweeps_panels(p, p.labels && !p.partials.mean && !p.partials.entropy);
  Label label[kStrip];
  for (int64_t n = begin; n < end;) {
    const int height = strip_height(p, n, end);
    const Strip strip(p.logits, n), out(p.gradient, n);
    Slopes<Real> slopes[kStrip] = {};
    for (int r = 0; r < height; ++r) label[r] = read_label(p, n + r);
    find_slopes(p, n, height, label, slopes);
    if (panels)
      gradient_of_panels(p, strip, out, n, height, slopes, tile, caps);
    else
      gradient_of_rows(p, strip, out, n, height, label, slopes, tile, caps);
    n += height;
  }
}

bool sweeps_in_double(const Problem& p) { return p.logits.type == Type::f64; }

void statistics_entry(Problem& p, int64_t begin, int64_t end) {
  sweeps_in_double(p) ? row_statistics<double>(p, begin, end) : row_statistics<float>(p, begin, end);
}

void gradient_entry(const Problem& p, int64_t begin, int64_t end) {
  sweeps_in_double(p) ? row_gradient<double>(p, begin, end) : row_gradient<float>(p, begin, end);
}

}  // namespace

namespace xent {
extern const Kernels XENT_TABLE(XENT_VARIANT);
const Kernels XENT_TABLE(XENT_VARIANT) = {XENT_NAME(XENT_VARIANT), statistics_entry, gradient_entry};
}  // namespace xent
