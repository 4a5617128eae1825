// The functions that XLA calls for batch norms with their activations, and for their gradients.
//
// An optional array that is absent is passed as an empty one.

#include "norm.h"

#include "xla.h"

namespace crest {
namespace {

using Numbers = ffi::Buffer<ffi::F32>;

norm::Images images_of(const Array& x) {
  return {static_cast<int64_t>(x.element_count()), x.dimensions().back()};
}

template <typename T>
T* data_if_any(const Array& array) {
  return array.element_count() ? data<T>(array) : nullptr;
}

ffi::Error sums(ffi::ThreadPool pool, Array x, Array y, Numbers about, ffi::Result<Array> x_plus_y,
                ffi::Result<Numbers> sums) {
  return typed(x, [&](auto number) {
    using T = decltype(number);
    norm::sums(threads_of(pool), images_of(x), data<T>(x), data_if_any<T>(y), about.typed_data(),
               written<T>(*x_plus_y), sums->typed_data());
  });
}

ffi::Error forward(ffi::ThreadPool pool, float slope, Array x, Array added, Numbers numbers,
                   ffi::Result<Array> y) {
  return typed(x, [&](auto number) {
    using T = decltype(number);
    norm::forward(threads_of(pool), images_of(x), {slope}, data<T>(x), data_if_any<T>(added),
                  numbers.typed_data(), written<T>(*y));
  });
}

ffi::Error gradient_sums(ffi::ThreadPool pool, float slope, Array x, Array y, Array dy,
                         Numbers numbers, ffi::Result<Numbers> sums) {
  return typed(x, [&](auto number) {
    using T = decltype(number);
    norm::gradient_sums(threads_of(pool), images_of(x), {slope}, data<T>(x), data_if_any<T>(y),
                        data<T>(dy), numbers.typed_data(), sums->typed_data());
  });
}

ffi::Error input_gradient(ffi::ThreadPool pool, float slope, Array x, Array y, Array dy, Array past,
                          Numbers numbers, ffi::Result<Array> dx, ffi::Result<Array> dadded) {
  return typed(x, [&](auto number) {
    using T = decltype(number);
    norm::input_gradient(threads_of(pool), images_of(x), {slope}, data<T>(x), data_if_any<T>(y),
                         data<T>(dy), data_if_any<T>(past), numbers.typed_data(), written<T>(*dx),
                         data_if_any<T>(*dadded));
  });
}

auto binding() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    NormSums, sums, binding().Arg<Array>().Arg<Array>().Arg<Numbers>().Ret<Array>().Ret<Numbers>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    NormForward, forward,
    binding().Attr<float>("slope").Arg<Array>().Arg<Array>().Arg<Numbers>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(NormGradientSums, gradient_sums,
                              binding().Attr<float>("slope").Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Arg<Numbers>().Ret<Numbers>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(NormInputGradient, input_gradient,
                              binding().Attr<float>("slope").Arg<Array>().Arg<Array>().Arg<Array>()
                                  .Arg<Array>().Arg<Numbers>().Ret<Array>().Ret<Array>());

}  // namespace crest
