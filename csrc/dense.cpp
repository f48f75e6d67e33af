// The kernels of dense losses. This source is compiled once per instruction set (CMakeLists.txt).
// Everything is float64, which is rounded once: losses and gradients have all digits of their type.
//
//   dense_rows.h         what all kinds share
//   divergence.h         divergences between the logits of a student and of a teacher
//   divergence_terms.h   the exponentials and terms of their classes
//   tempered.h           sparsemax, entmax and bi-tempered losses
//   tsallis.h            the powers that these losses have in place of exponentials
//   candidates.h         the classes of a row that can have a probability
#include "dense.h"

#include "divergence.h"
#include "tempered.h"

#ifndef XENT_VARIANT
#define XENT_VARIANT baseline
#endif

namespace xent::XENT_VARIANT {
bool sweep_dense(const Dense& p, int64_t begin, int64_t end) {
  switch (p.kind) {
    case DenseKind::forward:
    case DenseKind::reverse:
    case DenseKind::jensen_shannon: return sweep_divergence(p, begin, end);
    case DenseKind::fenchel_young:
    case DenseKind::bi_tempered: return sweep_tempered(p, begin, end);
  }
  return true;
}
}  // namespace xent::XENT_VARIANT
