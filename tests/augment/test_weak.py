import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax import augment

BATCH = 3200

weak = jax.jit(augment.weak, static_argnames=("flip", "shift"))


def noise(batch, height, width, channels):
    """Return images of which no two crops are equal."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, height, width, channels), dtype=np.uint8)


def crops(image):
    """All crops back to size of the reflection-padded image, by (shift y, shift x, flipped)."""
    height, width, _ = image.shape
    pad_y, pad_x = height // 8, width // 8
    padded = np.pad(image, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="reflect")
    found = {}
    for y in range(2 * pad_y + 1):
        for x in range(2 * pad_x + 1):
            crop = padded[y : y + height, x : x + width]
            found[crop.tobytes()] = (y - pad_y, x - pad_x, False)
            found[crop[:, ::-1].tobytes()] = (y - pad_y, x - pad_x, True)
    assert len(found) == 2 * (2 * pad_y + 1) * (2 * pad_x + 1)
    return found


def views_of(image, seed, **options):
    """Weak views of one image, one for each of as many keys as a batch has."""
    keys = jax.random.split(jax.random.key(seed), BATCH)
    return np.asarray(weak(jnp.asarray(np.tile(image, (BATCH, 1, 1, 1))), keys, **options))


@pytest.fixture(scope="module")
def views_of_one_image():
    """Weak views of one 32x32 image, and the crops that they may be."""
    image = noise(1, 32, 32, 3)[0]
    return views_of(image, seed=0), crops(image)


def test_every_view_is_a_crop_of_the_reflected_image_and_all_occur(views_of_one_image):
    views, possible = views_of_one_image
    assert views.dtype == np.uint8
    drawn = {possible[view.tobytes()] for view in views}
    # 3200 draws of 162: the chance that one particular is missing is 2e-9.
    assert drawn == set(possible.values())


def test_shifts_are_uniform_and_flips_are_fair_and_independent(views_of_one_image):
    views, possible = views_of_one_image
    draws = np.array([possible[view.tobytes()] for view in views])
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    expected = len(draws) / 162
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 161 + 4 * np.sqrt(2 * 161)  # mean and deviation at 161 degrees of freedom


def test_without_shift_a_view_is_the_image_or_its_mirror_image():
    image = noise(1, 32, 32, 3)[0]
    views = views_of(image, seed=1, shift=False)
    as_they_are = (views == image).all(axis=(1, 2, 3))
    mirrored = (views == image[:, ::-1]).all(axis=(1, 2, 3))
    assert (as_they_are ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(BATCH)


def test_without_flip_only_shifts_occur():
    image = noise(1, 32, 32, 3)[0]
    possible = crops(image)
    views = views_of(image, seed=1, flip=False)
    assert not any(possible[view.tobytes()][2] for view in views)


@pytest.mark.parametrize("shape", [(64, 48, 3), (9, 17, 1)])
def test_padding_is_an_eighth_of_each_side(shape):
    image = noise(1, *shape)[0]
    possible = crops(image)
    draws = np.array([possible[view.tobytes()] for view in views_of(image, seed=2)])
    pad_y, pad_x = shape[0] // 8, shape[1] // 8
    assert (draws[:, 0].min(), draws[:, 0].max()) == (-pad_y, pad_y)
    assert (draws[:, 1].min(), draws[:, 1].max()) == (-pad_x, pad_x)


def test_a_view_depends_on_its_own_key_and_pixels_only():
    images = noise(BATCH, 32, 32, 3)
    keys = jax.random.split(jax.random.key(3), BATCH)
    views = np.asarray(weak(jnp.asarray(images), keys))
    order = np.random.default_rng(1).permutation(BATCH)
    assert np.array_equal(weak(jnp.asarray(images[order]), keys[order]), views[order])
    # The first ten again, among others.
    others = jax.random.split(jax.random.key(4), BATCH).at[:10].set(keys[:10])
    among_others = np.asarray(
        weak(jnp.asarray(np.concatenate([images[:10], 255 - images[10:]])), others)
    )
    assert np.array_equal(among_others[:10], views[:10])
    assert not np.array_equal(among_others[10:], 255 - views[10:])
