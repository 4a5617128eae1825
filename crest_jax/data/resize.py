"""Cropping and resizing decoded images as evaluations see them, in NumPy.

The pixels are the same as those of `decode`, which uses TensorFlow, for many images. Weights and
sums are therefore rounded to float32 in the order of `tf.image.resize(..., antialias=True)`.
"""

import math

import numpy as np
from jaxtyping import Float32, Int, Num, UInt8

from crest_jax.data.views import CENTRAL_PART, View

_HALF = np.float32(0.5)
_ONE = np.float32(1)


def fitted(
    pixels: UInt8[np.ndarray, "height width channels"], view: View
) -> UInt8[np.ndarray, "{view.size} {view.size} channels"]:
    """Crop and resize a decoded image as evaluations see it.

    Args:
      pixels: an image of any height and width.
      view: a view whose size is not 0.
    """
    if view.crop != "none":
        pixels = _central(pixels)
    return resized(pixels, view.size, view.size)


def resized(
    pixels: UInt8[np.ndarray, "old_height old_width channels"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} channels"]:
    """Resize an image with a triangle kernel, which widens as the image shrinks."""
    columns = _along_first(pixels, height).swapaxes(0, 1)
    both = _along_first(columns, width).swapaxes(0, 1)
    return np.round(both.clip(0, 255)).astype(np.uint8)


def _central(
    pixels: UInt8[np.ndarray, "height width channels"],
) -> UInt8[np.ndarray, "side side channels"]:
    """Return the central square, whose side is `CENTRAL_PART` of the image's shorter side."""
    height, width, _ = pixels.shape
    side = max(round(CENTRAL_PART * min(height, width)), 1)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _along_first(
    pixels: Num[np.ndarray, "old others channels"], size: int
) -> Float32[np.ndarray, "{size} others channels"]:
    """Resize an image along its first axis."""
    neighbours, weights = _kernel(len(pixels), size)
    total = np.zeros((size, *pixels.shape[1:]), np.float32)
    for row, weight in zip(neighbours.T, weights.T, strict=True):
        total += weight[:, None, None] * pixels[row]
    return total


def _kernel(
    old: int, new: int
) -> tuple[Int[np.ndarray, "{new} taps"], Float32[np.ndarray, "{new} taps"]]:
    """Return the old positions whose weighted mean each new position is, and their weights."""
    step = np.float32(1 / (np.float32(new) / np.float32(old)).astype(np.float64))
    radius = max(step, _ONE)
    centres = (np.arange(new, dtype=np.float32) + _HALF) * step
    first = np.ceil(centres - radius - _HALF).astype(int).clip(0, old - 1)
    last = np.floor(centres + radius - _HALF).astype(int).clip(0, old - 1)
    taps = min(2 * math.ceil(radius) + 1, old)
    positions = first[:, None] + np.arange(taps)
    distances = np.abs(positions.astype(np.float32) + _HALF - centres[:, None])
    weights = np.maximum(_ONE - distances * (_ONE / radius), np.float32(0))
    weights[positions > last[:, None]] = 0
    # `sum` would add in another order.
    totals = np.add.accumulate(weights, axis=1)[:, -1:]
    return positions.clip(0, old - 1), weights * (_ONE / totals)
