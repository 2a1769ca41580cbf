// Mamba's selective scan on a CUDA device. One thread serves one channel through one chunk of time, all chunks at once:
// first each from a state of zero, then the chunks' states are joined, then each chunk again from its right state.
// A warp is 32 channels of one chunk, a block some chunks that follow each other: what lies along time is read and
// written by whole lines, through shared memory, where it is in the order of the scan.
// y and du have a row a group, as delta: what belongs to one way is added up by the caller, in a fixed order.
#include "../launch.h"
#include "selective_scan.h"

namespace {

constexpr int kLanes = 32;  // channels a block
constexpr int kChunk = 16;  // steps, which a thread holds in registers
constexpr int kSum = 256;   // threads that add up one channel
constexpr int kAhead = 8;   // chunks that are joined from one reading, or states whose B and C are

template <class T>
constexpr int kWarps = 16 / sizeof(T);  // chunks a block: what the backward pass shares fits
template <class T>
constexpr int kSpan = kWarps<T> * kChunk;  // steps a block

// A row a channel, a column more than steps: threads that read one column each find it in a bank of its own.
template <class T>
using Tile = T[kLanes][kSpan<T> + 1];
template <class T>
using Mixes = T[kAhead][kSpan<T>];

// What a block, a warp and a thread work on. Lanes past the group's last channel and steps past the end work on zeros:
// a step of zero keeps the state.
template <class T>
struct Place {
  int64_t b, g, part, chunk, channel, first, start, length;
  int lane, warp, lanes, steps, offset;
  bool back, lives;

  __device__ explicit Place(const ScanShape& s) {
    const int64_t parts = (s.channels + kLanes - 1) / kLanes, spans = (s.length + kSpan<T> - 1) / kSpan<T>;
    int64_t block = blockIdx.x;  // only the x axis of a grid may be long
    part = block % parts;
    g = (block /= parts) % s.groups;
    start = (block /= s.groups) % spans * kSpan<T>;
    b = block / spans;
    lane = threadIdx.x % kLanes;
    warp = threadIdx.x / kLanes;
    length = s.length;
    first = g * s.channels + part * kLanes;
    channel = first + lane;
    lanes = static_cast<int>(s.channels - part * kLanes < kLanes ? s.channels - part * kLanes : kLanes);
    steps = static_cast<int>(length - start < kSpan<T> ? length - start : kSpan<T>);
    offset = warp * kChunk;
    chunk = start / kChunk + warp;
    back = s.from_the_end(g);
    lives = lane < lanes && offset < steps;
  }
  // Where the block's step t lies in a row of x.
  __device__ int64_t at(int t) const { return back ? length - 1 - start - t : start + t; }

  // Each row of the tile by all threads, and back. f(value, channel) is what a step becomes.
  template <class F>
  __device__ void read(const T* rows, Tile<T>& tile, F f) const {
    for (int row = warp; row < kLanes; row += kWarps<T>)
      for (int t = lane; t < kSpan<T>; t += kLanes)
        tile[row][t] = row < lanes && t < steps ? f(rows[row * length + at(t)], first + row) : T(0);
  }
  __device__ void read(const T* rows, Tile<T>& tile) const {
    read(rows, tile, [](T x, int64_t) { return x; });
  }
  __device__ void write(const Tile<T>& tile, T* rows) const {
    for (int row = warp; row < lanes; row += kWarps<T>)
      for (int t = lane; t < steps; t += kLanes) rows[row * length + at(t)] = tile[row][t];
  }
  // The rows of some states of B or C, from state n on.
  __device__ void read(const ScanShape& s, const T* mix, int64_t n, Mixes<T>& mixes) const {
    for (int row = warp; row < kAhead && n + row < s.states; row += kWarps<T>)
      for (int t = lane; t < kSpan<T>; t += kLanes)
        mixes[row][t] = t < steps ? mix[s.mix(b, g, n + row) + at(t)] : T(0);
  }
};

template <class T>
struct StepOf {
  const T* bias;
  bool softplus;

  __device__ T operator()(T raw, int64_t channel) const {
    if (bias) raw += bias[channel];
    return softplus ? (raw > T(0) ? raw : T(0)) + log1p(exp(raw > T(0) ? -raw : raw)) : raw;
  }
};

// exp(step A), of a rate that is A log2(e): powers of two are what the hardware has.
template <class T>
__device__ T power(T step, T rate) {
  return exp2(step * rate);
}
template <class T>
__device__ T rate_of(const ScanShape& s, const T* A, const Place<T>& place, int64_t n) {
  return place.lives ? A[place.channel * s.states + n] * T(1.4426950408889634) : T(0);
}

// Each chunk from a state of zero: its last state goes where the state before it belongs, until join moves it on; the
// sum of its steps, which gives its whole decay, waits in sums. From the end of time the same for the gradient, of
// which a chunk hands on decay times the state's.
template <class T, bool kFromTheEnd>
__global__ void local(ScanShape s, const T* line, const T* delta, const T* A, const T* mix, const T* bias, T* sums,
                      T* slots) {
  __shared__ Tile<T> tile, tile_step;
  alignas(16) __shared__ Mixes<T> mixes;
  const Place<T> place(s);
  place.read(line + s.line(place.b, place.first), tile);
  place.read(delta + s.row(place.b, place.first), tile_step, StepOf<T>{bias, s.softplus != 0});
  __syncthreads();
  T steps[kChunk], drives[kChunk], sum = 0;
#pragma unroll
  for (int t = 0; t < kChunk; ++t) {
    steps[t] = tile_step[place.lane][place.offset + t];
    drives[t] = (kFromTheEnd ? T(1) : steps[t]) * tile[place.lane][place.offset + t];
    sum += steps[t];
  }
  if (place.lives) sums[s.row(place.b, place.channel) + place.chunk * kChunk] = sum;
  for (int64_t low = 0; low < s.states; low += kAhead) {
    __syncthreads();
    place.read(s, mix, low, mixes);
    __syncthreads();
    for (int n = 0; n < kAhead && low + n < s.states; ++n) {
      const T rate = rate_of(s, A, place, low + n);
      T state = 0;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const int t = kFromTheEnd ? kChunk - 1 - i : i;
        const T drive = drives[t] * mixes[n][place.offset + t], decay = power(steps[t], rate);
        state = kFromTheEnd ? decay * (state + drive) : decay * state + drive;
      }
      if (place.lives) slots[s.save(place.b, place.chunk, low + n) + place.channel] = state;
    }
  }
}

// One thread a channel and state: what each chunk begins with, the state before it or, from the end of time, what the
// chunk after it hands on.
template <class T>
__global__ void join(ScanShape s, bool from_the_end, const T* A, const T* sums, T* slots) {
  const int64_t index = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  const int64_t channel = index % s.width(), n = index / s.width() % s.states, b = index / s.width() / s.states;
  if (b >= s.batch) return;
  const T rate = A[channel * s.states + n];
  const int64_t chunks = s.chunks();
  T state = 0;
  for (int64_t low = 0; low < chunks; low += kAhead) {
    T local[kAhead], decay[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (low + i >= chunks) break;
      const int64_t chunk = from_the_end ? chunks - 1 - low - i : low + i;
      local[i] = slots[s.save(b, chunk, n) + channel];
      decay[i] = sums[s.row(b, channel) + chunk * kChunk] * rate;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (low + i >= chunks) break;
      const int64_t chunk = from_the_end ? chunks - 1 - low - i : low + i;
      slots[s.save(b, chunk, n) + channel] = state;
      state = exp(decay[i]) * state + local[i];
    }
  }
}

template <class T>
__global__ void final_forward(ScanShape s, const T* u, const T* delta, const T* A, const T* B, const T* C, const T* D,
                              const T* bias, T* y, const T* saved) {
  __shared__ Tile<T> tile_x, tile_step;
  alignas(16) __shared__ Mixes<T> b, c;
  const Place<T> place(s);
  place.read(u + s.line(place.b, place.first), tile_x);
  place.read(delta + s.row(place.b, place.first), tile_step, StepOf<T>{bias, s.softplus != 0});
  __syncthreads();
  const T skip = D && place.lives ? D[place.channel] : T(0);
  T steps[kChunk], drives[kChunk], out[kChunk];
#pragma unroll
  for (int t = 0; t < kChunk; ++t) {
    const T x = tile_x[place.lane][place.offset + t];
    steps[t] = tile_step[place.lane][place.offset + t];
    drives[t] = steps[t] * x;
    out[t] = skip * x;
  }
  for (int64_t low = 0; low < s.states; low += kAhead) {
    __syncthreads();
    place.read(s, B, low, b);
    place.read(s, C, low, c);
    __syncthreads();
    for (int n = 0; n < kAhead && low + n < s.states; ++n) {
      const T rate = rate_of(s, A, place, low + n);
      T state = place.lives ? saved[s.save(place.b, place.chunk, low + n) + place.channel] : T(0);
#pragma unroll
      for (int t = 0; t < kChunk; ++t) {
        state = power(steps[t], rate) * state + drives[t] * b[n][place.offset + t];
        out[t] += c[n][place.offset + t] * state;
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kChunk; ++t) tile_x[place.lane][place.offset + t] = out[t];
  __syncthreads();
  place.write(tile_x, y + s.row(place.b, place.first));
}

// The same three passes from the end of time. carries (as saved) holds, for each chunk, what its first step hands to
// the chunk before, and after join what it receives from the one after.
//
// A's gradient of each chunk takes the place of its carry, until sum_chunks adds the chunks up. Half of a warp's lanes
// add up dC's terms over its channels, the others dB's, in a fixed order.
template <class T>
__global__ void __launch_bounds__(kWarps<T>* kLanes, 3)
    final_backward(ScanShape s, const T* grad, const T* u, const T* delta, const T* A, const T* B, const T* C,
                   const T* D, const T* bias, const T* saved, T* du, T* ddelta, T* dB, T* dC, T* carries) {
  __shared__ Tile<T> tile_x, tile_step, tile_dy;
  alignas(16) __shared__ Mixes<T> b, c;
  __shared__ T terms[kWarps<T>][2][kChunk][kLanes + 1];
  const Place<T> place(s);
  place.read(u + s.line(place.b, place.first), tile_x);
  place.read(delta + s.row(place.b, place.first), tile_step, StepOf<T>{bias, s.softplus != 0});
  place.read(grad + s.line(place.b, place.first), tile_dy);
  __syncthreads();
  T steps[kChunk], drives[kChunk], dys[kChunk], through_B[kChunk], through_A[kChunk];
#pragma unroll
  for (int t = 0; t < kChunk; ++t) {
    steps[t] = tile_step[place.lane][place.offset + t];
    drives[t] = steps[t] * tile_x[place.lane][place.offset + t];
    dys[t] = tile_dy[place.lane][place.offset + t];
    through_B[t] = through_A[t] = 0;
  }
  T(&of_C)[kChunk][kLanes + 1] = terms[place.warp][0];
  T(&of_B)[kChunk][kLanes + 1] = terms[place.warp][1];
  const int summed = place.lane % kChunk, which = place.lane / kChunk;
  T* const to = (which ? dB : dC) + place.part * s.batch * s.groups * s.states * s.length;
  for (int64_t low = 0; low < s.states; low += kAhead) {
    __syncthreads();
    place.read(s, B, low, b);
    place.read(s, C, low, c);
    __syncthreads();
    for (int n = 0; n < kAhead && low + n < s.states; ++n) {
      const T rate = rate_of(s, A, place, low + n);
      const int64_t slot = s.save(place.b, place.chunk, low + n) + place.channel;
      T path[kChunk + 1], carry = 0, rate_grad = 0;
      path[0] = 0;
      if (place.lives) path[0] = saved[slot], carry = carries[slot];
#pragma unroll
      for (int t = 0; t < kChunk; ++t) {
        path[t + 1] = power(steps[t], rate) * path[t] + drives[t] * b[n][place.offset + t];
        of_C[t][place.lane] = dys[t] * path[t + 1];
      }
#pragma unroll
      for (int t = kChunk - 1; t >= 0; --t) {
        const T state_grad = c[n][place.offset + t] * dys[t] + carry;
        carry = power(steps[t], rate) * state_grad;
        const T decay_grad = carry * path[t];
        of_B[t][place.lane] = state_grad * drives[t];
        through_B[t] += state_grad * b[n][place.offset + t];
        through_A[t] += decay_grad * rate;
        rate_grad += decay_grad * steps[t];
      }
      if (place.lives) carries[slot] = rate_grad;
      __syncwarp();
      T sum = 0;
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) sum += terms[place.warp][which][summed][lane];
      if (place.offset + summed < place.steps)
        to[s.mix(place.b, place.g, low + n) + place.at(place.offset + summed)] = sum;
      __syncwarp();
    }
  }
  const T skip = D && place.lives ? D[place.channel] : T(0);
#pragma unroll
  for (int t = 0; t < kChunk; ++t) {
    T& x = tile_x[place.lane][place.offset + t];
    T& step = tile_step[place.lane][place.offset + t];
    const T slope = s.softplus ? -expm1(-steps[t]) : T(1);  // of softplus, by its value
    step = (through_B[t] * x + through_A[t] * T(0.6931471805599453)) * slope;
    x = skip * dys[t] + through_B[t] * steps[t];
  }
  __syncthreads();
  place.write(tile_x, du + s.row(place.b, place.first));
  place.write(tile_step, ddelta + s.row(place.b, place.first));
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

template <class T>
struct Grids {
  dim3 spans, states, rows;

  explicit Grids(const ScanShape& s)
      : spans(static_cast<unsigned>(parts(s) * s.groups * ((s.length + kSpan<T> - 1) / kSpan<T>)*s.batch)),
        states(static_cast<unsigned>((s.batch * s.states * s.width() + kSum - 1) / kSum)),
        rows(static_cast<unsigned>(s.batch * s.width())) {}
};

template <class T>
int forward(const ScanShape& s, void* stream, const T* u, const T* delta, const T* A, const T* B, const T* C,
            const T* D, const T* bias, T* y, T* saved) {
  using monai_ext::launch;
  if (s.chunk != kChunk) return cudaErrorInvalidValue;
  constexpr int threads = kWarps<T> * kLanes;
  const Grids<T> grids(s);
  int code = launch(local<T, false>, grids.spans, threads, 0, stream, s, u, delta, A, B, bias, y, saved);
  if (!code) code = launch(join<T>, grids.states, kSum, 0, stream, s, false, A, y, saved);
  if (!code) code = launch(final_forward<T>, grids.spans, threads, 0, stream, s, u, delta, A, B, C, D, bias, y, saved);
  return code;
}

template <class T>
int backward(const ScanShape& s, void* stream, const T* grad, const T* u, const T* delta, const T* A, const T* B,
             const T* C, const T* D, const T* bias, const T* saved, T* du, T* ddelta, T* dA, T* dB, T* dC, T* dD,
             T* dbias, T* carries) {
  using monai_ext::launch;
  if (s.chunk != kChunk) return cudaErrorInvalidValue;
  constexpr int threads = kWarps<T> * kLanes;
  const Grids<T> grids(s);
  int code = launch(local<T, true>, grids.spans, threads, 0, stream, s, grad, delta, A, C, bias, du, carries);
  if (!code) code = launch(join<T>, grids.states, kSum, 0, stream, s, true, A, du, carries);
  if (!code)
    code = launch(final_backward<T>, grids.spans, threads, 0, stream, s, grad, u, delta, A, B, C, D, bias, saved, du,
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
