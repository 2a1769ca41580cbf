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

// A polynomial, its even and its odd terms side by side: two chains of products that do not wait for each other.
template <int kTerms>
vec<float> polynomial(const float (&terms)[kTerms], vec<float> x) {
  const vec<float> square = x * x;
  vec<float> even = broadcast(terms[kTerms - 2]), odd = broadcast(terms[kTerms - 1]);
  static_assert(kTerms % 2 == 0, "as many odd terms as even ones");
  for (int k = kTerms - 4; k >= 0; k -= 2) {
    even = even * square + terms[k];
    odd = odd * square + terms[k + 1];
  }
  return even + odd * x;
}

// What GELU(v) lacks to max(v, 0), which is |v| (1 - Phi(|v|)), and how that grows with |v|, fitted at Chebyshev's
// points up to |v| = 5.5, beyond which both are below 1e-6: as far as 2e-7 and 3e-7 from the truth, without a division.
constexpr float kReach = 5.5f;
constexpr float kLack[] = {8.19437020e-03f,  -6.05760366e-02f, 1.91263378e-01f,  -3.08774173e-01f, 1.78947583e-01f,
                           2.61724293e-01f,  -6.28322899e-01f, 4.51488018e-01f,  1.51383862e-01f,  -5.17912030e-01f,
                           2.72212535e-01f,  1.80658549e-01f,  -2.56906211e-01f, 1.82633959e-02f,  9.89243686e-02f,
                           -3.23642194e-02f, -1.56969205e-02f, 7.49227591e-03f};
constexpr float kGrowth[] = {-2.20275503e-02f, 1.39103189e-01f,  -3.36862355e-01f, 2.60152459e-01f,  4.76383805e-01f,
                             -1.36883521e+00f, 1.14340210e+00f,  4.26568270e-01f,  -1.66244650e+00f, 1.03854048e+00f,
                             6.21403813e-01f,  -1.21640265e+00f, 2.70391226e-01f,  6.06399894e-01f,  -3.70700210e-01f,
                             -1.45148009e-01f, 1.56344473e-01f,  6.83308020e-03f,  -2.58890800e-02f, 2.78822565e-03f};

inline vec<float> place_of(vec<float> v) {  // -1 to 1
  const vec<float> size = v < 0.0f ? -v : v;
  return (size < kReach ? size : broadcast(kReach)) * (2 / kReach) - 1.0f;
}

inline vec<float> gelu(vec<float> v) { return (v < 0.0f ? broadcast(0.0f) : v) - polynomial(kLack, place_of(v)); }
inline vec<float> gelu_slope(vec<float> v) {
  const vec<float> growth = polynomial(kGrowth, place_of(v));
  return v < 0.0f ? growth : 1.0f - growth;
}
inline double phi(double v) { return (std::erf(v * 0.70710678118654752) + 1) * 0.5; }
inline vec<double> gelu(vec<double> v) {
  for (int i = 0; i < kLanes<double>; ++i) v[i] *= phi(v[i]);
  return v;
}
inline vec<double> gelu_slope(vec<double> v) {
  for (int i = 0; i < kLanes<double>; ++i) v[i] = phi(v[i]) + v[i] * std::exp(v[i] * v[i] * -0.5) * 0.39894228040143268;
  return v;
}

// LayerNorm's mean over the channels and the inverse of its deviation, for each vector of a tile.
template <class T>
struct Norms {
  vec<T> mean[kRows * 2], inverse[kRows * 2];

  Norms(const PoolShape& s, const T* made) {
    vec<T> sums[kRows * 2]{};
    each(s, made, [&](int v, vec<T> value) { sums[v] += value; });
    for (int v = 0; v < kRows * 2; ++v) {
      mean[v] = sums[v] / T(s.channels);
      sums[v] = vec<T>{};
    }
    each(s, made, [&](int v, vec<T> value) {
      const vec<T> off = value - mean[v];
      sums[v] += off * off;
    });
    for (int v = 0; v < kRows * 2; ++v) {
      T lanes[kLanes<T>];
      store(lanes, sums[v] / T(s.channels) + T(kEpsilon));
      for (int lane = 0; lane < kLanes<T>; ++lane) lanes[lane] = T(1) / std::sqrt(lanes[lane]);
      inverse[v] = load(lanes);
    }
  }
  template <class F>
  static void each(const PoolShape& s, const T* made, const F& f) {
    for (int64_t c = 0; c < s.channels; ++c)
      for (int v = 0; v < kRows * 2; ++v) f(v, load(made + (c * kRows * 2 + v) * kLanes<T>));
  }
  // What the convolution made, with mean 0 and variance 1.
  vec<T> unit(const T* made, int64_t c, int v) const {
    return (load(made + (c * kRows * 2 + v) * kLanes<T>) - mean[v]) * inverse[v];
  }
};

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
      const Norms<T> norms(s, made);
      vec<T> mask[kRows * 2];
      for (int v = 0; v < kRows * 2; ++v) mask[v] = inside<T>(s, y, i, v);
      for (int64_t c = 0; c < s.channels; ++c) {
        vec<T> sum{};
        for (int v = 0; v < kRows * 2; ++v) {
          sum += gelu(norms.unit(made, c, v) * gain[c] + shift[c]) * mask[v];
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
      const Norms<T> norms(s, made);
      vec<T> sum[kRows * 2]{}, projected[kRows * 2]{}, mask[kRows * 2];
      for (int v = 0; v < kRows * 2; ++v) mask[v] = inside<T>(s, y, i, v);
      std::vector<T> slopes(s.channels * size);
      for (int64_t c = 0; c < s.channels; ++c) {
        const T by = grad[b * s.channels + c] / T(s.pixels());
        vec<T> along{}, flat{};
        for (int v = 0; v < kRows * 2; ++v) {
          const vec<T> unit_value = norms.unit(made, c, v);
          const vec<T> d = gelu_slope(unit_value * gain[c] + shift[c]) * mask[v] * by;
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
          const vec<T> unit_value = norms.unit(made, c, v);
          const vec<T> inner = load(slopes.data() + c * size + v * kLanes<T>);
          const vec<T> value = norms.inverse[v] * (inner - (sum[v] + unit_value * projected[v]) / T(s.channels));
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
