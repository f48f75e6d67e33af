// Reads the operands of the element-wise kernel, and stores its results.
#pragma once

#include "elements.h"
#include "memory.h"

namespace {

using xent::Elements;
using xent::Operand;
using xent::Output;
using xent::Type;

constexpr int kGroup = 32;   // elements that are stored together: a cache line of bf16
constexpr int kPiece = 256;  // elements that are computed together
constexpr int kBlock = int(xent::kElementBlock);

// ---- operands -----------------------------------------------------------------------------------

// Gives blocks of an operand, from its memory or from a buffer of converted, broadcast numbers.
template <class Real>
class Reader {
 public:
  Reader(const Operand& operand, int64_t count)
      : from_(operand), whole_(operand.repeat == 1 && operand.period >= count) {}

  // Returns n numbers, with zeros up to whole groups.
  const Real* read(int64_t begin, int n) {
    const bool ready = n % kGroup == 0;
    if (whole_ && ready && from_.type == own_type())
      return static_cast<const Real*>(from_.data) + begin;
    const int64_t place = from_.repeat == 1 ? begin % from_.period : from_.period == 1 ? 0 : begin;
    if (n == length_ && place == place_) return buffer_;  // it still holds these numbers
    length_ = n, place_ = place;
    switch (from_.type) {
      case Type::f32: spread<float>(begin, n); break;
      case Type::f64: spread<double>(begin, n); break;
      case Type::bf16: spread<bf16>(begin, n); break;
      case Type::f16: spread<f16>(begin, n); break;
    }
    for (int j = n; j % kGroup; ++j) buffer_[j] = 0;
    return buffer_;
  }

 private:
  static constexpr Type own_type() { return sizeof(Real) == 8 ? Type::f64 : Type::f32; }

  template <class Stored>
  void spread(int64_t begin, int n) {
    const Stored* data = static_cast<const Stored*>(from_.data);
    for (int j = 0; j < n;) {
      const int64_t i = begin + j, at = i / from_.repeat % from_.period;
      const int64_t left = from_.repeat == 1 ? from_.period - at : from_.repeat - i % from_.repeat;
      const int run = int(left < n - j ? left : n - j);
      if (from_.repeat == 1) {
        convert(data + at, buffer_ + j, run, [](Stored x, Real& to) { to = Real(widen(x)); });
      } else {
        const Real value = Real(widen(data[at]));
        for (int k = 0; k < run; ++k) buffer_[j + k] = value;
      }
      j += run;
    }
  }

  const Operand from_;
  const bool whole_;
  int length_ = 0;
  int64_t place_ = -1;
  alignas(64) Real buffer_[kBlock];
};

// ---- results ------------------------------------------------------------------------------------

template <class Stored, class Real>
XENT_LANE void put(const Real* piece, const Output& out, int64_t begin, int n, bool streams) {
  Stored* to = static_cast<Stored*>(out.data) + begin;
  constexpr int lanes = 64 / sizeof(Stored);
  for (int j = 0; j < n; j += kGroup) {
    alignas(64) Stored line[kGroup];
    XENT_FOR(i, kGroup) narrow(piece[j + i], line[i]);
    if (n - j < kGroup)
      for (int i = 0; i < n - j; ++i) to[j + i] = line[i];
    else if (streams)
      for (int i = 0; i < kGroup; i += lanes) stream_line(line + i, to + j + i);
    else
      __builtin_memcpy(to + j, line, sizeof line);
  }
}

XENT_LANE void put_any(const float* piece, const Output& out, int64_t begin, int n, bool streams) {
  switch (out.type) {
    case Type::f32: return put<float>(piece, out, begin, n, streams);
    case Type::bf16: return put<bf16>(piece, out, begin, n, streams);
    case Type::f16: return put<f16>(piece, out, begin, n, streams);
    case Type::f64: return;  // swept in float64
  }
}

XENT_LANE void put_any(const double* piece, const Output& out, int64_t begin, int n, bool streams) {
  if (out.type == Type::f64) return put<double>(piece, out, begin, n, streams);
  alignas(64) float narrower[kPiece];
  for (int j = 0; j < n; j += kGroup) XENT_FOR(i, kGroup) narrower[j + i] = float(piece[j + i]);
  put_any(narrower, out, begin, n, streams);
}

}  // namespace
