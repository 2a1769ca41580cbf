// Mamba's selective scan on a CUDA device. One thread serves one channel through one chunk of time, all chunks at once:
// first each from a state of zero, then the chunks' states are joined, then each chunk again from its right state.
// y and du have a row a group, as delta: what belongs to one way is added up by the caller, in a fixed order.
#include "../launch.h"
#include "selective_scan.h"

namespace {

constexpr int kLanes = 32;  // channels a block
constexpr int kChunk = 64;  // the longest chunk
constexpr int kSum = 256;   // threads that add up one channel

// What one thread works on. A lane past the group's last channel reads the last one and writes nothing.
struct Place {
  int64_t b, g, part, chunk, channel, steps, row, line, scratch, low;
  bool writes, back;

  __device__ explicit Place(const ScanShape& s) {
    const int64_t parts = (s.channels + kLanes - 1) / kLanes;
    int64_t block = blockIdx.x;  // only the x axis of a grid may be long
    part = block % parts;
    g = (block /= parts) % s.groups;
    chunk = (block /= s.groups) % s.chunks();
    b = block / s.chunks();
    const int64_t lane = part * kLanes + threadIdx.x;
    writes = lane < s.channels;
    channel = g * s.channels + (writes ? lane : s.channels - 1);
    const int64_t start = chunk * s.chunk;
    steps = s.length - start < s.chunk ? s.length - start : s.chunk;
    back = s.from_the_end(g);
    low = back ? s.length - start - steps : start;
    row = s.row(b, channel) + low;
    line = s.line(b, channel) + low;
    scratch = s.row(b, channel) + start;
  }
  __device__ int64_t place(int64_t t) const { return back ? steps - 1 - t : t; }  // of step t, from low on
};

template <class T>
__device__ T step_of(const ScanShape& s, const T* delta, const T* bias, int64_t at, int64_t channel) {
  const T raw = delta[at] + (bias ? bias[channel] : T(0));
  if (!s.softplus) return raw;
  return (raw > T(0) ? raw : T(0)) + log1p(exp(raw > T(0) ? -raw : raw));
}

// Each chunk from a state of zero: its last state goes where the state before it belongs, until join_forward moves it
// on; the sum of its steps, which gives its whole decay, waits in y.
template <class T>
__global__ void local_forward(ScanShape s, const T* u, const T* delta, const T* A, const T* B, const T* bias, T* y,
                              T* saved) {
  const Place at(s);
  T steps[kChunk], drives[kChunk], sum = 0;
  for (int64_t t = 0; t < at.steps; ++t) {
    steps[t] = step_of(s, delta, bias, at.row + at.place(t), at.channel);
    drives[t] = steps[t] * u[at.line + at.place(t)];
    sum += steps[t];
  }
  for (int64_t n = 0; n < s.states; ++n) {
    const T rate = A[at.channel * s.states + n];
    const T* const b = B + s.mix(at.b, at.g, n) + at.low;
    T state = 0;
    for (int64_t t = 0; t < at.steps; ++t) state = exp(steps[t] * rate) * state + drives[t] * b[at.place(t)];
    if (at.writes) saved[s.save(at.b, at.chunk, n) + at.channel] = state;
  }
  if (at.writes) y[at.scratch] = sum;
}

// One thread a channel and state: the state before each chunk.
template <class T>
__global__ void join_forward(ScanShape s, const T* A, const T* sums, T* saved) {
  const int64_t index = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  const int64_t channel = index % s.width(), n = index / s.width() % s.states, b = index / s.width() / s.states;
  if (b >= s.batch) return;
  T state = 0;
  for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
    T* const slot = saved + s.save(b, chunk, n) + channel;
    const T local = *slot;
    *slot = state;
    state = exp(sums[s.row(b, channel) + chunk * s.chunk] * A[channel * s.states + n]) * state + local;
  }
}

template <class T>
__global__ void final_forward(ScanShape s, const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,
                              const T* bias, T* y, const T* saved) {
  const Place at(s);
  T steps[kChunk], drives[kChunk], out[kChunk];
  for (int64_t t = 0; t < at.steps; ++t) {
    const T x = u[at.line + at.place(t)];
    steps[t] = step_of(s, delta, bias, at.row + at.place(t), at.channel);
    drives[t] = steps[t] * x;
    out[t] = D ? D[at.channel] * x : T(0);
  }
  for (int64_t n = 0; n < s.states; ++n) {
    const T rate = A[at.channel * s.states + n];
    const T* const b = B + s.mix(at.b, at.g, n) + at.low;
    const T* const c = C + s.mix(at.b, at.g, n) + at.low;
    T state = saved[s.save(at.b, at.chunk, n) + at.channel];
    for (int64_t t = 0; t < at.steps; ++t) {
      state = exp(steps[t] * rate) * state + drives[t] * b[at.place(t)];
      out[t] += c[at.place(t)] * state;
    }
  }
  if (at.writes)
    for (int64_t t = 0; t < at.steps; ++t) y[at.row + at.place(t)] = out[t];
}

// The same three passes from the end of time. carries (as saved) holds, for each chunk, decay times the state's
// gradient: what its first step hands to the chunk before, and after join_backward what it receives from the one after.
template <class T>
__global__ void local_backward(ScanShape s, const T* grad, const T* delta, const T* A, const T* C, const T* bias,
                               T* sums, T* carries) {
  const Place at(s);
  T steps[kChunk], dys[kChunk], sum = 0;
  for (int64_t t = 0; t < at.steps; ++t) {
    steps[t] = step_of(s, delta, bias, at.row + at.place(t), at.channel);
    dys[t] = grad[at.line + at.place(t)];
    sum += steps[t];
  }
  for (int64_t n = 0; n < s.states; ++n) {
    const T rate = A[at.channel * s.states + n];
    const T* const c = C + s.mix(at.b, at.g, n) + at.low;
    T carry = 0;
    for (int64_t t = at.steps - 1; t >= 0; --t) carry = exp(steps[t] * rate) * (c[at.place(t)] * dys[t] + carry);
    if (at.writes) carries[s.save(at.b, at.chunk, n) + at.channel] = carry;
  }
  if (at.writes) sums[at.scratch] = sum;
}

template <class T>
__global__ void join_backward(ScanShape s, const T* A, const T* sums, T* carries) {
  const int64_t index = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  const int64_t channel = index % s.width(), n = index / s.width() % s.states, b = index / s.width() / s.states;
  if (b >= s.batch) return;
  T carry = 0;
  for (int64_t chunk = s.chunks() - 1; chunk >= 0; --chunk) {
    T* const slot = carries + s.save(b, chunk, n) + channel;
    const T local = *slot;
    *slot = carry;
    carry = exp(sums[s.row(b, channel) + chunk * s.chunk] * A[channel * s.states + n]) * carry + local;
  }
}

// to[where step t lies] = the sum over the block's channels of columns[t][lane], in a fixed order.
template <class T>
__device__ void sum_channels(const T (&columns)[kChunk][kLanes + 1], const Place& at, T* to) {
  __syncthreads();
  for (int64_t t = threadIdx.x; t < at.steps; t += kLanes) {
    T sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += columns[t][lane];
    to[at.place(t)] = sum;
  }
  __syncthreads();
}

// A's gradient of each chunk takes the place of its carry, until sum_chunks adds the chunks up.
template <class T>
__global__ void final_backward(ScanShape s, const T* grad, const T* u, const T* delta, const T* A, const T* B,
                               const T* C, const T* D, const T* bias, const T* saved, T* du, T* ddelta, T* dB, T* dC,
                               T* carries) {
  __shared__ T columns[kChunk][kLanes + 1];
  const Place at(s);
  T xs[kChunk], steps[kChunk], dys[kChunk], through_B[kChunk], through_A[kChunk], path[kChunk + 1];
  for (int64_t t = 0; t < at.steps; ++t) {
    xs[t] = u[at.line + at.place(t)];
    steps[t] = step_of(s, delta, bias, at.row + at.place(t), at.channel);
    dys[t] = grad[at.line + at.place(t)];
    through_B[t] = through_A[t] = 0;
  }
  const int64_t part = at.part * s.batch * s.groups * s.states * s.length;
  for (int64_t n = 0; n < s.states; ++n) {
    const T rate = A[at.channel * s.states + n];
    const int64_t mix = s.mix(at.b, at.g, n) + at.low;
    T* const slot = carries + s.save(at.b, at.chunk, n) + at.channel;
    path[0] = saved[s.save(at.b, at.chunk, n) + at.channel];
    for (int64_t t = 0; t < at.steps; ++t) {
      path[t + 1] = exp(steps[t] * rate) * path[t] + steps[t] * xs[t] * B[mix + at.place(t)];
      columns[t][threadIdx.x] = at.writes ? dys[t] * path[t + 1] : T(0);
    }
    sum_channels(columns, at, dC + part + mix);
    T carry = *slot, rate_grad = 0;
    for (int64_t t = at.steps - 1; t >= 0; --t) {
      const T state_grad = C[mix + at.place(t)] * dys[t] + carry;
      carry = exp(steps[t] * rate) * state_grad;
      const T decay_grad = carry * path[t];
      columns[t][threadIdx.x] = at.writes ? state_grad * steps[t] * xs[t] : T(0);
      through_B[t] += state_grad * B[mix + at.place(t)];
      through_A[t] += decay_grad * rate;
      rate_grad += decay_grad * steps[t];
    }
    sum_channels(columns, at, dB + part + mix);
    if (at.writes) *slot = rate_grad;
  }
  if (!at.writes) return;
  for (int64_t t = 0; t < at.steps; ++t) {
    const T raw = delta[at.row + at.place(t)] + (bias ? bias[at.channel] : T(0));
    const T slope = s.softplus ? 1 / (1 + exp(-raw)) : T(1);
    du[at.row + at.place(t)] = (D ? D[at.channel] * dys[t] : T(0)) + through_B[t] * steps[t];
    ddelta[at.row + at.place(t)] = (through_B[t] * xs[t] + through_A[t]) * slope;
  }
}

template <class T>
__global__ void sum_chunks(ScanShape s, const T* parts, T* dA) {
  const int64_t index = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  const int64_t channel = index % s.width(), n = index / s.width() % s.states, b = index / s.width() / s.states;
  if (b >= s.batch) return;
  T sum = 0;
  for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) sum += parts[s.save(b, chunk, n) + channel];
  dA[(b * s.states + n) * s.width() + channel] = sum;
}

// One block a channel: the sums over time that D's and the bias's gradients are.
template <class T>
__global__ void sum_time(ScanShape s, const T* grad, const T* u, const T* ddelta, T* dD, T* dbias) {
  __shared__ T sums[2][kSum];
  const int64_t channel = blockIdx.x % s.width(), b = blockIdx.x / s.width();
  const int64_t row = s.row(b, channel), line = s.line(b, channel);
  T skip = 0, shift = 0;
  for (int64_t t = threadIdx.x; t < s.length; t += kSum) {
    skip += grad[line + t] * u[line + t];
    shift += ddelta[row + t];
  }
  sums[0][threadIdx.x] = skip;
  sums[1][threadIdx.x] = shift;
  for (int half = kSum / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half)
      for (int k = 0; k < 2; ++k) sums[k][threadIdx.x] += sums[k][threadIdx.x + half];
  }
  if (threadIdx.x != 0) return;
  dD[b * s.width() + channel] = sums[0][0];
  dbias[b * s.width() + channel] = sums[1][0];
}

int parts(const ScanShape& s) { return static_cast<int>((s.channels + kLanes - 1) / kLanes); }

struct Grids {
  dim3 chunks, states, rows;

  explicit Grids(const ScanShape& s)
      : chunks(static_cast<unsigned>(parts(s) * s.groups * s.chunks() * s.batch)),
        states(static_cast<unsigned>((s.batch * s.states * s.width() + kSum - 1) / kSum)),
        rows(static_cast<unsigned>(s.batch * s.width())) {}
};

template <class T>
int forward(const ScanShape& s, void* stream, const T* u, const T* delta, const T* A, const T* B, const T* C,
            const T* D, const T* bias, T* y, T* saved) {
  using monai_ext::launch;
  if (s.chunk > kChunk) return cudaErrorInvalidValue;
  const Grids grids(s);
  int code = launch(local_forward<T>, grids.chunks, kLanes, 0, stream, s, u, delta, A, B, bias, y, saved);
  if (!code) code = launch(join_forward<T>, grids.states, kSum, 0, stream, s, A, y, saved);
  if (!code) code = launch(final_forward<T>, grids.chunks, kLanes, 0, stream, s, u, delta, A, B, C, D, bias, y, saved);
  return code;
}

template <class T>
int backward(const ScanShape& s, void* stream, const T* grad, const T* u, const T* delta, const T* A, const T* B,
             const T* C, const T* D, const T* bias, const T* saved, T* du, T* ddelta, T* dA, T* dB, T* dC, T* dD,
             T* dbias, T* carries) {
  using monai_ext::launch;
  if (s.chunk > kChunk) return cudaErrorInvalidValue;
  const Grids grids(s);
  int code = launch(local_backward<T>, grids.chunks, kLanes, 0, stream, s, grad, delta, A, C, bias, du, carries);
  if (!code) code = launch(join_backward<T>, grids.states, kSum, 0, stream, s, A, du, carries);
  if (!code)
    code = launch(final_backward<T>, grids.chunks, kLanes, 0, stream, s, grad, u, delta, A, B, C, D, bias, saved, du,
                  ddelta, dB, dC, carries);
  if (!code) code = launch(sum_chunks<T>, grids.states, kSum, 0, stream, s, carries, dA);
  if (!code) code = launch(sum_time<T>, grids.rows, kSum, 0, stream, s, grad, u, ddelta, dD, dbias);
  return code;
}

}  // namespace

// Called from Python with the stream: each returns the code of a launch's error, 0 for none.
#define MONAI_EXT_SCAN(T)                                                                                              \
  extern "C" int selective_scan_parts_##T(const ScanShape* s) { return parts(*s); }                                    \
  extern "C" int selective_scan_rows_##T(const ScanShape* s) { return static_cast<int>(s->width()); }                  \
  extern "C" int selective_scan_forward_##T(const ScanShape* s, void* stream, const T* u, const T* delta, const T* A,  \
                                            const T* B, const T* C, const T* D, const T* bias, T* y, T* saved) {       \
    return forward<T>(*s, stream, u, delta, A, B, C, D, bias, y, saved);                                               \
  }                                                                                                                    \
  extern "C" int selective_scan_backward_##T(                                                                          \
      const ScanShape* s, void* stream, const T* grad, const T* u, const T* delta, const T* A, const T* B, const T* C, \
      const T* D, const T* bias, const T* saved, T* du, T* ddelta, T* dA, T* dB, T* dC, T* dD, T* dbias, T* carries) { \
    return backward<T>(*s, stream, grad, u, delta, A, B, C, D, bias, saved, du, ddelta, dA, dB, dC, dD, dbias,         \
                       carries);                                                                                       \
  }
MONAI_EXT_SCAN(float)
MONAI_EXT_SCAN(double)
