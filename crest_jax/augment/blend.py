"""RandAugment operations that blend an image with a degraded copy of it: Color and Sharpness."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

BLEND_OPERATIONS: tuple[str, ...] = ("Color", "Sharpness")


def enhancement_factor(magnitude: Float[Array, ""]) -> Float[Array, ""]:
    """Return the weight of the image against its degenerate, 0.1 to 1.9; 1 keeps the image."""
    return 1.8 * magnitude + 0.1


def blend(
    degenerate: Int[Array, "..."] | UInt8[Array, "..."],
    image: Int[Array, "..."] | UInt8[Array, "..."],
    factor: Float[Array, ""],
) -> UInt8[Array, "..."]:
    """Return `degenerate + factor * (image - degenerate)`, clipped to 0..255 and truncated.

    Matches `PIL.Image.blend` in single precision. Where the exact value is a whole number, the
    truncated result depends on the last bit of `factor`.
    """
    start = degenerate.astype(jnp.float32)
    mixed = start + factor * (image.astype(jnp.float32) - start)
    return jnp.clip(mixed, 0.0, 255.0).astype(jnp.uint8)


def blend_with_degenerate(
    planes: UInt8[Array, "channels pixels"],
    drawn: Mapping[str, Bool[Array, ""]],
    magnitude: Float[Array, ""],
    *,
    width: int,
) -> UInt8[Array, "channels pixels"]:
    """Apply Color or Sharpness if the image drew it, in one blend for both.

    Args:
      planes: grey levels; 1 or 3 channels if Color is in use, any number otherwise.
      drawn: for each operation in use, whether this image drew it. Operations that are not keys
        cost nothing.
      magnitude: in [0, 1].
      width: of the image, in pixels.

    Raises:
      ValueError: Color is in use and the image has neither 1 nor 3 channels.
    """
    degenerate = planes
    if "Color" in drawn and len(planes) != 1:  # a single channel has no colour to remove
        degenerate = jnp.where(drawn["Color"], luma(planes).astype(jnp.uint8), degenerate)
    if "Sharpness" in drawn:
        degenerate = jnp.where(drawn["Sharpness"], smooth(planes, width), degenerate)
    if degenerate is planes:
        return planes
    # For any other operation the degenerate is the image itself, and the blend changes nothing.
    return blend(degenerate, planes, enhancement_factor(magnitude))


def luma(planes: UInt8[Array, "channels pixels"]) -> Int[Array, " pixels"]:
    """Return the brightness of each pixel in 0..255, as PIL's mode L.

    It is computed by ITU-R 601-2 in 16-bit fixed point.

    Raises:
      ValueError: The image has neither 1 nor 3 channels.
    """
    channels = len(planes)
    if channels == 1:
        return planes[0].astype(jnp.int32)
    if channels != 3:
        raise ValueError(
            f"brightness of an image with {channels} channels is not defined, expected 1 (grey) or "
            "3 (RGB); leave Color and Contrast out of operations"
        )
    red, green, blue = planes.astype(jnp.int32)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def smooth(planes: UInt8[Array, "channels pixels"], width: int) -> UInt8[Array, "channels pixels"]:
    """Return the rounded 3x3 mean with a centre weight of 5; the one-pixel border is kept.

    Matches `PIL.ImageFilter.SMOOTH`.
    """
    levels = planes.astype(jnp.uint16)
    # All pixels but the first and the last row, and the first and last pixel between them.
    inner = slice(width + 1, -width - 1)
    thirds = levels[:, : -2 * width] + levels[:, width:-width] + levels[:, 2 * width :]
    total = thirds[:, :-2] + thirds[:, 1:-1] + thirds[:, 2:] + 4 * levels[:, inner]
    # (2 t + 13) // 26 is t / 13 rounded; 13 is odd, so there are no ties.
    smoothed = planes.at[:, inner].set(((2 * total + 13) // 26).astype(jnp.uint8))
    column = jnp.arange(planes.shape[1]) % width
    return jnp.where((column > 0) & (column < width - 1), smoothed, planes)
