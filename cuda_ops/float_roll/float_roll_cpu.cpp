// AGI-Net's group-wise float roll (Eq. 4) on the CPU. A kernel has only k^d whole rolls: those of one output channel
// and group are made once, stay in the cache, and every sample's rolled kernel is a weighted sum of 2^d of them.
#include <algorithm>
#include <new>
#include <type_traits>
#include <vector>

#include "../pages.h"
#include "../parallel.h"
#include "../vec.h"
#include "float_roll.h"

namespace monai_ext {
namespace {

constexpr int kMostTaps = 8;

// Rolls along one axis are blends of two shifted reads: the ones that stay and the ones that wrap around. They work on
// all channels of a tile at once, in rows with room on both sides for the reads that the blend throws away.
template <class T>
class AxisRolls {
  typedef typename Vec<T>::bits bits;

 public:
  explicit AxisRolls(const RollShape& s) : s_(s), points_(s.points()), period_(points_ + kLanes<T>) {
    for (int j = 0; j < s.dims; ++j) {
      first_[j] = static_cast<int64_t>(wraps_.size());
      wraps_.resize(wraps_.size() + s.kernel[j] * period_);
      for (int64_t shift = 0; shift < s.kernel[j]; ++shift)
        for (int64_t i = 0; i < period_; ++i)
          wraps_[first_[j] + shift * period_ + i] = i / stride(j) % s.kernel[j] < shift ? -1 : 0;
    }
  }

  int64_t size() const { return s_.channels * points_; }
  int64_t row() const { return size() + 2 * points_ + kLanes<T>; }
  int64_t margin() const { return points_; }

  // Whole roll number `roll` is one along `axis` by `shift` of whole roll number `parent`, which is smaller.
  struct Step {
    int axis;
    int64_t shift, parent;
  };
  Step step(int64_t roll) const {
    for (int j = 0;; ++j)
      if (const int64_t shift = roll / stride(j); shift > 0) return {j, shift, roll - shift * stride(j)};
  }

  // to (+)= from rolled by shift along axis.
  template <bool kAdd>
  void apply(const T* from, int axis, int64_t shift, T* to) const {
    const T* const stay = from - shift * stride(axis);
    const T* const wrap = stay + s_.kernel[axis] * stride(axis);
    const auto* const wraps = wraps_.data() + first_[axis] + shift * period_;
    const int64_t advance = kLanes<T> % points_;
    for (int64_t i = 0, phase = 0; i < size(); i += kLanes<T>) {
      bits mask;
      std::memcpy(&mask, wraps + phase, kBytes);
      const vec<T> rolled = mask ? load(wrap + i) : load(stay + i);
      store(to + i, kAdd ? load(to + i) + rolled : rolled);
      phase += advance;
      if (phase >= points_) phase -= points_;
    }
  }

 private:
  int64_t stride(int axis) const {
    int64_t points = 1;
    for (int j = axis + 1; j < s_.dims; ++j) points *= s_.kernel[j];
    return points;
  }

  const RollShape& s_;
  int64_t points_, period_, first_[3]{};
  std::vector<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>> wraps_;
};

// The taps of every (sample, group), worked out once a call.
template <class T>
struct Plan {
  int64_t taps;
  std::vector<int64_t> roll;
  std::vector<T> weight;  // without the scale

  Plan(const RollShape& s, const T* offsets) : taps(s.taps()) {
    for (int64_t pair = 0; pair < s.batch * s.groups; ++pair)
      for (int t = 0; t < taps; ++t) {
        const Tap<T> tap(s, offsets + pair * s.dims, t);
        roll.push_back(tap.roll(s));
        weight.push_back(tap.weight);
      }
  }
};

// The whole rolls of one tile (an output channel's weights of one group), each made when first asked for.
template <class T>
class Rolls {
 public:
  explicit Rolls(const AxisRolls<T>& axes, int64_t points) : axes_(axes), made_(points), memory_(points * axes.row()) {}
  T* row(int64_t roll) { return memory_.data() + roll * axes_.row() + axes_.margin(); }
  void restart(const T* tile) {
    std::fill(made_.begin(), made_.end(), false);
    std::copy_n(tile, axes_.size(), row(0));
    made_[0] = true;
  }
  const T* get(int64_t roll) {
    if (!made_[roll]) {
      const auto step = axes_.step(roll);
      axes_.template apply<false>(get(step.parent), step.axis, step.shift, row(roll));
      made_[roll] = true;
    }
    return row(roll);
  }

 private:
  const AxisRolls<T>& axes_;
  std::vector<char> made_;
  std::vector<T> memory_;
};

// The other way round: sums over what each whole roll made, rolled back and added up into the tile's gradient.
template <class T>
class Sums {
 public:
  explicit Sums(const AxisRolls<T>& axes, int64_t points)
      : axes_(axes), points_(points), memory_(points * axes.row()) {}
  T* row(int64_t roll) { return memory_.data() + roll * axes_.row() + axes_.margin(); }
  void restart() { std::fill(memory_.begin(), memory_.end(), T(0)); }
  void collect(const RollShape& s, T* tile) {
    for (int64_t roll = points_ - 1; roll > 0; --roll) {
      const auto step = axes_.step(roll);
      axes_.template apply<true>(row(roll), step.axis, s.kernel[step.axis] - step.shift, row(step.parent));
    }
    std::copy_n(row(0), axes_.size(), tile);
  }

 private:
  const AxisRolls<T>& axes_;
  int64_t points_;
  std::vector<T> memory_;
};

template <class T, int kTaps>
void weighted_sum(const T* const (&from)[kMostTaps], const T (&weight)[kMostTaps], int64_t size, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= size; i += kLanes<T>) {
    vec<T> sum = load(from[0] + i) * weight[0];
    for (int t = 1; t < kTaps; ++t) sum += load(from[t] + i) * weight[t];
    store(to + i, sum);
  }
  for (; i < size; ++i) {
    T sum = from[0][i] * weight[0];
    for (int t = 1; t < kTaps; ++t) sum += from[t][i] * weight[t];
    to[i] = sum;
  }
}

template <class T, int kTaps>
bool forward(const RollShape& s, int64_t threads, const T* weight, const T* offsets, const T* scale, T* rolled) {
  const Plan<T> plan(s, offsets);
  const AxisRolls<T> axes(s);
  const int64_t size = axes.size();
  expect_writes(rolled, s.batch * s.out * s.groups * size * sizeof(T));
  return parallel_for(threads, s.out, [&](int64_t o) {
    Rolls<T> rolls(axes, s.points());
    for (int64_t g = 0; g < s.groups; ++g) {
      rolls.restart(weight + (o * s.groups + g) * size);
      for (int64_t b = 0; b < s.batch; ++b) {
        const int64_t pair = b * s.groups + g;
        const T* from[kMostTaps];
        T by[kMostTaps];
        for (int t = 0; t < kTaps; ++t) {
          from[t] = rolls.get(plan.roll[pair * kTaps + t]);
          by[t] = plan.weight[pair * kTaps + t] * scale[pair];
        }
        weighted_sum<T, kTaps>(from, by, size, rolled + ((b * s.out + o) * s.groups + g) * size);
      }
    }
  });
}

// One pass over a tile of the gradient: spread it over the rolls that made it, and project it on each of them.
template <class T, int kTaps>
void spread(const T* grad, const T* const (&rolled)[kMostTaps], T* const (&sums)[kMostTaps],
            const T (&weight)[kMostTaps], int64_t size, T* products) {
  vec<T> product[kTaps]{};
  T rest[kTaps]{};
  int64_t i = 0;
  for (; i + kLanes<T> <= size; i += kLanes<T>) {
    const vec<T> g = load(grad + i);
    for (int t = 0; t < kTaps; ++t) {
      product[t] += g * load(rolled[t] + i);
      store(sums[t] + i, load(sums[t] + i) + g * weight[t]);
    }
  }
  for (; i < size; ++i)
    for (int t = 0; t < kTaps; ++t) {
      rest[t] += grad[i] * rolled[t][i];
      sums[t][i] += grad[i] * weight[t];
    }
  for (int t = 0; t < kTaps; ++t) {
    for (int lane = 0; lane < kLanes<T>; ++lane) rest[t] += product[t][lane];
    products[t] = rest[t];
  }
}

template <class T, int kTaps>
bool backward(const RollShape& s, int64_t threads, const T* grad, const T* weight, const T* offsets, const T* scale,
              T* weight_grad, T* offsets_grad, T* scale_grad) {
  const Plan<T> plan(s, offsets);
  const AxisRolls<T> axes(s);
  const int64_t size = axes.size(), pairs = s.batch * s.groups;
  expect_writes(weight_grad, s.out * s.groups * size * sizeof(T));
  std::vector<T> products(s.out * pairs * kTaps);  // of the gradient with each tap's roll, an output channel at a time
  const bool sound = parallel_for(threads, s.out, [&](int64_t o) {
    Rolls<T> rolls(axes, s.points());
    Sums<T> sums(axes, s.points());
    for (int64_t g = 0; g < s.groups; ++g) {
      rolls.restart(weight + (o * s.groups + g) * size);
      sums.restart();
      for (int64_t b = 0; b < s.batch; ++b) {
        const int64_t pair = b * s.groups + g;
        const T* from[kMostTaps];
        T* to[kMostTaps];
        T by[kMostTaps];
        for (int t = 0; t < kTaps; ++t) {
          const int64_t roll = plan.roll[pair * kTaps + t];
          from[t] = rolls.get(roll);
          to[t] = sums.row(roll);
          by[t] = plan.weight[pair * kTaps + t] * scale[pair];
        }
        spread<T, kTaps>(grad + ((b * s.out + o) * s.groups + g) * size, from, to, by, size,
                         products.data() + (o * pairs + pair) * kTaps);
      }
      sums.collect(s, weight_grad + (o * s.groups + g) * size);
    }
  });
  for (int64_t pair = 0; pair < pairs; ++pair) {
    double by_scale = 0, by_offset[3]{};
    for (int t = 0; t < kTaps; ++t) {
      double product = 0;
      for (int64_t o = 0; o < s.out; ++o) product += products[(o * pairs + pair) * kTaps + t];
      const Tap<T> tap(s, offsets + pair * s.dims, t);
      by_scale += product * tap.weight;
      for (int j = 0; j < s.dims; ++j) by_offset[j] += product * tap.slope[j];
    }
    scale_grad[pair] = static_cast<T>(by_scale);
    for (int j = 0; j < s.dims; ++j) offsets_grad[pair * s.dims + j] = static_cast<T>(by_offset[j] * scale[pair]);
  }
  return sound;
}

}  // namespace
}  // namespace monai_ext

// Called from Python: each returns 0, or 1 where memory ran out.
#define MONAI_EXT_ROLL(T)                                                                                       \
  extern "C" int float_roll_forward_##T(const RollShape* s, int64_t threads, const T* weight, const T* offsets, \
                                        const T* scale, T* rolled) try {                                        \
    const auto run = s->dims == 2 ? monai_ext::forward<T, 4> : monai_ext::forward<T, 8>;                        \
    return !run(*s, threads, weight, offsets, scale, rolled);                                                   \
  } catch (const std::bad_alloc&) {                                                                             \
    return 1;                                                                                                   \
  }                                                                                                             \
  extern "C" int float_roll_backward_##T(const RollShape* s, int64_t threads, const T* grad, const T* weight,   \
                                         const T* offsets, const T* scale, T* weight_grad, T* offsets_grad,     \
                                         T* scale_grad) try {                                                   \
    const auto run = s->dims == 2 ? monai_ext::backward<T, 4> : monai_ext::backward<T, 8>;                      \
    return !run(*s, threads, grad, weight, offsets, scale, weight_grad, offsets_grad, scale_grad);              \
  } catch (const std::bad_alloc&) {                                                                             \
    return 1;                                                                                                   \
  }
MONAI_EXT_ROLL(float)
MONAI_EXT_ROLL(double)
