"""Weak augmentation: a random shift and a random flip."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from crest_jax.augment.indexing import rows_and_columns


def weak(
    images: UInt8[Array, "batch height width channels"],
    keys: Key[Array, " batch"],
    *,
    flip: bool = True,
    shift: bool = True,
) -> UInt8[Array, "batch height width channels"]:
    """Pad each image by reflection, crop it back at a random place, and flip it at random.

    The padding is an eighth of each side (`size // 8` pixels; none below 8 pixels), so every
    shift of -size//8 .. size//8 pixels is equally likely, independently in y and x. The horizontal
    flip has probability 1/2.

    Args:
      images: grey levels.
      keys: one key per image; a result depends on its own key and pixels only.
      flip: whether to flip; turn it off where mirror images mean something else (digits, text).
      shift: whether to shift; turn it off where images are already random crops of larger ones.

    Source: FixMatch (Sohn et al., 2020), section 2.3.
    """
    return jax.vmap(lambda image, key: _moved(image, key, flip, shift))(images, keys)


def _moved(
    image: UInt8[Array, "height width channels"], key: Key[Array, ""], flip: bool, shift: bool
) -> UInt8[Array, "height width channels"]:
    # One call draws all numbers of an image, because every call takes long to compile.
    for_y, for_x, for_flip = jax.random.uniform(key, (3,))
    height, width, _ = image.shape
    rows = _shifted(for_y, height) if shift else jnp.arange(height)
    columns = _shifted(for_x, width) if shift else jnp.arange(width)
    if flip:
        columns = jnp.where(for_flip < 0.5, columns[::-1], columns)
    return rows_and_columns(image, rows, columns)


def _shifted(uniform: Float[Array, ""], size: int) -> Int[Array, " {size}"]:
    """Return the index of the pixel that each position along a side shows after a random shift."""
    pad = size // 8
    shift = (uniform * (2 * pad + 1)).astype(jnp.int32) - pad
    return _reflect(jnp.arange(size) + shift, size)


def _reflect(index: Int[Array, " size"], size: int) -> Int[Array, " size"]:
    """Return the pixel seen at `index` under endless reflection that does not repeat the edge."""
    last = size - 1
    return last - jnp.abs(last - jnp.abs(index))
