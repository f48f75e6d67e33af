// The two sweeps of a strip of rows: how it is cut into blocks, what lies beside them, and which of
// the compiled kernels does it.
#pragma once

#include "differentiate.h"
#include "statistics.h"

namespace {

// Panels are for rows that are very short, or lie side by side in memory and nothing needs them one
// by one.
constexpr int64_t kShort = 16;

bool fits_panels(const Problem& p) {
  if (is_soft(p)) return false;
  const bool transformed = p.scale || p.softcap > 0 || p.class_scale || p.class_bias;
  return adjacent(p) ? p.classes <= kShort : !transformed;
}

// How the rows of a strip are cut into blocks that fill a tile.
struct Cut {
  int height, width, pitch;

  Cut(const Problem& p, bool panels, int strip_height) {
    if (panels || !adjacent(p)) {
      // Where classes are not adjacent, rows are loaded together, or every cache line would be
      // fetched once for each row it holds a number of.
      height = strip_height;
      width = pitch = kTile / kStrip;
    } else {
      width = int(p.classes < kTile ? p.classes : kTile);
      pitch = padded(width > 0 ? width : 1);
      height = kTile / pitch < strip_height ? kTile / pitch : strip_height;
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

  // The same for a block that need not fit a tile.
  template <class Visit>
  void for_parts(const Block& b, Visit visit) const {
    for (int from = 0; from < b.height; from += height) {
      const int rows = b.height - from;
      visit(Block{b.r + from, rows < height ? rows : height, b.first, b.width, b.pitch});
    }
  }

  // Where rows have a place of their own: those that are no longer than a tile, all at once.
  Cut untiled(const Problem& p, int strip_height) const {
    Cut cut = *this;
    if (p.classes <= width) cut.height = strip_height;
    return cut;
  }

  // Where the block lies that will be loaded after this one.
  Ahead next(const Problem& p, const Strip& strip, const Block& b) const {
    return p.classes > width ? ahead_at(strip, b.r, b.first + width)
                             : ahead_at(strip, b.r + height, b.first);
  }
};

bool any_kept(const Label* label, const Block& b) {
  for (int r = b.r; r < b.r + b.height; ++r)
    if (label[r].kind == Kind::kept) return true;
  return false;
}

template <class Real>
struct Tiles {
  alignas(64) Real logits[kTile + xent::kBeyond] = {};  // a cache line may end beyond its row
  alignas(64) Real panel[kTile] = {};
  alignas(64) Real soft[kTile + xent::kBeyond];
  alignas(64) Real ones[kTile + xent::kBeyond];
  alignas(64) Real caps[kTile + xent::kBeyond];
  Extremes<Real, Greater> largest;
  Extremes<Real, Less> smallest;
};

// What lies beside a block: soft targets, if there are any, and weights, where they are looked at.
template <unsigned set, class Real>
Beside<Real> load_beside(const Problem& p, int64_t n, const Label* label, const Block& b,
                         Tiles<Real>& tiles) {
  if (is_soft(p)) {
    int64_t line[kStrip];
    for (int r = 0; r < b.height; ++r)  // any will do for an ignored row
      line[r] = label[b.r + r].pivot < 0 ? 0 : label[b.r + r].pivot;
    load_soft(p, n, p.labels ? line : nullptr, b, tiles.soft);
  }
  const Real* weight = static_cast<const Real*>(p.mean_weight);
  if ((set & kWeights) && !weight)
    for (int j = 0; j < b.width + xent::kBeyond; ++j) tiles.ones[j] = j < b.width ? 1 : 0;
  return {tiles.soft, weight ? weight + b.first : tiles.ones, {}};
}

// ---- statistics ---------------------------------------------------------------------------------

unsigned terms_of(const Problem& p, const xent::Statistics& s) {
  return (s.mean ? kMean | (p.mean_weight ? kWeights : 0u) : 0u) | (s.entropy ? kEntropy : 0u) |
         (s.rest_squares ? kSquares : 0u) | (s.rest_cubes ? kPowers : 0u) |
         (is_soft(p) ? kSoft : 0u);
}

// float64 is rare, and kernels are not small.
template <class Real>
struct StatisticsSets
    : Compiled<kPlain, kMean, kMean | kWeights, kEntropy, kSquares, kPowers, kSoft> {};
template <>
struct StatisticsSets<double> : Compiled<kPlain> {};

// Leaves the exponentials in `exponentials`, if there is one.
template <unsigned set, class Real>
void sweep(const Problem& p, const Strip& strip, int64_t n, int height, const Label* label,
           Rows& rows, Tiles<Real>& tiles, Exponentials<Real>* exponentials) {
  const bool panels = fits_panels(p);
  const Cut tiled(p, panels, height), cut = exponentials ? tiled.untiled(p, height) : tiled;
  Real* const no_slope = nullptr;
  cut.for_blocks(p, height, [&](const Block& b) {
    if constexpr (!(set & kSoft))
      if (panels) {
        load_panel(p, strip, n, b, tiles.logits, no_slope, tiles.panel);
        const PanelLayout<Real, Greater> block{tiles.panel, b.height, b.width};
        return absorb<set>(p, rows, block, load_beside<set>(p, n, label, b, tiles), label, b,
                           ahead_of_panel(strip, kStrip, b.first));
      }
    if (!any_kept(label, b)) return;
    if constexpr (set == kPlain)
      if (exponentials) {
        BothExtremes<Real> both{tiles.smallest, tiles.largest};
        load_logits(p, strip, n, b, exponentials->at(b), no_slope, both);
        const RowsLayout<Real, Greater> rows_of{exponentials->at(b), b.height, b.width, b.pitch,
                                                tiles.largest};
        const KeepingRows<Real> block{rows_of, tiles.smallest, *exponentials, b};
        return absorb<set>(p, rows, block, Beside<Real>{}, label, b, cut.next(p, strip, b));
      }
    load_logits(p, strip, n, b, tiles.logits, no_slope, tiles.largest);
    const RowsLayout<Real, Greater> block{tiles.logits, b.height, b.width, b.pitch, tiles.largest};
    absorb<set>(p, rows, block, load_beside<set>(p, n, label, b, tiles), label, b,
                cut.next(p, strip, b));
  });
}

// The statistics of the rows from n on.
template <class Real>
class StatisticsSweep {
 public:
  explicit StatisticsSweep(const Problem& p) : terms_(Sets::find(terms_of(p, p.statistics))) {}

  unsigned terms() const { return terms_; }

  void run(const Problem& p, int64_t n, int height, const Label* label, Tiles<Real>& tiles,
           Exponentials<Real>* exponentials = nullptr) const {
    const Strip strip(p.logits, n);
    const xent::Statistics& s = p.statistics;
    Sets::with(terms_, [&](auto set) {
      Rows rows(set.value, s.rest_top);
      sweep<set.value>(p, strip, n, height, label, rows, tiles, exponentials);
      const Odds odds(rows, height, set.value & kEntropy);
      finish<Real>(p, rows, odds, label, n, height);
      if (p.sharded)
        for (int r = 0; r < height; ++r)
          if (odds.sum[r] == 0 && rows.pivot[r] == -kInfinity)
            finish_nothing(s, is_soft(p), s.mass[n + r], n + r);
    });
    for (int r = 0; r < height; ++r)
      if (label[r].kind != Kind::kept) finish_ignored(s, n + r);
  }

 private:
  using Sets = StatisticsSets<Real>;
  const unsigned terms_;
};

// ---- gradient -----------------------------------------------------------------------------------

template <class Real>
struct GradientSets
    : Compiled<kPlain, kMean, kMean | kWeights, kEntropy, kSquares, kPowers, kSoft, kSlope> {};
template <>
struct GradientSets<double> : Compiled<kPlain> {};

// The gradient of ignored rows, whose logits need not be read.
template <class Real>
void store_zeros(const Strip& out, const Block& b, Real* tile) {
  for (int j = 0; j < b.height * b.pitch; ++j) tile[j] = 0;
  store(out, b, tile);
}

// By way of a tile, or of a panel.
template <unsigned set, class Real>
void differentiate_by_tile(const Problem& p, const Strip& strip, const Strip& out, int64_t n,
                           const Block& b, bool panels, const Label* label,
                           const Slopes<Real>& slopes, Tiles<Real>& tiles, const Ahead& next) {
  const auto run = [&](const auto& block) {
    differentiate<set>(slopes, block, b.r, load_beside<set>(p, n, label, b, tiles), next,
                       [&](auto step) { block.map(step); });
    put_pivots(slopes, b, [&](int r, int64_t j, Real g) { block.at(r, j) = g; });
  };
  if constexpr (!(set & kSoft))
    if (panels) {
      load_panel(p, strip, n, b, tiles.logits, tiles.caps, tiles.panel);
      run(PanelLayout<Real, Less>{tiles.panel, b.height, b.width});
      return store_panel(p, out, b, tiles.panel, tiles.logits, outer_slopes(p, b, tiles.caps));
    }
  if constexpr (is_all(set)) {
    load_logits(p, strip, n, b, tiles.logits, tiles.caps, tiles.smallest);
    run(RowsLayout<Real, Less>{tiles.logits, b.height, b.width, b.pitch, tiles.smallest});
    store_rows(out, b, tiles.logits, outer_slopes(p, b, tiles.caps));
  }
}

// Straight from the tile to where the gradient goes.
template <unsigned set, class Real>
void differentiate_directly(const Problem& p, const Strip& strip, const Strip& out, int64_t n,
                            const Block& b, const Label* label, const Slopes<Real>& slopes,
                            Tiles<Real>& tiles, const Ahead& next) {
  load_logits(p, strip, n, b, tiles.logits, tiles.caps, tiles.smallest);
  Beside<Real> beside = load_beside<set>(p, n, label, b, tiles);
  beside.outer = outer_slopes(p, b, tiles.caps);
  const RowsLayout<Real, Less> block{tiles.logits, b.height, b.width, b.pitch, tiles.smallest};
  differentiate_to<set>(out, b, p.streams, slopes, block, beside, next);
}

// The gradient of the rows from n on.
template <class Real>
class GradientSweep {
 public:
  explicit GradientSweep(const Problem& p)
      : panels_(fits_panels(p)), direct_(!panels_ && p.gradient.class_stride == 1) {
    const unsigned wanted = terms_of(p, p.partials);
    terms_ = direct_ ? Sets::find(wanted) : panels_ ? Sets::find(wanted & ~kSlope) : all_of(wanted);
  }

  // Of rows as they lie, by multiples of the exponentials.
  bool is_plain() const { return direct_ && terms_ == kPlain; }

  void run(const Problem& p, int64_t n, int height, const Label* label, Tiles<Real>& tiles,
           Exponentials<Real>* exponentials = nullptr) {
    const Strip strip(p.logits, n), out(p.gradient, n);
    const Cut cut(p, panels_, height);
    SlopeFinder<Real>(terms_, p, n, height, label, slopes_).find();
    Sets::with(terms_, [&](auto set) {
      const auto by_logits = [&](const Block& b) {
        if (!panels_ && !any_kept(label, b)) return store_zeros(out, b, tiles.logits);
        const Ahead next = panels_ ? ahead_of_panel(strip, kStrip, b.first) : cut.next(p, strip, b);
        if constexpr (!is_all(set.value))
          if (direct_)
            return differentiate_directly<set.value>(p, strip, out, n, b, label, slopes_, tiles,
                                                     next);
        if constexpr (set.value != kSlope)
          differentiate_by_tile<set.value>(p, strip, out, n, b, panels_, label, slopes_, tiles,
                                           next);
      };
      if (!exponentials) return cut.for_blocks(p, height, by_logits);
      cut.untiled(p, height).for_blocks(p, height, [&](const Block& b) {
        const Ahead next_strip = ahead_at(strip, b.r + height, b.first);
        const bool done =
            any_kept(label, b) && multiply_exponentials(out, b, p.streams, slopes_, *exponentials,
                                                        tiles.smallest, next_strip);
        if (!done) cut.for_parts(b, by_logits);
      });
    });
  }

 private:
  using Sets = GradientSets<Real>;
  const bool panels_, direct_;
  unsigned terms_;
  Slopes<Real> slopes_{};
};

}  // namespace
