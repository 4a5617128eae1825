// The shapes of a convolution and of its padded images, and what all its kernels share.
//
// Images are [batch, height, width, channels], kernels [height, width, input channels, output
// channels], and both are float32 or bfloat16.

#pragma once

#include "base.h"

namespace crest {

struct Shape {
  int64_t batch, height, width, in, kernel_height, kernel_width, out_height, out_width, out;
  int64_t stride_y, stride_x, before_y, before_x;

  // The extent that the windows cover, padding included.
  int64_t padded_height() const { return (out_height - 1) * stride_y + kernel_height; }
  int64_t padded_width() const { return (out_width - 1) * stride_x + kernel_width; }
  int64_t padded_row() const { return padded_width() * in; }
  int64_t padded_size() const { return padded_height() * padded_row(); }
  int64_t input_size() const { return height * width * in; }
  int64_t output_size() const { return out_height * out_width * out; }
  int64_t kernel_size() const { return kernel_height * kernel_width * in * out; }

  // The convolution of output gradients that computes input gradients, at a stride of 1.
  Shape of_input_gradient() const {
    return {batch, out_height, out_width, out, kernel_height, kernel_width, height, width, in,
            1, 1, kernel_height - 1 - before_y, kernel_width - 1 - before_x};
  }

  // Calls f(offset in the image, offset in the padded image, count of numbers) for each row that is
  // in both.
  template <typename F>
  void rows(F f) const {
    int64_t shared = std::min(width, padded_width() - before_x) * in;
    for (int64_t y = 0; y < std::min(height, padded_height() - before_y); ++y)
      f(y * width * in, (y + before_y) * padded_row() + before_x * in, shared);
  }
};

template <typename T>
void copy(const T* from, int64_t size, T* to) {
  std::memcpy(to, from, size * sizeof(T));
}

template <typename From, typename To>
void copy(const From* from, int64_t size, To* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load(from + i));
  if (i < size) store_some(to + i, load_some(from + i, size - i), size - i);
}

// Copies the first `count` of 32 numbers.
inline void copy_some(const bf16* from, int64_t count, bf16* to) {
#ifdef __AVX512BW__
  const uint32_t mask = count >= 32 ? ~0u : (1u << count) - 1;
  _mm512_mask_storeu_epi16(to, mask, _mm512_loadu_si512(from));
#else
  std::memcpy(to, from, count * sizeof(bf16));
#endif
}

// Sums several parts, [parts, size], in the order of the parts.
template <typename T>
void total(const Threads& threads, const float* parts, int64_t count, int64_t size, T* to) {
  constexpr int64_t kAtOnce = 4096;
  parallel(threads, (size + kAtOnce - 1) / kAtOnce, [&](int64_t i) {
    for (int64_t at = i * kAtOnce; at < std::min(size, (i + 1) * kAtOnce); at += kLanes) {
      Vector sum{};
      for (int64_t part = 0; part < count; ++part)
        sum += load_some(parts + part * size + at, size - at);
      store_some(to + at, sum, size - at);
    }
  });
}

// Rearranges a kernel for the input gradient: [height, width, out, in], with its taps in reverse.
template <typename T>
void turn(const Threads& threads, const Shape& s, const T* kernel, T* to) {
  const int64_t taps = s.kernel_height * s.kernel_width, tap = s.in * s.out;
  parallel(threads, taps, [&](int64_t i) {
    const T* from = kernel + i * tap;
    T* turned = to + (taps - 1 - i) * tap;
    constexpr int64_t kLine = 16;  // numbers per cache line
    for (int64_t c = 0; c < s.in; c += kLine)
      for (int64_t n = 0; n < s.out; ++n)
        for (int64_t k = c; k < std::min(s.in, c + kLine); ++k)
          turned[n * s.in + k] = from[k * s.out + n];
  });
}

inline bool all_finite(const float* values, int64_t size) {
  uint32_t others = 0;
  for (int64_t i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    others |= (bits & 0x7f800000) == 0x7f800000;
  }
  return !others;
}

inline bool all_finite(const bf16* values, int64_t size) {
  uint16_t others = 0;
  for (int64_t i = 0; i < size; ++i) others |= (values[i].bits & 0x7f80) == 0x7f80;
  return !others;
}

}  // namespace crest
