// What the CPU and the CUDA kernel of float_roll share: the shape, and the taps of Eq. 4.
//
// weight (out, groups * channels, *kernel), offsets (batch, groups, dims), scale (batch, groups)
//   -> rolled (batch, out, groups * channels, *kernel)
//
// A fractional roll by o is (1 - f) times the whole roll by floor(o) plus f times the one by floor(o) + 1, an axis
// after the other: 2^dims taps, each a whole roll of the kernel, which wraps around.
#pragma once
#include <cmath>
#include <cstdint>

#include "../host_device.h"

struct RollShape {
  int64_t batch, out, groups, channels, dims, kernel[3];

  MONAI_EXT_BOTH int64_t taps() const { return int64_t(1) << dims; }
  MONAI_EXT_BOTH int64_t points() const {
    int64_t count = 1;
    for (int j = 0; j < dims; ++j) count *= kernel[j];
    return count;
  }
};

// One whole roll: its distance along each axis, its weight in the sum, and that weight's slope by each offset.
template <class T>
struct Tap {
  int64_t shift[3];
  T weight, slope[3];

  // Tap number t takes floor(o) along axis j where bit j of t is 0, floor(o) + 1 where it is 1.
  MONAI_EXT_BOTH Tap(const RollShape& s, const T* offsets, int t) : shift{0, 0, 0}, weight(1), slope{1, 1, 1} {
    for (int j = 0; j < s.dims; ++j) {
      const int up = t >> j & 1;
      const T whole = std::floor(offsets[j]), fraction = offsets[j] - whole;
      const double turns = std::floor(static_cast<double>(whole) / s.kernel[j]);
      const double rest = static_cast<double>(whole) - turns * s.kernel[j];
      // An offset that is not finite gives NaN weights; one too large for exact arithmetic may leave the range.
      shift[j] = rest >= 0 && rest < s.kernel[j] ? (static_cast<int64_t>(rest) + up) % s.kernel[j] : 0;
      for (int i = 0; i < s.dims; ++i) slope[i] *= i == j ? T(up ? 1 : -1) : up ? fraction : 1 - fraction;
      weight *= up ? fraction : 1 - fraction;
    }
  }

  // Which of the points() whole rolls this is.
  MONAI_EXT_BOTH int64_t roll(const RollShape& s) const {
    int64_t index = 0;
    for (int j = 0; j < s.dims; ++j) index = index * s.kernel[j] + shift[j];
    return index;
  }
};
