// The functions that XLA calls for convolutions and their gradients.

#include "tile_convolution.h"
#include "vector_convolution.h"
#include "xla.h"

namespace crest {
namespace {

Shape shape_of(const Array& x, const Array& kernel, const Array& y, Pair strides, Pair before) {
  const auto images = x.dimensions(), taps = kernel.dimensions(), windows = y.dimensions();
  return {images[0], images[1], images[2], images[3], taps[0], taps[1], windows[1], windows[2],
          taps[3], strides[0], strides[1], before[0], before[1]};
}

ffi::Error forward(ffi::ThreadPool pool, Pair strides, Pair before, bool tiles, Array x,
                   Array kernel, ffi::Result<Array> y) {
  const Shape s = shape_of(x, kernel, *y, strides, before);
  return typed(x, [&](auto number) {
    using T = decltype(number);
    auto by = tiles && tiles::forward_pays<T>(s) ? tiles::forward<T> : vectors::forward<T>;
    by(threads_of(pool), s, data<T>(x), data<T>(kernel), written<T>(*y));
  });
}

ffi::Error input_gradient(ffi::ThreadPool pool, Pair strides, Pair before, bool tiles, Array dy,
                          Array kernel, ffi::Result<Array> dx) {
  const Shape s = shape_of(*dx, kernel, dy, strides, before);
  return typed(dy, [&](auto number) {
    using T = decltype(number);
    auto by = tiles && tiles::input_gradient_pays<T>(s) ? tiles::input_gradient<T>
                                                        : vectors::input_gradient<T>;
    by(threads_of(pool), s, data<T>(dy), data<T>(kernel), written<T>(*dx));
  });
}

ffi::Error kernel_gradient(ffi::ThreadPool pool, Pair strides, Pair before, bool tiles, Array x,
                           Array dy, ffi::Result<Array> dkernel) {
  const Shape s = shape_of(x, *dkernel, dy, strides, before);
  return typed(x, [&](auto number) {
    using T = decltype(number);
    auto by = tiles && tiles::kernel_gradient_pays<T>(s) ? tiles::kernel_gradient<T>
                                                         : vectors::kernel_gradient<T>;
    by(threads_of(pool), s, data<T>(x), data<T>(dy), written<T>(*dkernel));
  });
}

auto binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<Pair>("strides").Attr<Pair>("before")
      .Attr<bool>("tiles").Arg<Array>().Arg<Array>().Ret<Array>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(Forward, forward, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(InputGradient, input_gradient, binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KernelGradient, kernel_gradient, binding());

}  // namespace crest

// Whether the library was compiled with tiles, and whether this process may use them, for which it
// has to ask the operating system.
extern "C" bool made_with_tiles() { return crest::tiles::kHere; }
extern "C" bool may_use_tiles() { return crest::tiles::permitted(); }
extern "C" int lanes() { return crest::kLanes; }
