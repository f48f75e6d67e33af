// The kernel pair. One source, compiled once per instruction set (CMakeLists.txt), nothing but
// plain loops over blocks that stay in the first-level cache:
//
//   statistics:  load a block -> take the pivot out -> absorb the rest into the running sums
//   gradient:    load a block -> one exp per class -> put the pivot in -> store
//
// Loading (blocks.h) widens, scales, caps and adds the class bias, whatever the strides; so every
// dtype, layout and transform shares the loops that follow. Sums run over kLanes accumulators in a
// fixed order and are added up per block in float64: the bits depend on the row alone.
#include "rows.h"

#include "blocks.h"
#include "gradient.h"
#include "statistics.h"

#ifndef XENT_VARIANT
#define XENT_VARIANT baseline
#endif
#define XENT_TABLE_(variant) variant##_kernels
#define XENT_TABLE(variant) XENT_TABLE_(variant)
#define XENT_NAME_(variant) #variant
#define XENT_NAME(variant) XENT_NAME_(variant)

namespace {

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

// ---- statistics ---------------------------------------------------------------------------------

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
    find_odds(rows, want.entropy, odds);
    for (int r = 0; r < height; ++r) {
      if (label[r].kind == Kind::kept) {
        if (is_nothing(p, rows[r]))
          finish_nothing(p, want.soft, rows[r], n + r);
        else
          finish(p, want, rows[r], odds, r, n + r);
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
