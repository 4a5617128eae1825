"""RandAugment operations that move pixels, as one affine map per image."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from crest_jax.augment.indexing import pixels_at

GEOMETRIC_OPERATIONS: tuple[str, ...] = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")

FILL = 128  # mid-grey, used where the map reads outside the image


def move_pixels(
    planes: UInt8[Array, "channels pixels"],
    drawn: Mapping[str, Bool[Array, ""]],
    magnitude: Float[Array, ""],
    sign: Float[Array, ""],
    *,
    height: int,
    width: int,
) -> UInt8[Array, "channels pixels"]:
    """Apply the geometric operation the image drew, if any, in one nearest-neighbour look-up.

    Args:
      planes: grey levels.
      drawn: for each operation in use, whether this image drew it. Operations that are not keys
        cost nothing.
      magnitude: in [0, 1].
      sign: +1 or -1, the direction; see `inverse_affine`.
      height: of the image in pixels, under 32768 (16.16 fixed point).
      width: likewise.
    """
    if not any(name in drawn for name in GEOMETRIC_OPERATIONS):
        return planes
    y, x = source_pixels(inverse_affine(drawn, magnitude, sign, height, width), height, width)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = jnp.where(inside, y, 0).reshape(-1), jnp.where(inside, x, 0).reshape(-1)
    moved = pixels_at(planes, y, x, width=width)
    return jnp.where(inside.reshape(-1), moved, jnp.uint8(FILL))


def inverse_affine(
    drawn: Mapping[str, Bool[Array, ""]],
    magnitude: Float[Array, ""],
    sign: Float[Array, ""],
    height: int,
    width: int,
) -> Float[Array, "2 3"]:
    """Return the map from output to input positions, (x, y) in pixels.

    Its entries are the six numbers of `PIL.Image.AFFINE`. With a positive sign:

    - Rotate turns by `30 m` degrees counter-clockwise about the centre of the image;
    - ShearX reads x + 0.3 m y, so that lower rows move left; ShearY likewise with y and columns;
    - TranslateX reads x + 10 m at a width of 32 pixels and x + 0.3 m width at any other, so that
      the picture moves left by that amount; TranslateY likewise moves it up.

    If the image drew none of these operations, the map is the identity.
    """

    def amount(name: str, most: float) -> Float[Array, ""]:
        return jnp.where(drawn.get(name, False), sign * (most * magnitude), 0.0)

    angle = amount("Rotate", 30.0) * (jnp.pi / 180)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    centre_x, centre_y = width / 2, height / 2
    # At most one amount is non-zero, so the maps can be added instead of multiplied.
    return jnp.stack(
        [
            cosine,
            amount("ShearX", 0.3) - sine,
            amount("TranslateX", _reach(width)) + centre_x - cosine * centre_x + sine * centre_y,
            amount("ShearY", 0.3) + sine,
            cosine,
            amount("TranslateY", _reach(height)) + centre_y - sine * centre_x - cosine * centre_y,
        ]
    ).reshape(2, 3)


def _reach(side: int) -> float:
    """Return the largest translation along a side, in pixels."""
    return 10.0 if side == 32 else 0.3 * side


def source_pixels(
    affine: Float[Array, "2 3"], height: int, width: int
) -> tuple[Int[Array, "{height} {width}"], Int[Array, "{height} {width}"]]:
    """Return the row and column of the input pixel under the centre of each output pixel.

    They may lie outside the image. They are computed in 16.16 fixed point and rounded where PIL's
    affine transform rounds, so that both pick the same pixel.
    """

    def fixed(value: Float[Array, "..."]) -> Int[Array, "..."]:
        return jnp.floor(value * 65536 + 0.5).astype(jnp.int32)

    per_x, per_y = fixed(affine[:, 0]), fixed(affine[:, 1])
    start = fixed(affine[:, 2] + affine[:, 0] * 0.5 + affine[:, 1] * 0.5)
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    column, row = ((start[axis] + per_x[axis] * x + per_y[axis] * y) >> 16 for axis in (0, 1))
    return row, column
