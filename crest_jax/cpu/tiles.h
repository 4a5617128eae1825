// The processor's tiles of 16 rows of 64 bytes, and their products of bfloat16 (AMX).
//
// With PORTABLE_TILES they are arrays, so that what is made of them can be tested anywhere.

#pragma once

#include "base.h"

#if defined(__AMX_BF16__) && defined(__linux__) && !defined(PORTABLE_TILES)
#define AMX_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace crest::tiles {

constexpr int kSide = 16;             // rows, and float32 in a row
constexpr int kTerms = 2 * kSide;     // bfloat16 in a row
constexpr int kNumbers = kSide * kTerms;

#if defined(AMX_TILES)

// Asks the operating system for the tiles, as every process has to.
inline bool permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Makes the tiles: sums in 0 to 3 and A in 4 and 5 have `rows` rows, B in 6 and 7 has 16.
inline void configure(int rows) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = i < 6 ? rows : kSide;
  asm volatile("ldtilecfg %0" ::"m"(config));
}

inline void release() { asm volatile("tilerelease" ::: "memory"); }

template <int kTile>
inline void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// Loads rows that are `stride` bytes apart.
template <int kTile>
inline void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void store(float* to) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(int64_t{64}), "i"(kTile) : "memory");
}

// Adds the product of A's rows and of B, in which two terms of a column adjoin.
template <int kSums, int kA, int kB>
inline void multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}

#else

inline bool permitted() {
#ifdef PORTABLE_TILES
  return true;
#else
  return false;
#endif
}

struct Tile {
  uint8_t bytes[kSide][64];
};
inline thread_local Tile tile[8];
inline thread_local int rows_of[8];

inline void configure(int rows) {
  for (int i = 0; i < 8; ++i) rows_of[i] = i < 6 ? rows : kSide;
}

inline void release() {}

template <int kTile>
inline void zero() {
  tile[kTile] = {};
}

template <int kTile>
inline void load(const void* from, int64_t stride) {
  for (int m = 0; m < rows_of[kTile]; ++m)
    std::memcpy(tile[kTile].bytes[m], static_cast<const uint8_t*>(from) + m * stride, 64);
}

template <int kTile>
inline void store(float* to) {
  for (int m = 0; m < rows_of[kTile]; ++m)
    std::memcpy(to + m * kSide, tile[kTile].bytes[m], 64);
}

inline float number(const Tile& of, int row, int column) {
  uint16_t bits;
  std::memcpy(&bits, of.bytes[row] + 2 * column, 2);
  const uint32_t word = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

template <int kSums, int kA, int kB>
inline void multiply() {
  for (int m = 0; m < rows_of[kSums]; ++m) {
    float sums[kSide];
    std::memcpy(sums, tile[kSums].bytes[m], 64);
    for (int k = 0; k < kSide; ++k)
      for (int n = 0; n < kSide; ++n)
        sums[n] += number(tile[kA], m, 2 * k) * number(tile[kB], k, 2 * n) +
                   number(tile[kA], m, 2 * k + 1) * number(tile[kB], k, 2 * n + 1);
    std::memcpy(tile[kSums].bytes[m], sums, 64);
  }
}

#endif

// Has tiles as long as it lives. What is in memory by then is what they load.
struct Configured {
  explicit Configured(int64_t rows) { configure(static_cast<int>(rows)); }
  Configured(const Configured&) = delete;
  ~Configured() { release(); }
};

}  // namespace crest::tiles
