// AGI-Net's group-wise float roll (Eq. 4) on a CUDA device. Each block serves one (sample, group) or one group, and
// keeps in shared memory where each tap reads each point from.
#include "../launch.h"
#include "float_roll.h"

namespace {

constexpr int kThreads = 256;
constexpr int kMostTaps = 8;

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
size_t table_bytes(const RollShape& s) {
  return kMostTaps * sizeof(T) + s.taps() * s.points() * sizeof(int32_t);
}

template <class T>
__global__ void forward(RollShape s, const T* weight, const T* offsets, const T* scale, T* rolled) {
  MONAI_EXT_SHARED(memory);
  T* const weights = reinterpret_cast<T*>(memory);
  int32_t* const table = reinterpret_cast<int32_t*>(weights + kMostTaps);
  const int64_t points = s.points(), tile = s.channels * points, all = s.out * tile;
  const int64_t blocks = (all + kThreads - 1) / kThreads;  // a sample and group
  const int64_t pair = blockIdx.x / blocks, b = pair / s.groups, g = pair % s.groups;
  make_table(s, offsets + pair * s.dims, false, table, weights);
  __syncthreads();
  const int64_t i = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (i < all) {
    const int64_t o = i / tile, within = i % tile, point = within % points;
    const T* const kernel = weight + (o * s.groups + g) * tile + within - point;
    T sum = 0;
    for (int t = 0; t < s.taps(); ++t) sum += weights[t] * kernel[table[t * points + point]];
    rolled[((b * s.out + o) * s.groups + g) * tile + within] = sum * scale[pair];
  }
}

// One thread a weight, over all samples.
template <class T>
__global__ void weight_backward(RollShape s, const T* grad, const T* offsets, const T* scale, T* weight_grad) {
  MONAI_EXT_SHARED(memory);
  T* const weights = reinterpret_cast<T*>(memory);
  int32_t* const table = reinterpret_cast<int32_t*>(weights + kMostTaps);
  const int64_t points = s.points(), tile = s.channels * points;
  const int64_t blocks = (s.out * tile + kThreads - 1) / kThreads, g = blockIdx.x / blocks;
  const int64_t i = blockIdx.x % blocks * kThreads + threadIdx.x, o = i / tile, within = i % tile;
  const int64_t point = within % points;
  T sum = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t pair = b * s.groups + g;
    __syncthreads();
    make_table(s, offsets + pair * s.dims, true, table, weights);
    __syncthreads();
    if (o >= s.out) continue;
    const T* const from = grad + ((b * s.out + o) * s.groups + g) * tile + within - point;
    T taps = 0;
    for (int t = 0; t < s.taps(); ++t) taps += weights[t] * from[table[t * points + point]];
    sum += taps * scale[pair];
  }
  if (o < s.out) weight_grad[(o * s.groups + g) * tile + within] = sum;
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
  const int64_t points = s.points(), tile = s.channels * points;
  T sums[kMostTaps] = {};
  for (int64_t i = threadIdx.x; i < s.out * tile; i += blockDim.x) {
    const int64_t o = i / tile, within = i % tile, point = within % points;
    const T* const kernel = weight + (o * s.groups + g) * tile + within - point;
    const T value = grad[((b * s.out + o) * s.groups + g) * tile + within];
    for (int t = 0; t < s.taps(); ++t) sums[t] += value * kernel[table[t * points + point]];
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
  const int64_t items = s.out * s.channels * s.points();
  return dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads * groups));
}

}  // namespace

// Called from Python with the stream: each returns the code of a launch's error, 0 for none.
#define MONAI_EXT_ROLL(T)                                                                                             \
  extern "C" int float_roll_forward_##T(const RollShape* s, void* stream, const T* weight, const T* offsets,          \
                                        const T* scale, T* rolled) {                                                  \
    const dim3 grid = grid_for(*s, s->batch * s->groups);                                                             \
    return monai_ext::launch(forward<T>, grid, kThreads, table_bytes<T>(*s), stream, *s, weight, offsets, scale,      \
                             rolled);                                                                                 \
  }                                                                                                                   \
  extern "C" int float_roll_backward_##T(const RollShape* s, void* stream, const T* grad, const T* weight,            \
                                         const T* offsets, const T* scale, T* weight_grad, T* offsets_grad,           \
                                         T* scale_grad) {                                                             \
    const dim3 grid = grid_for(*s, s->groups);                                                                        \
    const int code = monai_ext::launch(weight_backward<T>, grid, kThreads, table_bytes<T>(*s), stream, *s, grad,      \
                                       offsets, scale, weight_grad);                                                  \
    if (code != 0) return code;                                                                                       \
    return monai_ext::launch(route_backward<T>, dim3(static_cast<unsigned>(s->batch * s->groups)), kThreads,          \
                             table_bytes<T>(*s), stream, *s, grad, weight, offsets, scale, offsets_grad, scale_grad); \
  }
MONAI_EXT_ROLL(float)
MONAI_EXT_ROLL(double)
