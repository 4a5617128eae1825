"""Convolutions of images, by XLA or, on a CPU, by the faster kernels of `crest_jax.cpu`.

Exported models always use XLA's, because they must run without this package.

Results do not depend on the number of threads, nor on other load on the machine.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from crest_jax import cpu

_Pair = tuple[int, int]  # for the height and the width
Padding = str | Sequence[_Pair]


class Conv(nn.Module):
    """`flax.linen.Conv` for images, without a bias; its parameter has the same name.

    Weights are initialised with variance 2 / fan-out (He et al., 2015, Eq. 14).
    """

    features: int
    kernel_size: _Pair
    strides: int = 1
    padding: Padding = "SAME"
    kernel_init: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
    dtype: DTypeLike = jnp.float32
    precision: lax.Precision = lax.Precision.DEFAULT

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width {self.features}"]:
        """Convolve images, in `dtype`."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, self.strides, self.padding, self.precision)


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    stride: int = 1,
    padding: Padding = "SAME",
    precision: lax.Precision = lax.Precision.DEFAULT,
) -> Float[Array, "batch new_height new_width features"]:
    """Convolve images; can be differentiated once, in reverse mode.

    On a CPU with arrays split over several devices, map it over the devices (`jax.shard_map`): in a
    function that is only compiled for them, each device would convolve all images.

    Args:
      x: the images.
      kernel: the kernel, which is not flipped.
      stride: stride of the windows in both directions.
      padding: padding with zeros, in the form that `jax.lax.conv_general_dilated` takes.
      precision: precision of float32 products.
    """
    strides = (stride, stride)
    pads = (
        lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
        if isinstance(padding, str)
        else padding
    )
    within = all(0 <= low < size for (low, _), size in zip(pads, kernel.shape, strict=False))
    # An exported model takes any number of images, so their number is symbolic.
    exported = jax.export.is_symbolic_dim(x.shape[0])
    by_xla = partial(_by_xla, strides=strides, padding=pads, precision=precision)
    if exported or not within or not cpu.convolution.takes(x, kernel):
        return by_xla(x, kernel)
    if 0 in jax.eval_shape(by_xla, x, kernel).shape:
        return by_xla(x, kernel)
    # In a mapped function x or the kernel may be shared by all devices while its gradient differs
    # between devices. These additions make it vary like the other, and JAX sums the gradients.
    x, kernel = x + jnp.zeros_like(kernel, shape=()), kernel + jnp.zeros_like(x, shape=())
    return _convolve(x, kernel, strides, tuple(map(tuple, pads)), precision)


def _by_xla(
    x: Array, kernel: Array, strides: _Pair, padding: Sequence[_Pair], precision: lax.Precision
) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, precision=precision
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(
    x: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair], precision: lax.Precision
) -> Array:
    by_xla = partial(_by_xla, strides=strides, padding=pads, precision=precision)
    settings = _settings(strides, pads, precision)
    like = jax.eval_shape(by_xla, x, kernel)
    by_cpu = partial(cpu.convolution.forward, like=like, **settings)
    return lax.platform_dependent(x, kernel, cpu=by_cpu, default=by_xla)


def _forward(
    x: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair], precision: lax.Precision
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, strides, pads, precision), (x, kernel)


def _backward(
    strides: _Pair,
    pads: tuple[_Pair, _Pair],
    precision: lax.Precision,
    inputs: tuple[Array, Array],
    dy: Array,
) -> tuple[Array, Array]:
    settings = _settings(strides, pads, precision)

    def by_cpu(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        like_x, like_kernel = jax.eval_shape(lambda *inputs: inputs, x, kernel)
        return (
            cpu.convolution.input_gradient(dy, kernel, like_x, **settings),
            cpu.convolution.kernel_gradient(x, dy, like_kernel, **settings),
        )

    def by_xla(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        by_xla = partial(_by_xla, strides=strides, padding=pads, precision=precision)
        return jax.vjp(by_xla, x, kernel)[1](dy)

    return lax.platform_dependent(*inputs, dy, cpu=by_cpu, default=by_xla)


_convolve.defvjp(_forward, _backward)


def _settings(
    strides: _Pair, pads: tuple[_Pair, _Pair], precision: lax.Precision
) -> dict[str, Any]:
    return {
        "strides": strides,
        "before": [low for low, _ in pads],
        "high": precision == lax.Precision.HIGH,
    }
