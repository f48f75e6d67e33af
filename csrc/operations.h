// The operations that the value of a row is made of, a line each: how many operands, the value, and
// the derivatives as PyTorch's autograd has them. The kernels make loops of the table (program.h),
// the binding its list of names (loss_binding.cpp).
#pragma once

#include <cstdint>

namespace xent {

// clang-format off

// Where a program begins: a field of the row, a number that comes beside the row, a number.
#define XENT_SOURCES(op) op(field) op(input) op(constant)

// With the operand a, the value y and the slope g by y: y, and the slope by a.
#define XENT_UNARY(op)                                                                   \
  op(neg, -a, -g)                                                                        \
  op(exp, exp_of(a), g * y)                                                              \
  op(expm1, expm1_of(a), g * (y + 1.0))                                                  \
  op(log, log_of(a), g / a)                                                              \
  op(log1p, log1p_of(a), g / (a + 1.0))                                                  \
  op(sigmoid, 1.0 / (1.0 + exp_of(-a)), g * (1.0 - y) * y)                               \
  op(logsigmoid, log_sigmoid_of(a), g * slope_of_log_sigmoid(a))                         \
  op(softplus, a > 20.0 ? a : log1p_of(exp_of(a)), g * slope_of_softplus(a))             \
  op(tanh, tanh_lane(a), g * (1.0 - y * y))                                              \
  op(sqrt, __builtin_sqrt(a), g / (2.0 * y))                                             \
  op(abs, __builtin_fabs(a), g * ((a > 0 ? 1.0 : 0.0) - (a < 0 ? 1.0 : 0.0)))            \
  op(relu, a <= 0 ? 0.0 : a, y <= 0 ? 0.0 : g)

// The same without slope.
#define XENT_FLAT_UNARY(op)                   \
  op(detach, a)                               \
  op(logical_not, a == 0 ? 1.0 : 0.0)         \
  op(isfinite, a - a == 0 ? 1.0 : 0.0)        \
  op(isnan, a != a ? 1.0 : 0.0)

// y, and the slopes by a and by b.
#define XENT_BINARY(op)                                                                  \
  op(add, a + b, g, g)                                                                   \
  op(sub, a - b, g, -g)                                                                  \
  op(mul, a * b, g * b, g * a)                                                           \
  op(div, a / b, g / b, -g * (a / b / b))                                                \
  op(pow, pow_of(a, b), b == 0 ? 0.0 : g * (b * pow_of(a, b - 1.0)),                     \
     g * (a == 0 && b >= 0 ? 0.0 : y * log_of(a)))                                       \
  op(maximum, a != a || a > b ? a : b, a < b ? 0.0 : a == b ? g / 2 : g,                 \
     a > b ? 0.0 : a == b ? g / 2 : g)                                                   \
  op(minimum, a != a || a < b ? a : b, a > b ? 0.0 : a == b ? g / 2 : g,                 \
     a < b ? 0.0 : a == b ? g / 2 : g)

#define XENT_FLAT_BINARY(op)                              \
  op(gt, a > b ? 1.0 : 0.0)                               \
  op(ge, a >= b ? 1.0 : 0.0)                              \
  op(lt, a < b ? 1.0 : 0.0)                               \
  op(le, a <= b ? 1.0 : 0.0)                              \
  op(eq, a == b ? 1.0 : 0.0)                              \
  op(ne, a != b ? 1.0 : 0.0)                              \
  op(logical_and, a != 0 && b != 0 ? 1.0 : 0.0)           \
  op(logical_or, a != 0 || b != 0 ? 1.0 : 0.0)

// One of three operands chooses between the others: a ? b : c.
#define XENT_CHOICE(op) op(where)

#define XENT_OPERATIONS(op)                                                              \
  XENT_SOURCES(op)                                                                       \
  XENT_UNARY(op) XENT_FLAT_UNARY(op) XENT_BINARY(op) XENT_FLAT_BINARY(op) XENT_CHOICE(op)

// clang-format on

enum class Operation : int32_t {
#define XENT_NAME_OF(name, ...) name,
  XENT_OPERATIONS(XENT_NAME_OF)
#undef XENT_NAME_OF
};

// A step of a program: register k holds the result of instruction k. A source names in `a` the
// field or the input, or is the constant; other operands are registers before it.
struct Instruction {
  Operation operation;
  int32_t a, b, c;
  double constant;
  bool varies;  // whether the loss has a slope by it
};

constexpr int kInstructions = 128;  // at most: the registers of a strip should stay in the cache

}  // namespace xent
