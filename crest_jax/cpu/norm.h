// Batch norm with its activation, and its gradients, in as few passes over memory as possible.
//
// Images are [pixels, channels] of float32 or bfloat16; arithmetic is in float32, and so are sums
// within parts of the images. Per-channel values are [rows, channels] of float32.

#pragma once

#include <numeric>
#include <vector>

#include "base.h"

namespace crest::norm {

// Vectors processed side by side, with separate sums so that no addition waits for the one before.
constexpr int kVectors = 4;
constexpr int64_t kBlock = kVectors * kLanes;

// The order in which the numbers of images are processed: in rows that consist of whole pixels and
// also of whole blocks; only the last row may end early. Threads work on parts of several rows. The
// number of parts depends only on the shape, so that sums do not depend on the number of threads.
struct Images {
  int64_t size, channels;

  int64_t row() const { return std::lcm(channels, kBlock); }
  // Few enough numbers for sums in float32, but many compared with the sums that are kept. A lane
  // adds up as many, however wide a CPU's vectors are.
  int64_t part() const {
    constexpr int64_t kNumbers = kLanes << 10, kPixels = 32, kRows = 16;
    return std::max({kNumbers, kPixels * channels, kRows * row()}) / row() * row();
  }
  int64_t parts() const { return (size + part() - 1) / part(); }

  // Calls f(index of the vector in the block, offset of its first number, count of its numbers) for
  // each vector of one block (given by `column`) in each row of a part.
  template <typename F>
  [[gnu::always_inline]] void block(int64_t part_index, int64_t column, F f) const {
    const int64_t width = row(), end = std::min(size, (part_index + 1) * part());
    int64_t at = part_index * part() + column;
    for (; at + width - column <= end; at += width)
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i)
        f(i, at + i * kLanes, std::integral_constant<int64_t, kLanes>());
    if (at < end)
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i)
        f(i, at + i * kLanes, std::min<int64_t>(end - at - i * kLanes, kLanes));
  }
};

// Per-channel values, repeated to match the numbers of a row.
class Table {
 public:
  Table(const Images& images, const float* values, int64_t count) : width_(images.row()) {
    float* to = repeated_.at_least(count * width_);
    for (int64_t k = 0; k < count; ++k)
      for (int64_t i = 0; i < width_; i += images.channels)
        std::memcpy(to + k * width_ + i, values + k * images.channels,
                    images.channels * sizeof(float));
    values_ = to;
  }

  Vector operator()(int64_t k, int64_t column) const { return load(values_ + k * width_ + column); }

 private:
  int64_t width_;
  Memory<float> repeated_;
  const float* values_;
};

// Leaky ReLU: a slope of 0 is ReLU, and 1 the identity.
struct Activation {
  float slope;

  Vector operator()(Vector z) const {
    if (slope == 0) return z < 0 ? Vector{} : z;
    return z >= 0 ? z : slope * z;
  }

  // The gradient of the input z from that of the output; z may also be the output itself.
  Vector gradient(Vector z, Vector dy) const {
    if (slope == 0) return z > 0 ? dy : Vector{};
    return z >= 0 ? dy : slope * dy;
  }
};

// The normalisation of a block's channels.
struct Normalized {
  Vector factor[kVectors], mean[kVectors], bias[kVectors];

  Normalized(const Table& table, int64_t column) {
    for (int i = 0; i < kVectors; ++i) {
      factor[i] = table(0, column + i * kLanes);
      mean[i] = table(1, column + i * kLanes);
      bias[i] = table(2, column + i * kLanes);
    }
  }

  Vector operator()(int i, Vector about_mean) const { return about_mean * factor[i] + bias[i]; }
};

// Keeps the first `count` numbers of a vector, and sets the others to zero.
inline Vector only(Vector values, int64_t count) {
  if (count >= kLanes) return values;
  Vector kept{};
  for (int64_t i = 0; i < count; ++i) kept[i] = values[i];
  return kept;
}

// Rounds values as storing them as T does.
template <typename T>
inline Vector rounded(Vector values) {
  if constexpr (sizeof(T) == sizeof(float)) return values;
  T stored[kLanes];
  store(stored, values);
  return load(stored);
}

// Computes two sums for each channel, [2, channels]. f(column) returns a function that computes the
// pair of vectors to add, from the arguments that `Images::block` passes.
template <typename F>
void two_sums(const Threads& threads, const Images& images, float* sums, F f) {
  const int64_t width = images.row(), parts = images.parts(), channels = images.channels;
  thread_local Memory<float> memory;
  float* partial = memory.at_least(parts * 2 * width);
  parallel(threads, parts, [&](int64_t part) {
    for (int64_t column = 0; column < width; column += kBlock) {
      Vector first[kVectors] = {}, second[kVectors] = {};
      auto addends = f(column);
      images.block(part, column, [&](int i, int64_t at, auto count) __attribute__((always_inline)) {
        auto [a, b] = addends(i, at, count);
        first[i] += only(a, count);
        second[i] += only(b, count);
      });
      float* to = partial + part * 2 * width + column;
      for (int i = 0; i < kVectors; ++i) {
        store(to + i * kLanes, first[i]);
        store(to + width + i * kLanes, second[i]);
      }
    }
  });
  std::vector<double> totals(2 * channels);
  for (int64_t half = 0; half < 2 * parts; ++half)
    for (int64_t i = 0; i < width; i += channels)
      for (int64_t c = 0; c < channels; ++c)
        totals[half % 2 * channels + c] += partial[half * width + i + c];
  std::copy(totals.begin(), totals.end(), sums);
}

// Computes the sums of x - about and of their squares. If there is a y, x + y takes the place of x
// and is also written out.
template <typename T>
void sums(const Threads& threads, const Images& images, const T* x, const T* y, const float* about,
          T* x_plus_y, float* sums) {
  const Table table(images, about, 1);
  two_sums(threads, images, sums, [&](int64_t column) {
    Vector around[kVectors];
    for (int i = 0; i < kVectors; ++i) around[i] = table(0, column + i * kLanes);
    return [=](int i, int64_t at, auto count) __attribute__((always_inline)) {
      Vector values = load_some(x + at, count);
      if (y) {
        values = rounded<T>(values + load_some(y + at, count));
        store_some(x_plus_y + at, values, count);
      }
      values -= around[i];
      return std::pair(values, values * values);
    };
  });
}

// Computes the activation of (x - mean) * factor + bias; if there is another array `added`, it is
// added before the activation. `numbers` are factor, mean and bias.
template <typename T>
void forward(const Threads& threads, const Images& images, Activation activation, const T* x,
             const T* added, const float* numbers, T* y) {
  const Table table(images, numbers, 3);
  parallel(threads, images.parts(), [&](int64_t part) {
    for (int64_t column = 0; column < images.row(); column += kBlock) {
      const Normalized normalized(table, column);
      images.block(part, column, [&](int i, int64_t at, auto count) __attribute__((always_inline)) {
        Vector z = normalized(i, load_some(x + at, count) - normalized.mean[i]);
        if (added) z += load_some(added + at, count);
        store_some(y + at, activation(z), count);
      });
    }
  });
}

// Computes the sums of g and of g * (x - mean), where g is the gradient of the activation's input,
// from `dy`, that of its output. `y` is its output if that does not depend on x alone, else null.
template <typename T>
void gradient_sums(const Threads& threads, const Images& images, Activation activation, const T* x,
                   const T* y, const T* dy, const float* numbers, float* sums) {
  const Table table(images, numbers, 3);
  two_sums(threads, images, sums, [&](int64_t column) {
    return [=, normalized = Normalized(table, column)](
               int i, int64_t at, auto count) __attribute__((always_inline)) {
      const Vector about_mean = load_some(x + at, count) - normalized.mean[i];
      const Vector z = y ? load_some(y + at, count) : normalized(i, about_mean);
      const Vector g = activation.gradient(z, load_some(dy + at, count));
      return std::pair(g, g * about_mean);
    };
  });
}

// Computes the gradient of x: g * factor + (x - mean) * rise + offset, plus `past`, the gradient
// that x receives from elsewhere, if it is not null. Also writes g to `g_to` if that is not null.
// `numbers` are factor, mean, bias, rise and offset.
template <typename T>
void input_gradient(const Threads& threads, const Images& images, Activation activation, const T* x,
                    const T* y, const T* dy, const T* past, const float* numbers, T* dx, T* g_to) {
  const Table table(images, numbers, 5);
  parallel(threads, images.parts(), [&](int64_t part) {
    for (int64_t column = 0; column < images.row(); column += kBlock) {
      const Normalized normalized(table, column);
      Vector rise[kVectors], offset[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        rise[i] = table(3, column + i * kLanes);
        offset[i] = table(4, column + i * kLanes);
      }
      images.block(part, column, [&](int i, int64_t at, auto count) __attribute__((always_inline)) {
        const Vector about_mean = load_some(x + at, count) - normalized.mean[i];
        const Vector z = y ? load_some(y + at, count) : normalized(i, about_mean);
        const Vector g = activation.gradient(z, load_some(dy + at, count));
        Vector gradient = g * normalized.factor[i] + (about_mean * rise[i] + offset[i]);
        if (past) gradient += load_some(past + at, count);
        store_some(dx + at, gradient, count);
        if (g_to) store_some(g_to + at, g, count);
      });
    }
  });
}

}  // namespace crest::norm
