// Batch normalisation over rows of channels (channels_last), with the ReLU behind it in the same pass.
//
// Unfused, a training step reads and writes every activation 13 times for BN and ReLU; fused, 8 times. Sums are taken in
// float over 8 rows at a time and gathered in double, in an order that depends on the number of threads only.

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

struct bf16 {
  uint16_t bits;
};

inline float load(float value) { return value; }
inline float load(bf16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline void store(float* where, float value) { *where = value; }
inline void store(bf16* where, float value) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  where->bits = uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

constexpr int64_t kRows = 8;     // rows added up in registers
constexpr int64_t kBlock = 512;  // rows added up in float
constexpr double kFar = 1000;    // squared mean over variance, from where on floats do not hold their difference

// Gathers two sums per channel: add(row, count, first, second) adds `count` rows to float vectors.
template <typename Add>
void sum_rows(int64_t rows, int64_t channels, int threads, double* first, double* second, Add add) {
  std::vector<double> parts(size_t(threads) * 2 * channels, 0.0);
#pragma omp parallel num_threads(threads)
  {
    const int me = omp_get_thread_num(), team = omp_get_num_threads();  // no more than asked for, maybe fewer
    const int64_t begin = rows * me / team, end = rows * (me + 1) / team;
    double* mine = parts.data() + size_t(me) * 2 * channels;
    std::vector<float> local(2 * channels);
    for (int64_t block = begin; block < end; block += kBlock) {
      std::memset(local.data(), 0, local.size() * sizeof(float));
      const int64_t stop = block + kBlock < end ? block + kBlock : end;
      int64_t row = block;
      for (; row + kRows <= stop; row += kRows) add(row, std::integral_constant<int64_t, kRows>(), local.data(), local.data() + channels);
      for (; row < stop; ++row) add(row, std::integral_constant<int64_t, 1>(), local.data(), local.data() + channels);
      for (int64_t c = 0; c < 2 * channels; ++c) mine[c] += local[c];
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    first[c] = second[c] = 0.0;
    for (int t = 0; t < threads; ++t) {
      first[c] += parts[size_t(t) * 2 * channels + c];
      second[c] += parts[size_t(t) * 2 * channels + channels + c];
    }
  }
}

// y = x * scale + shift, not below zero if asked.
template <typename T>
void apply(const T* x, const float* weight, const float* bias, T* y, const float* mean, const float* var, int64_t rows,
           int64_t channels, float eps, bool relu, int threads) {
  std::vector<float> scale(channels), shift(channels);
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] = (weight ? weight[c] : 1.0f) / std::sqrt(var[c] + eps);
    shift[c] = (bias ? bias[c] : 0.0f) - mean[c] * scale[c];
  }
  const float low = relu ? 0.0f : -INFINITY;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; ++row) {
    const T* __restrict from = x + row * channels;
    T* __restrict to = y + row * channels;
    const float *__restrict a0 = scale.data(), *__restrict b0 = shift.data();
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float value = load(from[c]) * a0[c] + b0[c];
      store(to + c, value < low ? low : value);
    }
  }
}

template <typename T>
void forward(const T* x, const float* weight, const float* bias, T* y, float* mean, float* var, int64_t rows, int64_t channels,
             float eps, bool relu, int threads) {
  std::vector<double> sum(channels), squares(channels);
  sum_rows(rows, channels, threads, sum.data(), squares.data(), [&](int64_t row, auto count, float* __restrict s, float* __restrict q) {
    const T* __restrict from = x + row * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      float a = 0, b = 0;
      for (int64_t r = 0; r < count(); ++r) {
        const float value = load(from[r * channels + c]);
        a += value;
        b += value * value;
      }
      s[c] += a;
      q[c] += b;
    }
  });
  bool cancelled = false;
  for (int64_t c = 0; c < channels; ++c) {
    const double m = sum[c] / rows;
    mean[c] = float(m);
    const double v = squares[c] / rows - m * m;
    var[c] = float(v < 0 ? 0 : v);
    cancelled |= m * m > kFar * v;
  }
  if (cancelled) {  // hardly ever: once more, around the mean
    sum_rows(rows, channels, threads, sum.data(), squares.data(), [&](int64_t row, auto count, float* __restrict s, float* __restrict q) {
      const T* __restrict from = x + row * channels;
      const float* __restrict m0 = mean;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        float a = 0, b = 0;
        for (int64_t r = 0; r < count(); ++r) {
          const float value = load(from[r * channels + c]) - m0[c];
          a += value;
          b += value * value;
        }
        s[c] += a;
        q[c] += b;
      }
    });
    for (int64_t c = 0; c < channels; ++c) {
      const double m = sum[c] / rows, v = squares[c] / rows - m * m;
      if (double(mean[c]) * mean[c] > kFar * var[c]) var[c] = float(v < 0 ? 0 : v);
    }
  }
  apply(x, weight, bias, y, mean, var, rows, channels, eps, relu, threads);
}

template <typename T>
void backward(const T* grad, const T* x, const float* weight, const float* bias, const float* mean, const float* var, T* grad_x,
              float* grad_weight, float* grad_bias, int64_t rows, int64_t channels, float eps, bool relu, int threads) {
  std::vector<float> invstd(channels), scale(channels), shift(channels);
  for (int64_t c = 0; c < channels; ++c) {
    invstd[c] = 1.0f / std::sqrt(var[c] + eps);
    scale[c] = (weight ? weight[c] : 1.0f) * invstd[c];
    shift[c] = (bias ? bias[c] : 0.0f) - mean[c] * scale[c];
  }
  const float low = relu ? 0.0f : -INFINITY;
  std::vector<double> sum(channels), product(channels);
  sum_rows(rows, channels, threads, sum.data(), product.data(), [&](int64_t row, auto count, float* __restrict s, float* __restrict q) {
    const T* __restrict from = x + row * channels;
    const T* __restrict of = grad + row * channels;
    const float *__restrict a0 = scale.data(), *__restrict b0 = shift.data(), *__restrict m0 = mean;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      float a = 0, b = 0;
      for (int64_t r = 0; r < count(); ++r) {
        const float value = load(from[r * channels + c]);
        const float given = load(of[r * channels + c]);
        const float g = value * a0[c] + b0[c] <= low ? 0.0f : given;
        a += g;
        b += g * (value - m0[c]);
      }
      s[c] += a;
      q[c] += b;
    }
  });
  std::vector<float> slope(channels), offset(channels);  // dx = scale * g - slope * x - offset
  for (int64_t c = 0; c < channels; ++c) {
    const double by_weight = product[c] * invstd[c];
    if (grad_weight) grad_weight[c] = float(by_weight);
    if (grad_bias) grad_bias[c] = float(sum[c]);
    slope[c] = float(scale[c] * by_weight * invstd[c] / rows);
    offset[c] = float(scale[c] * sum[c] / rows) - slope[c] * mean[c];
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; ++row) {
    const T* __restrict from = x + row * channels;
    const T* __restrict of = grad + row * channels;
    T* __restrict to = grad_x + row * channels;
    const float *__restrict a0 = scale.data(), *__restrict b0 = shift.data(), *__restrict k0 = slope.data(), *__restrict o0 = offset.data();
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float value = load(from[c]);
      const float given = load(of[c]);
      const float g = value * a0[c] + b0[c] <= low ? 0.0f : given;
      store(to + c, a0[c] * g - k0[c] * value - o0[c]);
    }
  }
}

}  // namespace

extern "C" {

// statistics: mean and biased variance, (2, C).

void bn_apply_float(const float* x, const float* weight, const float* bias, float* y, const float* statistics, int64_t rows,
                    int64_t channels, float eps, int relu, int threads) {
  apply(x, weight, bias, y, statistics, statistics + channels, rows, channels, eps, relu != 0, threads);
}

void bn_apply_bfloat16(const bf16* x, const float* weight, const float* bias, bf16* y, const float* statistics, int64_t rows,
                       int64_t channels, float eps, int relu, int threads) {
  apply(x, weight, bias, y, statistics, statistics + channels, rows, channels, eps, relu != 0, threads);
}

void bn_forward_float(const float* x, const float* weight, const float* bias, float* y, float* statistics, int64_t rows,
                      int64_t channels, float eps, int relu, int threads) {
  forward(x, weight, bias, y, statistics, statistics + channels, rows, channels, eps, relu != 0, threads);
}

void bn_forward_bfloat16(const bf16* x, const float* weight, const float* bias, bf16* y, float* statistics, int64_t rows,
                         int64_t channels, float eps, int relu, int threads) {
  forward(x, weight, bias, y, statistics, statistics + channels, rows, channels, eps, relu != 0, threads);
}

void bn_backward_float(const float* grad, const float* x, const float* weight, const float* bias, const float* statistics,
                       float* grad_x, float* grad_weight, float* grad_bias, int64_t rows, int64_t channels, float eps, int relu, int threads) {
  backward(grad, x, weight, bias, statistics, statistics + channels, grad_x, grad_weight, grad_bias, rows, channels, eps, relu != 0, threads);
}

void bn_backward_bfloat16(const bf16* grad, const bf16* x, const float* weight, const float* bias, const float* statistics,
                          bf16* grad_x, float* grad_weight, float* grad_bias, int64_t rows, int64_t channels, float eps, int relu, int threads) {
  backward(grad, x, weight, bias, statistics, statistics + channels, grad_x, grad_weight, grad_bias, rows, channels, eps, relu != 0, threads);
}
}
