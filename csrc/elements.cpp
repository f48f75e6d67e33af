// The element-wise kernel: value and gradient of the sigmoid family from one exponential.
//
//   read a block of each operand -> per element two log terms, a modulator -> sum, values, gradient
//
// With e = exp(-|z|) both softplus(z) and softplus(-z) are a maximum plus log(1 + e), and both
// probabilities a quotient by 1 + e. Every sum has terms of one sign only, so nothing cancels where
// targets are 0 or 1, and the smallest losses keep their digits.
#include "elements.h"

#include "modulators.h"

#ifndef XENT_VARIANT
#define XENT_VARIANT baseline
#endif

namespace {

// ---- the sweep ----------------------------------------------------------------------------------

// The sum of the values and the range of the targets, lane by lane.
template <class Real>
struct Totals {
  double sum[kLanes] = {};
  Real low[kLanes] = {}, high[kLanes] = {};

  template <bool plain>
  XENT_LANE void add(const Piece<Real>& g, Real ignored) {
    for (int h = 0; h < g.count; h += kLanes) {
      XENT_FOR(i, kLanes) sum[i] += double(g.value[h + i]);
      XENT_FOR(i, kLanes) {
        const Real t = !plain && g.label[h + i] == ignored ? Real(0) : g.label[h + i];
        low[i] = t < low[i] ? t : low[i];
        high[i] = t > high[i] ? t : high[i];
      }
    }
  }

  void finish(Elements& p, int64_t block) {
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) {
        sum[i] += sum[i + half];
        low[i] = low[i + half] < low[i] ? low[i + half] : low[i];
        high[i] = high[i + half] > high[i] ? high[i + half] : high[i];
      }
    if (p.sums) p.sums[block] = sum[0];
    if (low[0] >= 0 && high[0] <= 1) return;
    double bad = double(low[0] < 0 ? low[0] : high[0]);
    __atomic_store(&p.bad_target, &bad, __ATOMIC_RELAXED);
    __atomic_store_n(&p.has_bad_target, true, __ATOMIC_RELAXED);
  }
};

// Evaluates the n elements from `first` on, piece by piece.
template <Modulator modulator, bool near, bool plain, bool values, bool gradient, class Real>
void sweep_block(const Elements& p, const Settings<Real>& settings, Piece<Real>& g, int64_t first,
                 int n, Totals<Real>& totals) {
  for (int j = 0; j < n; j += kPiece) {
    const int some = n - j < kPiece ? n - j : kPiece;
    g.count = (some + kGroup - 1) / kGroup * kGroup;
    evaluate<modulator, near, plain>(g, settings);
    for (int i = some; i < g.count; ++i) g.value[i] = 0;
    if constexpr (values) totals.template add<plain>(g, settings.ignored);
    if (values && p.values.data) put_any(g.value, p.values, first + j, some, false);
    if (gradient) put_any(g.slope, p.gradient, first + j, some, p.streams);
    g.z += kPiece, g.label += kPiece, g.t += kPiece;
    if constexpr (!plain) g.weight += kPiece, g.pos_weight += kPiece, g.upstream += kPiece;
  }
}

// True if all n targets that count are 0 or 1.
template <class Real>
bool are_labels(const Piece<Real>& g, int n, Real ignored) {
  int other = 0;
  for (int j = 0; j < n; j += kGroup) XENT_FOR(i, kGroup) {
      const Real t = g.t[j + i];
      other |= int(t != 0) & int(t != 1) & int(g.label[j + i] != ignored);
    }
  return other == 0;
}

template <Modulator modulator, bool plain, bool values, bool gradient, class Real>
void sweep(Elements& p, int64_t begin, int64_t end) {
  Reader<Real> logits(p.logits, p.count), target(p.target, p.count), weight(p.weight, p.count),
      pos_weight(p.pos_weight, p.count), upstream(p.upstream, p.count);
  const Settings<Real> settings(p);
  alignas(64) Real smooth[kBlock];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kBlock, left = p.count - first;
    const int n = int(left < kBlock ? left : kBlock);
    Piece<Real> g;
    g.z = logits.read(first, n);
    g.label = g.t = target.read(first, n);
    if (p.smoothing != 0) g.t = settings.smooth(g.label, n, smooth);
    if constexpr (!plain) {
      g.weight = weight.read(first, n);
      g.pos_weight = pos_weight.read(first, n);
      g.upstream = upstream.read(first, n);
    }
    const bool near = are_near(g.z, n);
    if constexpr (modulator == Modulator::margin && sizeof(Real) == 4)
      if (!near || !are_labels(g, n, settings.ignored)) {
        sweep<modulator, false, values, gradient, double>(p, block, block + 1);
        continue;
      }
    Totals<Real> totals;
    if (near)
      sweep_block<modulator, true, plain, values, gradient>(p, settings, g, first, n, totals);
    else
      sweep_block<modulator, false, plain, values, gradient>(p, settings, g, first, n, totals);
    if constexpr (values) totals.finish(p, block);
  }
  if (p.streams) finish_streams();
}

// True if all factors of the elements are 1 and no target is left out.
bool is_plain(const Elements& p) {
  return p.weight.is_one && p.pos_weight.is_one && p.upstream.is_one && p.ignored != p.ignored;
}

template <Modulator modulator, bool plain, class Real>
void sweep_what_is_wanted(Elements& p, int64_t begin, int64_t end) {
  const bool values = p.sums || p.values.data;
  if (!p.gradient.data) return sweep<modulator, plain, true, false, Real>(p, begin, end);
  if (values) return sweep<modulator, plain, true, true, Real>(p, begin, end);
  sweep<modulator, plain, false, true, Real>(p, begin, end);
}

template <Modulator modulator, class Real>
void sweep_with(Elements& p, int64_t begin, int64_t end) {
  if constexpr (sizeof(Real) == 4) {
    if (is_plain(p)) return sweep_what_is_wanted<modulator, true, Real>(p, begin, end);
  }
  sweep_what_is_wanted<modulator, false, Real>(p, begin, end);
}

// True for powers that take products and a square root.
bool is_simple(double gamma) { return gamma >= 1 && gamma <= 8 && 2 * gamma == int(2 * gamma); }

Modulator modulator_of(const Elements& p) {
  if (p.excess) return Modulator::excess;
  if (p.margin >= 0) return Modulator::margin;
  const bool plain = p.gamma == 0 && p.positive == 1 && p.negative == 1;
  if (plain && p.plain_above >= 1) return Modulator::none;
  return is_simple(p.gamma) ? Modulator::simple : Modulator::any;
}

// True where float32 would lose its digits: powers that are computed from logarithms, and
// differences of target and probability.
bool sweeps_in_double(const Elements& p) {
  const bool wide = p.logits.type == Type::f64 || p.target.type == Type::f64;
  const Modulator modulator = modulator_of(p);
  const auto simple = [](double gamma) { return gamma == 0 || is_simple(gamma); };
  const bool labels = modulator == Modulator::margin && simple(p.gamma) && simple(p.gamma_negative);
  const bool single = modulator == Modulator::none || modulator == Modulator::simple || labels;
  return wide || !single || p.side < 0;
}

template <class Real>
void sweep_modulated(Elements& p, int64_t begin, int64_t end) {
  const Modulator modulator = modulator_of(p);
  if (modulator == Modulator::none) return sweep_with<Modulator::none, Real>(p, begin, end);
  if (modulator == Modulator::simple) return sweep_with<Modulator::simple, Real>(p, begin, end);
  if (modulator == Modulator::margin) return sweep_with<Modulator::margin, Real>(p, begin, end);
  if constexpr (sizeof(Real) == 8) {
    if (modulator == Modulator::any) return sweep_with<Modulator::any, Real>(p, begin, end);
    sweep_with<Modulator::excess, Real>(p, begin, end);
  }
}

}  // namespace

namespace xent::XENT_VARIANT {
void sweep_elements(Elements& p, int64_t begin, int64_t end) {
  sweeps_in_double(p) ? sweep_modulated<double>(p, begin, end)
                      : sweep_modulated<float>(p, begin, end);
}
}  // namespace xent::XENT_VARIANT
