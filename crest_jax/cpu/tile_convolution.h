// Convolutions and their gradients as products of tiles of bfloat16, with sums in float32.
//
// A bfloat16 array is one plane of numbers. A float32 array is two: the nearest bfloat16, and the
// bfloat16 nearest to the remainder. Of the four products of two such pairs the three larger ones
// are summed (Henry, Tang & Heinecke, 2019, section 3.2). Non-finite numbers give non-finite
// results.
//
// The order of every sum depends only on the shapes, not on threads.

#pragma once

#include "tiles.h"
#include "vector_convolution.h"

namespace crest::tiles {

template <typename T>
constexpr int kPlanes = sizeof(T) / sizeof(bf16);

// Converts up to `kLanes` numbers to bfloat16 in every plane, each in the lower half of a word.
inline void planes_of(const bf16* from, int64_t count, Words to[1]) {
  to[0] = reinterpret_cast<Words>(load_some(from, count)) >> 16;
}

inline void planes_of(const float* from, int64_t count, Words to[2]) {
  const Vector values = load_some(from, count);
  const Halves high = round(values);
  to[0] = widen(high);
  to[1] = widen(round(values - expand(high)));
}

// Up to 16 numbers as bfloat16, in every plane.
template <typename T>
struct Sixteen {
  Words words[kSide / kLanes][kPlanes<T>];
};

template <typename T>
inline Sixteen<T> sixteen(const T* from, int64_t count) {
  Sixteen<T> numbers;
  for (int v = 0; v < kSide / kLanes; ++v)
    planes_of(from + v * kLanes, count - v * kLanes, numbers.words[v]);
  return numbers;
}

// Stores the numbers of a and b alternately.
template <typename T>
inline void store_pairs(const Sixteen<T>& a, const Sixteen<T>& b, bf16* to, int64_t plane) {
  for (int v = 0; v < kSide / kLanes; ++v)
    for (int q = 0; q < kPlanes<T>; ++q) {
      const Words both = a.words[v][q] | b.words[v][q] << 16;
      std::memcpy(to + q * plane + 2 * v * kLanes, &both, sizeof(both));
    }
}

// Stores up to 16 numbers of two rows alternately. Either row may be null, which stands for zeros.
template <typename T>
inline void pairs(const T* a, const T* b, int64_t count, bf16* to, int64_t plane) {
  store_pairs(a ? sixteen(a, count) : Sixteen<T>{}, b ? sixteen(b, count) : Sixteen<T>{}, to, plane);
}

// Copies numbers into their planes, which are `plane` numbers apart.
inline void copy_planes(const bf16* from, int64_t size, bf16* to, int64_t) { copy(from, size, to); }

inline void copy_planes(const float* from, int64_t size, bf16* to, int64_t plane) {
  auto part = [&](int64_t i, Vector values, int64_t count) {
    const Halves high = round(values);
    store_some(to + i, high, count);
    store_some(to + plane + i, round(values - expand(high)), count);
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) part(i, crest::load(from + i), kLanes);
  if (i < size) part(i, load_some(from + i, size - i), size - i);
}

// Writes the first `columns` columns of `rows` rows of sums.
template <typename T>
inline void write(const float* sums, int64_t rows, int64_t columns, T* to, int64_t row) {
  for (int64_t m = 0; m < rows; ++m)
    for (int v = 0; v < kSide; v += kLanes)
      store_some(to + m * row + v, crest::load(sums + m * kSide + v), columns - v);
}

// Adds the products of A (tiles 4 and 5) and B (6 and 7) to the sums (0 to 3): those of one plane
// each, or the three products of two planes. The second tiles of A and B are left out if there are
// none.
template <int kPlanes, bool kTwoA, bool kTwoB>
inline void multiply_add(const bf16* a0, const bf16* a1, int64_t a_row, int64_t a_plane,
                         const bf16* b0, const bf16* b1, int64_t b_plane) {
  auto products = [] {
    multiply<0, 4, 6>();
    if constexpr (kTwoB) multiply<1, 4, 7>();
    if constexpr (kTwoA) multiply<2, 5, 6>();
    if constexpr (kTwoA && kTwoB) multiply<3, 5, 7>();
  };
  auto load_a = [&](int64_t plane) {
    load<4>(a0 + plane, a_row);
    if constexpr (kTwoA) load<5>(a1 + plane, a_row);
  };
  auto load_b = [&](int64_t plane) {
    load<6>(b0 + plane, 64);
    if constexpr (kTwoB) load<7>(b1 + plane, 64);
  };
  if constexpr (kPlanes == 2) {
    load_a(a_plane);
    load_b(0);
    products();
    load_a(0);
    products();
    load_b(b_plane);
    products();
  } else {  // multiply as soon as both factors are loaded
    load<4>(a0, a_row);
    load<6>(b0, 64);
    multiply<0, 4, 6>();
    if constexpr (kTwoB) load<7>(b1, 64), multiply<1, 4, 7>();
    if constexpr (kTwoA) load<5>(a1, a_row), multiply<2, 5, 6>();
    if constexpr (kTwoA && kTwoB) multiply<3, 5, 7>();
  }
}

// Calls f with a and b as compile-time constants.
template <typename F>
void with(bool a, bool b, F f) {
  using True = std::true_type;
  using False = std::false_type;
  a ? b ? f(True{}, True{}) : f(True{}, False{}) : b ? f(False{}, True{}) : f(False{}, False{});
}

// How an image and its padding are laid out in memory, so that the pixels of a tile are a constant
// distance apart for every tap of the kernel.
//
// If rows of outputs are (nearly) a multiple of 16 long, each row has its own tiles, and the pixels
// that a row of the kernel meets adjoin. Otherwise each column of the kernel has its own image, in
// which outputs adjoin from row to row. With a stride, rows that are not a multiple of the stride
// apart are in separate images, too.
struct Layout {
  bool by_column;
  int64_t lines, pixels;       // of outputs; a tile is within one line
  int64_t line, pixel;         // distance between lines, and between pixels
  int64_t images, row, height;  // number of images; size and number of rows of each
  int64_t segments, run;       // runs of numbers that meet adjoining weights; their length

  explicit Layout(const Shape& s) {
    const int64_t tiles = (s.out_width + kSide - 1) / kSide;
    by_column = s.out_width < 13 * tiles && s.out_height > 1;
    if (by_column) {
      images = s.kernel_width * s.stride_y, row = s.out_width * s.in;
      height = (s.padded_height() + s.stride_y - 1) / s.stride_y;
      lines = 1, pixels = s.out_height * s.out_width, line = 0, pixel = s.in;
      segments = s.kernel_height * s.kernel_width, run = s.in;
    } else {
      images = 1, row = s.padded_row(), height = s.padded_height();
      lines = s.out_height, pixels = s.out_width;
      line = s.stride_y * row, pixel = s.stride_x * s.in;
      segments = s.kernel_height, run = s.kernel_width * s.in;
    }
  }
  int64_t chunks() const { return (run + kTerms - 1) / kTerms; }
  // A chunk may read beyond its run. It finds valid numbers there, which meet weights of 0.
  int64_t size() const { return up(images * height * row + kTerms, kTerms); }
  int64_t rows() const { return std::min<int64_t>(kSide, pixels); }

  int64_t segment(const Shape& s, int64_t i) const {
    if (!by_column) return i * row;
    const int64_t ky = i / s.kernel_width, kx = i % s.kernel_width;
    return ((kx * s.stride_y + ky % s.stride_y) * height + ky / s.stride_y) * row;
  }
};

// Lays out an image. Its pixels may be `spread` apart, with zeros between them, which the memory
// already holds; the stride of the windows is 1 then.
template <typename T>
void lay_out(const Shape& s, const Layout& layout, int64_t spread, const T* image, bf16* to) {
  const int64_t plane = layout.size();
  const int64_t columns = layout.by_column ? s.kernel_width : 1;
  const int64_t width = layout.by_column ? s.out_width : s.padded_width();
  const int64_t step = layout.by_column ? s.stride_x : 1;
  for (int64_t kx = 0; kx < columns; ++kx) {
    // The first pixel that has a place; the others follow it.
    const int64_t moved = s.before_x - kx;
    int64_t first = 0;
    while (first * spread + moved < 0 || (first + moved) % step) ++first;
    const int64_t place = (first * spread + moved) / step;
    for (int64_t y = 0; y < s.height; ++y) {
      const int64_t at = y * spread + s.before_y;
      if (at >= s.padded_height()) break;
      const T* from = image + y * s.width * s.in;
      bf16* row = to + at * layout.row;
      if (layout.by_column)
        row = to + ((kx * s.stride_y + at % s.stride_y) * layout.height + at / s.stride_y) * layout.row;
      if (spread == 1 && step == 1) {
        const int64_t count = std::min(s.width - first, width - place);
        if (count > 0) copy_planes(from + first * s.in, count * s.in, row + place * s.in, plane);
      } else {
        for (int64_t x = first, p = place; x < s.width && p < width; x += step, p += spread)
          copy_planes(from + x * s.in, s.in, row + p * s.in, plane);
      }
    }
  }
}

// Convolves images. Calls `otherwise` for each image that it cannot convolve, because the image has
// non-finite numbers, which would meet weights of 0 that are not part of the kernel.
template <typename T>
void convolve(const Threads& threads, const Shape& s, int64_t spread, const T* x, const T* kernel,
              T* y, const std::function<void(int64_t)>& otherwise) {
  const Layout layout(s);
  const int64_t chunks = layout.chunks(), run = layout.run, all_chunks = layout.segments * chunks;
  const int64_t blocks = (s.out + kSide - 1) / kSide, block = all_chunks * kNumbers;
  const int64_t low = blocks * block;
  thread_local Memory<bf16> weights;
  bf16* packed = weights.at_least(kPlanes<T> * low);
  parallel(threads, low < 1 << 16 ? 1 : blocks, [&](int64_t part) {
    for (int64_t n = part; n < (low < 1 << 16 ? blocks : part + 1); ++n)
      for (int64_t i = 0; i < layout.segments; ++i)
        for (int64_t k = 0; k < chunks * kTerms; k += 2) {
          const T* from = kernel + (i * run + k) * s.out + n * kSide;
          bf16* to = packed + n * block + i * chunks * kNumbers + k * kSide;
          pairs(k < run ? from : nullptr, k + 1 < run ? from + s.out : nullptr, s.out - n * kSide,
                to, low);
        }
  });
  const int64_t rows = layout.rows(), per_line = (layout.pixels + kSide - 1) / kSide;
  const int64_t tiles = per_line * layout.lines, plane = layout.size();
  // The zeros around an image are written once for several images.
  const int64_t images = std::clamp<int64_t>(s.batch / (4 * threads.count), 1, 8);
  parallel(threads, (s.batch + images - 1) / images, [&](int64_t part) {
    thread_local Memory<bf16> memory;
    bf16* laid_out = memory.at_least(kPlanes<T> * plane);
    std::memset(laid_out, 0, kPlanes<T> * plane * sizeof(bf16));
    alignas(64) float sums[4][kSide * kSide];
    for (int64_t image = part * images; image < std::min(s.batch, (part + 1) * images); ++image) {
      const T* of_image = x + image * s.input_size();
      if (run % kTerms && !all_finite(of_image, s.input_size())) {
        otherwise(image);
        continue;
      }
      lay_out(s, layout, spread, of_image, laid_out);
      T* to = y + image * s.output_size();
      const Configured configured(rows);
      auto place = [&](int64_t t) {
        const int64_t line = t / per_line;
        const int64_t first = std::min(t % per_line * kSide, layout.pixels - rows);
        return std::pair(laid_out + line * layout.line + first * layout.pixel,
                         to + (line * layout.pixels + first) * s.out);
      };
      for (int64_t n = 0; n < blocks; n += 2) {
        with(true, n + 1 < blocks, [&](auto, auto two) {
          for (int64_t t = 0; t < tiles; t += 2) {
            const auto [a0, c0] = place(t);
            const auto [a1, c1] = place(std::min(t + 1, tiles - 1));
            zero<0>(), zero<1>(), zero<2>(), zero<3>();
            const bf16* b = packed + n * block;
            for (int64_t i = 0; i < layout.segments; ++i) {
              const int64_t segment = layout.segment(s, i);
              for (int64_t k = 0; k < chunks; ++k, b += kNumbers)
                multiply_add<kPlanes<T>, true, decltype(two)::value>(
                    a0 + segment + k * kTerms, a1 + segment + k * kTerms,
                    layout.pixel * sizeof(bf16), plane, b, b + block, low);
            }
            tiles::store<0>(sums[0]), tiles::store<2>(sums[2]);
            if (two) tiles::store<1>(sums[1]), tiles::store<3>(sums[3]);
            for (int64_t half = 0; half < (two ? 2 : 1); ++half) {
              const int64_t at = (n + half) * kSide;
              write(sums[half], rows, s.out - at, c0 + at, s.out);
              write(sums[2 + half], rows, s.out - at, c1 + at, s.out);
            }
          }
        });
      }
    }
  });
}

// The shape for a single image, for images that are convolved by vectors.
inline Shape single(Shape s) {
  s.batch = 1;
  return s;
}

// Whether tiles are faster than vectors. Measurements show that they are unless they consist mostly
// of zeros: up to 8 times the necessary products, or 3 times with two planes.
template <typename T>
bool pay(int64_t products_of_tiles, int64_t products) {
  return products_of_tiles < (kPlanes<T> == 1 ? 8 : 3) * products;
}

template <typename T>
bool forward_pays(const Shape& s) {
  const Layout layout(s);
  return pay<T>(up(layout.pixels, kSide) * layout.lines * layout.segments * layout.chunks() * kTerms,
                s.out_height * s.out_width * s.kernel_height * s.kernel_width * s.in);
}

template <typename T>
bool input_gradient_pays(const Shape& s) {
  return forward_pays<T>(s.of_input_gradient());
}

template <typename T>
void forward(const Threads& threads, const Shape& s, const T* x, const T* kernel, T* y) {
  convolve(threads, s, 1, x, kernel, y, [&](int64_t image) {
    vectors::forward({1, {}}, single(s), x + image * s.input_size(), kernel,
                     y + image * s.output_size());
  });
}

template <typename T>
void input_gradient(const Threads& threads, const Shape& s, const T* dy, const T* kernel, T* dx) {
  thread_local Memory<T> memory;
  T* turned = memory.at_least(s.kernel_size());
  turn(threads, s, kernel, turned);
  // At a stride, gradients are that far apart, with zeros between them: at a stride of 2 four times
  // the products, and yet as fast. Non-finite numbers of a kernel must not meet these zeros.
  if (s.stride_y != s.stride_x || (s.stride_y > 1 && !all_finite(kernel, s.kernel_size())))
    return vectors::input_gradient(threads, s, dy, kernel, dx);
  convolve(threads, s.of_input_gradient(), s.stride_y, dy, turned, dx, [&](int64_t image) {
    vectors::input_gradient({1, {}}, single(s), dy + image * s.output_size(), kernel,
                            dx + image * s.input_size());
  });
}

// Transposes 16 x 16 words.
inline void transpose(uint32_t (&words)[kSide][kSide]) {
#ifdef __AVX512F__
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(words[i]);
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_si512(words[i], _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(words[i + 8], _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
  }
#else
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < i; ++j) std::swap(words[i][j], words[j][i]);
#endif
}

// How images and gradients are laid out for the gradient of a kernel. The terms of its sums are
// pixels: one of a padded image for each of the outputs, with zeros where a row of outputs is
// shorter.
//
// A tap of the kernel shifts the image relative to the outputs. A stride splits the image into
// phases, by the remainders of row and column when divided by it. Terms are processed in pairs, so
// shifts by an odd number of pixels need a version of the image in which other pixels are pairs.
struct Terms {
  int64_t columns;                // of a row
  int64_t each;                   // of an image, rounded up to whole chunks
  int64_t images;                 // processed at once
  int64_t feature;                // distance from a feature's gradients to the next one's
  int64_t versions, image;        // versions of an image, and the length of each
  int64_t phase, sixteen, plane;  // distances between phases, sets of 16 channels, and planes

  // Processes at most `summed` images at once, the number that are summed together.
  template <typename T>
  Terms(const Shape& s, int64_t summed, T) {
    columns = up((s.padded_width() + s.stride_x - 1) / s.stride_x, 2);
    each = up(columns * s.out_height, tiles::kTerms);
    versions = s.kernel_width > s.stride_x ? 2 : 1;
    image = up(each + move(s, s.kernel_height - 1, s.kernel_width - 1) + 2, tiles::kTerms);
    // The number of images that should fit into the second-level cache.
    const int64_t most = (1 << 18) / (kPlanes<T> * image * (versions * s.in + s.out));
    images = std::clamp<int64_t>(most, 1, summed);
    // An odd number of cache lines, because the cache holds these best.
    feature = (each * images / tiles::kTerms | 1) * tiles::kTerms;
    phase = versions * images * image * kSide;
    sixteen = s.stride_y * s.stride_x * phase;
    plane = up(s.in, kSide) / kSide * sixteen;
  }

  // The number of terms by which a tap shifts the image.
  int64_t move(const Shape& s, int64_t ky, int64_t kx) const {
    return ky / s.stride_y * columns + kx / s.stride_x;
  }

  // Where the terms of a tap begin in the first image and the first sixteen channels.
  int64_t tap(const Shape& s, int64_t i) const {
    const int64_t ky = i / s.kernel_width, kx = i % s.kernel_width;
    const int64_t at = move(s, ky, kx), version = at % 2;
    return (ky % s.stride_y * s.stride_x + kx % s.stride_x) * phase +
           version * images * image * kSide + (at - version) * kSide;
  }
};

// Lays out an image: [sets of 16 channels][phases][versions][images][terms], two terms alternately.
template <typename T>
void lay_out_image(const Shape& s, const Terms& terms, const T* image, bf16* to) {
  const int64_t height = std::min(s.height, s.padded_height() - s.before_y);
  const int64_t width = std::min(s.width, s.padded_width() - s.before_x);
  const int64_t pixel = s.stride_x * s.in;
  for (int64_t y = 0; y < height; ++y) {
    const int64_t row = y + s.before_y;
    for (int64_t phase = 0; phase < s.stride_x; ++phase) {
      // The first column of this phase.
      const int64_t first = ((phase - s.before_x) % s.stride_x + s.stride_x) % s.stride_x;
      const int64_t count = width > first ? (width - first + s.stride_x - 1) / s.stride_x : 0;
      const int64_t place = (first + s.before_x) / s.stride_x;
      const T* pixels = image + (y * s.width + first) * s.in;
      for (int64_t c = 0; c < s.in; c += kSide) {
        bf16* at = to + c / kSide * terms.sixteen +
                   (row % s.stride_y * s.stride_x + phase) * terms.phase +
                   row / s.stride_y * terms.columns * kSide;
        // Each pixel is paired with the next one, in the version given by the parity of its place.
        Sixteen<T> pixel_here{}, next;
        for (int64_t k = -1; k < count; ++k, pixel_here = next) {
          next = {};
          if (k + 1 < count) next = sixteen(pixels + (k + 1) * pixel + c, s.in - c);
          const int64_t term = place + k, version = term & 1;
          if (term >= 0 && version < terms.versions)
            store_pairs(pixel_here, next,
                        at + (version * terms.images * terms.image + term - version) * kSide,
                        terms.plane);
        }
      }
    }
  }
}

// Lays out the gradients of an image's outputs: [features][terms].
template <typename T>
void lay_out_gradients(const Shape& s, const Terms& terms, const T* dy, bf16* to) {
  for (int64_t row = 0; row < s.out_height; ++row)
    for (int64_t n = 0; n < s.out; n += kSide)
      for (int64_t k = 0; k < s.out_width; k += tiles::kTerms) {
        const int64_t count = std::min<int64_t>(tiles::kTerms, s.out_width - k);
        const T* from = dy + (row * s.out_width + k) * s.out + n;
        alignas(64) uint32_t words[kPlanes<T>][kSide][kSide];
        for (int64_t j = 0; j < kSide; ++j)
          pairs(2 * j < count ? from + 2 * j * s.out : nullptr,
                2 * j + 1 < count ? from + (2 * j + 1) * s.out : nullptr, s.out - n,
                reinterpret_cast<bf16*>(words[0][j]), kNumbers);
        for (int q = 0; q < kPlanes<T>; ++q) {
          transpose(words[q]);
          bf16* place = to + (q * up(s.out, kSide) + n) * terms.feature + row * terms.columns + k;
          for (int64_t j = 0; j < std::min<int64_t>(kSide, s.out - n); ++j)
            copy_some(reinterpret_cast<const bf16*>(words[q][j]), count, place + j * terms.feature);
        }
      }
}

template <typename T>
bool kernel_gradient_pays(const Shape& s) {
  return pay<T>(Terms(s, 1, T{}).each * up(s.in, kSide), s.out_height * s.out_width * s.in);
}

template <typename T>
void kernel_gradient(const Threads& threads, const Shape& s, const T* x, const T* dy, T* dkernel) {
  const int64_t ins = (s.in + kSide - 1) / kSide, outs = (s.out + kSide - 1) / kSide;
  const int64_t taps = s.kernel_height * s.kernel_width, square = kSide * kSide;
  const int64_t tap = outs * ins * square, size = taps * tap;
  // Images are summed in parts that do not depend on the number of threads.
  const int64_t parts = std::min<int64_t>(s.batch, size > 30000 ? 8 : 16);
  const Terms terms(s, (s.batch + parts - 1) / parts, T{});
  const int64_t plane = outs * kSide * terms.feature;
  thread_local Memory<float> all;
  float* sums = all.at_least(parts * size);
  parallel(threads, parts, [&](int64_t part) {
    thread_local Memory<bf16> a_memory, b_memory;
    bf16* a = a_memory.at_least(kPlanes<T> * plane);
    bf16* b = b_memory.at_least(kPlanes<T> * terms.plane);
    std::memset(a, 0, kPlanes<T> * plane * sizeof(bf16));
    std::memset(b, 0, kPlanes<T> * terms.plane * sizeof(bf16));
    const Configured configured(kSide);
    const int64_t begin = part * s.batch / parts, end = (part + 1) * s.batch / parts;
    for (int64_t first = begin; first < end; first += terms.images) {
      const int64_t images = std::min(terms.images, end - first);
      for (int64_t i = 0; i < images; ++i) {
        lay_out_image(s, terms, x + (first + i) * s.input_size(), b + i * terms.image * kSide);
        lay_out_gradients(s, terms, dy + (first + i) * s.output_size(), a + i * terms.each);
      }
      for (int64_t i = 0; i < taps; ++i) {
        const bf16* of_tap = b + terms.tap(s, i);
        for (int64_t n = 0; n < ins; n += 2)
          for (int64_t m = 0; m < outs; m += 2)
            with(m + 1 < outs, n + 1 < ins, [&](auto two_m, auto two_n) {
              float* c = sums + part * size + i * tap + (m * ins + n) * square;
              float* next = c + ins * square;
              if (first == begin) {
                zero<0>(), zero<1>(), zero<2>(), zero<3>();
              } else {
                load<0>(c, 64);
                if (two_n) load<1>(c + square, 64);
                if (two_m) load<2>(next, 64);
                if (two_m && two_n) load<3>(next + square, 64);
              }
              const bf16* a0 = a + m * kSide * terms.feature;
              const bf16* b0 = of_tap + n * terms.sixteen;
              for (int64_t image = 0; image < images; ++image)
                for (int64_t k = 0; k < terms.each; k += tiles::kTerms) {
                  const int64_t at_a = image * terms.each + k;
                  const int64_t at_b = (image * terms.image + k) * kSide;
                  multiply_add<kPlanes<T>, decltype(two_m)::value, decltype(two_n)::value>(
                      a0 + at_a, a0 + kSide * terms.feature + at_a, terms.feature * sizeof(bf16),
                      plane, b0 + at_b, b0 + terms.sixteen + at_b, terms.plane);
                }
              tiles::store<0>(c);
              if (two_n) tiles::store<1>(c + square);
              if (two_m) tiles::store<2>(next);
              if (two_m && two_n) tiles::store<3>(next + square);
            });
      }
    }
  });
  std::atomic<bool> finite{true};
  parallel(threads, taps * ins, [&](int64_t i) {
    const int64_t of_tap = i / ins, n = i % ins;
    for (int64_t m = 0; m < outs; ++m) {
      alignas(64) uint32_t words[kSide][kSide];  // [features][channels]
      for (int64_t row = 0; row < kSide; ++row)
        for (int v = 0; v < kSide; v += kLanes) {
          const float* from = sums + of_tap * tap + (m * ins + n) * square + row * kSide + v;
          Vector sum = crest::load(from);
          for (int64_t part = 1; part < parts; ++part) sum += crest::load(from + part * size);
          std::memcpy(words[row] + v, &sum, sizeof(sum));
        }
      const float* numbers = reinterpret_cast<const float*>(words);
      if (!all_finite(numbers, square)) finite = false;
      transpose(words);
      T* to = dkernel + (of_tap * s.in + n * kSide) * s.out + m * kSide;
      write(numbers, std::min<int64_t>(kSide, s.in - n * kSide), s.out - m * kSide, to, s.out);
    }
  });
  // Non-finite numbers would reach taps that never meet them, by way of the zeros between images,
  // so the result is computed by vectors instead.
  if (!finite) vectors::kernel_gradient(threads, s, x, dy, dkernel);
}

}  // namespace crest::tiles
