import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from crest_jax.augment.mixup import coefficients, mix


def test_coefficients_are_the_larger_half_of_a_beta_distribution():
    drawn = np.asarray(coefficients(jax.random.split(jax.random.key(0), 4000), 0.75))
    beta = stats.beta(0.75, 0.75)
    folded = stats.kstest(drawn, lambda x: np.clip(beta.cdf(x) - beta.cdf(1 - x), 0, 1))
    assert folded.pvalue > 1e-3
    assert drawn.min() >= 0.5
    # The test tells one alpha from another.
    other = stats.beta(0.5, 0.5)
    assert stats.kstest(drawn, lambda x: other.cdf(x) - other.cdf(1 - x)).pvalue < 1e-6


def test_a_coefficient_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(1), 6)
    np.testing.assert_array_equal(coefficients(keys, 0.75)[2:4], coefficients(keys[2:4], 0.75))


def test_images_and_targets_are_mixed_alike():
    images = jnp.arange(2 * 2 * 2 * 1, dtype=jnp.float32).reshape(2, 2, 2, 1)
    targets = jnp.eye(2)
    mixed_images, mixed_targets = mix(
        (images, targets), (images[::-1], targets[::-1]), jnp.array([0.75, 0.5])
    )
    np.testing.assert_allclose(mixed_targets, [[0.75, 0.25], [0.5, 0.5]])
    np.testing.assert_allclose(mixed_images[0].ravel(), [1, 2, 3, 4])
    np.testing.assert_allclose(mixed_images[1].ravel(), [2, 3, 4, 5])
