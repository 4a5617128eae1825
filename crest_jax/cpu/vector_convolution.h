// Convolutions in float32 arithmetic: by Winograd's method where it applies, else directly.

#pragma once

#include "direct.h"
#include "winograd.h"

namespace crest::vectors {

template <typename T>
void forward(const Threads& threads, const Shape& s, const T* x, const T* kernel, T* y) {
  winograd::takes(s) ? winograd::forward(threads, s, x, kernel, y)
                     : direct::forward(threads, s, x, kernel, y);
}

template <typename T>
void input_gradient(const Threads& threads, const Shape& s, const T* dy, const T* kernel, T* dx) {
  thread_local Memory<T> memory;
  T* turned = memory.at_least(s.kernel_size());
  turn(threads, s, kernel, turned);
  if (s.stride_y == 1 && s.stride_x == 1)  // a convolution, which is faster
    forward(threads, s.of_input_gradient(), dy, turned, dx);
  else
    direct::input_gradient(threads, s, dy, turned, dx);
}

template <typename T>
void kernel_gradient(const Threads& threads, const Shape& s, const T* x, const T* dy, T* dkernel) {
  if (!(winograd::takes(s) && winograd::kernel_gradient(threads, s, x, dy, dkernel)))
    direct::kernel_gradient(threads, s, x, dy, dkernel);
}

}  // namespace crest::vectors
