"""Convolutions of images and their gradients by the compiled kernels.

Vector kernels compute convolutions of float32 and bfloat16 arrays in float32. Where the processor
has tiles, tile kernels compute them as products of bfloat16 tiles: always for bfloat16 arrays, and
on request for float32 arrays, as three products. Where tiles would mostly be filled up with zeros,
vector kernels are faster and are used instead.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from crest_jax.cpu import library

_Pair = tuple[int, int]  # values for the height and the width


def takes(x: Array, kernel: Array) -> bool:
    """Return whether there are kernels for arrays of these types."""
    return (
        x.dtype == kernel.dtype
        and x.dtype in (jnp.float32, jnp.bfloat16)
        and bool(library.kernels())
    )


def forward(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    like: jax.ShapeDtypeStruct,
    *,
    strides: _Pair,
    before: Sequence[int],
    high: bool,
) -> Float[Array, "batch new_height new_width features"]:
    """Convolve images.

    Args:
      x: the images.
      kernel: the kernel, which is not flipped.
      like: the shape and type of the output.
      strides: the strides of the windows.
      before: the padding above and to the left, in pixels; less than the kernel's size.
      high: whether three bfloat16 products may replace one of float32, where there are tiles.
    """
    return _call("Forward", like, x, kernel, strides, before, high)


def input_gradient(
    dy: Float[Array, "batch new_height new_width features"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    like: jax.ShapeDtypeStruct,
    *,
    strides: _Pair,
    before: Sequence[int],
    high: bool,
) -> Float[Array, "batch height width channels"]:
    """Return the gradient with respect to the images of `forward`.

    Args:
      dy: the gradient with respect to the output of `forward`.
      kernel: as for `forward`.
      like: the shape and type of the result.
      strides: as for `forward`.
      before: as for `forward`.
      high: as for `forward`.
    """
    return _call("InputGradient", like, dy, kernel, strides, before, high)


def kernel_gradient(
    x: Float[Array, "batch height width channels"],
    dy: Float[Array, "batch new_height new_width features"],
    like: jax.ShapeDtypeStruct,
    *,
    strides: _Pair,
    before: Sequence[int],
    high: bool,
) -> Float[Array, "kernel_height kernel_width channels features"]:
    """Return the gradient with respect to the kernel of `forward`.

    Args:
      x: as for `forward`.
      dy: the gradient with respect to the output of `forward`.
      like: the shape and type of the result.
      strides: as for `forward`.
      before: as for `forward`.
      high: as for `forward`.
    """
    return _call("KernelGradient", like, x, dy, strides, before, high)


def _call(
    handler: str,
    like: jax.ShapeDtypeStruct,
    a: Array,
    b: Array,
    strides: _Pair,
    before: Sequence[int],
    high: bool,
) -> Array:
    found = library.kernels()
    tiles = found is not None and found.tiles and (high or a.dtype == jnp.bfloat16)
    return library.call(
        handler, like, a, b,
        strides=np.array(strides), before=np.array(before), tiles=np.bool_(tiles),
    )  # fmt: skip
