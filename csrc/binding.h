// Shared by the parts of the binding: the instruction set in use, torch's threads, addresses.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "rows.h"

namespace xent {

extern const Kernels* kernels;  // of the instruction set in use

using RangeFunction = void (*)(int64_t, int64_t, void*);
using ParallelFor = int32_t (*)(int64_t, int64_t, int64_t, RangeFunction, void*);
extern ParallelFor parallel_for;

// Below this many numbers a second thread costs more than it saves.
constexpr int64_t kGrain = 32768;

template <class Function>
void for_range(int64_t count, int64_t grain, Function function) {
  if (!parallel_for || count <= grain) return function(int64_t{0}, count);
  const RangeFunction body = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<Function*>(context))(begin, end);
  };
  parallel_for(0, count, grain, body, &function);
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_loss(nanobind::module_& m);
void bind_elements(nanobind::module_& m);
void bind_dense(nanobind::module_& m);

}  // namespace xent
