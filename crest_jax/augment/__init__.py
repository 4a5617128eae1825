"""Image augmentation as pure functions on batches, inside `jit`.

Images come in as uint8 grey levels, with one random key each; an image's result depends on its own
key and pixels only, so it does not change with the batch or the device it falls on. `weak` and
`strong` are FixMatch's two views; `rand_augment` and `cutout` are what `strong` is made of.
"""

from crest_jax.augment.cutout import cutout
from crest_jax.augment.rand_augment import OPERATIONS, apply_operations, rand_augment
from crest_jax.augment.rescale import rescale
from crest_jax.augment.strong import strong
from crest_jax.augment.weak import weak

__all__ = [
    "OPERATIONS",
    "apply_operations",
    "cutout",
    "rand_augment",
    "rescale",
    "strong",
    "weak",
]
