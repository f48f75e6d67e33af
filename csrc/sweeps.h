// The two sweeps of a strip of rows: they cut the strip into blocks, load what belongs to a block,
// and choose among the compiled kernels.
#pragma once

#include "differentiate.h"
#include "statistics.h"

namespace {

// Panels are for very short rows, and for rows that lie side by side in memory, if their logits
// have no transform.
constexpr int64_t kShort = 16;

bool fits_panels(const Problem& p) {
  const bool transformed = p.scale || p.softcap > 0 || p.class_scale || p.class_bias;
  return adjacent(p) ? p.classes <= kShort : !transformed;
}

// The size of the blocks that a strip is cut into; a block fits the buffer.
struct BlockShape {
  int height, width, pitch;

  BlockShape(const Problem& p, bool panels, int strip_height) {
    if (panels || !adjacent(p)) {
      // Where classes are not adjacent, a cache line holds numbers of several rows. These rows are
      // loaded together, so that the line is fetched once.
      height = strip_height;
      width = pitch = kBuffer / kStrip;
    } else {
      width = int(p.classes < kBuffer ? p.classes : kBuffer);
      pitch = padded(width > 0 ? width : 1);
      height = kBuffer / pitch < strip_height ? kBuffer / pitch : strip_height;
    }
  }

  template <class Visit>
  void for_blocks(const Problem& p, int strip_height, Visit visit) const {
    for (int from = 0; from < strip_height; from += height)
      for (int64_t first = 0; first < p.classes; first += width) {
        const int64_t rows = strip_height - from, classes = p.classes - first;
        visit(Block{from, int(rows < height ? rows : height), first,
                    int(classes < width ? classes : width), pitch});
      }
  }

  // The same for the parts of a block that may be larger than the buffer.
  template <class Visit>
  void for_parts(const Block& b, Visit visit) const {
    for (int from = 0; from < b.height; from += height) {
      const int rows = b.height - from;
      visit(Block{b.r + from, rows < height ? rows : height, b.first, b.width, b.pitch});
    }
  }

  // The size of blocks that lie outside the buffer: if a row fits a block, all rows are one block.
  BlockShape unbuffered(const Problem& p, int strip_height) const {
    BlockShape shape = *this;
    if (p.classes <= width) shape.height = strip_height;
    return shape;
  }

  // The memory of the block that will be loaded after this one.
  Prefetch next_block(const Problem& p, const Strip& strip, const Block& b) const {
    return p.classes > width ? prefetch_at(strip, b.r, b.first + width)
                             : prefetch_at(strip, b.r + height, b.first);
  }
};

// The memory that will be read after block b: of the logits, and of the soft targets if `set` has
// them and each row has its own.
template <unsigned set>
auto next_of(const Problem& p, const Strip& strip, int64_t n, const BlockShape& shape, bool panels,
             const Block& b) {
  const auto after = [&](const Strip& s) {
    return panels ? prefetch_of_panel(s, kStrip, b.first) : shape.next_block(p, s, b);
  };
  if constexpr (set & kSoft)
    return PrefetchBoth{after(strip), after(p.labels ? strip : Strip(p.soft, n))};
  else
    return after(strip);
}

bool any_kept(const Label* label, const Block& b) {
  for (int r = b.r; r < b.r + b.height; ++r)
    if (label[r].kind == LabelKind::kept) return true;
  return false;
}

template <class Real>
struct Buffers {
  alignas(64) Real logits[kBuffer + xent::kBeyond] = {};  // loops by cache lines end beyond a row
  alignas(64) Real panel[kBuffer] = {};
  alignas(64) Real soft[kBuffer + xent::kBeyond], soft_panel[kBuffer] = {};
  alignas(64) Real ones[kBuffer + xent::kBeyond];
  alignas(64) Real cap_slopes[kBuffer + xent::kBeyond];
  Extremes<Real, Greater> largest;
  Extremes<Real, Less> smallest;
};

// Loads what belongs to the classes of a block: soft targets if there are any, and the weights of
// the mean if `set` has them.
template <unsigned set, class Real>
PerClass<Real> load_per_class(const Problem& p, int64_t n, const Label* label, const Block& b,
                              bool panels, Buffers<Real>& buffers) {
  if (is_soft(p)) {
    int64_t line[kStrip];
    for (int r = 0; r < b.height; ++r)  // an ignored row may get any line
      line[r] = label[b.r + r].pivot < 0 ? 0 : label[b.r + r].pivot;
    const int64_t* lines = p.labels ? line : nullptr;
    if (panels)
      load_soft_panel(p, n, lines, b, buffers.soft, buffers.soft_panel);
    else
      load_soft(p, n, lines, b, buffers.soft);
  }
  const Real* weight = static_cast<const Real*>(p.mean_weight);
  if ((set & kWeights) && !weight)
    for (int j = 0; j < b.width + xent::kBeyond; ++j) buffers.ones[j] = j < b.width ? 1 : 0;
  return {panels ? buffers.soft_panel : buffers.soft,
          panels ? 1 : b.pitch,
          weight ? weight + b.first : buffers.ones,
          {}};
}

// ---- statistics ---------------------------------------------------------------------------------

unsigned terms_of(const Problem& p, const xent::Statistics& s) {
  return (s.mean ? kMean | (p.mean_weight ? kWeights : 0u) : 0u) | (s.entropy ? kEntropy : 0u) |
         (s.rest_squares ? kSquares : 0u) | (s.rest_cubes ? kPowers : 0u) |
         (is_soft(p) ? kSoft : 0u);
}

// The sets of terms that the forward sweep is compiled for. For float64 there are few, because it
// is rare and kernels are large.
template <class Real>
struct StatisticsSets
    : Compiled<kPlain, kMean, kMean | kWeights, kEntropy, kSquares, kPowers, kSoft> {};
template <>
struct StatisticsSets<double> : Compiled<kPlain> {};

// The forward sweep of a strip. It keeps the exponentials in `exponentials`, unless that is null.
template <unsigned set, class Real>
void sweep(const Problem& p, const Strip& strip, int64_t n, int height, const Label* label,
           StripState& state, Buffers<Real>& buffers, Exponentials<Real>* exponentials) {
  const bool panels = fits_panels(p);
  const BlockShape buffered(p, panels, height),
      shape = exponentials ? buffered.unbuffered(p, height) : buffered;
  Real* const no_slope = nullptr;
  shape.for_blocks(p, height, [&](const Block& b) {
    const auto next = next_of<set>(p, strip, n, shape, panels, b);
    if (panels) {
      load_panel(p, strip, n, b, buffers.logits, no_slope, buffers.panel);
      const PanelLayout<Real, Greater> block{buffers.panel, b.height, b.width};
      return add_block<set>(p, state, block, load_per_class<set>(p, n, label, b, true, buffers),
                            label, b, next);
    }
    if (!any_kept(label, b)) return;
    if constexpr (set == kPlain)
      if (exponentials) {
        BothExtremes<Real> both{buffers.smallest, buffers.largest};
        load_logits(p, strip, n, b, exponentials->at(b), no_slope, both);
        const RowsLayout<Real, Greater> layout{exponentials->at(b), b.height, b.width, b.pitch,
                                               buffers.largest};
        const KeepingLayout<Real> block{layout, buffers.smallest, *exponentials, b};
        return add_block<set>(p, state, block, PerClass<Real>{}, label, b, next);
      }
    load_logits(p, strip, n, b, buffers.logits, no_slope, buffers.largest);
    const RowsLayout<Real, Greater> block{buffers.logits, b.height, b.width, b.pitch,
                                          buffers.largest};
    add_block<set>(p, state, block, load_per_class<set>(p, n, label, b, false, buffers), label, b,
                   next);
  });
}

// The statistics of the rows from n on.
template <class Real>
class StatisticsSweep {
 public:
  explicit StatisticsSweep(const Problem& p) : terms_(Sets::find(terms_of(p, p.statistics))) {}

  unsigned terms() const { return terms_; }

  void run(const Problem& p, int64_t n, int height, const Label* label, Buffers<Real>& buffers,
           Exponentials<Real>* exponentials = nullptr) const {
    const Strip strip(p.logits, n);
    const xent::Statistics& s = p.statistics;
    Sets::with(terms_, [&](auto set) {
      StripState state(set.value, s.rest_top);
      sweep<set.value>(p, strip, n, height, label, state, buffers, exponentials);
      const Odds odds(state, height, set.value & kEntropy);
      finish<Real>(p, state, odds, label, n, height);
      if (p.sharded)
        for (int r = 0; r < height; ++r)
          if (odds.sum[r] == 0 && state.pivot[r] == -kInfinity)
            finish_masked_shard(s, is_soft(p), s.mass[n + r], n + r);
    });
    for (int r = 0; r < height; ++r)
      if (label[r].kind != LabelKind::kept) finish_ignored(s, n + r);
  }

 private:
  using Sets = StatisticsSets<Real>;
  const unsigned terms_;
};

// ---- gradient -----------------------------------------------------------------------------------

template <class Real>
struct GradientSets
    : Compiled<kPlain, kMean, kMean | kWeights, kEntropy, kSquares, kPowers, kSoft, kTransform> {};
template <>
struct GradientSets<double> : Compiled<kPlain> {};

// Stores the gradient of ignored rows, whose logits need not be read.
template <class Real>
void store_zeros(const Strip& out, const Block& b, Real* buffer) {
  for (int j = 0; j < b.height * b.pitch; ++j) buffer[j] = 0;
  store(out, b, buffer);
}

// Computes the gradient of a block in the buffer or in a panel, and stores it from there.
template <unsigned set, class Real, class Next>
void differentiate_in_buffer(const Problem& p, const Strip& strip, const Strip& out, int64_t n,
                             const Block& b, bool panels, const Label* label,
                             const Coefficients<Real>& coefficients, Buffers<Real>& buffers,
                             const Next& next) {
  const auto run = [&](const auto& block) {
    differentiate<set>(coefficients, block, b.r,
                       load_per_class<set>(p, n, label, b, panels, buffers), next,
                       [&](auto step) { block.map(step); });
    put_pivots(coefficients, b, [&](int r, int64_t j, Real g) { block.at(r, j) = g; });
  };
  if (panels) {
    load_panel(p, strip, n, b, buffers.logits, buffers.cap_slopes, buffers.panel);
    run(PanelLayout<Real, Less>{buffers.panel, b.height, b.width});
    return store_panel(p, out, b, buffers.panel, buffers.logits,
                       transform_slopes(p, b, buffers.cap_slopes));
  }
  if constexpr (is_all(set)) {
    load_logits(p, strip, n, b, buffers.logits, buffers.cap_slopes, buffers.smallest);
    run(RowsLayout<Real, Less>{buffers.logits, b.height, b.width, b.pitch, buffers.smallest});
    store_rows(out, b, buffers.logits, transform_slopes(p, b, buffers.cap_slopes));
  }
}

// Computes the gradient of a block and stores it, without a copy in the buffer.
template <unsigned set, class Real, class Next>
void differentiate_directly(const Problem& p, const Strip& strip, const Strip& out, int64_t n,
                            const Block& b, const Label* label,
                            const Coefficients<Real>& coefficients, Buffers<Real>& buffers,
                            const Next& next) {
  load_logits(p, strip, n, b, buffers.logits, buffers.cap_slopes, buffers.smallest);
  PerClass<Real> per_class = load_per_class<set>(p, n, label, b, false, buffers);
  per_class.transform = transform_slopes(p, b, buffers.cap_slopes);
  const RowsLayout<Real, Less> block{buffers.logits, b.height, b.width, b.pitch, buffers.smallest};
  differentiate_to<set>(out, b, p.streams, coefficients, block, per_class, next);
}

// The gradient of the rows from n on.
template <class Real>
class GradientSweep {
 public:
  explicit GradientSweep(const Problem& p)
      : panels_(fits_panels(p)), direct_(!panels_ && p.gradient.class_stride == 1) {
    const unsigned wanted = terms_of(p, p.partials);
    terms_ = direct_   ? Sets::find(wanted)
             : panels_ ? Sets::find(wanted & ~kTransform)
                       : all_of(wanted);
  }

  // True if the gradient is a multiple of the exponentials, and is stored without a copy.
  bool is_plain() const { return direct_ && terms_ == kPlain; }

  void run(const Problem& p, int64_t n, int height, const Label* label, Buffers<Real>& buffers,
           Exponentials<Real>* exponentials = nullptr) {
    const Strip strip(p.logits, n), out(p.gradient, n);
    const BlockShape shape(p, panels_, height);
    CoefficientFinder<Real>(terms_, p, n, height, label, coefficients_).find();
    Sets::with(terms_, [&](auto set) {
      const auto by_logits = [&](const Block& b) {
        if (!panels_ && !any_kept(label, b)) return store_zeros(out, b, buffers.logits);
        const auto next = next_of<set.value>(p, strip, n, shape, panels_, b);
        if constexpr (!is_all(set.value))
          if (direct_)
            return differentiate_directly<set.value>(p, strip, out, n, b, label, coefficients_,
                                                     buffers, next);
        if constexpr (set.value != kTransform)
          differentiate_in_buffer<set.value>(p, strip, out, n, b, panels_, label, coefficients_,
                                             buffers, next);
      };
      if (!exponentials) return shape.for_blocks(p, height, by_logits);
      shape.unbuffered(p, height).for_blocks(p, height, [&](const Block& b) {
        const Prefetch next_strip = prefetch_at(strip, b.r + height, b.first);
        const bool done = any_kept(label, b) &&
                          multiply_exponentials(out, b, p.streams, coefficients_, *exponentials,
                                                buffers.smallest, next_strip);
        if (!done) shape.for_parts(b, by_logits);
      });
    });
  }

 private:
  using Sets = GradientSets<Real>;
  const bool panels_, direct_;
  unsigned terms_;
  Coefficients<Real> coefficients_{};
};

}  // namespace
