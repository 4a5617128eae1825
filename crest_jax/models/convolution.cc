// Convolutions of float32 images and their gradients on a CPU, as XLA calls them.
//
// `convolution.py` says why, compiles this file and calls it. Images are [batch, height, width,
// channels], kernels [height, width, input channels, output channels].
//
// Once an image lies in memory with its padding around it, a convolution is products of matrices
// that are already there: pixels of a row times the part of the kernel that they meet. Neighbouring
// windows overlap, which is nothing but a stride smaller than the row. So is either gradient, and
// one small product, `tile`, does all the arithmetic.
//
// The order of every sum depends on the shapes alone, not on threads or vector widths.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// The sums of a tile must fit into the registers: 16 of 32 with AVX-512, 8 of 16 with AVX2.
#ifdef __AVX512F__
constexpr int kLanes = 16, kRows = 8;
#else
constexpr int kLanes = 8, kRows = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));

// One of the nested loops of a sum, and how far each step moves in either factor.
struct Loop {
  int64_t count, a, b;
};

// C[m, n] += sum_ijk A[m, ijk] B[ijk, n].
struct Product {
  Loop i, j, k;
  int64_t a_row, c_row;  // how far apart rows of A and of C are; B's and C's columns adjoin
};

template <typename T>
T load(const float* from) {
  T values;
  std::memcpy(&values, from, sizeof(T));
  return values;
}

template <typename T>
void store(T values, float* to) {
  std::memcpy(to, &values, sizeof(T));
}

template <typename T, int kM, int kN>
void tile(const Product& p, const float* a, const float* b, float* c) {
  constexpr int width = sizeof(T) / sizeof(float);
  const int64_t a_row = p.a_row;
  T sums[kM][kN];
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN; ++n) sums[m][n] = load<T>(c + m * p.c_row + n * width);
  for (int64_t i = 0; i < p.i.count; ++i) {
    for (int64_t j = 0; j < p.j.count; ++j) {
      const float* x = a + i * p.i.a + j * p.j.a;
      const float* y = b + i * p.i.b + j * p.j.b;
      for (int64_t k = 0; k < p.k.count; ++k, x += p.k.a, y += p.k.b) {
        T row[kN];
        for (int n = 0; n < kN; ++n) row[n] = load<T>(y + n * width);
        for (int m = 0; m < kM; ++m)
          for (int n = 0; n < kN; ++n) sums[m][n] += x[m * a_row] * row[n];
      }
    }
  }
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN; ++n) store(sums[m][n], c + m * p.c_row + n * width);
}

template <typename T, int kN>
void columns(const Product& p, int64_t rows, const float* a, const float* b, float* c) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows)
    tile<T, kRows, kN>(p, a + m * p.a_row, b, c + m * p.c_row);
  for (; m < rows; ++m) tile<T, 1, kN>(p, a + m * p.a_row, b, c + m * p.c_row);
}

void add_product(const Product& p, int64_t rows, int64_t cols, const float* a, const float* b,
                 float* c) {
  int64_t n = 0;
  for (; n + 2 * kLanes <= cols; n += 2 * kLanes) columns<Vector, 2>(p, rows, a, b + n, c + n);
  for (; n + kLanes <= cols; n += kLanes) columns<Vector, 1>(p, rows, a, b + n, c + n);
  for (; n < cols; ++n) columns<float, 1>(p, rows, a, b + n, c + n);
}

// Calls f(0) ... f(count - 1) on XLA's threads and this one. It waits only for calls that have
// begun, as no thread may ever become free to begin one. Returns when no call is under way any
// more, and only then throws if memory was short in one.
void parallel(ffi::ThreadPool& pool, int64_t count, const std::function<void(int64_t)>& f) {
  struct Progress {
    std::atomic<int64_t> begun{0}, done{0};
    std::atomic<bool> failed{false};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, count, &f] {
    for (int64_t i; (i = progress->begun++) < count;) {
      try {
        f(i);
      } catch (...) {
        progress->failed = true;
      }
      if (++progress->done == count) progress->done.notify_all();
    }
  };
  for (int64_t helper = 1; helper < std::min(pool.num_threads(), count); ++helper)
    pool.Schedule(std::function<void()>(work));
  work();
  for (int64_t done; (done = progress->done) < count;) progress->done.wait(done);
  if (progress->failed) throw std::bad_alloc();
}

using Array = ffi::Buffer<ffi::F32, 4>;
using Pair = ffi::Span<const int64_t>;  // of the height and the width

struct Shape {
  int64_t batch, height, width, in, kernel_height, kernel_width, out_height, out_width, out;
  int64_t stride_y, stride_x, before_y, before_x;

  Shape(const Array& x, const Array& kernel, const Array& y, Pair strides, Pair before)
      : batch(x.dimensions()[0]), height(x.dimensions()[1]), width(x.dimensions()[2]),
        in(x.dimensions()[3]), kernel_height(kernel.dimensions()[0]),
        kernel_width(kernel.dimensions()[1]), out_height(y.dimensions()[1]),
        out_width(y.dimensions()[2]), out(y.dimensions()[3]), stride_y(strides[0]),
        stride_x(strides[1]), before_y(before[0]), before_x(before[1]) {}

  // What the windows reach over, padding included.
  int64_t padded_height() const { return (out_height - 1) * stride_y + kernel_height; }
  int64_t padded_width() const { return (out_width - 1) * stride_x + kernel_width; }
  int64_t padded_row() const { return padded_width() * in; }
  int64_t padded_size() const { return padded_height() * padded_row(); }
  int64_t input_size() const { return height * width * in; }
  int64_t output_size() const { return out_height * out_width * out; }

  // Calls f(pixels of the image, the same in the padded image, floats) for each row of both.
  template <typename F>
  void rows(F f) const {
    int64_t shared = std::min(width, padded_width() - before_x) * in;
    for (int64_t y = 0; y < std::min(height, padded_height() - before_y); ++y)
      f(y * width * in, (y + before_y) * padded_row() + before_x * in, shared);
  }
};

void pad(const Shape& s, const float* image, float* padded) {
  std::fill_n(padded, s.padded_size(), 0.0f);
  s.rows([&](int64_t from, int64_t to, int64_t size) {
    std::memcpy(padded + to, image + from, size * sizeof(float));
  });
}

ffi::Error forward(ffi::ThreadPool pool, Pair strides, Pair before, Array x, Array kernel,
                   ffi::Result<Array> y) {
  Shape s(x, kernel, *y, strides, before);
  Loop over_rows{s.kernel_height, s.padded_row(), s.kernel_width * s.in * s.out};
  Product p{over_rows, {1, 0, 0}, {s.kernel_width * s.in, 1, s.out}, s.stride_x * s.in, s.out};
  parallel(pool, s.batch, [&](int64_t image) {
    thread_local std::vector<float> padded;
    padded.resize(s.padded_size());
    pad(s, x.typed_data() + image * s.input_size(), padded.data());
    float* to = y->typed_data() + image * s.output_size();
    std::fill_n(to, s.output_size(), 0.0f);
    for (int64_t row = 0; row < s.out_height; ++row)
      add_product(p, s.out_width, s.out, padded.data() + row * s.stride_y * s.padded_row(),
                  kernel.typed_data(), to + row * s.out_width * s.out);
  });
  return ffi::Error::Success();
}

// Takes the kernel with its last two axes exchanged.
ffi::Error input_gradient(ffi::ThreadPool pool, Pair strides, Pair before, Array dy, Array kernel,
                          ffi::Result<Array> dx) {
  Shape s(*dx, kernel, dy, strides, before);
  Product p{{1, 0, 0}, {1, 0, 0}, {s.out, 1, s.in}, s.out, s.stride_x * s.in};
  parallel(pool, s.batch, [&](int64_t image) {
    thread_local std::vector<float> padded;
    padded.assign(s.padded_size(), 0.0f);
    const float* from = dy.typed_data() + image * s.output_size();
    for (int64_t row = 0; row < s.out_height; ++row)
      for (int64_t ky = 0; ky < s.kernel_height; ++ky)
        for (int64_t kx = 0; kx < s.kernel_width; ++kx)
          add_product(p, s.out_width, s.in, from + row * s.out_width * s.out,
                      kernel.typed_data() + (ky * s.kernel_width + kx) * s.out * s.in,
                      padded.data() + (row * s.stride_y + ky) * s.padded_row() + kx * s.in);
    float* to = dx->typed_data() + image * s.input_size();
    std::fill_n(to, s.input_size(), 0.0f);
    s.rows([&](int64_t at, int64_t at_padded, int64_t size) {
      std::memcpy(to + at, padded.data() + at_padded, size * sizeof(float));
    });
  });
  return ffi::Error::Success();
}

ffi::Error kernel_gradient(ffi::ThreadPool pool, Pair strides, Pair before, Array x, Array dy,
                           ffi::Result<Array> dkernel) {
  Shape s(x, *dkernel, dy, strides, before);
  int64_t size = dkernel->element_count(), row = s.kernel_width * s.in;
  // Images are summed in parts, whatever the number of threads, and of a part as many at once as
  // should fit into the second-level cache.
  int64_t parts = std::min<int64_t>(s.batch, 16);
  int64_t at_once = std::max<int64_t>(1, (1 << 17) / (s.padded_size() + s.output_size()));
  std::vector<float> sums(parts * size);
  parallel(pool, parts, [&](int64_t part) {
    thread_local std::vector<float> padded;
    padded.resize(at_once * s.padded_size());
    int64_t end = (part + 1) * s.batch / parts;
    for (int64_t first = part * s.batch / parts; first < end; first += at_once) {
      int64_t images = std::min(at_once, end - first);
      for (int64_t i = 0; i < images; ++i)
        pad(s, x.typed_data() + (first + i) * s.input_size(), &padded[i * s.padded_size()]);
      Product p{{images, s.padded_size(), s.output_size()},
                {s.out_height, s.stride_y * s.padded_row(), s.out_width * s.out},
                {s.out_width, s.stride_x * s.in, s.out}, 1, s.out};
      for (int64_t ky = 0; ky < s.kernel_height; ++ky)
        add_product(p, row, s.out, padded.data() + ky * s.padded_row(),
                    dy.typed_data() + first * s.output_size(),
                    &sums[part * size + ky * row * s.out]);
    }
  });
  float* total = dkernel->typed_data();
  std::fill_n(total, size, 0.0f);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) total[i] += sums[part * size + i];
  return ffi::Error::Success();
}

auto binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<Pair>("strides").Attr<Pair>("before")
      .Arg<Array>().Arg<Array>().Ret<Array>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(Forward, forward, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(InputGradient, input_gradient, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KernelGradient, kernel_gradient, binding());
