// Mamba's selective scan on the CPU: one register holds as many channels as it has lanes, so that no sum over the
// states crosses lanes; time runs in chunks whose rows of B and C are transposed once for all channels of a group.
#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "../pages.h"
#include "../parallel.h"
#include "../vec.h"
#include "selective_scan.h"

namespace monai_ext {
namespace {

constexpr double kLog2e = 1.4426950408889634;
constexpr int kUnits = 16;  // work is cut into about this many units, however many threads there are

// Registers, aligned, zeroed.
template <class T>
class Registers {
 public:
  explicit Registers(int64_t count) : memory_(count * kBytes + kBytes, 0) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    data_ = reinterpret_cast<vec<T>*>((address + kBytes - 1) / kBytes * kBytes);
  }
  operator vec<T>*() { return data_; }

 private:
  std::vector<char> memory_;
  vec<T>* data_;
};

// The channels of one way are cut into registers, and the registers into sets: a unit of work is one set, and both
// scans of it, one after the other, where its way is gone from both ends.
template <class T>
struct Cut {
  int64_t registers, sets;

  explicit Cut(const ScanShape& s) {
    registers = (s.channels + kLanes<T> - 1) / kLanes<T>;
    const int64_t pairs = std::max<int64_t>(1, s.batch * s.ways);
    sets = std::max<int64_t>(1, std::min(registers, (kUnits + pairs - 1) / pairs));
  }
  int64_t units(const ScanShape& s) const { return s.batch * s.ways * sets; }
};

template <class T>
struct Unit {
  int64_t b, way, set, first, last;  // registers first..last of each group

  Unit(const ScanShape& s, const Cut<T>& cut, int64_t unit) {
    set = unit % cut.sets;
    way = unit / cut.sets % s.ways;
    b = unit / cut.sets / s.ways;
    first = cut.registers * set / cut.sets;
    last = cut.registers * (set + 1) / cut.sets;
  }
};

// What one register of channels needs at every step. Lanes past the last channel hold zeros.
template <class T>
struct Channels {
  int64_t first;  // in the width of u
  int lanes;

  Channels(const ScanShape& s, int64_t g, int64_t index) {
    first = g * s.channels + index * kLanes<T>;
    lanes = static_cast<int>(std::min<int64_t>(kLanes<T>, s.channels - index * kLanes<T>));
  }
  vec<T> gather(const T* values) const {
    vec<T> out{};
    if (values != nullptr) std::memcpy(&out, values + first, lanes * sizeof(T));
    return out;
  }
  void column(const ScanShape& s, const T* A, int64_t n, T scale, vec<T>* out) const {
    *out = vec<T>{};
    for (int i = 0; i < lanes; ++i) {
      const T rate = A[(first + i) * s.states + n];
      (*out)[i] = rate == rate ? rate * scale : std::numeric_limits<T>::quiet_NaN();  // the kind that exp2 keeps
    }
  }
};

// A stretch of a chunk as a scan meets it: where its steps lie in the order of u, and which of them comes first.
struct Stretch {
  int64_t at;
  int columns;
  bool back;

  // The steps from t on, at most `most`, of a chunk of `steps` that lies at `low`.
  Stretch(int64_t low, int64_t steps, int64_t t, int64_t most, bool back)
      : columns(static_cast<int>(std::min<int64_t>(most, steps - t))), back(back) {
    at = low + (back ? steps - t - columns : t);
  }
  int place(int j) const { return back ? columns - 1 - j : j; }  // of step t + j
};

// rows[t * padded + n] = from[n * length + t]: the chunk's rows of B or C, one step after the other.
template <class T>
void transpose_rows(const T* from, int64_t length, int64_t states, int64_t padded, int64_t steps, T* rows) {
  vec<T> tile[kLanes<T>];
  for (int64_t n = 0; n < states; n += kLanes<T>)
    for (int64_t t = 0; t < steps; t += kLanes<T>) {
      const int columns = static_cast<int>(std::min<int64_t>(kLanes<T>, steps - t));
      load_transposed<T>(from + n * length + t, length, static_cast<int>(std::min<int64_t>(kLanes<T>, states - n)),
                         columns, tile);
      for (int j = 0; j < columns; ++j) store(rows + (t + j) * padded + n, tile[j]);
    }
}

template <class T>
vec<T> softplus(vec<T> x) {
  const vec<T> magnitude = x < T(0) ? -x : x;
  return (x < T(0) ? vec<T>{} : x) + log1p_unit(exp2(-magnitude * T(kLog2e)));
}
template <class T>
vec<T> sigmoid(vec<T> x) {
  return T(1) / (T(1) + exp2(-x * T(kLog2e)));
}

// kStates is the number of states where it is known when compiling (0: it is not), so that they stay in registers.
template <class T, int kStates>
void forward_unit(const ScanShape& s, const Unit<T>& unit, int64_t g, const T* u, const T* delta, const T* A,
                  const T* B, const T* C, const T* D, const T* bias, T* y, T* saved) {
  constexpr int W = kLanes<T>;
  const int64_t N = kStates ? kStates : s.states, padded = (N + W - 1) / W * W;
  const bool back = s.from_the_end(g);
  Registers<T> state((unit.last - unit.first) * N), rates((unit.last - unit.first) * N);
  Registers<T> rows(2 * s.chunk * padded / W);
  T* const Bt = reinterpret_cast<T*>(static_cast<vec<T>*>(rows));
  T* const Ct = Bt + s.chunk * padded;
  for (int64_t r = unit.first; r < unit.last; ++r)
    for (int64_t n = 0; n < N; ++n) Channels<T>(s, g, r).column(s, A, n, T(kLog2e), rates + (r - unit.first) * N + n);

  for (int64_t chunk = 0; chunk < s.chunks(); ++chunk) {
    const int64_t start = chunk * s.chunk, steps = std::min(s.chunk, s.length - start);
    const int64_t low = back ? s.length - start - steps : start;
    transpose_rows(B + s.mix(unit.b, g, 0) + low, s.length, N, padded, steps, Bt);
    transpose_rows(C + s.mix(unit.b, g, 0) + low, s.length, N, padded, steps, Ct);
    for (int64_t r = unit.first; r < unit.last; ++r) {
      const Channels<T> channels(s, g, r);
      const int64_t row = s.row(unit.b, channels.first), line = s.line(unit.b, channels.first);
      const vec<T>* const rate = rates + (r - unit.first) * N;
      vec<T>* const kept = state + (r - unit.first) * N;
      const vec<T> skip = channels.gather(D), shift = channels.gather(bias);
      vec<T> h[kStates ? kStates : 1];
      vec<T>* const now = kStates ? h : kept;
      for (int64_t n = 0; n < N; ++n) {
        std::memcpy(saved + s.save(unit.b, chunk, n) + channels.first, &kept[n], channels.lanes * sizeof(T));
        if (kStates) h[n] = kept[n];
      }
      for (int64_t t = 0; t < steps; t += W) {
        const Stretch part(low, steps, t, W, back);
        vec<T> x[W], dt[W], out[W];
        load_transposed<T>(u + line + part.at, s.length, channels.lanes, part.columns, x);
        load_transposed<T>(delta + row + part.at, s.length, channels.lanes, part.columns, dt);
        if (back) load_transposed<T>(y + line + part.at, s.length, channels.lanes, part.columns, out);
        for (int j = 0; j < part.columns; ++j) {
          const int place = part.place(j);
          const T* const b = Bt + (part.at - low + place) * padded;
          const T* const c = Ct + (part.at - low + place) * padded;
          const vec<T> raw = dt[place] + shift;
          const vec<T> step = s.softplus ? softplus<T>(raw) : raw;
          const vec<T> drive = step * x[place];
          vec<T> sum = skip * x[place];
          for (int64_t n = 0; n < N; ++n) {
            now[n] = exp2(step * rate[n]) * now[n] + drive * b[n];
            sum += c[n] * now[n];
          }
          out[place] = back ? out[place] + sum : sum;
        }
        store_transposed<T>(out, y + line + part.at, s.length, channels.lanes, part.columns);
      }
      if (kStates)
        for (int64_t n = 0; n < N; ++n) kept[n] = h[n];
    }
  }
}

// Where the gradients go. dA (batch, states, width), dD and dbias (batch, width) are summed over the batch by the
// caller; dB and dC (sets, batch, groups, states, length) over the sets.
template <class T>
struct Gradients {
  T *u, *delta, *A, *B, *C, *D, *bias;
};

// A row of sums over the lanes of registers[n], added up for all n of one step: out[n].
template <class T>
void sum_lanes(const vec<T>* registers, int64_t states, vec<T>* out) {
  constexpr int W = kLanes<T>;
  for (int64_t n = 0; n < states; n += W) {
    vec<T> tile[W], sum{};
    for (int j = 0; j < W; ++j) tile[j] = n + j < states ? registers[n + j] : vec<T>{};
    transpose<T>(tile);
    for (int j = 0; j < W; ++j) sum += tile[j];
    out[n / W] = sum;
  }
}

// to[n * length + t] = the lane sums of sums[t * states + n], for the steps of a chunk.
template <class T>
void store_sums(const vec<T>* sums, int64_t states, int64_t steps, int64_t length, T* to) {
  constexpr int W = kLanes<T>;
  const int64_t blocks = (states + W - 1) / W;
  Registers<T> lines(W * blocks);
  for (int64_t t = 0; t < steps; t += W) {
    const int columns = static_cast<int>(std::min<int64_t>(W, steps - t));
    for (int j = 0; j < columns; ++j) sum_lanes<T>(sums + (t + j) * states, states, lines + j * blocks);
    for (int64_t k = 0; k < blocks; ++k) {
      vec<T> tile[W];
      for (int j = 0; j < W; ++j) tile[j] = lines[j * blocks + k];
      store_transposed<T>(tile, to + k * W * length + t, length, static_cast<int>(std::min<int64_t>(W, states - k * W)),
                          columns);
    }
  }
}

template <class T, int kStates>
void backward_unit(const ScanShape& s, const Unit<T>& unit, int64_t g, const T* dy, const T* u, const T* delta,
                   const T* A, const T* B, const T* C, const T* D, const T* bias, const T* saved,
                   const Gradients<T>& grad) {
  constexpr int W = kLanes<T>;
  const int64_t N = kStates ? kStates : s.states, padded = (N + W - 1) / W * W;
  const int64_t count = unit.last - unit.first;
  const bool back = s.from_the_end(g);
  Registers<T> rates(count * N), carries(count * N), rate_grads(count * N), skip_grads(count), shift_grads(count);
  Registers<T> rows(2 * s.chunk * padded / W);
  Registers<T> decays(s.chunk * N), states((s.chunk + 1) * N), B_sums(s.chunk * N), C_sums(s.chunk * N);
  Registers<T> xs(s.chunk + W), steps_of(s.chunk + W), slopes(s.chunk + W), dys(s.chunk + W);
  T* const Bt = reinterpret_cast<T*>(static_cast<vec<T>*>(rows));
  T* const Ct = Bt + s.chunk * padded;
  for (int64_t r = unit.first; r < unit.last; ++r)
    for (int64_t n = 0; n < N; ++n) Channels<T>(s, g, r).column(s, A, n, T(1), rates + (r - unit.first) * N + n);

  for (int64_t chunk = s.chunks() - 1; chunk >= 0; --chunk) {
    const int64_t start = chunk * s.chunk, steps = std::min(s.chunk, s.length - start);
    const int64_t low = back ? s.length - start - steps : start;
    transpose_rows(B + s.mix(unit.b, g, 0) + low, s.length, N, padded, steps, Bt);
    transpose_rows(C + s.mix(unit.b, g, 0) + low, s.length, N, padded, steps, Ct);
    std::fill_n(static_cast<vec<T>*>(B_sums), steps * N, vec<T>{});
    std::fill_n(static_cast<vec<T>*>(C_sums), steps * N, vec<T>{});
    for (int64_t r = unit.first; r < unit.last; ++r) {
      const Channels<T> channels(s, g, r);
      const int64_t row = s.row(unit.b, channels.first), line = s.line(unit.b, channels.first), k = r - unit.first;
      const vec<T>* const rate = rates + k * N;
      const vec<T> skip = channels.gather(D), shift = channels.gather(bias);

      // The states of this chunk again, from the one that the forward pass saved before it.
      for (int64_t t = 0; t < steps; t += W) {
        const Stretch part(low, steps, t, W, back);
        vec<T> x[W], g_y[W], raw[W];
        load_transposed<T>(u + line + part.at, s.length, channels.lanes, part.columns, x);
        load_transposed<T>(dy + line + part.at, s.length, channels.lanes, part.columns, g_y);
        load_transposed<T>(delta + row + part.at, s.length, channels.lanes, part.columns, raw);
        for (int j = 0; j < part.columns; ++j) {
          const int place = part.place(j);
          const vec<T> shifted = raw[place] + shift;
          xs[t + j] = x[place];
          dys[t + j] = g_y[place];
          steps_of[t + j] = s.softplus ? softplus<T>(shifted) : shifted;
          slopes[t + j] = s.softplus ? sigmoid<T>(shifted) : broadcast(T(1));
        }
      }
      for (int64_t n = 0; n < N; ++n) states[n] = channels.gather(saved + s.save(unit.b, chunk, n));
      for (int64_t t = 0; t < steps; ++t) {
        const vec<T> step = steps_of[t], drive = step * xs[t], scaled = step * T(kLog2e);
        const T* const b = Bt + (back ? steps - 1 - t : t) * padded;
        for (int64_t n = 0; n < N; ++n) {
          const vec<T> decay = exp2(scaled * rate[n]);
          decays[t * N + n] = decay;
          states[(t + 1) * N + n] = decay * states[t * N + n] + drive * b[n];
        }
      }

      // Back through time. carry[n] is decay * d(state) of the step after.
      vec<T>* const carry = carries + k * N;
      vec<T>* const rate_grad = rate_grads + k * N;
      for (int64_t t = steps - 1; t >= 0; --t) {
        const vec<T> out_grad = dys[t], x = xs[t], step = steps_of[t], drive = step * x;
        const int64_t place = back ? steps - 1 - t : t;
        const T* const b = Bt + place * padded;
        const T* const c = Ct + place * padded;
        vec<T> through_B{}, through_A{};
        for (int64_t n = 0; n < N; ++n) {
          const vec<T> decay = decays[t * N + n];
          const vec<T> state_grad = out_grad * c[n] + carry[n];
          const vec<T> faded = state_grad * decay;
          const vec<T> decay_grad = faded * states[t * N + n];
          C_sums[place * N + n] += out_grad * states[(t + 1) * N + n];
          B_sums[place * N + n] += state_grad * drive;
          through_B += state_grad * b[n];
          through_A += decay_grad * rate[n];
          rate_grad[n] += decay_grad * step;
          carry[n] = faded;
        }
        const vec<T> step_grad = (through_B * x + through_A) * slopes[t];
        skip_grads[k] += out_grad * x;
        shift_grads[k] += step_grad;
        xs[t] = skip * out_grad + through_B * step;  // xs and dys now hold the gradients of u and delta
        dys[t] = step_grad;
      }
      for (int64_t t = 0; t < steps; t += W) {
        const Stretch part(low, steps, t, W, back);
        vec<T> du[W], ddelta[W];
        if (back) load_transposed<T>(grad.u + line + part.at, s.length, channels.lanes, part.columns, du);
        for (int j = 0; j < part.columns; ++j) {
          const int place = part.place(j);
          du[place] = back ? du[place] + xs[t + j] : xs[t + j];
          ddelta[place] = dys[t + j];
        }
        store_transposed<T>(du, grad.u + line + part.at, s.length, channels.lanes, part.columns);
        store_transposed<T>(ddelta, grad.delta + row + part.at, s.length, channels.lanes, part.columns);
      }
    }
    const int64_t part = unit.set * s.batch * s.groups * s.states * s.length + s.mix(unit.b, g, 0) + low;
    store_sums<T>(B_sums, N, steps, s.length, grad.B + part);
    store_sums<T>(C_sums, N, steps, s.length, grad.C + part);
  }
  for (int64_t r = unit.first; r < unit.last; ++r) {
    const Channels<T> channels(s, g, r);
    const int64_t k = r - unit.first, at = unit.b * s.width() + channels.first;
    for (int64_t n = 0; n < N; ++n)
      std::memcpy(grad.A + (unit.b * N + n) * s.width() + channels.first, &rate_grads[k * N + n],
                  channels.lanes * sizeof(T));
    std::memcpy(grad.D + at, &skip_grads[k], channels.lanes * sizeof(T));
    std::memcpy(grad.bias + at, &shift_grads[k], channels.lanes * sizeof(T));
  }
}

// Both scans of a unit: the second adds to what the first wrote.
template <class T, class Run>
int for_each_unit(const ScanShape& s, int64_t threads, const Run& run) {
  const Cut<T> cut(s);
  return !parallel_for(threads, cut.units(s), [&](int64_t index) {
    const Unit<T> unit(s, cut, index);
    for (int64_t g = unit.way; g < s.groups; g += s.ways) run(unit, g);
  });
}

template <class T>
int forward(const ScanShape& s, int64_t threads, const T* u, const T* delta, const T* A, const T* B, const T* C,
            const T* D, const T* bias, T* y, T* saved) {
  expect_writes(y, s.batch * s.ways * s.channels * s.length * sizeof(T));
  const auto run = s.states == 16 ? forward_unit<T, 16> : forward_unit<T, 0>;
  return for_each_unit<T>(
      s, threads, [&](const Unit<T>& unit, int64_t g) { run(s, unit, g, u, delta, A, B, C, D, bias, y, saved); });
}

template <class T>
int backward(const ScanShape& s, int64_t threads, const T* dy, const T* u, const T* delta, const T* A, const T* B,
             const T* C, const T* D, const T* bias, const T* saved, const Gradients<T>& grad) {
  expect_writes(grad.u, s.batch * s.ways * s.channels * s.length * sizeof(T));
  expect_writes(grad.delta, s.batch * s.width() * s.length * sizeof(T));
  const auto run = s.states == 16 ? backward_unit<T, 16> : backward_unit<T, 0>;
  return for_each_unit<T>(s, threads, [&](const Unit<T>& unit, int64_t g) {
    run(s, unit, g, dy, u, delta, A, B, C, D, bias, saved, grad);
  });
}

}  // namespace
}  // namespace monai_ext

// Called from Python: each returns 0, or 1 where memory ran out. carries is room that only the CUDA kernel needs; rows
// of y and du are as many as of u, both scans of a way added up.
#define MONAI_EXT_SCAN(T)                                                                                              \
  extern "C" int selective_scan_parts_##T(const ScanShape* s) { return static_cast<int>(monai_ext::Cut<T>(*s).sets); } \
  extern "C" int selective_scan_rows_##T(const ScanShape* s) { return static_cast<int>(s->ways * s->channels); }       \
  extern "C" int selective_scan_forward_##T(const ScanShape* s, int64_t threads, const T* u, const T* delta,           \
                                            const T* A, const T* B, const T* C, const T* D, const T* bias, T* y,       \
                                            T* saved) {                                                                \
    return monai_ext::forward<T>(*s, threads, u, delta, A, B, C, D, bias, y, saved);                                   \
  }                                                                                                                    \
  extern "C" int selective_scan_backward_##T(const ScanShape* s, int64_t threads, const T* dy, const T* u,             \
                                             const T* delta, const T* A, const T* B, const T* C, const T* D,           \
                                             const T* bias, const T* saved, T* du, T* ddelta, T* dA, T* dB, T* dC,     \
                                             T* dD, T* dbias, T* /*carries*/) {                                        \
    return monai_ext::backward<T>(*s, threads, dy, u, delta, A, B, C, D, bias, saved,                                  \
                                  {du, ddelta, dA, dB, dC, dD, dbias});                                                \
  }
MONAI_EXT_SCAN(float)
MONAI_EXT_SCAN(double)
