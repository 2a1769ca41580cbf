// AGI-Net's group-wise float roll (Eq. 4) on a CUDA device. Each block serves one (sample, group) or one group, and
// keeps in shared memory where each tap reads each point from.
#include "../launch.h"
#include "float_roll.h"

namespace {

constexpr int kThreads = 256;
constexpr int kEach = 8;  // weights a thread: what a table costs is shared
constexpr int kMostTaps = 8;
constexpr size_t kTables = 16384;  // bytes, of the samples whose tables are made at once

// The point that lands on `point` when the kernel is rolled by whole roll number `roll`.
__device__ int64_t rolled_from(const RollShape& s, int64_t roll, int64_t point) {
  int64_t from = 0, stride = 1;
  for (int j = static_cast<int>(s.dims) - 1; j >= 0; --j) {
    const int64_t k = s.kernel[j];
    from += (point % k + k - roll % k) % k * stride;
    point /= k;
    roll /= k;
    stride *= k;
  }
  return from;
}

// from[t * points + p] is where tap t takes point p from; or, inverted, where point p goes to.
template <class T>
__device__ void make_table(const RollShape& s, const T* offsets, bool inverted, int32_t* table, T* weights) {
  const int64_t points = s.points();
  for (int64_t i = threadIdx.x; i < s.taps() * points; i += blockDim.x) {
    const int t = static_cast<int>(i / points);
    const Tap<T> tap(s, offsets, t);
    const int32_t point = static_cast<int32_t>(i % points), from = rolled_from(s, tap.roll(s), point);
    table[t * points + (inverted ? from : point)] = inverted ? point : from;
    weights[t] = tap.weight;
  }
}

template <class T>
MONAI_EXT_BOTH size_t table_bytes(const RollShape& s) {  // of one sample; a multiple of what a T is aligned to
  const size_t bytes = kMostTaps * sizeof(T) + s.taps() * s.points() * sizeof(int32_t);
  return (bytes + sizeof(T) - 1) / sizeof(T) * sizeof(T);
}

template <class T>
MONAI_EXT_BOTH int64_t tables(const RollShape& s) {  // how many samples' are made at once
  const int64_t fit = static_cast<int64_t>(kTables / table_bytes<T>(s));
  return fit < 1 ? 1 : fit < s.batch ? fit : s.batch;
}

MONAI_EXT_BOTH uint32_t blocks_of(uint32_t weights) { return (weights + kThreads * kEach - 1) / (kThreads * kEach); }

// What a thread works on within a group: 32 bits do, and divide several times faster than 64.
struct Piece {
  uint32_t o, within, point;

  __device__ Piece(uint32_t i, uint32_t tile, uint32_t points)
      : o(i / tile), within(i % tile), point(within % points) {}
};

template <class T>
__device__ T taken(const T* kernel, const int32_t* table, const T* weights, int taps, uint32_t points, uint32_t point) {
  T sum = 0;
  for (int t = 0; t < taps; ++t) sum += weights[t] * kernel[table[t * points + point]];
  return sum;
}

template <class T>
__global__ void forward(RollShape s, const T* weight, const T* offsets, const T* scale, T* rolled) {
  MONAI_EXT_SHARED(memory);
  T* const weights = reinterpret_cast<T*>(memory);
  int32_t* const table = reinterpret_cast<int32_t*>(weights + kMostTaps);
  const uint32_t points = s.points(), tile = s.channels * points, all = s.out * tile;
  const uint32_t blocks = blocks_of(all);  // a sample and group
  const int64_t pair = blockIdx.x / blocks, b = pair / s.groups, g = pair % s.groups;
  make_table(s, offsets + pair * s.dims, false, table, weights);
  __syncthreads();
  const T factor = scale[pair];
  const int taps = static_cast<int>(s.taps());
  const uint32_t first = blockIdx.x % blocks * (kThreads * kEach) + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const uint32_t i = first + k * kThreads;
    if (i >= all) break;
    const Piece at(i, tile, points);
    const T* const kernel = weight + (at.o * s.groups + g) * tile + at.within - at.point;
    rolled[((b * s.out + at.o) * s.groups + g) * tile + at.within] =
        factor * taken(kernel, table, weights, taps, points, at.point);
  }
}

// One thread some weights of a group, over all samples, as many of them at a time as their tables fit.
template <class T>
__global__ void weight_backward(RollShape s, const T* grad, const T* offsets, const T* scale, T* weight_grad) {
  MONAI_EXT_SHARED(memory);
  const uint32_t points = s.points(), tile = s.channels * points, all = s.out * tile;
  const uint32_t blocks = blocks_of(all);
  const int64_t g = blockIdx.x / blocks, at_once = tables<T>(s);
  const int taps = static_cast<int>(s.taps());
  const size_t bytes = table_bytes<T>(s);
  const uint32_t first = blockIdx.x % blocks * (kThreads * kEach) + threadIdx.x;
  T sums[kEach] = {};
  for (int64_t low = 0; low < s.batch; low += at_once) {
    const int64_t high = low + at_once < s.batch ? low + at_once : s.batch;
    __syncthreads();
    for (int64_t b = low; b < high; ++b) {
      T* const weights = reinterpret_cast<T*>(memory + (b - low) * bytes);
      make_table(s, offsets + (b * s.groups + g) * s.dims, true, reinterpret_cast<int32_t*>(weights + kMostTaps),
                 weights);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const uint32_t i = first + k * kThreads;
      if (i >= all) break;
      const Piece at(i, tile, points);
      for (int64_t b = low; b < high; ++b) {
        const T* const weights = reinterpret_cast<const T*>(memory + (b - low) * bytes);
        const T* const from = grad + ((b * s.out + at.o) * s.groups + g) * tile + at.within - at.point;
        const int32_t* const table = reinterpret_cast<const int32_t*>(weights + kMostTaps);
        sums[k] += scale[b * s.groups + g] * taken(from, table, weights, taps, points, at.point);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const uint32_t i = first + k * kThreads;
    if (i >= all) break;
    const Piece at(i, tile, points);
    weight_grad[(at.o * s.groups + g) * tile + at.within] = sums[k];
  }
}

// One block a (sample, group): the gradient projected on each tap's roll, summed in a fixed order.
template <class T>
__global__ void route_backward(RollShape s, const T* grad, const T* weight, const T* offsets, const T* scale,
                               T* offsets_grad, T* scale_grad) {
  MONAI_EXT_SHARED(memory);
  T* const weights = reinterpret_cast<T*>(memory);
  int32_t* const table = reinterpret_cast<int32_t*>(weights + kMostTaps);
  __shared__ double products[kThreads][kMostTaps];
  const int64_t pair = blockIdx.x, b = pair / s.groups, g = pair % s.groups;
  make_table(s, offsets + pair * s.dims, false, table, weights);
  __syncthreads();
  const uint32_t points = s.points(), tile = s.channels * points, all = s.out * tile;
  T sums[kMostTaps] = {};
  for (uint32_t i = threadIdx.x; i < all; i += kThreads) {
    const Piece at(i, tile, points);
    const T* const kernel = weight + (at.o * s.groups + g) * tile + at.within - at.point;
    const T value = grad[((b * s.out + at.o) * s.groups + g) * tile + at.within];
#pragma unroll
    for (int t = 0; t < kMostTaps; ++t) {
      if (t < s.taps()) sums[t] += value * kernel[table[t * points + at.point]];
    }
  }
  for (int t = 0; t < s.taps(); ++t) products[threadIdx.x][t] = sums[t];
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half)
      for (int t = 0; t < s.taps(); ++t) products[threadIdx.x][t] += products[threadIdx.x + half][t];
  }
  if (threadIdx.x != 0) return;
  double by_scale = 0, by_offset[3] = {};
  for (int t = 0; t < s.taps(); ++t) {
    const Tap<T> tap(s, offsets + pair * s.dims, t);
    by_scale += products[0][t] * tap.weight;
    for (int j = 0; j < s.dims; ++j) by_offset[j] += products[0][t] * tap.slope[j];
  }
  scale_grad[pair] = static_cast<T>(by_scale);
  for (int j = 0; j < s.dims; ++j) offsets_grad[pair * s.dims + j] = static_cast<T>(by_offset[j] * scale[pair]);
}

// Blocks enough for every weight of every one of these groups; only the x axis of a grid may be long.
dim3 grid_for(const RollShape& s, int64_t groups) {
  return dim3(static_cast<unsigned>(blocks_of(static_cast<uint32_t>(s.out * s.channels * s.points())) * groups));
}

bool too_many(const RollShape& s) { return s.out * s.channels * s.points() > INT32_MAX - kThreads * kEach; }

}  // namespace

// Called from Python with the stream: each returns the code of a launch's error, 0 for none.
#define MONAI_EXT_ROLL(T)                                                                                              \
  extern "C" int float_roll_forward_##T(const RollShape* s, void* stream, const T* weight, const T* offsets,           \
                                        const T* scale, T* rolled) {                                                   \
    if (too_many(*s)) return cudaErrorInvalidValue;                                                                    \
    const dim3 grid = grid_for(*s, s->batch * s->groups);                                                              \
    return monai_ext::launch(forward<T>, grid, kThreads, table_bytes<T>(*s), stream, *s, weight, offsets, scale,       \
                             rolled);                                                                                  \
  }                                                                                                                    \
  extern "C" int float_roll_backward_##T(const RollShape* s, void* stream, const T* grad, const T* weight,             \
                                         const T* offsets, const T* scale, T* weight_grad, T* offsets_grad,            \
                                         T* scale_grad) {                                                              \
    if (too_many(*s)) return cudaErrorInvalidValue;                                                                    \
    const dim3 grid = grid_for(*s, s->groups);                                                                         \
    const int code = monai_ext::launch(weight_backward<T>, grid, kThreads, tables<T>(*s) * table_bytes<T>(*s), stream, \
                                       *s, grad, offsets, scale, weight_grad);                                         \
    if (code != 0) return code;                                                                                        \
    return monai_ext::launch(route_backward<T>, dim3(static_cast<unsigned>(s->batch * s->groups)), kThreads,           \
                             table_bytes<T>(*s), stream, *s, grad, weight, offsets, scale, offsets_grad, scale_grad);  \
  }
MONAI_EXT_ROLL(float)
MONAI_EXT_ROLL(double)
