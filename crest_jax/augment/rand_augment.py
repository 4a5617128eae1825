"""RandAugment (Cubuk et al., 2020) with uniform magnitudes, as FixMatch and CReST use it.

Computing all sixteen operations for every image and keeping one would cost sixteen times too much.
Instead each operation is of one of three kinds: a table of grey levels (`lookup`), an affine map of
positions (`geometry`), or a blend with a degraded copy (`blend`). Each kind takes a few passes over
the pixels, whichever of its operations is drawn. A layer computes all three kinds and keeps the one
drawn.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from crest_jax.augment.blend import BLEND_OPERATIONS, blend_with_degenerate
from crest_jax.augment.geometry import GEOMETRIC_OPERATIONS, move_pixels
from crest_jax.augment.indexing import choose
from crest_jax.augment.lookup import VALUE_OPERATIONS, replace_levels

OPERATIONS: tuple[str, ...] = VALUE_OPERATIONS + GEOMETRIC_OPERATIONS + BLEND_OPERATIONS

_KIND = np.repeat(
    [0, 1, 2], [len(VALUE_OPERATIONS), len(GEOMETRIC_OPERATIONS), len(BLEND_OPERATIONS)]
)


def apply_operations(
    images: UInt8[Array, "batch height width channels"],
    operation: Int[Array, " batch"],
    magnitude: Float[Array, " batch"],
    sign: Float[Array, " batch"],
) -> UInt8[Array, "batch height width channels"]:
    """Apply one layer of RandAugment with given parameters, one operation per image.

    Args:
      images: grey levels; 1 or 3 channels.
      operation: index into `OPERATIONS`.
      magnitude: in [0, 1]; `lookup`, `geometry` and `blend` define its meaning per operation.
        AutoContrast, Equalize, Identity and Invert ignore it.
      sign: +1 or -1, the direction of a geometric operation; the others ignore it.

    Raises:
      ValueError: The images have neither 1 nor 3 channels.
    """
    height, width = images.shape[1:3]
    planes = _apply_layer(
        _as_planes(images), operation, magnitude, sign, OPERATIONS, height=height, width=width
    )
    return _as_images(planes, height)


def rand_augment(
    images: UInt8[Array, "batch height width channels"],
    keys: Key[Array, " batch"],
    *,
    operations: Sequence[str] = OPERATIONS,
    layers: int = 2,
    probability: float = 0.5,
) -> UInt8[Array, "batch height width channels"]:
    """Apply random operations to each image, one after the other.

    In each layer an image is changed with `probability`, by an operation drawn uniformly from
    `operations`, with a magnitude uniform in [0, 1) and a random sign.

    Args:
      images: grey levels; 1 or 3 channels (any number without Color and Contrast).
      keys: one key per image; a result depends on its own key and pixels only.
      operations: names from `OPERATIONS`; one given twice is drawn twice as often.
      layers: the largest number of operations that an image gets.
      probability: the probability that a layer changes the image, in [0, 1].

    Raises:
      ValueError: `operations` is empty or has an unknown name, `probability` is outside [0, 1],
        or the images have a number of channels that an operation does not support.
    """
    _check_operations(operations)
    if not 0 <= probability <= 1:
        raise ValueError(f"rand_augment: probability is {probability}, expected it in [0, 1]")

    height, width = images.shape[1:3]

    def apply_layer(
        planes: UInt8[Array, "batch channels pixels"], layer: Int[Array, ""]
    ) -> tuple[UInt8[Array, "batch channels pixels"], None]:
        layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, layer)
        draws = jax.vmap(lambda key: draw_layer(key, operations, probability))(layer_keys)
        return _apply_layer(planes, *draws, operations, height=height, width=width), None

    # Not unrolled, so that a layer is compiled once and reads finished pixels. Otherwise XLA would
    # fuse the end of one layer into the start of the next and repeat its work for each neighbour
    # that Sharpness reads.
    planes, _ = jax.lax.scan(apply_layer, _as_planes(images), jnp.arange(layers))
    return _as_images(planes, height)


def draw_layer(
    key: Key[Array, ""], operations: Sequence[str], probability: float
) -> tuple[Int[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Draw the operation (index into `OPERATIONS`), magnitude and sign of one image in one layer.

    The operation is Identity if the layer leaves the image unchanged.
    """
    # One call draws all numbers of a layer, because every call takes long to compile.
    for_applied, for_operation, magnitude, for_sign = jax.random.uniform(key, (4,))
    candidates = jnp.array([OPERATIONS.index(name) for name in operations])
    candidate = candidates[(for_operation * len(operations)).astype(jnp.int32)]
    operation = jnp.where(for_applied < probability, candidate, OPERATIONS.index("Identity"))
    sign = jnp.where(for_sign < 0.5, 1.0, -1.0)
    return operation, magnitude, sign


def _apply_layer(
    planes: UInt8[Array, "batch channels pixels"],
    operation: Int[Array, " batch"],
    magnitude: Float[Array, " batch"],
    sign: Float[Array, " batch"],
    in_use: Iterable[str],
    *,
    height: int,
    width: int,
) -> UInt8[Array, "batch channels pixels"]:
    """Apply one layer of operations drawn from `in_use`; the others are not even compiled."""

    def layer(
        planes: UInt8[Array, "channels pixels"],
        operation: Int[Array, ""],
        magnitude: Float[Array, ""],
        sign: Float[Array, ""],
    ) -> UInt8[Array, "channels pixels"]:
        drawn = {name: operation == OPERATIONS.index(name) for name in in_use}
        by_kind = [
            replace_levels(planes, drawn, magnitude),
            move_pixels(planes, drawn, magnitude, sign, height=height, width=width),
            blend_with_degenerate(planes, drawn, magnitude, width=width),
        ]
        return choose(by_kind, jnp.asarray(_KIND)[operation])

    return jax.vmap(layer)(planes, operation, magnitude, sign)


def _as_planes(
    images: UInt8[Array, "batch height width channels"],
) -> UInt8[Array, "batch channels height*width"]:
    """Return the pixels of each channel as one row, which fills the lanes of a TPU."""
    return jnp.moveaxis(images, -1, 1).reshape(len(images), images.shape[-1], -1)


def _as_images(
    planes: UInt8[Array, "batch channels pixels"], height: int
) -> UInt8[Array, "batch {height} width channels"]:
    """Return what `_as_planes` was given."""
    return jnp.moveaxis(planes.reshape(*planes.shape[:2], height, -1), 1, -1)


def _check_operations(operations: Sequence[str]) -> None:
    valid = ", ".join(OPERATIONS)
    if not operations:
        raise ValueError(f"rand_augment: operations is empty, expected some of {valid}")
    unknown = [name for name in operations if name not in OPERATIONS]
    if unknown:
        raise ValueError(
            f"rand_augment: unknown operation {unknown[0]!r}, expected some of {valid}"
        )
