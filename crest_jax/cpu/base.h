// What all kernels share: threads, memory, number types, and vectors of numbers.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace crest {

// The threads that a kernel may use: their number, and a function that gives one of them work.
struct Threads {
  int64_t count;
  std::function<void(std::function<void()>)> schedule;
};

// Calls f(0) ... f(count - 1) on these threads and on the calling thread. It waits only for calls
// that have begun, because the other threads may never become free to begin one. Returns when no
// call is running any more, and only then throws if a call ran out of memory.
inline void parallel(const Threads& threads, int64_t count, const std::function<void(int64_t)>& f) {
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
  try {
    for (int64_t helper = 1; helper < std::min(threads.count, count); ++helper)
      threads.schedule(work);
  } catch (const std::bad_alloc&) {  // then fewer threads help
  }
  work();
  for (int64_t done; (done = progress->done) < count;) progress->done.wait(done);
  if (progress->failed) throw std::bad_alloc();
}

// Memory aligned to a cache line, which a thread keeps for its next call (`thread_local`), because
// the operating system would clear new memory each time. Each thread therefore holds as much as its
// largest call needed until the thread ends. The content is lost when the memory grows.
template <typename T>
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  ~Memory() { std::free(data_); }

  // Returns room for `size` values, whose content is unspecified.
  T* at_least(int64_t size) {
    if (size > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
      size_ = size;
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

constexpr int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A bfloat16: the upper half of a float32.
struct bf16 {
  uint16_t bits;
};

// The number of float32 values that a register holds.
#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

inline Vector load(const float* from) {
  Vector values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

inline Words widen(Halves halves) {
#ifdef __AVX512F__
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(halves)));
#else
  return __builtin_convertvector(halves, Words);
#endif
}

// Converts bfloat16 values to float32.
inline Vector expand(Halves halves) { return reinterpret_cast<Vector>(widen(halves) << 16); }

inline Vector load(const bf16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return expand(halves);
}

// Rounds to the nearest bfloat16, ties to even.
inline Halves round(Vector values) {
#ifdef __AVX512BF16__
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(values)));
#else
  Words bits = reinterpret_cast<Words>(values);
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words is_nan = reinterpret_cast<Words>((bits & 0x7fffffff) > 0x7f800000);
  return __builtin_convertvector((is_nan & (bits >> 16 | 0x40)) | (~is_nan & rounded), Halves);
#endif
}

inline void store(float* to, Vector values) { std::memcpy(to, &values, sizeof(values)); }

inline void store(bf16* to, Vector values) {
  Halves halves = round(values);
  std::memcpy(to, &halves, sizeof(halves));
}

// Loads the first `count` numbers of a vector (all if `count` is larger than it), then zeros.
template <typename T>
inline Vector load_some(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
#ifdef __AVX512BW__
  const uint32_t mask = (1u << std::max<int64_t>(count, 0)) - 1;
  if constexpr (sizeof(T) == 4)
    return reinterpret_cast<Vector>(_mm512_maskz_loadu_ps(mask, from));
  else
    return reinterpret_cast<Vector>(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
#else
  T values[kLanes] = {};
  std::memcpy(values, from, std::max<int64_t>(count, 0) * sizeof(T));
  return load(values);
#endif
}

template <typename T>
inline void store_some(T* to, Vector values, int64_t count) {
  if (count >= kLanes) return store(to, values);
  T some[kLanes];
  store(some, values);
  std::memcpy(to, some, std::max<int64_t>(count, 0) * sizeof(T));
}

inline void store_some(bf16* to, Halves halves, int64_t count) {
  std::memcpy(to, &halves, std::clamp<int64_t>(count, 0, kLanes) * sizeof(bf16));
}

inline Vector broadcast(float value) { return value - Vector{}; }

}  // namespace crest
