// Divergences of two predictions that are given as logits, row by row.
//
//   sweep:   a block of both logits -> the exponentials u of the teacher and w of the student, which
//            are kept -> sums S of u, P of w and B of u d, with d = student - teacher
//   value:   the forward divergence is delta - E_q[d], with delta = lse(student) - lse(teacher)
//   slopes:  q = u / S, p = w / P, and the gradient of the student is p - q
//
// Where a student is so near its teacher that these differences would lose digits, a second way
// takes y = log(p / q) from the differences of the logits, and sums q (e^y - 1 - y).
#pragma once

#include "dense_rows.h"
#include "elementary.h"

namespace {

using xent::DenseKind;

// e^x for x of at most 700, and 0 where that is below the normal numbers.
XENT_LANE double exp_or_zero(double x) {
  constexpr double low = -700;
  const double value = exponential(low > x ? low : x).value();
  return x < low ? 0.0 : value;
}

// The number that is subtracted from the logits of a row before exp. The range of float64 has room
// for logits far above it, so that the largest logit of the first block will do for nearly all rows.
struct Shift {
  static constexpr double room = 300;
  double value = -kInfinity;

  // Sees the largest of some numbers. Returns false if it is beyond the room.
  bool see(double top) {
    if (value == -kInfinity) value = top;
    return !(top > value + room);
  }
  double finite() const { return value == -kInfinity ? 0.0 : value; }
};

class Divergence {
 public:
  explicit Divergence(const Dense& p)
      : p_(p), unit_(p.number[0]), number_(p.classes, 2), w_(number_[0]), u_(number_[1]) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      if (p_.leaves_out(n)) {
        p_.values[n] = 0;
        store_zeros(p_.gradient, n, p_.classes);
        store_zeros(p_.teacher_gradient, n, p_.classes);
      } else {
        row(n);
      }
    }
    if (p_.streams) finish_streams();
  }

 private:
  void row(int64_t n) {
    const Strip student(p_.logits, n), teacher(p_.teacher, n);
    Shift of_student, of_teacher;
    if (!sweep(student, teacher, of_student, of_teacher)) {
      of_student.value = top(student), of_teacher.value = top(teacher);
      sweep(student, teacher, of_student, of_teacher);
    }
    const double delta = (of_student.finite() + log_of(P_)) - (of_teacher.finite() + log_of(S_));
    const double value = delta - unit_ * (B_ / S_);
    p_.values[n] = p_.weight(n) * value;
    if (p_.gradient.data) store_difference(n, p_.seed * p_.weight(n) * unit_);
  }

  // The largest logit of a row, over the temperature.
  double top(const Strip& row) {
    double largest = -kInfinity;
    for_blocks(p_.classes,
               [&](const Block& b) { largest = Greater()(load_row(row, b, w_), largest); });
    return unit_ * largest;
  }

  // Finds the exponentials of a row and their sums. Returns false if a shift was too small.
  bool sweep(const Strip& student, const Strip& teacher, Shift& of_student, Shift& of_teacher) {
    LaneSum P, S, B;
    bool fits = true;
    for_blocks(p_.classes, [&](const Block& b) {
      double *w = w_ + b.first, *u = u_ + b.first;
      fits &= of_student.see(unit_ * load_row(student, b, w));
      fits &= of_teacher.see(unit_ * load_row(teacher, b, u));
      if (fits) add(w, u, b.pitch, of_student.finite(), of_teacher.finite(), P, S, B);
    });
    P_ = P.total(), S_ = S.total(), B_ = B.total();
    if (!(P_ > 0)) P_ = kNaN;  // all classes are masked
    if (!(S_ > 0)) S_ = kNaN;
    return fits;
  }

  void add(double* w, double* u, int n, double student_shift, double teacher_shift, LaneSum& P,
           LaneSum& S, LaneSum& B) {
    const double unit = unit_;
    for (int j = 0; j < n; j += kLanes) XENT_FOR(i, kLanes) {
        const double z = w[j + i], v = u[j + i], d = z - v;
        const double e = exp_or_zero(fused(z, unit, -student_shift));
        const double f = exp_or_zero(fused(v, unit, -teacher_shift));
        w[j + i] = e;
        u[j + i] = f;
        P.lane[i] += e;
        S.lane[i] += f;
        B.lane[i] += f == 0 ? 0.0 : f * d;
      }
  }

  // Stores (p - q) times a slope.
  void store_difference(int64_t n, double slope) {
    const double of_w = slope / P_, of_u = slope / S_;
    const Strip out(p_.gradient, n);
    for_blocks(p_.classes, [&](const Block& b) {
      const double* u = u_ + b.first;
      const auto step = [=](double w, int j) XENT_INLINE { return w * of_w - u[j] * of_u; };
      store_row(out, b, p_.streams, w_ + b.first, step, {});
    });
  }

  const Dense& p_;
  const double unit_;  // 1 / temperature
  RowNumbers number_;
  double *const w_, *const u_;  // the exponentials of student and teacher
  double P_ = 0, S_ = 0, B_ = 0;
};

void sweep_divergence(const Dense& p, int64_t begin, int64_t end) { Divergence(p).run(begin, end); }

}  // namespace
