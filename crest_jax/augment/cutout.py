"""Cutout (DeVries & Taylor, 2017)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def cutout(
    images: Float[Array, "batch height width channels"],
    keys: Key[Array, " batch"],
    *,
    fraction: float = 0.5,
    fill: float = 0.0,
) -> Float[Array, "batch height width channels"]:
    """Blank one randomly placed rectangle of each image with `fill`.

    The rectangle's sides are `round(fraction * side)` pixels, where `side` is the image's (a square
    in a square image). Its centre is uniform over the pixels, so near the border part of it falls
    outside and less is blanked. With an even side the centre is the pixel below and right of the
    middle.

    Args:
      images: pixels; with the default `fill` expected in [-1, 1], where 0 is mid-grey.
      keys: one key per image; a result depends on its own key and pixels only.
      fraction: side of the rectangle relative to the image's, in [0, 1].
      fill: the value written, in the units of `images`.

    Raises:
      ValueError: `fraction` is outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"cutout: fraction is {fraction}, expected a share of the side in [0, 1]")
    height, width = images.shape[1:3]
    holes = jax.vmap(lambda key: _hole(key, height, width, fraction))(keys)
    return jnp.where(holes[..., None], jnp.asarray(fill, images.dtype), images)


def _hole(
    key: Key[Array, ""], height: int, width: int, fraction: float
) -> Bool[Array, "{height} {width}"]:
    centre_y, centre_x = (jax.random.uniform(key, (2,)) * jnp.array([height, width])).astype(
        jnp.int32
    )
    rows = _covered(centre_y, height, round(fraction * height))
    columns = _covered(centre_x, width, round(fraction * width))
    return rows[:, None] & columns


def _covered(centre: Int[Array, ""], size: int, length: int) -> Bool[Array, " {size}"]:
    """Return which of `size` pixels lie in the interval of `length` pixels around `centre`."""
    first = centre - length // 2
    index = jnp.arange(size)
    return (index >= first) & (index < first + length)
