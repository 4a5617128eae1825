"""Image augmentation as pure functions on batches, inside `jit`.

Images come in as uint8 grey levels, with one random key each; an image's result depends on its own
key and pixels only, so it does not change with the batch or the device it falls on. `weak` and
`strong` are FixMatch's two views; `rand_augment` and `cutout` are what `strong` is made of.
"""

from collections.abc import Sequence
from typing import NamedTuple

from crest_jax.augment.cutout import cutout
from crest_jax.augment.rand_augment import OPERATIONS, apply_operations, rand_augment
from crest_jax.augment.rescale import rescale
from crest_jax.augment.strong import CUTOUT, strong
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

# For white digits on black, which have no colour, and a background that they differ from.
DIGITS_OPERATIONS = (
    "AutoContrast", "Brightness", "Contrast", "Equalize", "Identity", "Posterize", "Rotate",
    "Sharpness", "ShearX", "ShearY", "Solarize", "TranslateX", "TranslateY",
)  # fmt: skip


class Augmentation(NamedTuple):
    """The settings of weak and strong views; the defaults are the paper's on CIFAR."""

    flip: bool = True  # whether weak augmentation may mirror
    shift: bool = True  # whether it may shift
    operations: Sequence[str] = OPERATIONS  # what RandAugment draws from
    cutout: float = CUTOUT  # side of the square over that of the image, in [0, 1]; 0 for none
    # Whether a strong view is made from the weak one of the same image, or from another.
    from_weak_view: bool = False
