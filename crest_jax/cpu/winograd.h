// 3 x 3 convolutions of stride 1 in float32 arithmetic with 4/9 of the multiplications.
//
// Winograd's F(2 x 2, 3 x 3) (Lavin & Gray, 2016): two outputs of a 1-dimensional convolution with
// three taps g depend on four inputs d, and need four products instead of six,
//   m = (d0 - d2, d1 + d2, d2 - d1, d1 - d3) * (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2)
//   y = (m0 + m1 + m2, m1 - m2 - m3),
// and this is applied in both dimensions. Each of the 16 products of a 4 x 4 patch of inputs is a
// product of matrices, [patches, channels] times [channels, features]. The gradient of the kernel
// is the reverse-mode derivative of the same formula. A non-finite input reaches only the outputs
// whose windows contain it; for the gradient of the kernel see `kernel_gradient`. Because sums of
// inputs and of weights are taken first, they overflow slightly before a convolution's own sums.
//
// The order of every sum depends only on the shapes and the vector width, not on threads.

#pragma once

#include "convolution.h"
#include "product.h"

namespace crest::winograd {

constexpr int kTerms = 16;  // of a 4 x 4 patch

// Patches of 2 x 2 outputs, of which the last row or column may be outside of the image.
struct Patches {
  int64_t high, wide, each, all;  // patches along y, along x, per image, in all images
  // Patches that are processed together; their terms should fit into the second-level cache.
  int64_t at_once = 4 * kMostRows;

  explicit Patches(const Shape& s)
      : high((s.out_height + 1) / 2), wide((s.out_width + 1) / 2), each(high * wide),
        all(s.batch * each) {}
  int64_t blocks() const { return (all + at_once - 1) / at_once; }

  // Calls f(index in the block, image, output row, output column) for each patch of a block, and
  // returns the number of patches.
  template <typename F>
  int64_t of_block(int64_t block, F f) const {
    const int64_t first = block * at_once, count = std::min(at_once, all - first);
    int64_t image = first / each, y = first % each / wide, x = first % wide;
    for (int64_t t = 0; t < count; ++t) {
      f(t, image, 2 * y, 2 * x);
      if (++x == wide) {
        x = 0;
        if (++y == high) y = 0, ++image;
      }
    }
    return count;
  }
};

constexpr bool takes(const Shape& s) {
  return s.kernel_height == 3 && s.kernel_width == 3 && s.stride_y == 1 && s.stride_x == 1 &&
         s.in >= kLanes / 2 && s.out >= kLanes / 2;
}

// Lines of different terms must not be a power of two apart, as the cache would hold few of them.
inline int64_t term_size(int64_t patches, int64_t channels) { return patches * channels + 16; }

inline void transform_inputs(const Vector d[4], Vector to[4]) {
  to[0] = d[0] - d[2];
  to[1] = d[1] + d[2];
  to[2] = d[2] - d[1];
  to[3] = d[1] - d[3];
}

// Computes the 16 terms of a patch of `channels` channels, whose pixels begin at `at(row, column)`.
template <bool kWhole, typename At>
inline void transform_patch(At at, int64_t channels, int64_t term, float* to) {
  Vector rows[4][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Vector d[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) d[j] = kWhole ? load(at(i, j)) : load_some(at(i, j), channels);
    transform_inputs(d, rows[i]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vector d[4] = {rows[0][j], rows[1][j], rows[2][j], rows[3][j]};
    Vector terms[4];
    transform_inputs(d, terms);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store(to + (i * 4 + j) * term, terms[i]);
  }
}

// Computes the 16 terms of each patch of a block: [16][patches, channels].
template <typename T>
void inputs(const Shape& s, const Patches& patches, int64_t block, const T* x, float* to) {
  const int64_t channels = up(s.in, kLanes), term = term_size(patches.at_once, channels);
  const int64_t line = s.width * s.in;
  thread_local Memory<T> memory;
  T* outside = memory.at_least(channels);
  std::fill_n(outside, channels, T{});
  patches.of_block(block, [&](int64_t t, int64_t image, int64_t y, int64_t x_) {
    const int64_t top = y - s.before_y, left = x_ - s.before_x;
    const T* first = x + image * s.input_size() + top * line + left * s.in;
    float* place = to + t * channels;
    auto each = [&](auto at) {
      int64_t c = 0;
      for (; c + kLanes <= s.in; c += kLanes)
        transform_patch<true>([&](int i, int j) { return at(i, j) + c; }, kLanes, term, place + c);
      if (c < s.in)
        transform_patch<false>([&](int i, int j) { return at(i, j) + c; }, s.in - c, term,
                               place + c);
    };
    if (top >= 0 && left >= 0 && top + 4 <= s.height && left + 4 <= s.width) {
      each([&](int i, int j) { return first + i * line + j * s.in; });
    } else {
      const T* pixels[4][4];
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t j = 0; j < 4; ++j) {
          const bool within = top + i >= 0 && top + i < s.height && left + j >= 0 &&
                              left + j < s.width;
          pixels[i][j] = within ? first + i * line + j * s.in : outside;
        }
      each([&](int i, int j) { return pixels[i][j]; });
    }
  });
}

inline void transform_taps(const Vector g[3], Vector to[4]) {
  const Vector outer = g[0] + g[2];
  to[0] = g[0];
  to[1] = (outer + g[1]) * 0.5f;
  to[2] = (outer - g[1]) * 0.5f;
  to[3] = g[2];
}

// Computes the 16 terms of a kernel, each packed: [16][channels, features].
template <typename T>
void taps(const Threads& threads, const Shape& s, const T* kernel, float* to) {
  const int64_t term = packed_size(s.in, s.out);
  parallel(threads, (s.in + 15) / 16, [&](int64_t part) {
    for (int64_t c = part * 16; c < std::min(s.in, part * 16 + 16); ++c)
      for (int64_t n = 0; n < s.out; n += kLanes) {
        Vector rows[3][4];
        for (int i = 0; i < 3; ++i) {
          Vector g[3];
          for (int j = 0; j < 3; ++j)
            g[j] = load_some(kernel + ((i * 3 + j) * s.in + c) * s.out + n, s.out - n);
          transform_taps(g, rows[i]);
        }
        const int64_t block = n / (2 * kLanes) * (2 * kLanes), width = block_width(block, s.out);
        float* place = to + block * s.in + c * width + (n - block);
        for (int j = 0; j < 4; ++j) {
          const Vector g[3] = {rows[0][j], rows[1][j], rows[2][j]};
          Vector terms[4];
          transform_taps(g, terms);
          for (int i = 0; i < 4; ++i) store(place + (i * 4 + j) * term, terms[i]);
        }
      }
  });
}

inline void transform_products(const Vector m[4], Vector y[2]) {
  y[0] = m[0] + m[1] + m[2];
  y[1] = m[1] - m[2] - m[3];
}

template <typename T>
void outputs(const Shape& s, const Patches& patches, int64_t block, const float* from, T* y) {
  const int64_t features = up(s.out, kLanes), term = term_size(patches.at_once, features);
  patches.of_block(block, [&](int64_t t, int64_t image, int64_t row, int64_t column) {
    T* to = y + image * s.output_size() + (row * s.out_width + column) * s.out;
    const bool below = row + 1 < s.out_height, right = column + 1 < s.out_width;
    for (int64_t n = 0; n < features; n += kLanes) {
      Vector halves[4][2];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        Vector m[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) m[j] = load(from + (i * 4 + j) * term + t * features + n);
        transform_products(m, halves[i]);
      }
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const Vector m[4] = {halves[0][j], halves[1][j], halves[2][j], halves[3][j]};
        Vector both[2];
        transform_products(m, both);
        if (j == 1 && !right) break;
        store_some(to + j * s.out + n, both[0], s.out - n);
        if (below) store_some(to + (s.out_width + j) * s.out + n, both[1], s.out - n);
      }
    }
  });
}

template <typename T>
void forward(const Threads& threads, const Shape& s, const T* x, const T* kernel, T* y) {
  const Patches patches(s);
  const int64_t channels = up(s.in, kLanes), features = up(s.out, kLanes);
  const int64_t kernel_term = packed_size(s.in, s.out);
  const int64_t from = term_size(patches.at_once, channels);
  const int64_t to = term_size(patches.at_once, features);
  thread_local Memory<float> weights;
  float* transformed = weights.at_least(kTerms * kernel_term);
  taps(threads, s, kernel, transformed);
  const Product p{.i = {1, 0, 0}, .j = {1, 0, 0}, .k = {s.in, 1, 1}, .a_row = channels,
                  .c_row = features, .b_rows = s.in, .add = false};
  parallel(threads, patches.blocks(), [&](int64_t block) {
    thread_local Memory<float> memory;
    float* a = memory.at_least(kTerms * (from + to));
    float* c = a + kTerms * from;
    inputs(s, patches, block, x, a);
    const int64_t count = std::min(patches.at_once, patches.all - block * patches.at_once);
    for (int term = 0; term < kTerms; ++term)
      product(p, count, features, a + term * from, transformed + term * kernel_term, c + term * to);
    outputs(s, patches, block, c, y);
  });
}

// Computes the gradients of the four products from those of the two outputs.
inline void transform_gradients(const Vector dy[2], Vector to[4]) {
  to[0] = dy[0];
  to[1] = dy[0] + dy[1];
  to[2] = dy[0] - dy[1];
  to[3] = -dy[1];
}

// Computes the 16 terms of the gradient of each patch of a block, packed: [16][patches, features].
template <typename T>
void gradients(const Shape& s, const Patches& patches, int64_t block, const T* dy, float* to) {
  const int64_t term = packed_size(patches.at_once, s.out) + 16;
  patches.of_block(block, [&](int64_t t, int64_t image, int64_t row, int64_t column) {
    const T* from = dy + image * s.output_size() + (row * s.out_width + column) * s.out;
    const bool below = row + 1 < s.out_height, right = column + 1 < s.out_width;
    for (int64_t n = 0; n < s.out; n += kLanes) {
      Vector rows[2][4];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        Vector d[2] = {};
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j)
          if ((!i || below) && (!j || right))
            d[j] = load_some(from + (i * s.out_width + j) * s.out + n, s.out - n);
        transform_gradients(d, rows[i]);
      }
      const int64_t first = n / (2 * kLanes) * (2 * kLanes), width = block_width(first, s.out);
      float* place = to + first * patches.at_once + t * width + (n - first);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vector d[2] = {rows[0][j], rows[1][j]};
        Vector terms[4];
        transform_gradients(d, terms);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) store(place + (i * 4 + j) * term, terms[i]);
      }
    }
  });
}

inline void transform_sums(const Vector m[4], Vector g[3]) {
  const Vector half = (m[1] + m[2]) * 0.5f;
  g[0] = m[0] + half;
  g[1] = (m[1] - m[2]) * 0.5f;
  g[2] = half + m[3];
}

// Returns false, with unusable results, if a sum is not finite: a non-finite number of an image
// would also reach taps that never meet it, for example if it is within one pixel of the edge.
template <typename T>
bool kernel_gradient(const Threads& threads, const Shape& s, const T* x, const T* dy, T* dkernel) {
  const Patches patches(s);
  const int64_t channels = up(s.in, kLanes), features = up(s.out, kLanes);
  const int64_t size = s.in * features;  // of the sums of a term
  const int64_t from = term_size(patches.at_once, channels);
  const int64_t gradient = packed_size(patches.at_once, s.out) + 16;
  // Blocks are summed in parts that do not depend on the number of threads.
  const int64_t parts = std::min<int64_t>(patches.blocks(), kTerms * size > 1 << 17 ? 4 : 8);
  thread_local Memory<float> all;
  float* sums = all.at_least(parts * kTerms * size);
  parallel(threads, parts, [&](int64_t part) {
    thread_local Memory<float> memory;
    float* a = memory.at_least(kTerms * (from + gradient));
    float* b = a + kTerms * from;
    const int64_t end = (part + 1) * patches.blocks() / parts;
    const int64_t begin = part * patches.blocks() / parts;
    for (int64_t block = begin; block < end; ++block) {
      inputs(s, patches, block, x, a);
      gradients(s, patches, block, dy, b);
      const int64_t count = std::min(patches.at_once, patches.all - block * patches.at_once);
      const Product p{.i = {1, 0, 0}, .j = {1, 0, 0}, .k = {count, channels, 1}, .a_row = 1,
                      .c_row = features, .b_rows = patches.at_once, .add = block > begin};
      for (int term = 0; term < kTerms; ++term)
        product(p, s.in, features, a + term * from, b + term * gradient,
                sums + (part * kTerms + term) * size);
    }
  });
  std::atomic<bool> finite{true};
  parallel(threads, (s.in + 15) / 16, [&](int64_t sixteen) {
    for (int64_t c = sixteen * 16; c < std::min(s.in, sixteen * 16 + 16); ++c)
      for (int64_t n = 0; n < s.out; n += kLanes) {
        Vector rows[4][3];
        for (int i = 0; i < 4; ++i) {
          Vector m[4];
          for (int j = 0; j < 4; ++j) {
            const float* at = sums + (i * 4 + j) * size + c * features + n;
            m[j] = load(at);
            for (int64_t part = 1; part < parts; ++part) m[j] += load(at + part * kTerms * size);
          }
          transform_sums(m, rows[i]);
        }
        for (int j = 0; j < 3; ++j) {
          const Vector m[4] = {rows[0][j], rows[1][j], rows[2][j], rows[3][j]};
          Vector g[3];
          transform_sums(m, g);
          for (int i = 0; i < 3; ++i) {
            if (!all_finite(reinterpret_cast<float*>(&g[i]), kLanes)) finite = false;
            store_some(dkernel + ((i * 3 + j) * s.in + c) * s.out + n, g[i], s.out - n);
          }
        }
      }
  });
  return finite;
}

}  // namespace crest::winograd
