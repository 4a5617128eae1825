"""Image augmentation as pure functions on batches, for use inside `jit`.

Images come in as uint8 grey levels, with one random key each. The result of an image depends only
on its own key and pixels, so it does not change with the batch or the device. `weak` and `strong`
are FixMatch's two views; `strong` is composed of `weak`, `rand_augment` and `cutout`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from crest_jax.augment.cutout import cutout
from crest_jax.augment.rand_augment import OPERATIONS, apply_operations, rand_augment
from crest_jax.augment.rescale import rescale
from crest_jax.augment.strong import strong
from crest_jax.augment.weak import weak

__all__ = [
    "DIGITS_OPERATIONS",
    "OPERATIONS",
    "Augmentation",
    "apply_operations",
    "cutout",
    "rand_augment",
    "rescale",
    "strong",
    "weak",
]

# For white digits on black. Color is left out because the images have no colour, Invert and
# SolarizeAdd because they brighten the background.
DIGITS_OPERATIONS = (
    "AutoContrast", "Brightness", "Contrast", "Equalize", "Identity", "Posterize", "Rotate",
    "Sharpness", "ShearX", "ShearY", "Solarize", "TranslateX", "TranslateY",
)  # fmt: skip


class Augmentation(NamedTuple):
    """The settings of weak and strong views: the config's fields `augment`."""

    flip: bool
    shift: bool
    operations: Sequence[str]
    cutout: float
    from_weak_view: bool
