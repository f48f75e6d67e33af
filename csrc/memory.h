// Moves runs of numbers between memory and the first-level cache.
#pragma once

#include "extremes.h"

namespace {

// Calls one(from[j], to[j], j) by whole vectors. The last vector overlaps the one before, because a
// tail of single numbers would take a tenth of the time at 100 classes. `seen` finds the extreme of
// the results.
template <class From, class To, class One, class Seen>
void convert_each(const From* __restrict from, To* __restrict to, int n, One one, Seen& seen) {
  constexpr int step = 2 * kLanes;
  if (n < step) {
    for (int j = 0; j < n; ++j) one(from[j], to[j], j);
    return seen.see_short(to, n);
  }
  for (int j = 0; j + step <= n; j += step) {
    for (int i = 0; i < step; ++i) one(from[j + i], to[j + i], j + i);
    seen.see(to + j);
  }
  for (int i = 0; i < step; ++i) one(from[n - step + i], to[n - step + i], n - step + i);
  seen.see(to + n - step);
}

template <class From, class To, class One>
void convert(const From* from, To* to, int n, One one) {
  NoRowExtreme none;
  convert_each(from, to, n, [=](From x, To& y, int) { one(x, y); }, none);
}

// Stores an aligned cache line past the caches. A store into a cache would first read the line.
inline void stream_line(const void* line, void* to) {
#if defined(__AVX512F__)
  typedef float Part __attribute__((vector_size(64), may_alias));
#elif defined(__AVX__)
  typedef float Part __attribute__((vector_size(32), may_alias));
#else
  typedef float Part __attribute__((vector_size(16), may_alias));
#endif
  for (unsigned i = 0; i < 64 / sizeof(Part); ++i) {
    const Part part = static_cast<const Part*>(line)[i];
    Part* at = static_cast<Part*>(to) + i;
#if defined(__clang__)
    __builtin_nontemporal_store(part, at);
#elif defined(__AVX512F__)
    __builtin_ia32_movntps512(reinterpret_cast<float*>(at), part);
#elif defined(__AVX__)
    __builtin_ia32_movntps256(reinterpret_cast<float*>(at), part);
#elif defined(__SSE2__)
    __builtin_ia32_movntps(reinterpret_cast<float*>(at), part);
#else
    *at = part;
#endif
  }
}

// Makes all lines that were streamed before visible to other threads.
inline void finish_streams() {
#ifdef __SSE2__
  __builtin_ia32_sfence();
#endif
}

// Memory that will be read soon: it is fetched into the cache step by step, while something else is
// computed. The prefetcher of the processor does not foresee where the next block begins. This
// saves a third of the time of a large problem.
struct Prefetch {
  const char* at = nullptr;
  int64_t row_step = 0, class_step = 0;  // bytes

  // One row of that memory; fetch(j) fetches what follows class j.
  struct Row {
    const char* at;
    int64_t step;
    XENT_LANE void fetch(int j) const { __builtin_prefetch(at + j * step); }
  };
  Row row(int r) const { return {at + r * row_step, class_step}; }
};

// The same for two arrays that are read side by side.
struct PrefetchBoth {
  Prefetch first, second;

  struct Row {
    Prefetch::Row first, second;
    XENT_LANE void fetch(int j) const { first.fetch(j), second.fetch(j); }
  };
  Row row(int r) const { return {first.row(r), second.row(r)}; }
};

}  // namespace
