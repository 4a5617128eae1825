// Convolutions and their gradients as products of tiles of bfloat16, whose sums are float32.
//
// A bfloat16 array is one plane of numbers. A float32 array is two: the nearest bfloat16, and the
// nearest to what that leaves; of the four products of these the three larger ones are summed (Henry,
// Tang & Heinecke, 2019, section 3.2). What becomes of a number that is not finite is not finite.
//
// The order of every sum depends on the shapes alone, not on threads.

#pragma once

#include "tiles.h"
#include "vector_convolution.h"

namespace crest::tiles {

template <typename T>
constexpr int kPlanes = sizeof(T) / sizeof(bf16);

// The bfloat16 of up to `kLanes` numbers, the lower half of a word each, in every plane.
inline void planes_of(const bf16* from, int64_t count, Words to[1]) {
  to[0] = reinterpret_cast<Words>(load_some(from, count)) >> 16;
}

inline void planes_of(const float* from, int64_t count, Words to[2]) {
  const Vector values = load_some(from, count);
  to[0] = __builtin_convertvector(round(values), Words);
  to[1] = __builtin_convertvector(round(values - reinterpret_cast<Vector>(to[0] << 16)), Words);
}

// Of up to 16 numbers of two rows, the second of which may be none, a number of each by turns.
template <typename T>
inline void pairs(const T* a, const T* b, int64_t count, uint32_t* to, int64_t plane) {
  for (int v = 0; v < kSide; v += kLanes) {
    Words low[kPlanes<T>], high[kPlanes<T>] = {};
    planes_of(a + v, count - v, low);
    if (b) planes_of(b + v, count - v, high);
    for (int q = 0; q < kPlanes<T>; ++q) {
      const Words both = low[q] | high[q] << 16;
      std::memcpy(to + q * plane + v, &both, sizeof(both));
    }
  }
}

// Copies numbers into their planes, which are `plane` numbers apart.
inline void copy_planes(const bf16* from, int64_t size, bf16* to, int64_t) { copy(from, size, to); }

inline void copy_planes(const float* from, int64_t size, bf16* to, int64_t plane) {
  for (int64_t i = 0; i < size; i += kLanes) {
    Words words[2];
    planes_of(from + i, size - i, words);
    for (int q = 0; q < 2; ++q)
      store_some(to + q * plane + i, reinterpret_cast<Vector>(words[q] << 16), size - i);
  }
}

// Writes `rows` rows of sums, of which the first `columns` count.
template <typename T>
inline void write(const float* sums, int64_t rows, int64_t columns, T* to, int64_t row) {
  for (int64_t m = 0; m < rows; ++m)
    for (int v = 0; v < kSide; v += kLanes)
      store_some(to + m * row + v, crest::load(sums + m * kSide + v), columns - v);
}

// Adds the products of A in 4 and 5 and B in 6 and 7 to the sums in 0 to 3: of one plane each, or
// the three of two planes. A's and B's second halves are left out where there are none.
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
  } else {
    load_a(0);
    load_b(0);
    products();
  }
}

// Calls f with two constants.
template <typename F>
void with(bool a, bool b, F f) {
  using True = std::true_type;
  using False = std::false_type;
  a ? b ? f(True{}, True{}) : f(True{}, False{}) : b ? f(False{}, True{}) : f(False{}, False{});
}

// How an image and its padding lie in memory, so that the pixels of a tile are one distance apart
// whatever tap of the kernel they meet.
//
// Rows of outputs that are a multiple of 16 long, nearly, are tiles of their own, and the pixels
// that a row of the kernel meets adjoin. Of others, all columns of the kernel have an image of their
// own, in which outputs adjoin from row to row; and so has each of the rows that a stride leaves out.
struct Layout {
  bool by_column;
  int64_t lines, pixels;       // of outputs: tiles are within a line
  int64_t line, pixel;         // how far apart
  int64_t images, row, height;  // by column: a row's size, and how many there are
  int64_t segments, run;       // a run of numbers meets weights that adjoin

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
  // What a chunk reads beyond a run are numbers too, and meet weights of 0.
  int64_t size() const { return up(images * height * row + kTerms, kTerms); }
  int64_t rows() const { return std::min<int64_t>(kSide, pixels); }

  int64_t segment(const Shape& s, int64_t i) const {
    if (!by_column) return i * row;
    const int64_t ky = i / s.kernel_width, kx = i % s.kernel_width;
    return ((kx * s.stride_y + ky % s.stride_y) * height + ky / s.stride_y) * row;
  }
};

// Lays an image out. Its pixels may be `spread` apart, with zeros between: the memory has these.
template <typename T>
void lay_out(const Shape& s, const Layout& layout, int64_t spread, const T* image, bf16* to) {
  const int64_t plane = layout.size();
  const int64_t columns = layout.by_column ? s.kernel_width : 1;
  const int64_t width = layout.by_column ? s.out_width : s.padded_width();
  const int64_t step = layout.by_column ? s.stride_x : 1;
  for (int64_t y = 0; y < s.height; ++y) {
    const int64_t at = y * spread + s.before_y;
    if (at >= s.padded_height()) break;
    const T* from = image + y * s.width * s.in;
    for (int64_t kx = 0; kx < columns; ++kx) {
      bf16* row = to + at * layout.row;
      if (layout.by_column)
        row = to + ((kx * s.stride_y + at % s.stride_y) * layout.height + at / s.stride_y) * layout.row;
      if (spread == 1 && step == 1) {
        const int64_t first = std::max<int64_t>(0, kx - s.before_x);
        const int64_t place = first + s.before_x - kx;
        const int64_t count = std::min(s.width - first, width - place);
        if (count > 0) copy_planes(from + first * s.in, count * s.in, row + place * s.in, plane);
        continue;
      }
      for (int64_t x = 0; x < s.width; ++x) {
        const int64_t place = x * spread + s.before_x - kx;
        if (place >= 0 && place % step == 0 && place / step < width)
          copy_planes(from + x * s.in, s.in, row + place / step * s.in, plane);
      }
    }
  }
}

// Calls `otherwise` for an image that it cannot convolve, because it has numbers that are not finite
// and would meet weights of 0 that are none of the kernel's.
template <typename T>
void convolve(const Threads& threads, const Shape& s, int64_t spread, const T* x, const T* kernel,
              T* y, const std::function<void(int64_t)>& otherwise) {
  const Layout layout(s);
  const int64_t chunks = layout.chunks(), run = layout.run, all_chunks = layout.segments * chunks;
  const int64_t blocks = (s.out + kSide - 1) / kSide, block = all_chunks * kNumbers;
  const int64_t low = blocks * block;
  Memory<bf16> weights(kPlanes<T> * low);
  bf16* packed = weights.at_least(0);
  parallel(threads, low < 1 << 16 ? 1 : blocks, [&](int64_t part) {
    for (int64_t n = part; n < (low < 1 << 16 ? blocks : part + 1); ++n)
      for (int64_t i = 0; i < layout.segments; ++i)
        for (int64_t k = 0; k < chunks * kTerms; k += 2) {
          const T* from = kernel + (i * run + k) * s.out + n * kSide;
          bf16* to = packed + n * block + i * chunks * kNumbers + k * kSide;
          pairs(from, k + 1 < run ? from + s.out : nullptr, k < run ? s.out - n * kSide : 0,
                reinterpret_cast<uint32_t*>(to), low / 2);
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

// A shape of a single image, for what is computed by vectors.
inline Shape single(Shape s) {
  s.batch = 1;
  return s;
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
  Memory<T> memory(s.kernel_size());
  T* turned = memory.at_least(0);
  turn(threads, s, kernel, turned);
  // At a stride, gradients are as far apart, with zeros between: four times the products, at a
  // stride of 2, and as fast.
  if (s.stride_y != s.stride_x) return vectors::input_gradient(threads, s, dy, kernel, dx);
  convolve(threads, s.of_input_gradient(), s.stride_y, dy, turned, dx, [&](int64_t image) {
    vectors::input_gradient({1, {}}, single(s), dy + image * s.output_size(), kernel,
                            dx + image * s.input_size());
  });
}

// Exchanges rows and columns of 16 x 16 words.
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

// Images whose terms are pixels: a plane a channel. A stride splits each into phases, by what rows
// and columns leave when they are divided by it, so that a tap of the kernel is a phase and a shift.
struct Phases {
  int64_t rows, columns;   // of a phase
  int64_t terms;           // of a sum over an image's outputs, to whole chunks
  int64_t step;            // from an image to the next one
  int64_t images;          // at once
  int64_t channel, phase;  // how far apart; channels not by a power of two
  int64_t all;

  template <typename T>
  Phases(const Shape& s, T) {
    rows = (s.padded_height() + s.stride_y - 1) / s.stride_y;
    columns = up((s.padded_width() + s.stride_x - 1) / s.stride_x, 2);
    terms = up(columns * s.out_height, kTerms);
    step = up(std::max(rows * columns, terms), kTerms);
    // As many as should fit into the second-level cache.
    images = std::max<int64_t>(1, (1 << 18) / (kPlanes<T> * step * (s.in + s.out)));
    images = std::min(images, s.batch);
    // A shift reads as far beyond an image.
    channel = up(step * images + rows * columns, kTerms) + 3 * kTerms;
    phase = up(s.in, kSide) * channel;
    all = s.stride_y * s.stride_x * phase;
  }
};

// Lays an image's channels out, [phases][channels][rows, columns].
template <typename T>
void lay_out_channels(const Shape& s, const Phases& phases, const T* image, bf16* to) {
  const int64_t height = std::min(s.height, s.padded_height() - s.before_y);
  const int64_t width = std::min(s.width, s.padded_width() - s.before_x);
  for (int64_t y = 0; y < height; ++y) {
    const int64_t row = y + s.before_y;
    for (int64_t phase = 0; phase < s.stride_x; ++phase) {
      // The first column of this phase.
      const int64_t first = ((phase - s.before_x) % s.stride_x + s.stride_x) % s.stride_x;
      const int64_t count = width > first ? (width - first + s.stride_x - 1) / s.stride_x : 0;
      const int64_t place = row / s.stride_y * phases.columns + (first + s.before_x) / s.stride_x;
      for (int64_t c = 0; c < s.in; c += kSide) {
        const T* from = image + (y * s.width + first) * s.in + c;
        const int64_t pixel = s.stride_x * s.in;
        bf16* plane = to + (row % s.stride_y * s.stride_x + phase) * phases.phase + place;
        for (int64_t k = 0; k < count; k += kTerms) {
          const int64_t terms = std::min<int64_t>(kTerms, count - k);
          alignas(64) uint32_t words[kPlanes<T>][kSide][kSide];
          for (int64_t j = 0; j < kSide; ++j) {
            const T* pair = from + (k + 2 * j) * pixel;
            pairs(2 * j < terms ? pair : from, 2 * j + 1 < terms ? pair + pixel : nullptr,
                  2 * j < terms ? s.in - c : 0, words[0][j], kSide * kSide);
          }
          for (int q = 0; q < kPlanes<T>; ++q) {
            transpose(words[q]);
            for (int64_t j = 0; j < std::min<int64_t>(kSide, s.in - c); ++j)
              copy_some(reinterpret_cast<const bf16*>(words[q][j]), terms,
                        plane + q * phases.all + (c + j) * phases.channel + k);
          }
        }
      }
    }
  }
}

// Lays gradients of an image's outputs out, two pixels' by turns, as many a row as `phases` has
// columns: [16 features][pixels].
template <typename T>
void lay_out_gradients(const Shape& s, const Phases& phases, const T* dy, bf16* to, int64_t plane) {
  const int64_t sixteen = phases.step * phases.images * kSide;
  for (int64_t row = 0; row < s.out_height; ++row)
    for (int64_t n = 0; n < s.out; n += kSide) {
      bf16* place = to + n / kSide * sixteen + row * phases.columns * kSide;
      const T* from = dy + row * s.out_width * s.out + n;
      for (int64_t k = 0; k < s.out_width; k += 2)
        pairs(from + k * s.out, k + 1 < s.out_width ? from + (k + 1) * s.out : nullptr, s.out - n,
              reinterpret_cast<uint32_t*>(place + k * kSide), plane / 2);
    }
}

template <typename T>
void kernel_gradient(const Threads& threads, const Shape& s, const T* x, const T* dy, T* dkernel) {
  const Phases phases(s, T{});
  const int64_t ins = (s.in + kSide - 1) / kSide, outs = (s.out + kSide - 1) / kSide;
  const int64_t taps = s.kernel_height * s.kernel_width, square = kSide * kSide;
  const int64_t tap = ins * outs * square, size = taps * tap;
  const int64_t sixteen = phases.step * phases.images * kSide, b_plane = outs * sixteen;
  // Images are summed in parts, whatever the number of threads.
  const int64_t parts = std::min<int64_t>(s.batch, size > 30000 ? 8 : 16);
  Memory<float> all(parts * size);
  float* sums = all.at_least(0);
  parallel(threads, parts, [&](int64_t part) {
    thread_local Memory<bf16> a_memory, b_memory;
    bf16* a = a_memory.at_least(kPlanes<T> * phases.all);
    bf16* b = b_memory.at_least(kPlanes<T> * b_plane);
    std::memset(a, 0, kPlanes<T> * phases.all * sizeof(bf16));
    std::memset(b, 0, kPlanes<T> * b_plane * sizeof(bf16));
    const Configured configured(kSide);
    const int64_t begin = part * s.batch / parts, end = (part + 1) * s.batch / parts;
    for (int64_t first = begin; first < end; first += phases.images) {
      const int64_t images = std::min(phases.images, end - first);
      for (int64_t i = 0; i < images; ++i) {
        lay_out_channels(s, phases, x + (first + i) * s.input_size(), a + i * phases.step);
        lay_out_gradients(s, phases, dy + (first + i) * s.output_size(),
                          b + i * phases.step * kSide, b_plane);
      }
      for (int64_t i = 0; i < taps; ++i) {
        const int64_t ky = i / s.kernel_width, kx = i % s.kernel_width;
        const int64_t phase = ky % s.stride_y * s.stride_x + kx % s.stride_x;
        const bf16* of_tap =
            a + phase * phases.phase + ky / s.stride_y * phases.columns + kx / s.stride_x;
        for (int64_t n = 0; n < outs; n += 2)
          for (int64_t m = 0; m < ins; m += 2)
            with(m + 1 < ins, n + 1 < outs, [&](auto two_m, auto two_n) {
              float* c = sums + part * size + i * tap + (m * outs + n) * square;
              float* next = c + outs * square;
              if (first == begin) {
                zero<0>(), zero<1>(), zero<2>(), zero<3>();
              } else {
                load<0>(c, 64);
                if (two_n) load<1>(c + square, 64);
                if (two_m) load<2>(next, 64);
                if (two_m && two_n) load<3>(next + square, 64);
              }
              const bf16* a0 = of_tap + m * kSide * phases.channel;
              const bf16* b0 = b + n * sixteen;
              for (int64_t image = 0; image < images; ++image)
                for (int64_t k = 0; k < phases.terms; k += kTerms) {
                  const int64_t at = image * phases.step + k;
                  multiply_add<kPlanes<T>, decltype(two_m)::value, decltype(two_n)::value>(
                      a0 + at, a0 + kSide * phases.channel + at,
                      phases.channel * sizeof(bf16), phases.all, b0 + at * kSide,
                      b0 + sixteen + at * kSide, b_plane);
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
  parallel(threads, taps, [&](int64_t i) {
    for (int64_t c = 0; c < s.in; ++c)
      for (int64_t n = 0; n < s.out; n += kLanes) {
        const float* from = sums + i * tap + (c / kSide * outs + n / kSide) * square +
                            c % kSide * kSide + n % kSide;
        Vector sum = crest::load(from);
        for (int64_t part = 1; part < parts; ++part) sum += crest::load(from + part * size);
        if (!all_finite(reinterpret_cast<float*>(&sum), kLanes)) finite = false;
        store_some(dkernel + (i * s.in + c) * s.out + n, sum, s.out - n);
      }
  });
  // What is not finite would reach taps that never meet it, by way of the zeros between images.
  if (!finite) vectors::kernel_gradient(threads, s, x, dy, dkernel);
}

}  // namespace crest::tiles
