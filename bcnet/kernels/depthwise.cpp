// Backward pass of a depthwise convolution over rows of channels (channels_last): both gradients in one walk over the image.
//
// Every gradient pixel is loaded once per row of taps and serves the gradient of the input and of the weight alike. A block of
// channels keeps its weights and sums in registers; while a row is worked on, the next one is fetched in the order it lies in
// memory, because blocks of channels visit it in strides that no prefetcher follows.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

struct bf16 {
  uint16_t bits;
};

constexpr int64_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

inline Lanes load(const float* from) {
  Lanes value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Lanes load(const bf16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
#ifdef __AVX512F__  // what the compiler makes of the conversion takes four instructions more
  const Words words = (Words)_mm512_cvtepu16_epi32((__m256i)halves) << 16;
#else
  const Words words = __builtin_convertvector(halves, Words) << 16;
#endif
  return (Lanes)words;
}

inline void store(float* to, Lanes value) { std::memcpy(to, &value, sizeof value); }

inline void store(bf16* to, Lanes value) {  // to nearest, ties to even
#ifdef __AVX512BF16__
  const Halves halves = (Halves)_mm512_cvtneps_pbh((__m512)value);
#else
  const Words words = (Words)value;
  const Halves halves = __builtin_convertvector((words + 0x7fffu + ((words >> 16) & 1u)) >> 16, Halves);
#endif
  std::memcpy(to, &halves, sizeof halves);
}

struct Shape {
  int64_t images, channels, height, width, out_height, out_width, padding;
};

// One image row of one block of channels. `gradients` is the output's gradient of this image from the block's first channel on.
template <typename T, int K, int S>
inline void row_of_block(const T* gradients, const T* x, const Lanes* weight, T* grad_x, Lanes* sums, const T* zeros, int64_t row,
                         const Shape& shape) {
  const int64_t channels = shape.channels, out_width = shape.out_width;
  const T* rows[K];  // the gradient's row under every row of taps, or zeros
  int64_t step[K];
  for (int dy = 0; dy < K; ++dy) {
    const int64_t at = row + shape.padding - dy;
    const bool inside = at >= 0 && at % S == 0 && at / S < shape.out_height;
    rows[dy] = inside ? gradients + at / S * out_width * channels : zeros;
    step[dy] = inside ? channels : 0;
  }
  if constexpr (S == 1) {
    Lanes window[K][K];  // window[dy][dx]: the gradient that tap (dy, dx) carries to this pixel; it slides to the right
    const auto from = [&](int dy, int64_t column) { return column >= 0 && column < out_width ? load(rows[dy] + column * step[dy]) : Lanes{}; };
    for (int dy = 0; dy < K; ++dy)
      for (int dx = 1; dx < K; ++dx) window[dy][dx - 1] = from(dy, shape.padding - dx);
    const auto pixel = [&](int64_t column, auto inside) {
      const Lanes value = load(x + column * channels);
      Lanes total = {};
      for (int dy = 0; dy < K; ++dy) {
        Lanes part = {};
        for (int dx = K - 1; dx > 0; --dx) window[dy][dx] = window[dy][dx - 1];
        const int64_t next = column + shape.padding;
        window[dy][0] = inside() ? load(rows[dy] + next * step[dy]) : from(dy, next);
        for (int dx = 0; dx < K; ++dx) {
          part += weight[dy * K + dx] * window[dy][dx];
          sums[dy * K + dx] += value * window[dy][dx];
        }
        total += part;
      }
      store(grad_x + column * channels, total);
    };
    const int64_t last = std::min(shape.width, out_width - shape.padding);
    int64_t column = 0;
    for (; column < last; ++column) pixel(column, std::true_type());
    for (; column < shape.width; ++column) pixel(column, std::false_type());
  } else {
    for (int64_t column = 0; column < shape.width; ++column) {
      const Lanes value = load(x + column * channels);
      Lanes total = {};
      for (int dy = 0; dy < K; ++dy) {
        if (!step[dy]) continue;
        for (int dx = 0; dx < K; ++dx) {
          const int64_t at = column + shape.padding - dx;
          if (at < 0 || at % S || at / S >= out_width) continue;
          const Lanes gradient = load(rows[dy] + at / S * channels);
          total += weight[dy * K + dx] * gradient;
          sums[dy * K + dx] += value * gradient;
        }
      }
      store(grad_x + column * channels, total);
    }
  }
}

// grad (N, OH, OW, C), x and grad_x (N, H, W, C), weight and grad_weight (K * K, C), in memory order; C is at least kLanes.
template <typename T, int K, int S>
void backward(const T* grad, const T* x, const float* weight, T* grad_x, float* grad_weight, const Shape shape, int threads) {
  constexpr int kTaps = K * K;
  const int64_t channels = shape.channels, blocks = (channels + kLanes - 1) / kLanes;
  const auto first_channel = [&](int64_t block) { return std::min(block * kLanes, channels - kLanes); };  // the last one overlaps
  std::vector<float> parts(size_t(threads) * blocks * kTaps * kLanes, 0.0f);
  const std::vector<T> zeros(channels);
#pragma omp parallel num_threads(threads)
  {
    const int me = omp_get_thread_num(), team = omp_get_num_threads();  // no more than asked for, maybe fewer
    float* mine = parts.data() + size_t(me) * blocks * kTaps * kLanes;
    for (int64_t image = shape.images * me / team; image < shape.images * (me + 1) / team; ++image) {
      for (int64_t row = 0; row < shape.height; ++row) {
        const int64_t here = (image * shape.height + row) * shape.width * channels, next = here + shape.width * channels;
        const int64_t next_gradient = (image * shape.out_height + (row + 1 + shape.padding) / S) * shape.out_width * channels;
        for (int64_t block = 0; block < blocks; ++block) {
          constexpr int64_t kLine = 64 / sizeof(T);
          for (int64_t i = block * shape.width * kLanes; i < (block + 1) * shape.width * kLanes; i += kLine) {
            __builtin_prefetch(x + next + i, 0, 2);
            __builtin_prefetch(grad + next_gradient + i, 0, 2);
            __builtin_prefetch(grad_x + next + i, 1, 2);
          }
          const int64_t c = first_channel(block);
          float* kept = mine + block * kTaps * kLanes;
          Lanes taps[kTaps], sums[kTaps];
          for (int t = 0; t < kTaps; ++t) {
            taps[t] = load(weight + t * channels + c);
            sums[t] = load(kept + t * kLanes);
          }
          const T* gradients = grad + image * shape.out_height * shape.out_width * channels + c;
          row_of_block<T, K, S>(gradients, x + here + c, taps, grad_x + here + c, sums, zeros.data(), row, shape);
          for (int t = 0; t < kTaps; ++t) store(kept + t * kLanes, sums[t]);
        }
      }
    }
  }
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < kTaps * kLanes; ++i) {
      double total = 0.0;
      for (int t = 0; t < threads; ++t) total += parts[(size_t(t) * blocks + block) * kTaps * kLanes + i];
      grad_weight[i / kLanes * channels + first_channel(block) + i % kLanes] = float(total);
    }
  }
}

template <typename T>
void dispatch(const T* grad, const T* x, const float* weight, T* grad_x, float* grad_weight, const Shape& shape, int kernel, int stride,
              int threads) {
  const auto run = kernel == 3 ? (stride == 1 ? backward<T, 3, 1> : backward<T, 3, 2>) : (stride == 1 ? backward<T, 5, 1> : backward<T, 5, 2>);
  run(grad, x, weight, grad_x, grad_weight, shape, threads);
}

}  // namespace

extern "C" {

// sizes: images, channels, height, width, height and width of the gradient, padding. Kernel 3 or 5, stride 1 or 2.

void depthwise_backward_float(const float* grad, const float* x, const float* weight, float* grad_x, float* grad_weight,
                              const int64_t* sizes, int kernel, int stride, int threads) {
  dispatch(grad, x, weight, grad_x, grad_weight, {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]}, kernel, stride, threads);
}

void depthwise_backward_bfloat16(const bf16* grad, const bf16* x, const float* weight, bf16* grad_x, float* grad_weight,
                                 const int64_t* sizes, int kernel, int stride, int threads) {
  dispatch(grad, x, weight, grad_x, grad_weight, {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]}, kernel, stride, threads);
}
}
