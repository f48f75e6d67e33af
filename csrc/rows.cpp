// The kernel pair. One source, compiled once per instruction set (CMakeLists.txt), nothing but
// plain loops over blocks that stay in the first-level cache:
//
//   statistics:  load a block -> take the pivot out -> absorb the rest into the running sums
//   gradient:    load a block -> one exp per class -> put the pivot in -> store
//
// Loading (blocks.h) widens, scales, caps and adds the class bias, whatever the strides; so every
// dtype, layout and transform shares the loops that follow. Sums run over lanes in a fixed order
// and are added up per block in float64: the bits depend on the row alone.
//
//   lanes.h       the arithmetic of one lane
//   blocks.h      blocks between memory and the tile
//   statistics.h  a row at a time, whatever is asked for;  gradient.h  the same backwards
//   plain.h       a strip of rows at a time: index targets and the fields that every loss has
#include "rows.h"

#include "blocks.h"
#include "elements.h"
#include "gradient.h"
#include "plain.h"
#include "statistics.h"

#ifndef XENT_VARIANT
#define XENT_VARIANT baseline
#endif
#define XENT_TABLE_(variant) variant##_kernels
#define XENT_TABLE(variant) XENT_TABLE_(variant)
#define XENT_NAME_(variant) #variant
#define XENT_NAME(variant) XENT_NAME_(variant)

namespace {

// What is plain is laid out as panels where rows are very short, or lie side by side in memory and
// no transform needs them one by one.
constexpr int64_t kShort = 16;

bool fits_panels(const Problem& p) {
  const bool transformed = p.scale || p.softcap > 0 || p.class_bias;
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

// ---- statistics ---------------------------------------------------------------------------------

template <class Real>
void sweep_plain(const Problem& p, const Strip& strip, int64_t n, int height, const Label* label,
                 Sums& sums, Real* tile, Real* panel) {
  PlainRows<Real> rows;
  const bool panels = fits_panels(p);
  const Cut cut(p, panels, height);
  cut.for_blocks(p, height, [&](const Block& b) {
    if (panels) {
      load_panel(p, strip, n, b, tile, static_cast<Real*>(nullptr), panel);
      absorb_plain(rows, PanelLayout<Real>{panel, b.height, b.width}, label, b.r, b.first,
                   ahead_of_panel(strip, kStrip, b.first));
    } else if (any_kept(label, b)) {
      load_logits(p, strip, n, b, Real(-kInfinity), tile, static_cast<Real*>(nullptr));
      absorb_plain(rows, RowsLayout<Real>{tile, b.height, b.width, b.pitch}, label, b.r, b.first,
                   cut.next(p, strip, b));
    }
  });
  collect(rows, height, sums);
}

template <class Real>
void sweep_rows(const Problem& p, const Wanted& want, const Strip& strip, int64_t n, int height,
                const Label* label, Row<Real>* rows, Sums& sums, Real* tile) {
  alignas(64) Real softs[kTile];
  alignas(64) Real means[kTile];
  for (int r = 0; r < height; ++r) rows[r] = Row<Real>();
  const Strip soft_strip(want.soft ? p.soft : p.logits, n);
  const Cut cut(p, false, height);
  cut.for_blocks(p, height, [&](const Block& b) {
    if (!any_kept(label, b)) return;
    load_logits(p, strip, n, b, Real(-kInfinity), tile, static_cast<Real*>(nullptr));
    if (want.soft) load_soft(p, soft_strip, b, softs);
    if (want.mean) load_mean(p, b, means);
    const Ahead next = cut.next(p, strip, b);
    for (int r = 0; r < b.height; ++r)
      if (label[b.r + r].kind == Kind::kept)
        absorb(rows[b.r + r], p, want, b.first, tile + r * b.pitch, softs + r * b.pitch, means,
               b.width, label[b.r + r].pivot, next.row(r));
  });
  collect(rows, height, sums);
}

template <class Real>
void row_statistics(Problem& p, int64_t begin, int64_t end) {
  alignas(64) Real tile[kTile] = {};
  alignas(64) Real panel[kTile] = {};
  const Wanted want(p);
  const bool plain = want.plain();
  Row<Real> rows[kStrip];
  Label label[kStrip];
  Sums sums;
  int64_t kept = 0;
  for (int64_t n = begin; n < end;) {
    const int height = strip_height(p, n, end);
    const Strip strip(p.logits, n);
    for (int r = 0; r < height; ++r) label[r] = read_label(p, n + r);
    if (plain)
      sweep_plain(p, strip, n, height, label, sums, tile, panel);
    else
      sweep_rows(p, want, strip, n, height, label, rows, sums, tile);
    find_odds(sums, height);
    finish_plain(p.statistics, sums, n, height);
    for (int r = 0; r < height; ++r) {
      if (label[r].kind == Kind::kept) {
        if (p.labels) put(p.statistics.mass, n + r, label_weight<Real>(p, label[r].pivot));
        if (!plain) finish(p, want, rows[r], sums, r, n + r);
        if (p.sharded && sums.sum[r] == 0 && sums.pivot[r] == -kInfinity)
          finish_nothing(p.statistics, want.soft, p.statistics.mass[n + r], n + r);
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

// The gradient of ignored rows, whose logits need not be read.
template <class Real>
void store_zeros(const Problem& p, const Strip& out, const Block& b, Real* tile, const Real* caps) {
  for (int j = 0; j < b.height * b.pitch; ++j) tile[j] = 0;
  store_rows(p, out, b, tile, caps);
}

template <class Real>
void gradient_plain(const Problem& p, const Strip& strip, const Strip& out, int64_t n, int height,
                    const Label* label, const Slopes<Real>& slopes, Real* tile, Real* panel,
                    Real* caps) {
  const bool panels = fits_panels(p);
  const Cut cut(p, panels, height);
  cut.for_blocks(p, height, [&](const Block& b) {
    if (panels) {
      const PanelLayout<Real> block{panel, b.height, b.width};
      load_panel(p, strip, n, b, tile, caps, panel);
      differentiate_plain(slopes, block, b.r, ahead_of_panel(strip, kStrip, b.first),
                          [&](auto step) { block.map(step); });
      put_pivots(slopes, b, block);
      store_panel(p, out, b, panel, tile, caps);
      return;
    }
    const RowsLayout<Real> block{tile, b.height, b.width, b.pitch};
    if (!any_kept(label, b)) return store_zeros(p, out, b, tile, caps);
    const Ahead next = cut.next(p, strip, b);
    load_logits(p, strip, n, b, Real(kInfinity), tile, caps);
    if (p.softcap > 0 || !out.adjacent()) {
      differentiate_plain(slopes, block, b.r, next, [&](auto step) { block.map(step); });
      put_pivots(slopes, b, block);
      store_rows(p, out, b, tile, caps);
    } else {
      differentiate_to_any(out, b, p.streams, slopes, block, next);
    }
  });
}

template <class Real>
void gradient_of_rows(const Problem& p, const Strip& strip, const Strip& out, int64_t n, int height,
                      const Label* label, const Slopes<Real>& slopes, Real* tile, Real* caps) {
  alignas(64) Real softs[kTile];
  alignas(64) Real means[kTile];
  const Strip soft_strip(p.labels ? p.logits : p.soft, n);
  Cut(p, false, height).for_blocks(p, height, [&](const Block& b) {
    if (!any_kept(label, b)) return store_zeros(p, out, b, tile, caps);
    load_logits(p, strip, n, b, Real(0), tile, caps);
    if (!p.labels) load_soft(p, soft_strip, b, softs);
    if (p.partials.mean) load_mean(p, b, means);
    for (int r = 0; r < b.height; ++r) {
      Real* z = tile + r * b.pitch;
      if (label[b.r + r].kind != Kind::kept)
        for (int j = 0; j < b.width; ++j) z[j] = 0;
      else
        differentiate(p, slopes, b.r + r, b.first, b.width, z, softs + r * b.pitch, means);
    }
    store_rows(p, out, b, tile, caps);
  });
}

template <class Real>
void row_gradient(const Problem& p, int64_t begin, int64_t end) {
  alignas(64) Real tile[kTile + 2 * kLanes] = {};  // a cache line may end beyond its row
  alignas(64) Real panel[kTile] = {};
  alignas(64) Real caps[kTile];
  Label label[kStrip];
  Slopes<Real> slopes;
  for (int64_t n = begin; n < end;) {
    const int height = strip_height(p, n, end);
    const Strip strip(p.logits, n), out(p.gradient, n);
    for (int r = 0; r < height; ++r) label[r] = read_label(p, n + r);
    find_slopes(p, n, height, label, slopes);
    if (is_plain(p))
      gradient_plain(p, strip, out, n, height, label, slopes, tile, panel, caps);
    else
      gradient_of_rows(p, strip, out, n, height, label, slopes, tile, caps);
    n += height;
  }
  if (p.streams) finish_streams();
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
const Kernels XENT_TABLE(XENT_VARIANT) = {XENT_NAME(XENT_VARIANT), statistics_entry, gradient_entry,
                                            XENT_VARIANT::sweep_elements};
}  // namespace xent
