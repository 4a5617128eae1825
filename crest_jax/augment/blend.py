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
    image: UInt8[Array, "height width channels"],
    drawn: Mapping[str, Bool[Array, ""]],
    magnitude: Float[Array, ""],
) -> UInt8[Array, "height width channels"]:
    """Apply Color or Sharpness if the image drew it, in one blend for both.

    Args:
      image: grey levels; 1 or 3 channels if Color is in use, any number otherwise.
      drawn: for each operation in use, whether this image drew it. Operations that are not keys
        cost nothing.
      magnitude: in [0, 1].

    Raises:
      ValueError: Color is in use and the image has neither 1 nor 3 channels.
    """
    degenerate = image
    if "Color" in drawn and image.shape[-1] != 1:  # a single channel has no colour to remove
        degenerate = jnp.where(drawn["Color"], luma(image)[..., None].astype(jnp.uint8), degenerate)
    if "Sharpness" in drawn:
        degenerate = jnp.where(drawn["Sharpness"], smooth(image), degenerate)
    if degenerate is image:
        return image
    # For any other operation the degenerate is the image itself, and the blend changes nothing.
    return blend(degenerate, image, enhancement_factor(magnitude))


def luma(image: UInt8[Array, "height width channels"]) -> Int[Array, "height width"]:
    """Return the brightness of each pixel in 0..255, as PIL's mode L.

    It is computed by ITU-R 601-2 in 16-bit fixed point.

    Raises:
      ValueError: the image has neither 1 nor 3 channels.
    """
    channels = image.shape[-1]
    if channels == 1:
        return image[..., 0].astype(jnp.int32)
    if channels != 3:
        raise ValueError(
            f"brightness of an image with {channels} channels is not defined, expected 1 (grey) or "
            "3 (RGB); leave Color and Contrast out of operations"
        )
    red, green, blue = (image[..., channel].astype(jnp.int32) for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def smooth(
    image: UInt8[Array, "height width channels"],
) -> UInt8[Array, "height width channels"]:
    """Return the rounded 3x3 mean with a centre weight of 5; the one-pixel border is kept.

    Matches `PIL.ImageFilter.SMOOTH`.
    """
    height, width, channels = image.shape
    # Rows are flat vectors, where a neighbour is `channels` entries away, for longer inner loops.
    rows = image.reshape(height, width * channels)
    levels = rows.astype(jnp.uint16)
    inner = slice(channels, -channels)
    thirds = levels[:-2] + levels[1:-1] + levels[2:]
    total = thirds[:, : -2 * channels] + thirds[:, inner] + thirds[:, 2 * channels :]
    total += 4 * levels[1:-1, inner]
    # (2 t + 13) // 26 is t / 13 rounded; 13 is odd, so there are no ties.
    smoothed = ((2 * total + 13) // 26).astype(jnp.uint8)
    return rows.at[1:-1, inner].set(smoothed).reshape(image.shape)
