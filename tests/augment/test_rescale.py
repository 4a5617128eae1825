import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import augment


def test_black_white_and_the_two_middle_greys():
    levels = jnp.array([0, 127, 128, 255], jnp.uint8).reshape(1, 2, 2, 1)
    rescaled = jax.jit(augment.rescale)(levels)
    assert rescaled.dtype == jnp.float32
    np.testing.assert_allclose(rescaled.ravel(), [-1, -1 / 255, 1 / 255, 1], atol=1e-6)


def test_every_level_can_be_told_apart_and_recovered():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    rescaled = np.asarray(augment.rescale(jnp.asarray(levels)))
    assert np.array_equal(np.round((rescaled + 1) * 127.5).astype(np.uint8), levels)
