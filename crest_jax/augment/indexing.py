"""Look-ups of pixels and grey levels, in the form that each kind of device is fast at.

CPUs and GPUs index memory. A TPU would do so in a scalar loop of about 10 cycles an index, so there
each look-up is a product of matrices of zeros and ones, which its matrix units compute. A grey
level is taken in two halves of 4 bits, so that its matrices have 16 columns instead of 256. Factors
are bfloat16, which has every whole number up to 256, and sums are float32: products are exact, and
both forms give the same result.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

_HALF = 16  # the square root of the number of grey levels
_FACTOR = jnp.bfloat16


def look_up(
    tables: UInt8[Array, "channels 256"], planes: UInt8[Array, "channels pixels"]
) -> UInt8[Array, "channels pixels"]:
    """Replace each pixel by its entry in the table of its channel."""

    def by_index(tables: Array, planes: Array) -> Array:
        return jnp.take_along_axis(tables, planes.astype(jnp.int32), 1, mode="promise_in_bounds")

    def by_product(tables: Array, planes: Array) -> Array:
        high, low = _halves(planes)
        entries = _product("chl,chp->clp", tables.reshape(-1, _HALF, _HALF), high)
        return _marked(entries, low)

    return _by_device(by_index, by_product, tables, planes)


def level_counts(planes: UInt8[Array, "channels pixels"]) -> Int[Array, "channels 256"]:
    """Return the histogram of each channel, of fewer than 2^24 pixels.

    By index it is a scatter of ones, on a CPU by far the fastest of the ways tried (one-hot
    products, comparisons, sorting); integer additions give the same result in any order.
    """

    def by_index(planes: Array) -> Array:
        channels = planes.shape[0]
        bins = planes + 256 * jnp.arange(channels)[:, None]
        counts = jnp.zeros(256 * channels, jnp.int32).at[bins].add(1, mode="promise_in_bounds")
        return counts.reshape(channels, 256)

    def by_product(planes: Array) -> Array:
        counts = _product("chp,clp->chl", *_halves(planes))
        return counts.reshape(-1, 256).astype(jnp.int32)

    return _by_device(by_index, by_product, planes)


def pixels_at(
    planes: UInt8[Array, "channels pixels"],
    rows: Int[Array, " new_pixels"],
    columns: Int[Array, " new_pixels"],
    *,
    width: int,
) -> UInt8[Array, "channels new_pixels"]:
    """Return the pixels at the given rows and columns of an image, which must be inside it."""

    def by_index(planes: Array, rows: Array, columns: Array) -> Array:
        # All channels of a pixel are read together.
        pixels = planes.T.at[rows * width + columns].get(mode="promise_in_bounds")
        return pixels.T

    def by_product(planes: Array, rows: Array, columns: Array) -> Array:
        # Quarters of rows: 32 x 32 pixels then have 128, as many as a matrix unit has rows.
        part = width // 4 if width % 4 == 0 else width
        index = rows * width + columns
        parts = planes.reshape(len(planes), -1, part)
        of_part = _product("chw,hp->cwp", parts, _one_hot(index // part, parts.shape[1]))
        return _marked(of_part, _one_hot(index % part, part))

    return _by_device(by_index, by_product, planes, rows, columns)


def rows_and_columns(
    image: UInt8[Array, "height width channels"],
    rows: Int[Array, " new_height"],
    columns: Int[Array, " new_width"],
) -> UInt8[Array, "new_height new_width channels"]:
    """Return the given rows and columns of the image, which must be inside it."""

    def by_index(image: Array, rows: Array, columns: Array) -> Array:
        return image.at[rows[:, None], columns].get(mode="promise_in_bounds")

    def by_product(image: Array, rows: Array, columns: Array) -> Array:
        height, _, channels = image.shape
        # The channels of a pixel are columns of their own, so that a TPU's lanes are full.
        image = image.reshape(height, -1)
        columns = (columns[:, None] * channels + jnp.arange(channels)).reshape(-1)
        of_rows = _product("hy,hk->yk", _one_hot(rows, height), image)
        pixels = _product("yk,kx->yx", of_rows, _one_hot(columns, image.shape[1]))
        return pixels.reshape(len(rows), -1, channels).astype(jnp.uint8)

    return _by_device(by_index, by_product, image, rows, columns)


def choose(
    candidates: Sequence[UInt8[Array, "*shape"]], number: Int[Array, ""]
) -> UInt8[Array, "*shape"]:
    """Return the candidate with this number, from 0."""

    def by_index(number: Array, *candidates: Array) -> Array:
        return jnp.stack(candidates)[number]

    return _by_device(by_index, lax.select_n, number, *candidates)


def _by_device(
    by_index: Callable[..., Array], on_tpu: Callable[..., Array], *arrays: Array
) -> Array:
    return lax.platform_dependent(*arrays, tpu=on_tpu, default=by_index)


def _halves(
    planes: UInt8[Array, "channels pixels"],
) -> tuple[Bool[Array, "channels 16 pixels"], Bool[Array, "channels 16 pixels"]]:
    """Return the upper and the lower 4 bits of each pixel, one-hot."""
    return _one_hot(planes >> 4, _HALF), _one_hot(planes & 15, _HALF)


def _one_hot(
    numbers: Int[Array, "*shape many"] | UInt8[Array, "*shape many"], size: int
) -> Bool[Array, "*shape {size} many"]:
    """Return one-hot vectors as columns, so that a TPU's lanes are the numbers."""
    return numbers[..., None, :] == jnp.arange(size, dtype=numbers.dtype)[:, None]


def _marked(
    numbers: Float[Array, "channels size pixels"], where: Bool[Array, "*#channels size pixels"]
) -> UInt8[Array, "channels pixels"]:
    """Return the number of each column that its one-hot vector marks."""
    return jnp.where(where, numbers, 0).max(axis=-2).astype(jnp.uint8)


def _product(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
    """Return the exact product of whole numbers up to 256, one of which is a 0/1 matrix."""
    return jnp.einsum(
        equation,
        left.astype(_FACTOR),
        right.astype(_FACTOR),
        preferred_element_type=jnp.float32,
    )
