// The table of the operations of programs, one line each: the name, the value, and the derivatives
// by the operands, as PyTorch's autograd has them. program.h makes loops of the table, and
// loss_binding.cpp the list of names.
#pragma once

#include <cstdint>

namespace xent {

// clang-format off

// Operations without operands: a field of the row, an input of the row, a constant.
#define XENT_SOURCES(op) op(field) op(input) op(constant)

// a is the operand, y the value, g the derivative of the loss by y. A line has the name, y, and the
// derivative of the loss by a.
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

// Operations of one operand whose derivative is 0.
#define XENT_FLAT_UNARY(op)                   \
  op(detach, a)                               \
  op(logical_not, a == 0 ? 1.0 : 0.0)         \
  op(isfinite, a - a == 0 ? 1.0 : 0.0)        \
  op(isnan, a != a ? 1.0 : 0.0)

// Operations of two operands: the name, y, and the derivatives of the loss by a and by b.
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

// Operations of two operands whose derivatives are 0.
#define XENT_FLAT_BINARY(op)                              \
  op(gt, a > b ? 1.0 : 0.0)                               \
  op(ge, a >= b ? 1.0 : 0.0)                              \
  op(lt, a < b ? 1.0 : 0.0)                               \
  op(le, a <= b ? 1.0 : 0.0)                              \
  op(eq, a == b ? 1.0 : 0.0)                              \
  op(ne, a != b ? 1.0 : 0.0)                              \
  op(logical_and, a != 0 && b != 0 ? 1.0 : 0.0)           \
  op(logical_or, a != 0 || b != 0 ? 1.0 : 0.0)

// The operation of three operands: a ? b : c.
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

// A step of a program. Register k holds the result of instruction k. For the operations `field` and
// `input`, `a` is the number of the field or input. All other operands are earlier registers.
struct Instruction {
  Operation operation;
  int32_t a, b, c;
  double constant;
  bool varies;  // true if the loss has a derivative by the result
};

constexpr int kInstructions = 128;  // most of a program; its registers should fit the cache

}  // namespace xent
