"""Convolutions of images and their gradients by the compiled kernels.

float32 and bfloat16 are computed in float32 by vectors, or as products of tiles of bfloat16: those
of bfloat16 where there are tiles, and those of float32, as three products, where that is asked for.
Where tiles would be mostly filled up with zeros, vectors are faster, and take their place.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from crest_jax.cpu import library

_Pair = tuple[int, int]  # of the height and the width


def takes(x: Array, kernel: Array) -> bool:
    """Whether there are kernels for arrays of these types."""
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
      kernel: which is not flipped.
      like: what comes out.
      strides: of the windows.
      before: how much is padded above and to the left; less than the kernel's size.
      high: whether three products of bfloat16 may make one of float32, where there are tiles.
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
    """Return the gradient of the images from that of `forward`'s outputs, with its arguments."""
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
    """Return the gradient of the kernel from that of `forward`'s outputs, with its arguments."""
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
    tiles = library.kernels().tiles and (high or a.dtype == jnp.bfloat16)
    return library.call(
        handler, like, a, b,
        strides=np.array(strides), before=np.array(before), tiles=np.bool_(tiles),
    )  # fmt: skip
