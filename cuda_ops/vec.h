// One register of floats or doubles, as wide as the machine's, in the compilers' own vector extension.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

namespace monai_ext {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T>
struct Vec;
template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef int32_t bits __attribute__((vector_size(kBytes)));
};
template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(kBytes)));
  typedef int64_t bits __attribute__((vector_size(kBytes)));
};
template <class T>
using vec = typename Vec<T>::type;
template <class T>
constexpr int kLanes = kBytes / sizeof(T);

template <class T>
inline vec<T> load(const T* from) {
  vec<T> value;
  std::memcpy(&value, from, kBytes);
  return value;
}
template <class T>
inline void store(T* to, vec<T> value) {
  std::memcpy(to, &value, kBytes);
}
template <class T>
inline vec<T> broadcast(T value) {
  return vec<T>{} + value;
}

// GCC shuffles by a vector of indices, clang by constants: this is the one place that knows.
#if defined(__clang__)
template <class T, int... I>
inline void interleave(vec<T> a, vec<T> b, vec<T>& low, vec<T>& high, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  low = __builtin_shufflevector(a, b, (I / 2 + (I % 2) * n)...);
  high = __builtin_shufflevector(a, b, (n / 2 + I / 2 + (I % 2) * n)...);
}
#else
template <class T, int... I>
inline void interleave(vec<T> a, vec<T> b, vec<T>& low, vec<T>& high, std::integer_sequence<int, I...>) {
  typedef typename Vec<T>::bits bits;
  constexpr int n = sizeof...(I);
  low = __builtin_shuffle(a, b, bits{(I / 2 + (I % 2) * n)...});
  high = __builtin_shuffle(a, b, bits{(n / 2 + I / 2 + (I % 2) * n)...});
}
#endif

// Transpose kLanes x kLanes values held in kLanes registers: log2(kLanes) rounds of perfect shuffles.
template <class T>
inline void transpose(vec<T> (&rows)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  vec<T> other[n];
  for (int round = 1; round < n; round *= 2) {
    for (int i = 0; i < n / 2; ++i)
      interleave<T>(rows[i], rows[i + n / 2], other[2 * i], other[2 * i + 1], std::make_integer_sequence<int, n>{});
    std::memcpy(&rows, &other, sizeof(rows));
  }
}

// tile[j] lane i = from[i * stride + j]: a transposed read, zeros outside (rows, columns).
template <class T>
inline void load_transposed(const T* from, int64_t stride, int rows, int columns, vec<T> (&tile)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  if (columns == n) {
    for (int i = 0; i < n; ++i) tile[i] = i < rows ? load(from + i * stride) : vec<T>{};
  } else {
    for (int i = 0; i < n; ++i) {
      tile[i] = vec<T>{};
      if (i < rows) std::memcpy(&tile[i], from + i * stride, columns * sizeof(T));
    }
  }
  transpose<T>(tile);
}

// to[i * stride + j] = tile[j] lane i, for i < rows and j < columns. The tile is left transposed.
template <class T>
inline void store_transposed(vec<T> (&tile)[kLanes<T>], T* to, int64_t stride, int rows, int columns) {
  transpose<T>(tile);
  for (int i = 0; i < rows; ++i) std::memcpy(to + i * stride, &tile[i], columns * sizeof(T));
}

// e^(x ln 2) = 2^x, to the last bit or two. Its Taylor coefficients keep 2^x exact near x = 0, where a scan's decay
// is raised to thousands of steps. Below the smallest normal number the result is that number; a quiet NaN without
// payload, as arithmetic makes it, stays NaN.
inline vec<float> exp2(vec<float> x) {
  typedef Vec<float>::bits bits;
  x = x < -126.0f ? broadcast(-126.0f) : x;
  x = x > 127.49f ? broadcast(127.49f) : x;
  const vec<float> rounder = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  const vec<float> shifted = x + rounder;
  const vec<float> f = x - (shifted - rounder);
  vec<float> p = broadcast(1.5403530e-4f);
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return (vec<float>)((bits)p + ((bits)shifted << 23));
}
inline vec<double> exp2(vec<double> x) {
  vec<double> out;
  for (int i = 0; i < kLanes<double>; ++i) out[i] = __builtin_exp2(x[i]);
  return out;
}

// log(1 + e) for 0 <= e <= 1, as 2 artanh(e / (2 + e)).
inline vec<float> log1p_unit(vec<float> e) {
  const vec<float> s = e / (e + 2.0f), q = s * s;
  vec<float> p = broadcast(2.0f / 15);
  for (int k = 13; k > 0; k -= 2) p = p * q + 2.0f / k;
  return p * s;
}
inline vec<double> log1p_unit(vec<double> e) {
  vec<double> out;
  for (int i = 0; i < kLanes<double>; ++i) out[i] = __builtin_log1p(e[i]);
  return out;
}

}  // namespace monai_ext
