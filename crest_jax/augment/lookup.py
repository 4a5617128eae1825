"""RandAugment operations that replace each grey level by another, as one table per channel."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from crest_jax.augment.blend import blend, enhancement_factor, luma
from crest_jax.augment.indexing import choose, level_counts, look_up

VALUE_OPERATIONS: tuple[str, ...] = (
    "AutoContrast",
    "Brightness",
    "Contrast",
    "Equalize",
    "Identity",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
)


def replace_levels(
    planes: UInt8[Array, "channels pixels"],
    drawn: Mapping[str, Bool[Array, ""]],
    magnitude: Float[Array, ""],
) -> UInt8[Array, "channels pixels"]:
    """Apply the value operation the image drew, if any, in one look-up.

    Args:
      planes: grey levels, fewer than 2^22 pixels; 1 or 3 channels if Contrast is in use, any number
        otherwise.
      drawn: for each operation in use, whether this image drew it. Operations that are not keys
        cost nothing.
      magnitude: in [0, 1].

    Raises:
      ValueError: Contrast is in use and the image has neither 1 nor 3 channels.
    """
    names = [name for name in VALUE_OPERATIONS if name in drawn and name != "Identity"]
    if not names:
        return planes
    tables = level_tables(planes, names, magnitude)
    numbers = list(range(1, len(tables)))
    # Where `choose` indexes, it also keeps XLA from fusing the computation of the tables into the
    # look-up, where it would be repeated for every pixel.
    table = choose(tables, jnp.select([drawn[name] for name in names], numbers, 0))
    return look_up(table, planes)


def level_tables(
    planes: UInt8[Array, "channels pixels"],
    names: Sequence[str],
    magnitude: Float[Array, ""],
) -> list[UInt8[Array, "channels 256"]]:
    """Return the new value of each grey level per channel: the identity, then each operation.

    Arguments derived from the magnitude m are truncated in float32: `int(4 m)` bits for Posterize,
    but at least one; a threshold of `int(256 m)` for Solarize; an addition of `int(110 m)` for
    SolarizeAdd.
    """
    levels = jnp.arange(256)
    factor = enhancement_factor(magnitude)
    makers = {
        "AutoContrast": lambda: autocontrast_table(planes),
        "Brightness": lambda: blend(jnp.zeros_like(levels), levels, factor),
        "Contrast": lambda: contrast_table(planes, factor),
        "Equalize": lambda: equalize_table(planes),
        "Invert": lambda: 255 - levels,
        "Posterize": lambda: posterize_table(jnp.maximum(_truncate(4 * magnitude), 1)),
        "Solarize": lambda: solarize_table(_truncate(256 * magnitude)),
        "SolarizeAdd": lambda: solarize_add_table(_truncate(110 * magnitude)),
    }
    tables = [levels, *(makers[name]() for name in names)]
    shape = (len(planes), 256)
    return [jnp.broadcast_to(table.astype(jnp.uint8), shape) for table in tables]


def autocontrast_table(planes: UInt8[Array, "channels pixels"]) -> Int[Array, "channels 256"]:
    """Return the table that maps the darkest level to 0 and the lightest to 255, per channel.

    A level becomes `(level - low) * 255 // (high - low)` in exact arithmetic.
    `PIL.ImageOps.autocontrast` computes this in floating point, and is one lower where the exact
    value is a whole number and rounding goes down (so its lightest level may be 254).
    """
    low = planes.min(axis=1, keepdims=True).astype(jnp.int32)
    high = planes.max(axis=1, keepdims=True).astype(jnp.int32)
    levels = jnp.arange(256)
    above_low = jnp.clip(levels, low, high) - low
    stretched = _floor_divide(above_low * 255, jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched, levels)


def contrast_table(
    planes: UInt8[Array, "channels pixels"], factor: Float[Array, ""]
) -> UInt8[Array, " 256"]:
    """Return the table of a blend with flat grey, the mean brightness rounded half up."""
    brightness = luma(planes)
    mean = (2 * brightness.sum() + brightness.size) // (2 * brightness.size)
    levels = jnp.arange(256)
    return blend(jnp.full_like(levels, mean), levels, factor)


def equalize_table(planes: UInt8[Array, "channels pixels"]) -> Int[Array, "channels 256"]:
    """Return the table that makes the cumulative distribution of levels linear, per channel.

    Matches `PIL.ImageOps.equalize`: a channel is unchanged if fewer than 255 pixels are darker than
    its lightest level.
    """
    histogram = level_counts(planes)
    lightest = planes.max(axis=1, keepdims=True).astype(jnp.int32)
    in_lightest = jnp.take_along_axis(histogram, lightest, axis=1)
    step = (planes.shape[1] - in_lightest) // 255
    darker = jnp.cumsum(histogram, axis=1) - histogram
    equalized = _floor_divide(step // 2 + darker, jnp.maximum(step, 1))
    return jnp.where(step > 0, jnp.minimum(equalized, 255), jnp.arange(256))


def posterize_table(bits: Int[Array, ""]) -> Int[Array, " 256"]:
    """Return the table that keeps the top `bits`, 1 to 8, of the 8 bits of each level."""
    return jnp.arange(256) & ~(2 ** (8 - bits) - 1)


def solarize_table(threshold: Int[Array, ""]) -> Int[Array, " 256"]:
    """Return the table that inverts the levels at or above the threshold."""
    levels = jnp.arange(256)
    return jnp.where(levels < threshold, levels, 255 - levels)


def solarize_add_table(addition: Int[Array, ""]) -> Int[Array, " 256"]:
    """Return the table that brightens the darker half of the levels."""
    levels = jnp.arange(256)
    return jnp.where(levels < 128, jnp.minimum(levels + addition, 255), levels)


def _truncate(value: Float[Array, ""]) -> Int[Array, ""]:
    return value.astype(jnp.int32)


def _floor_divide(
    numerator: Int[Array, "*shape"], denominator: Int[Array, "*#shape"]
) -> Int[Array, "*shape"]:
    """Return `numerator // denominator`, computed in float32, for quotients up to 256.

    CPUs have no vector instruction for integer division. Adding a half keeps the quotient away from
    whole numbers by more than the rounding error, for numerators below 2^22 and denominators below
    2^14.
    """
    quotient = (numerator.astype(jnp.float32) + 0.5) / denominator.astype(jnp.float32)
    return jnp.floor(quotient).astype(jnp.int32)
