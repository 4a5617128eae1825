// Convolutions of any shape by their definition, in float32 arithmetic.
//
// Once an image is in memory with its padding around it, a convolution consists of products of
// matrices that are already there: pixels of a row times the part of the kernel that they meet.
// Neighbouring windows overlap, which only means that the matrix has a stride smaller than its row.
// The same holds for both gradients.
//
// The order of every sum depends only on the shapes and the vector width, not on threads.

#pragma once

#include "convolution.h"
#include "product.h"

namespace crest::direct {

template <typename T>
void pad(const Shape& s, const T* image, float* padded) {
  std::fill_n(padded, s.padded_size(), 0.0f);
  s.rows([&](int64_t from, int64_t to, int64_t size) { copy(image + from, size, padded + to); });
}

template <typename T>
void forward(const Threads& threads, const Shape& s, const T* x, const T* kernel, T* y) {
  const int64_t terms = s.kernel_height * s.kernel_width * s.in;
  thread_local Memory<float> weights;
  float* packed = weights.at_least(packed_size(terms, s.out));
  pack(kernel, s.out, terms, s.out, 0, terms, packed);
  const Loop over_rows{s.kernel_height, s.padded_row(), s.kernel_width * s.in};
  const Product p{.i = over_rows, .j = {1, 0, 0}, .k = {s.kernel_width * s.in, 1, 1},
                  .a_row = s.stride_x * s.in, .c_row = s.out, .b_rows = terms, .add = false};
  parallel(threads, s.batch, [&](int64_t image) {
    thread_local Memory<float> memory;
    float* padded = memory.at_least(s.padded_size());
    pad(s, x + image * s.input_size(), padded);
    T* to = y + image * s.output_size();
    for (int64_t n = 0; n < s.out; n += 2 * kLanes)
      for (int64_t row = 0; row < s.out_height; ++row)
        block_of_product(p, n, s.out_width, s.out, padded + row * s.stride_y * s.padded_row(),
                         packed, to + row * s.out_width * s.out);
  });
}

// Takes the kernel as rearranged by `turn`.
template <typename T>
void input_gradient(const Threads& threads, const Shape& s, const T* dy, const T* kernel, T* dx) {
  const int64_t taps = s.kernel_height * s.kernel_width, tap = packed_size(s.out, s.in);
  thread_local Memory<float> weights;
  float* packed = weights.at_least(taps * tap);
  for (int64_t i = 0; i < taps; ++i)
    pack(kernel + i * s.out * s.in, s.in, s.out, s.in, 0, s.out, packed + i * tap);
  const Product p{.i = {1, 0, 0}, .j = {1, 0, 0}, .k = {s.out, 1, 1}, .a_row = s.out,
                  .c_row = s.stride_x * s.in, .b_rows = s.out, .add = true};
  parallel(threads, s.batch, [&](int64_t image) {
    thread_local Memory<float> memory, converted;
    float* padded = memory.at_least(s.padded_size());
    std::fill_n(padded, s.padded_size(), 0.0f);
    const T* of_image = dy + image * s.output_size();
    const float* from;
    if constexpr (std::is_same_v<T, float>) {
      from = of_image;
    } else {
      copy(of_image, s.output_size(), converted.at_least(s.output_size()));
      from = converted.at_least(0);
    }
    for (int64_t row = 0; row < s.out_height; ++row)
      for (int64_t ky = 0; ky < s.kernel_height; ++ky)
        for (int64_t kx = 0; kx < s.kernel_width; ++kx)
          product(p, s.out_width, s.in, from + row * s.out_width * s.out,
                  packed + (taps - 1 - ky * s.kernel_width - kx) * tap,
                  padded + (row * s.stride_y + ky) * s.padded_row() + kx * s.in);
    T* to = dx + image * s.input_size();
    std::fill_n(to, s.input_size(), T{});
    s.rows([&](int64_t at, int64_t at_padded, int64_t size) {
      copy(padded + at_padded, size, to + at);
    });
  });
}

template <typename T>
void kernel_gradient(const Threads& threads, const Shape& s, const T* x, const T* dy, T* dkernel) {
  const int64_t size = s.kernel_size(), row = s.kernel_width * s.in;
  // Images are summed in parts that do not depend on the number of threads. The rows of an image
  // that are summed at once should fit into the first-level cache.
  const int64_t parts = std::min<int64_t>(s.batch, 16);
  const int64_t at_once = std::max<int64_t>(1, 128 / s.out_width);
  thread_local Memory<float> all;
  float* sums = all.at_least(parts * size);
  parallel(threads, parts, [&](int64_t part) {
    thread_local Memory<float> memory, packed_memory;
    float* padded = memory.at_least(s.padded_size());
    float* packed = packed_memory.at_least(packed_size(at_once * s.out_width, s.out));
    float* to = sums + part * size;
    std::fill_n(to, size, 0.0f);
    const int64_t end = (part + 1) * s.batch / parts;
    for (int64_t image = part * s.batch / parts; image < end; ++image) {
      pad(s, x + image * s.input_size(), padded);
      for (int64_t first = 0; first < s.out_height; first += at_once) {
        const int64_t rows = std::min(at_once, s.out_height - first), pixels = rows * s.out_width;
        pack(dy + image * s.output_size() + first * s.out_width * s.out, s.out, pixels, s.out, 0,
             pixels, packed);
        const Product p{.i = {1, 0, 0}, .j = {rows, s.stride_y * s.padded_row(), s.out_width},
                        .k = {s.out_width, s.stride_x * s.in, 1}, .a_row = 1, .c_row = s.out,
                        .b_rows = pixels, .add = true};
        for (int64_t ky = 0; ky < s.kernel_height; ++ky)
          product(p, row, s.out, padded + (first * s.stride_y + ky) * s.padded_row(), packed,
                  to + ky * row * s.out);
      }
    }
  });
  total(threads, sums, parts, size, dkernel);
}

}  // namespace crest::direct
