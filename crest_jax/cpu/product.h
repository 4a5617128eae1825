// Products of float32 matrices that are small or parts of larger ones.

#pragma once

#include "base.h"

namespace crest {

// The sums of a tile must fit into the registers: 24 of 32 with AVX-512, 12 of 16 with AVX2.
constexpr int kMostRows = kLanes == 16 ? 12 : 6;

// One of the nested loops of a sum, and how far each step moves in the factors A and B.
struct Loop {
  int64_t count, a, b;  // a in floats of A, b in rows of B
};

// C[m, n] = sum_ijk A[m, ijk] B[ijk, n], or C += that sum (`add`). B is packed.
struct Product {
  Loop i, j, k;
  int64_t a_row, c_row;  // distance between rows of A and of C; C's columns adjoin
  int64_t b_rows;        // the number of rows of B in all
  bool add;
};

// Columns are processed two vectors at once, or one if a single one is left.
constexpr int64_t block_width(int64_t first, int64_t cols) {
  return cols - first > kLanes ? 2 * kLanes : kLanes;
}

constexpr int64_t packed_size(int64_t rows, int64_t cols) { return rows * up(cols, kLanes); }

// Copies rows of B, [rows, cols] with a distance of `row` between rows, into a packed B of `b_rows`
// rows, starting at its row `first`. Blocks of columns follow one another, padded with zeros.
template <typename T>
void pack(const T* b, int64_t row, int64_t rows, int64_t cols, int64_t first, int64_t b_rows,
          float* to) {
  for (int64_t n = 0; n < cols; n += 2 * kLanes) {
    const int64_t width = block_width(n, cols);
    float* block = to + n * b_rows + first * width;
    for (int64_t k = 0; k < rows; ++k)
      for (int64_t v = 0; v < width; v += kLanes)
        store(block + k * width + v, load_some(b + k * row + n + v, cols - n - v));
  }
}

template <typename T, int kM, int kN, bool kAdjoining>
__attribute__((noinline)) void tile(const Product& p, int64_t cols, const float* a, const float* b,
                                    T* c) {
  constexpr int kWidth = kN * kLanes;
  const int64_t a_row = kAdjoining ? 1 : p.a_row;
  Vector sums[kM][kN];
#pragma GCC unroll 16
  for (int m = 0; m < kM; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < kN; ++n) {
      sums[m][n] = Vector{};
      if constexpr (std::is_same_v<T, float>)
        if (p.add) sums[m][n] = load_some(c + m * p.c_row + n * kLanes, cols - n * kLanes);
    }
  for (int64_t i = 0; i < p.i.count; ++i) {
    for (int64_t j = 0; j < p.j.count; ++j) {
      // Rows are at most two steps away from a pointer, as such addresses cost nothing to compute.
      const float* x0 = a + i * p.i.a + j * p.j.a;
      const float *x3 = x0 + 3 * a_row, *x6 = x0 + 6 * a_row, *x9 = x0 + 9 * a_row;
      const float* y = b + (i * p.i.b + j * p.j.b) * kWidth;
      const int64_t a_step = p.k.a, b_step = p.k.b * kWidth;
#pragma GCC unroll 2
      for (int64_t k = 0; k < p.k.count; ++k) {
        Vector row[kN];
#pragma GCC unroll 2
        for (int n = 0; n < kN; ++n) row[n] = load(y + n * kLanes);
#pragma GCC unroll 16
        for (int m = 0; m < kM; ++m) {
          const float* x = m < 3 ? x0 : m < 6 ? x3 : m < 9 ? x6 : x9;
          const Vector value = broadcast(x[m % 3 * a_row]);
#pragma GCC unroll 2
          for (int n = 0; n < kN; ++n) sums[m][n] += value * row[n];
        }
        x0 += a_step, x3 += a_step, x6 += a_step, x9 += a_step, y += b_step;
      }
    }
  }
  if (cols >= kWidth) {
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < kN; ++n) store(c + m * p.c_row + n * kLanes, sums[m][n]);
  } else {
    for (int m = 0; m < kM; ++m)
      for (int n = 0; n < kN; ++n)
        store_some(c + m * p.c_row + n * kLanes, sums[m][n], cols - n * kLanes);
  }
}

template <typename T, int kM, int kN, bool kAdjoining>
int64_t tiles_of_height(const Product& p, int64_t m, int64_t rows, int64_t cols, const float* a,
                        const float* b, T* c) {
  for (; m + kM <= rows; m += kM)
    tile<T, kM, kN, kAdjoining>(p, cols, a + m * p.a_row, b, c + m * p.c_row);
  return m;
}

template <typename T, int kN, bool kAdjoining>
void all_rows(const Product& p, int64_t rows, int64_t cols, const float* a, const float* b, T* c) {
  int64_t m = tiles_of_height<T, kMostRows, kN, kAdjoining>(p, 0, rows, cols, a, b, c);
  if constexpr (kMostRows > 8)
    m = tiles_of_height<T, 8, kN, kAdjoining>(p, m, rows, cols, a, b, c);
  m = tiles_of_height<T, 4, kN, kAdjoining>(p, m, rows, cols, a, b, c);
  m = tiles_of_height<T, 2, kN, kAdjoining>(p, m, rows, cols, a, b, c);
  tiles_of_height<T, 1, kN, kAdjoining>(p, m, rows, cols, a, b, c);
}

// Computes the block of a product's columns that starts at `n`.
template <typename T>
void block_of_product(const Product& p, int64_t n, int64_t rows, int64_t cols, const float* a,
                      const float* b, T* c) {
  const bool wide = block_width(n, cols) > kLanes;
  b += n * p.b_rows;
  c += n;
  cols -= n;
  if (p.a_row == 1)
    wide ? all_rows<T, 2, true>(p, rows, cols, a, b, c) : all_rows<T, 1, true>(p, rows, cols, a, b, c);
  else
    wide ? all_rows<T, 2, false>(p, rows, cols, a, b, c) : all_rows<T, 1, false>(p, rows, cols, a, b, c);
}

template <typename T>
void product(const Product& p, int64_t rows, int64_t cols, const float* a, const float* b, T* c) {
  for (int64_t n = 0; n < cols; n += 2 * kLanes) block_of_product(p, n, rows, cols, a, b, c);
}

}  // namespace crest
