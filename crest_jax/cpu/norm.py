"""Batch norm with its activation, and its gradients, by the compiled kernels.

Sums are computed in float32 within parts of the images, and in float64 over these parts. Arrays of
per-channel values are float32. Where an optional array is None, its term is left out.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from crest_jax.cpu import library

_Images = Float[Array, "*batch channels"]
_Sums = Float[Array, "2 channels"]


def takes(x: Array) -> bool:
    """Return whether there are kernels for an array of this type."""
    return x.dtype in (jnp.float32, jnp.bfloat16) and bool(library.kernels())


def sums(
    x: _Images, y: _Images | None, about: Float[Array, " channels"]
) -> tuple[_Images | None, _Sums]:
    """Return x + y, and per channel the sums of its deviations from `about` and of their squares.

    If y is None, the first result is None, and the deviations are those of x.
    """
    like = (_like(_or_empty(y, x)), _two_sums_like(x))
    x_plus_y, both = library.call("NormSums", like, x, _or_empty(y, x), about)
    return (None if y is None else x_plus_y), both


def forward(
    x: _Images, added: _Images | None, numbers: Float[Array, "3 channels"], slope: float
) -> _Images:
    """Return the activation of (x - mean) * factor + bias + added.

    Args:
      x: the images.
      added: more images of the same shape, or None.
      numbers: factor, mean and bias of each channel.
      slope: the slope of the activation below 0.
    """
    return library.call(
        "NormForward", _like(x), x, _or_empty(added, x), numbers, slope=np.float32(slope)
    )


def gradient_sums(
    x: _Images,
    y: _Images | None,
    dy: _Images,
    numbers: Float[Array, "3 channels"],
    slope: float,
) -> _Sums:
    """Return the sums of g and of g * (x - mean) per channel.

    g is the gradient with respect to the input of the activation.

    Args:
      x: the images that `forward` took.
      y: what `forward` returned, if images were added; otherwise None.
      dy: the gradient with respect to what `forward` returned.
      numbers: factor, mean and bias of each channel.
      slope: the slope of the activation below 0.
    """
    arrays = (x, _or_empty(y, x), dy, numbers)
    return library.call("NormGradientSums", _two_sums_like(x), *arrays, slope=np.float32(slope))


def input_gradient(
    x: _Images,
    y: _Images | None,
    dy: _Images,
    past: _Images | None,
    numbers: Float[Array, "5 channels"],
    slope: float,
) -> tuple[_Images, _Images | None]:
    """Return g * factor + (x - mean) * rise + offset + past, and g (None if y is None).

    g is the gradient with respect to the input of the activation, and so to the added images.

    Args:
      x: the images that `forward` took.
      y: what `forward` returned, if images were added; otherwise None.
      dy: the gradient with respect to what `forward` returned.
      past: the gradient that x has from elsewhere, or None.
      numbers: factor, mean, bias, rise and offset of each channel.
      slope: the slope of the activation below 0.
    """
    like = (_like(x), _like(_or_empty(y, x)))
    arrays = (x, _or_empty(y, x), dy, _or_empty(past, x), numbers)
    dx, g = library.call("NormInputGradient", like, *arrays, slope=np.float32(slope))
    return dx, (None if y is None else g)


def _or_empty(array: Array | None, like: Array) -> Array:
    return jnp.zeros_like(like, shape=(0,)) if array is None else array


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: x)


def _two_sums_like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jnp.zeros_like(x, jnp.float32, shape=(2, x.shape[-1])))
