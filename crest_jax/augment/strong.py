"""Strong augmentation: RandAugment and Cutout on top of the weak one."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float, Key, UInt8

from crest_jax.augment.cutout import cutout
from crest_jax.augment.rand_augment import OPERATIONS, rand_augment
from crest_jax.augment.rescale import rescale
from crest_jax.augment.weak import weak


def strong(
    images: UInt8[Array, "batch height width channels"],
    keys: Key[Array, " batch"],
    *,
    flip: bool = True,
    operations: Sequence[str] = OPERATIONS,
) -> Float[Array, "batch height width channels"]:
    """Weak augmentation, RandAugment, then Cutout of half the side; float32 in [-1, 1].

    Args:
      images: grey levels; 1 or 3 channels (any number without Color and Contrast).
      keys: one key per image; a result depends on its own key and pixels only.
      flip: whether the weak part may mirror.
      operations: what RandAugment draws from, names from `OPERATIONS`.

    Raises:
      ValueError: `operations` is empty or has an unknown name.

    Source: FixMatch (Sohn et al., 2020), section 2.3.
    """
    subkeys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    weak_keys, rand_augment_keys, cutout_keys = subkeys[:, 0], subkeys[:, 1], subkeys[:, 2]
    images = weak(images, weak_keys, flip=flip)
    images = rand_augment(images, rand_augment_keys, operations=operations)
    return cutout(rescale(images), cutout_keys)
