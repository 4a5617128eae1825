// The processor's tiles of 16 rows of 64 bytes, and their products of bfloat16 (AMX).
//
// With PORTABLE_TILES, tiles are plain arrays, so that code that uses them can be tested anywhere.

#pragma once

#include "base.h"

#if defined(__AMX_BF16__) && defined(__linux__) && !defined(PORTABLE_TILES)
#define AMX_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace crest::tiles {

constexpr int kSide = 16;             // rows of a tile, and float32 values in a row
constexpr int kTerms = 2 * kSide;     // bfloat16 values in a row
constexpr int kNumbers = kSide * kTerms;

#if defined(AMX_TILES)

constexpr bool kHere = true;

// Asks the operating system for permission to use tiles, as every process has to.
inline bool permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Sets up the tiles: sums in 0 to 3 and A in 4 and 5 have `rows` rows, B in 6 and 7 has 16.
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

// Adds the product of A and B to the sums; in B, pairs of terms of a column adjoin.
template <int kSums, int kA, int kB>
inline void multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}

#else

#ifdef PORTABLE_TILES
constexpr bool kHere = true;
#else
constexpr bool kHere = false;
#endif

inline bool permitted() { return kHere; }

typedef float Row __attribute__((vector_size(64)));
typedef uint32_t RowOfPairs __attribute__((vector_size(64)));
struct Tile {
  RowOfPairs rows[kSide];
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
    std::memcpy(&tile[kTile].rows[m], static_cast<const uint8_t*>(from) + m * stride, 64);
}

template <int kTile>
inline void store(float* to) {
  std::memcpy(to, tile[kTile].rows, rows_of[kTile] * 64);
}

// The first terms of pairs, and the second ones.
inline Row first(RowOfPairs pairs) { return reinterpret_cast<Row>(pairs << 16); }
inline Row second(RowOfPairs pairs) { return reinterpret_cast<Row>(pairs & 0xffff0000); }

template <int kSums, int kA, int kB>
inline void multiply() {
  for (int m = 0; m < rows_of[kSums]; ++m) {
    Row sums = reinterpret_cast<Row>(tile[kSums].rows[m]);
    const Row a0 = first(tile[kA].rows[m]), a1 = second(tile[kA].rows[m]);
    for (int k = 0; k < kSide; ++k)
      sums += a0[k] * first(tile[kB].rows[k]) + a1[k] * second(tile[kB].rows[k]);
    tile[kSums].rows[m] = reinterpret_cast<RowOfPairs>(sums);
  }
}

#endif

// Keeps the tiles configured during its lifetime.
struct Configured {
  explicit Configured(int64_t rows) { configure(static_cast<int>(rows)); }
  Configured(const Configured&) = delete;
  ~Configured() { release(); }
};

}  // namespace crest::tiles
