// Divergences of two predictions that are given as logits, row by row, and their gradients.
//
//   sweep:    a block of both logits -> the exponentials w of the student and u of the teacher,
//             which are kept -> their sums P and S, and B, the sum of u d (reverse: of w d), where
//             d = student - teacher
//   value:    with p = w / P, q = u / S and delta = lse(student) - lse(teacher) the forward
//             divergence is delta - E_q[d], and the reverse one E_p[d] - delta
//   gradient: p - q, or a p_j (x_j - E_p[x]) of log-ratios x
//
// So the forward divergence, which students usually learn from, takes two exponentials per class.
// If a student is so near its teacher that these differences lose digits, `refine` takes the
// log-ratios y = log(p / q) from the differences of the logits, and the value is a sum of terms
// q (e^y - 1 - y), which are never negative.
#pragma once

#include "dense_rows.h"
#include "divergence_terms.h"
#include "elementary.h"

namespace {

using xent::DenseKind;

// Values below this are refined, relative to the largest of their summands.
constexpr double kNear = 1e-6;

class Divergence {
 public:
  explicit Divergence(const Dense& p)
      : p_(p), unit_(p.number[0]), beta_(p.number[1]),
        needs_ratios_(p.kind == DenseKind::jensen_shannon ||
                      (p.kind == DenseKind::forward ? p.teacher_gradient : p.gradient).data),
        number_(p.classes, 4), w_(number_[0]), u_(number_[1]), y_(number_[2]), t_(number_[3]) {}

  // Returns false if there is not enough memory.
  bool run(int64_t begin, int64_t end) {
    if (!number_.are_there()) return false;
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
    return true;
  }

 private:
  // A prediction: its exponentials, their sum, and a log-ratio for each class.
  struct Side {
    double* e;
    double sum;
    const double* x;
    double sign;  // of the log-ratios
    double mean;  // of sign x
  };

  void row(int64_t n) {
    const Strip student(p_.logits, n), teacher(p_.teacher, n);
    find_exponentials(student, teacher);
    near_ = false;
    if (needs_ratios_) find_ratios(student, teacher);
    double value = quick_value();
    if (value < kNear * (1 + __builtin_fabs(delta_))) {
      near_ = refine(student, teacher);
      if (!near_ && needs_ratios_) find_ratios(student, teacher);
      value = near_ ? near_value() : quick_value();
    }
    p_.values[n] = p_.weight(n) * value;
    const double slope = p_.seed * p_.weight(n) * unit_;
    store_gradient(p_.gradient, n, slope, value, true);
    store_gradient(p_.teacher_gradient, n, slope, value, false);
  }

  // ---- the first sweep --------------------------------------------------------------------------

  void find_exponentials(const Strip& student, const Strip& teacher) {
    Shift of_student, of_teacher;
    if (!sweep(student, teacher, of_student, of_teacher)) {
      of_student.value = top(student), of_teacher.value = top(teacher);
      sweep(student, teacher, of_student, of_teacher);
    }
    delta_ = unit_ * (of_student.finite() - of_teacher.finite()) + (log_of(P_) - log_of(S_));
  }

  double top(const Strip& row) {
    double largest = -kInfinity;
    for_blocks(p_.classes, [&](const Block& b) {
      const double highest = range_of(student_block_(row, b), b.width).largest;
      largest = Greater()(highest, largest);
    });
    return largest;
  }

  // Finds the exponentials of a row and their sums. Returns false if a shift was too small.
  bool sweep(const Strip& student, const Strip& teacher, Shift& of_student, Shift& of_teacher) {
    const double powers = unit_ * Exp<double>::log2e;
    LaneSum P, S, B;
    for_blocks(p_.classes, [&](const Block& b) {
      const float *z = student_block_(student, b), *v = teacher_block_(teacher, b);
      const Range of_z = range_of(z, b.width), of_v = range_of(v, b.width);
      if (!of_student.found()) of_student.value = of_z.largest;
      if (!of_teacher.found()) of_teacher.value = of_v.largest;
      const Exponent e(powers, of_student.finite()), f(powers, of_teacher.finite());
      const bool plain = b.width == b.pitch && e.is_plain(of_z.smallest, of_z.largest) &&
                         f.is_plain(of_v.smallest, of_v.largest);
      const Prefetch::Row next_z = prefetch_at(student, 0, b.first + kBuffer).row(0);
      const Prefetch::Row next_v = prefetch_at(teacher, 0, b.first + kBuffer).row(0);
      const bool reverse = p_.kind == DenseKind::reverse;
      const auto add = plain ? (reverse ? exponentiate<false, true> : exponentiate<false, false>)
                             : (reverse ? exponentiate<true, true> : exponentiate<true, false>);
      add(z, v, b.pitch, e, f, next_z, next_v, w_ + b.first, u_ + b.first, P, S, B);
    });
    P_ = P.total(), S_ = S.total(), B_ = B.total();
    if (!(P_ > 0)) P_ = kNaN;  // all classes are masked
    if (!(S_ > 0)) S_ = kNaN;
    constexpr double large = 0x1p400;
    return !(P_ > large) & !(S_ > large);
  }

  template <bool careful, bool reverse>
  static void exponentiate(const float* z, const float* v, int count, const Exponent e,
                           const Exponent f, const Prefetch::Row& next_z,
                           const Prefetch::Row& next_v, double* __restrict w, double* __restrict u,
                           LaneSum& P, LaneSum& S, LaneSum& B) {
    LaneSum sum_w = P, sum_u = S, sum_d = B;
    for (int j = 0; j < count; j += kLanes) {
      next_z.fetch(j), next_v.fetch(j);
      XENT_FOR(i, kLanes) {
        const double own = z[j + i], other = v[j + i], d = own - other;
        const double a = e.of<careful>(own), b = f.of<careful>(other), weight = reverse ? a : b;
        w[j + i] = a;
        u[j + i] = b;
        sum_w.lane[i] += a;
        sum_u.lane[i] += b;
        const double more = fused(weight, d, sum_d.lane[i]);
        sum_d.lane[i] = careful && weight == 0 ? sum_d.lane[i] : more;
      }
    }
    P = sum_w, S = sum_u, B = sum_d;
  }

  // ---- values -----------------------------------------------------------------------------------

  double mean_difference() const { return B_ / (p_.kind == DenseKind::reverse ? P_ : S_); }

  double quick_value() {
    switch (p_.kind) {
      case DenseKind::forward: return delta_ - unit_ * mean_difference();
      case DenseKind::reverse: return unit_ * mean_difference() - delta_;
      default: return mix<false>();
    }
  }

  double near_value() {
    switch (p_.kind) {
      case DenseKind::forward: return sum_of_terms(u_, S_, w_, P_, 1);
      case DenseKind::reverse: return sum_of_terms(w_, P_, u_, S_, -1);
      default: return mix<true>();
    }
  }

  // The divergence of b from a, given sign log(b / a) in y.
  double sum_of_terms(const double* a, double sum_a, const double* b, double sum_b,
                      double sign) const {
    const double of_a = 1 / sum_a, of_b = 1 / sum_b;
    const double* y = y_;
    LaneSum sum;
    for (int64_t j = 0; j < p_.classes; j += kLanes) XENT_FOR(i, kLanes)
    sum.lane[i] += divergence_term(a[j + i] * of_a, b[j + i] * of_b, sign * y[j + i]);
    return sum.total();
  }

  // Finds the log-ratios y; infinite where one of the two is masked, 0 where both are.
  void find_ratios(const Strip& student, const Strip& teacher) {
    const double unit = unit_, delta = delta_;
    load_differences(student, teacher,
                     [=](double d) XENT_INLINE { return d == d ? fused(d, unit, -delta) : 0.0; });
  }

  // y = step(student - teacher) for each class
  template <class Step>
  void load_differences(const Strip& student, const Strip& teacher, Step step) {
    for_blocks(p_.classes, [&](const Block& b) {
      const float *z = student_block_(student, b), *v = teacher_block_(teacher, b);
      double* __restrict y = y_ + b.first;
      for (int j = 0; j < b.pitch; j += kLanes)
        XENT_FOR(i, kLanes) y[j + i] = step(double(z[j + i]) - double(v[j + i]));
    });
  }

  // Finds the log-ratios with all digits: y = x - log E_q[e^x] for the differences x from their
  // mean. They are taken from the difference of the teacher's likeliest class first, whose own x
  // may be far below the rounding of the mean. Returns false if that has no advantage, or one of
  // the two has a class that the other has not.
  bool refine(const Strip& student, const Strip& teacher) {
    load_differences(student, teacher, [](double d) XENT_INLINE { return d; });
    const double origin = y_[likeliest(u_)], unit = unit_;
    LaneSum moved, raised, beyond;
    const double* u = u_;
    double* y = y_;
    for (int64_t j = 0; j < p_.classes; j += kLanes) XENT_FOR(i, kLanes) {
        const double more = u[j + i] * (y[j + i] - origin);
        moved.lane[i] += u[j + i] == 0 ? 0.0 : more;
      }
    const double mean = moved.total() / S_;
    for (int64_t j = 0; j < p_.classes; j += kLanes) XENT_FOR(i, kLanes) {
        const double d = y[j + i], moved_d = ((d - origin) - mean) * unit;
        const double x = d == d ? moved_d : 0.0, size = x < 0 ? -x : x;
        y[j + i] = x;
        raised.lane[i] += u[j + i] * Growth(limited(x)).whole;
        beyond.lane[i] += size < kFar ? 0.0 : 1.0;
      }
    const double grown = raised.total() / S_;
    if (!(beyond.total() == 0 && grown < 1 && grown > -0.5)) return false;
    const double shift = log1p_of(grown);
    for (int64_t j = 0; j < p_.classes; j += kLanes) XENT_FOR(i, kLanes) y[j + i] -= shift;
    return true;
  }

  // Jensen-Shannon's divergence. Puts log(m / p) into y and log(m / q) into t, for the mixture m,
  // and finds the means of both.
  template <bool near>
  double mix() {
    const double of_w = 1 / P_, of_u = 1 / S_, beta = beta_, rest = 1 - beta_;
    const double *w = w_, *u = u_;
    LaneSum from_p, from_q;
    double* __restrict y = y_, * __restrict t = t_;
    for (int64_t j = 0; j < p_.classes; j += kLanes) XENT_FOR(i, kLanes) {
        const double ratio = y[j + i], p = w[j + i] * of_w, q = u[j + i] * of_u;
        // Of the two logarithms the one of m over the larger probability comes first.
        const bool falls = ratio < 0;
        const double share = falls ? rest : beta, size = falls ? -ratio : ratio;
        const double first = log1p_lane(share * Growth(limited(-size)).whole),
                     second = first + size;
        const double to_p = falls ? second : first, to_q = falls ? first : second;
        y[j + i] = to_p;
        t[j + i] = to_q;
        const double m = beta * q + rest * p;
        const double of_p = near ? divergence_term(p, m, to_p) : -p * to_p;
        const double of_q = near ? divergence_term(q, m, to_q) : -q * to_q;
        from_p.lane[i] += p == 0 ? 0.0 : of_p;
        from_q.lane[i] += q == 0 ? 0.0 : of_q;
      }
    from_p_ = from_p.total(), from_q_ = from_q.total();
    return beta * from_q_ + rest * from_p_;
  }

  // ---- gradients --------------------------------------------------------------------------------

  // Stores the gradient of the value of row n times a slope, by the student or by the teacher.
  void store_gradient(const Matrix& gradient, int64_t n, double slope, double value,
                      bool by_student) {
    if (!gradient.data) return;
    const Strip out(gradient, n);
    const bool forward = p_.kind == DenseKind::forward;
    if (p_.kind == DenseKind::jensen_shannon)
      by_student ? store_share(out, (1 - beta_) * slope, {w_, P_, y_, -1, from_p_})
                 : store_share(out, beta_ * slope, {u_, S_, t_, -1, from_q_});
    else if (forward == by_student)
      store_difference(out, forward ? slope : -slope);
    else
      by_student ? store_share(out, slope, {w_, P_, y_, 1, value})
                 : store_share(out, slope, {u_, S_, y_, -1, value});
  }

  // Stores (p - q) times a slope.
  void store_difference(const Strip& out, double slope) {
    const double of_w = slope / P_, of_u = slope / S_;
    for_blocks(p_.classes, [&](const Block& b) {
      const double *u = u_ + b.first, *y = y_ + b.first;
      const auto step = [=](double w, int j) XENT_INLINE { return w * of_w - u[j] * of_u; };
      const auto near_step = [=](double w, int j) XENT_INLINE {
        const double grown = u[j] * of_u * Growth(limited(y[j])).whole;
        return y[j] < 1 ? grown : w * of_w - u[j] * of_u;
      };
      if (near_)
        store_row(out, b, p_.streams, w_ + b.first, near_step, {});
      else
        store_row(out, b, p_.streams, w_ + b.first, step, {});
    });
  }

  // Stores p_j (x_j - mean) times a slope. The entries add up to 0, so the one of the likeliest
  // class is minus the sum of the others, which has more digits.
  void store_share(const Strip& out, double slope, const Side& side) {
    const double unit = 1 / side.sum, sign = side.sign, mean = side.mean;
    const int64_t top = likeliest(side.e);
    const double* x = side.x;
    LaneSum others;
    const double largest = side.e[top];
    side.e[top] = 0;
    for (int64_t j = 0; j < p_.classes; j += kLanes) XENT_FOR(i, kLanes) {
        const double p = side.e[j + i] * unit, g = p * (sign * x[j + i] - mean);
        others.lane[i] += p == 0 ? 0.0 : g;
      }
    side.e[top] = largest;
    for_blocks(p_.classes, [&](const Block& b) {
      const double* ratio = x + b.first;
      const auto step = [=](double e, int j) XENT_INLINE {
        const double p = e * unit, g = slope * (p * (sign * ratio[j] - mean));
        return p == 0 ? 0.0 : g;
      };
      store_row(out, b, p_.streams, side.e + b.first, step, {});
    });
    store_number(out, top, -slope * others.total());
  }

  // The first class with the largest of the exponentials.
  int64_t likeliest(const double* e) const {
    const double largest = largest_of(e, p_.classes);
    int64_t top = 0;
    while (top + 1 < p_.classes && e[top] != largest) ++top;
    return top;
  }

  const Dense& p_;
  const double unit_, beta_;  // 1 / temperature, share of the teacher in the mixture
  const bool needs_ratios_;
  RowNumbers number_;
  double *const w_, *const u_;  // the exponentials of student and teacher
  double *const y_, *const t_;  // log-ratios
  BlockView<float> student_block_, teacher_block_;
  double P_ = 0, S_ = 0, B_ = 0, delta_ = 0;
  double from_p_ = 0, from_q_ = 0;  // the parts of Jensen-Shannon's divergence
  bool near_ = false;
};

bool sweep_divergence(const Dense& p, int64_t begin, int64_t end) {
  return Divergence(p).run(begin, end);
}

}  // namespace
