"""Strong augmentation: RandAugment and Cutout on top of weak augmentation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from crest_jax.augment.cutout import cutout
from crest_jax.augment.rand_augment import OPERATIONS, rand_augment
from crest_jax.augment.rescale import rescale
from crest_jax.augment.weak import weak

# The default side of Cutout's square, relative to that of the image.
CUTOUT = 0.5


def strong(
    images: UInt8[Array, "batch height width channels"],
    keys: Key[Array, " batch"],
    *,
    weak_keys: Key[Array, " batch"] | None = None,
    flip: bool = True,
    shift: bool = True,
    operations: Sequence[str] = OPERATIONS,
    cutout_fraction: float = CUTOUT,
) -> Float[Array, "batch height width channels"]:
    """Apply weak augmentation, RandAugment, then Cutout; return float32 in [-1, 1].

    Args:
      images: grey levels; 1 or 3 channels (any number without Color and Contrast).
      keys: one key per image; a result depends on its own key and pixels only.
      weak_keys: the keys of the weak views to start from; by default derived from `keys`, for weak
        views of their own.
      flip: whether the weak part may flip horizontally.
      shift: whether the weak part may shift.
      operations: the operations that RandAugment draws from, names from `OPERATIONS`.
      cutout_fraction: side of Cutout's square relative to that of the image, in [0, 1]; 0 for none.

    Raises:
      ValueError: `operations` is empty or has an unknown name.

    Source: FixMatch (Sohn et al., 2020), section 2.3.
    """
    subkeys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    new_weak_keys, rand_augment_keys, cutout_keys = jnp.moveaxis(subkeys, 1, 0)
    images = weak(images, new_weak_keys if weak_keys is None else weak_keys, flip=flip, shift=shift)
    images = rescale(rand_augment(images, rand_augment_keys, operations=operations))
    if not cutout_fraction:
        return images
    return cutout(images, cutout_keys, fraction=cutout_fraction)
