// AGI-Net's GroupPool on the CPU: a grouped 3x3 convolution, LayerNorm over the channels, GELU and the mean over space
// in one pass. What the convolution makes is as large as its input and never reaches memory: four rows of 32 pixels
// of all channels are made, normalised, bent and summed while they are in the cache.
//
// The convolution is Winograd's F(4, 3) down the columns: four rows of output cost six products instead of twelve.
#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "../parallel.h"
#include "../vec.h"
#include "group_pool.h"

namespace monai_ext {
namespace {

constexpr int kRows = 4, kTerms = 6;  // rows of output, and products for them
constexpr double kEpsilon = 1e-5;     // LayerNorm's

template <class T>
constexpr int64_t kStep = 2 * kLanes<T>;  // pixels of a tile's row

// The weights as Winograd's products take them: [group][output][input][term][column].
template <class T>
std::vector<T> transformed(const PoolShape& s, const T* weight) {
  std::vector<T> terms(s.channels * s.members() * kTerms * 3);
  for (int64_t pair = 0; pair < s.channels * s.members(); ++pair)
    for (int column = 0; column < 3; ++column) {
      const T a = weight[pair * 9 + column], b = weight[pair * 9 + 3 + column], c = weight[pair * 9 + 6 + column];
      T* const to = terms.data() + pair * kTerms * 3 + column;
      to[0] = a / 4;
      to[3] = -(a + b + c) / 6;
      to[6] = -(a - b + c) / 6;
      to[9] = a / 24 + b / 12 + c / 6;
      to[12] = a / 24 - b / 12 + c / 6;
      to[15] = c;
    }
  return terms;
}

// Rows [y - 1, y + 5) of one group's inputs, transformed: [input][term][-1 .. width], zeros around.
template <class T>
class Inputs {
 public:
  explicit Inputs(const PoolShape& s)
      : s_(s),
        row_((s.width + kStep<T> - 1) / kStep<T> * kStep<T> + 2 * kLanes<T>),
        raw_(kTerms * row_),
        terms_(s.members() * kTerms * row_) {}

  // Where x = 0 of a term begins; x = -1 is before it.
  const T* term(int64_t input, int t) const { return terms_.data() + (input * kTerms + t) * row_ + kLanes<T>; }

  void read(const T* x, const T* scale, int64_t batch, int64_t group, int64_t y) {
    for (int64_t input = 0; input < s_.members(); ++input) {
      const int64_t channel = batch * s_.channels + group * s_.members() + input;
      for (int r = 0; r < kTerms; ++r) {
        T* const to = raw_.data() + r * row_ + kLanes<T>;
        const int64_t row = y - 1 + r;
        if (row < 0 || row >= s_.height) {
          std::fill_n(to, s_.width, T(0));
        } else {
          const T by = scale ? scale[channel] : T(1);
          const T* const from = x + (channel * s_.height + row) * s_.width;
          for (int64_t i = 0; i < s_.width; ++i) to[i] = from[i] * by;
        }
      }
      T* const to = terms_.data() + input * kTerms * row_;
      for (int64_t i = 0; i < row_; i += kLanes<T>) {
        vec<T> d[kTerms];
        for (int r = 0; r < kTerms; ++r) d[r] = load(raw_.data() + r * row_ + i);
        const vec<T> even = d[4] - d[2] * T(4), odd = d[3] - d[1] * T(4);
        const vec<T> far = d[4] - d[2], wide = (d[3] - d[1]) * T(2);
        store(to + i, d[0] * T(4) - d[2] * T(5) + d[4]);
        store(to + row_ + i, even + odd);
        store(to + 2 * row_ + i, even - odd);
        store(to + 3 * row_ + i, far + wide);
        store(to + 4 * row_ + i, far - wide);
        store(to + 5 * row_ + i, d[1] * T(4) - d[3] * T(5) + d[5]);
      }
    }
  }

 private:
  const PoolShape& s_;
  int64_t row_;
  std::vector<T> raw_, terms_;
};

// kOut outputs of one group at pixels [i, i + kStep) of four rows, into made[output][row][pixel].
template <class T, int kOut>
void convolve(const Inputs<T>& inputs, const T* terms, const T* bias, int64_t members, int64_t i, T* made) {
  vec<T> products[kTerms][kOut][2];
  for (int t = 0; t < kTerms; ++t) {
    vec<T> sum[kOut][2]{};
    for (int64_t input = 0; input < members; ++input) {
      const T* const from = inputs.term(input, t) + i;
      for (int column = 0; column < 3; ++column) {
        const vec<T> left = load(from + column - 1), right = load(from + column - 1 + kLanes<T>);
        for (int o = 0; o < kOut; ++o) {
          const T by = terms[((o * members + input) * kTerms + t) * 3 + column];
          sum[o][0] += left * by;
          sum[o][1] += right * by;
        }
      }
    }
    for (int o = 0; o < kOut; ++o)
      for (int half = 0; half < 2; ++half) products[t][o][half] = sum[o][half];
  }
  for (int o = 0; o < kOut; ++o)
    for (int half = 0; half < 2; ++half) {
      const vec<T> near = products[1][o][half] + products[2][o][half],
                   apart = products[1][o][half] - products[2][o][half];
      const vec<T> far = products[3][o][half] + products[4][o][half],
                   wide = products[3][o][half] - products[4][o][half];
      T* const to = made + o * kRows * kStep<T> + half * kLanes<T>;
      store(to, products[0][o][half] + near + far + bias[o]);
      store(to + kStep<T>, apart + wide * T(2) + bias[o]);
      store(to + 2 * kStep<T>, near + far * T(4) + bias[o]);
      store(to + 3 * kStep<T>, apart + wide * T(8) + products[5][o][half] + bias[o]);
    }
}

template <class T>
vec<T> erf_of(vec<T> x);
// Abramowitz and Stegun 7.1.26: to 1.5e-7.
template <>
vec<float> erf_of<float>(vec<float> x) {
  const vec<float> size = x < 0.0f ? -x : x, t = 1.0f / (1.0f + 0.3275911f * size);
  const vec<float> tail =
      t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const vec<float> value = 1.0f - tail * exp2(size * size * -1.44269504f);
  return x < 0.0f ? -value : value;
}
template <>
vec<double> erf_of<double>(vec<double> x) {
  vec<double> out;
  for (int i = 0; i < kLanes<double>; ++i) out[i] = std::erf(x[i]);
  return out;
}

// GELU(v) / v, and its density for the slope.
template <class T>
vec<T> share(vec<T> v) {
  return (erf_of<T>(v * T(0.70710678118654752)) + T(1)) * T(0.5);
}
template <class T>
vec<T> slope(vec<T> v) {
  return share<T>(v) + v * exp2(v * v * T(-0.72134752044448170)) * T(0.39894228040143268);
}

// One tile of all channels, normalised: made becomes (made - mean) / deviation, which is left in deviation.
template <class T>
void normalise(const PoolShape& s, T* made, vec<T> (&inverse)[kRows * 2]) {
  constexpr int64_t size = kRows * kStep<T>;
  for (int v = 0; v < kRows * 2; ++v) {
    T* const from = made + v * kLanes<T>;
    vec<T> sum{}, squares{};
    for (int64_t c = 0; c < s.channels; ++c) sum += load(from + c * size);
    const vec<T> mean = sum / T(s.channels);
    for (int64_t c = 0; c < s.channels; ++c) {
      const vec<T> off = load(from + c * size) - mean;
      squares += off * off;
    }
    const vec<T> variance = squares / T(s.channels) + T(kEpsilon);
    for (int lane = 0; lane < kLanes<T>; ++lane) inverse[v][lane] = T(1) / std::sqrt(variance[lane]);
    for (int64_t c = 0; c < s.channels; ++c) store(from + c * size, (load(from + c * size) - mean) * inverse[v]);
  }
}

// Which lanes of a tile's vector v lie in the image: 1 or 0.
template <class T>
vec<T> inside(const PoolShape& s, int64_t y, int64_t i, int v) {
  vec<T> mask{};
  for (int lane = 0; lane < kLanes<T>; ++lane)
    mask[lane] = y + v / 2 < s.height && i + v % 2 * kLanes<T> + lane < s.width ? T(1) : T(0);
  return mask;
}

// Every tile of four rows: body(first pixel, the tile of all channels).
template <class T, class Body>
void each_tile(const PoolShape& s, const T* x, const T* scale, const T* terms, const T* bias, int64_t unit,
               const Body& body) {
  const int64_t strips = (s.height + kRows - 1) / kRows, batch = unit / strips, y = unit % strips * kRows;
  const int64_t members = s.members(), tiles = (s.width + kStep<T> - 1) / kStep<T>, size = kRows * kStep<T>;
  const int64_t together = std::max<int64_t>(1, std::min<int64_t>(tiles, (1 << 18) / (s.channels * size * sizeof(T))));
  std::vector<T> made(together * s.channels * size);
  std::vector<Inputs<T>> inputs(s.groups, Inputs<T>(s));
  for (int64_t g = 0; g < s.groups; ++g) inputs[g].read(x, scale, batch, g, y);
  for (int64_t first = 0; first < tiles; first += together) {
    const int64_t count = std::min(together, tiles - first);
    for (int64_t g = 0; g < s.groups; ++g)
      for (int64_t o = 0; o < members;) {
        const int64_t left = members - o, c = g * members + o;
        const T* const by = terms + c * members * kTerms * 3;
        for (int64_t k = 0; k < count; ++k) {
          T* const to = made.data() + (k * s.channels + c) * size;
          const int64_t i = (first + k) * kStep<T>;
          if (left >= 8)
            convolve<T, 8>(inputs[g], by, bias + c, members, i, to);
          else if (left >= 4)
            convolve<T, 4>(inputs[g], by, bias + c, members, i, to);
          else if (left >= 2)
            convolve<T, 2>(inputs[g], by, bias + c, members, i, to);
          else
            convolve<T, 1>(inputs[g], by, bias + c, members, i, to);
        }
        o += left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      }
    for (int64_t k = 0; k < count; ++k) body(batch, y, (first + k) * kStep<T>, made.data() + k * s.channels * size);
  }
}

template <class T>
T total(vec<T> value) {
  T sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += value[lane];
  return sum;
}

template <class T>
bool forward(const PoolShape& s, int64_t threads, const T* x, const T* scale, const T* weight, const T* bias,
             const T* gain, const T* shift, T* pooled) {
  const std::vector<T> terms = transformed(s, weight);
  const int64_t strips = (s.height + kRows - 1) / kRows;
  std::vector<T> parts(s.batch * strips * s.channels);
  const bool sound = parallel_for(threads, s.batch * strips, [&](int64_t unit) {
    T* const part = parts.data() + unit * s.channels;
    each_tile<T>(s, x, scale, terms.data(), bias, unit, [&](int64_t, int64_t y, int64_t i, T* made) {
      vec<T> inverse[kRows * 2], mask[kRows * 2];
      normalise<T>(s, made, inverse);
      for (int v = 0; v < kRows * 2; ++v) mask[v] = inside<T>(s, y, i, v);
      for (int64_t c = 0; c < s.channels; ++c) {
        vec<T> sum{};
        for (int v = 0; v < kRows * 2; ++v) {
          const vec<T> value = load(made + (c * kRows * 2 + v) * kLanes<T>) * gain[c] + shift[c];
          sum += value * share<T>(value) * mask[v];
        }
        part[c] += total<T>(sum);
      }
    });
  });
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t c = 0; c < s.channels; ++c) {
      double sum = 0;
      for (int64_t strip = 0; strip < strips; ++strip) sum += parts[(b * strips + strip) * s.channels + c];
      pooled[b * s.channels + c] = static_cast<T>(sum / s.pixels());
    }
  return sound;
}

// The gradient of what the convolution made, (batch, channels, height, width), and of gain and shift.
template <class T>
bool backward(const PoolShape& s, int64_t threads, const T* grad, const T* x, const T* scale, const T* weight,
              const T* bias, const T* gain, const T* shift, T* made_grad, T* gain_grad, T* shift_grad) {
  const std::vector<T> terms = transformed(s, weight);
  const int64_t strips = (s.height + kRows - 1) / kRows, size = kRows * kStep<T>;
  std::vector<T> parts(s.batch * strips * s.channels * 2);
  const bool sound = parallel_for(threads, s.batch * strips, [&](int64_t unit) {
    T* const part = parts.data() + unit * s.channels * 2;
    each_tile<T>(s, x, scale, terms.data(), bias, unit, [&](int64_t b, int64_t y, int64_t i, T* made) {
      vec<T> inverse[kRows * 2], sum[kRows * 2]{}, projected[kRows * 2]{}, mask[kRows * 2];
      normalise<T>(s, made, inverse);
      for (int v = 0; v < kRows * 2; ++v) mask[v] = inside<T>(s, y, i, v);
      std::vector<T> slopes(s.channels * size);
      for (int64_t c = 0; c < s.channels; ++c) {
        const T by = grad[b * s.channels + c] / T(s.pixels());
        vec<T> along{}, flat{};
        for (int v = 0; v < kRows * 2; ++v) {
          const vec<T> unit_value = load(made + c * size + v * kLanes<T>);
          const vec<T> d = slope<T>(unit_value * gain[c] + shift[c]) * mask[v] * by;
          along += d * unit_value;
          flat += d;
          const vec<T> inner = d * gain[c];
          sum[v] += inner;
          projected[v] += inner * unit_value;
          store(slopes.data() + c * size + v * kLanes<T>, inner);
        }
        part[2 * c] += total<T>(along);
        part[2 * c + 1] += total<T>(flat);
      }
      for (int64_t c = 0; c < s.channels; ++c)
        for (int v = 0; v < kRows * 2; ++v) {
          const int64_t row = y + v / 2, column = i + v % 2 * kLanes<T>;
          if (row >= s.height || column >= s.width) continue;
          const vec<T> unit_value = load(made + c * size + v * kLanes<T>);
          const vec<T> inner = load(slopes.data() + c * size + v * kLanes<T>);
          const vec<T> value = inverse[v] * (inner - (sum[v] + unit_value * projected[v]) / T(s.channels));
          T* const to = made_grad + ((b * s.channels + c) * s.height + row) * s.width + column;
          std::memcpy(to, &value, std::min<int64_t>(kLanes<T>, s.width - column) * sizeof(T));
        }
    });
  });
  for (int64_t c = 0; c < s.channels; ++c) {
    double along = 0, flat = 0;
    for (int64_t unit = 0; unit < s.batch * strips; ++unit) {
      along += parts[(unit * s.channels + c) * 2];
      flat += parts[(unit * s.channels + c) * 2 + 1];
    }
    gain_grad[c] = static_cast<T>(along);
    shift_grad[c] = static_cast<T>(flat);
  }
  return sound;
}

}  // namespace
}  // namespace monai_ext

// Called from Python: each returns 0, or 1 where memory ran out.
#define MONAI_EXT_POOL(T)                                                                                        \
  extern "C" int group_pool_forward_##T(const PoolShape* s, int64_t threads, const T* x, const T* scale,         \
                                        const T* weight, const T* bias, const T* gain, const T* shift,           \
                                        T* pooled) try {                                                         \
    return !monai_ext::forward<T>(*s, threads, x, scale, weight, bias, gain, shift, pooled);                     \
  } catch (const std::bad_alloc&) {                                                                              \
    return 1;                                                                                                    \
  }                                                                                                              \
  extern "C" int group_pool_backward_##T(const PoolShape* s, int64_t threads, const T* grad, const T* x,         \
                                         const T* scale, const T* weight, const T* bias, const T* gain,          \
                                         const T* shift, T* made_grad, T* gain_grad, T* shift_grad) try {        \
    return !monai_ext::backward<T>(*s, threads, grad, x, scale, weight, bias, gain, shift, made_grad, gain_grad, \
                                   shift_grad);                                                                  \
  } catch (const std::bad_alloc&) {                                                                              \
    return 1;                                                                                                    \
  }
MONAI_EXT_POOL(float)
MONAI_EXT_POOL(double)
