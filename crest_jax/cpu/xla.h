// Conversion of what XLA passes to a kernel into the types that kernels use.

#pragma once

#include "base.h"
#include "xla/ffi/api/ffi.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace crest {

namespace ffi = xla::ffi;

using Array = ffi::AnyBuffer;             // of float32 or bfloat16
using Pair = ffi::Span<const int64_t>;    // for the height and the width

// Valid only during the lifetime of the pool.
inline Threads threads_of(ffi::ThreadPool& pool) {
  return {pool.num_threads(), [&pool](std::function<void()> work) { pool.Schedule(std::move(work)); }};
}

template <typename T>
T* data(const Array& array) {
  return static_cast<T*>(array.untyped_data());
}

// Returns the data of a result. XLA allocates new memory for every call, which the operating system
// clears page by page when it is first written. For large arrays this asks for pages of 2 MiB, as
// some systems grant them only on request.
template <typename T>
T* written(const Array& array) {
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(array.untyped_data());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t end = (begin + array.size_bytes()) / kPage * kPage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
  return data<T>(array);
}

// Calls f with a value of the array's element type.
template <typename F>
ffi::Error typed(const Array& array, F f) {
  try {
    switch (array.element_type()) {
      case ffi::F32:
        f(float{});
        return ffi::Error::Success();
      case ffi::BF16:
        f(bf16{});
        return ffi::Error::Success();
      default:
        return ffi::Error::InvalidArgument("the array is neither float32 nor bfloat16");
    }
  } catch (const std::bad_alloc&) {  // which would end the process if it reached XLA
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "memory is short for a kernel");
  }
}

}  // namespace crest
