import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from crest_jax import augment

strong = jax.jit(augment.strong, static_argnames=("flip", "shift", "operations", "cutout_fraction"))


@pytest.fixture(scope="module")
def photos():
    """64 crops of 32x32 from real photographs at a quarter of their size."""
    rng = np.random.default_rng(0)
    crops = []
    for photo in load_sample_images().images:
        small = np.asarray(Image.fromarray(photo).resize((160, 106)))
        for _ in range(32):
            y, x = rng.integers(0, 106 - 32), rng.integers(0, 160 - 32)
            crops.append(small[y : y + 32, x : x + 32])
    return jnp.asarray(np.stack(crops))


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 64)


def test_views_are_float32_in_minus_one_to_one_and_none_is_the_image(photos, keys):
    views = strong(photos, keys)
    assert views.dtype == jnp.float32
    assert views.shape == photos.shape
    assert np.abs(views).max() <= 1
    assert (views != augment.rescale(photos)).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("shift", [True, False])
def test_a_view_without_operations_and_cutout_is_the_weak_one_of_its_weak_keys(photos, keys, shift):
    weak_keys = jax.random.split(jax.random.key(7), len(photos))
    settings = {"shift": shift, "operations": ("Identity",), "cutout_fraction": 0.0}
    views = strong(photos, keys, weak_keys=weak_keys, **settings)
    weak = augment.rescale(augment.weak(photos, weak_keys, shift=shift))
    np.testing.assert_allclose(views, weak, atol=1e-6)
    others = strong(photos, keys, **settings)
    assert (np.abs(others - weak).max(axis=(1, 2, 3)) > 0.01).mean() > 0.3


def test_each_view_has_a_mid_grey_hole_of_a_quarter_of_the_image_at_most(photos, keys):
    # No grey level becomes exactly 0, so zeros are Cutout's.
    holes = np.asarray(strong(photos, keys) == 0).all(axis=-1)
    areas = holes.sum(axis=(1, 2))
    assert areas.min() >= 8 * 8
    assert areas.max() <= 16 * 16
    for hole in holes:
        rows, columns = np.nonzero(hole.any(axis=1))[0], np.nonzero(hole.any(axis=0))[0]
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_outside_the_hole_strong_with_only_identity_is_a_weak_view(photos, keys):
    views = np.asarray(strong(photos, keys, operations=("Identity",)))
    padded = np.pad(photos, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    shifts = set()
    for view, image in zip(views, padded, strict=True):
        outside = view != 0
        matches = [
            (y, x, flipped)
            for y in range(9)
            for x in range(9)
            for flipped in (False, True)
            if np.allclose(
                view[outside],
                (image[y : y + 32, x : x + 32][:, :: -1 if flipped else 1] / 127.5 - 1)[outside],
                atol=1e-6,
            )
        ]
        assert matches, "not a crop of the reflected image"
        shifts.add(matches[0])
    assert len(shifts) > 30


def test_about_two_thirds_of_the_views_differ_from_a_weak_view_by_more_than_the_hole(photos, keys):
    full = np.asarray(strong(photos, keys))
    plain = np.asarray(strong(photos, keys, operations=("Identity",)))
    # Same keys, so the same crop and the same hole: the rest is RandAugment. A view is left alone
    # with probability (1/2 + 1/2 * 1/16)^2 = 0.28, and a few operations happen to do nothing.
    assert np.array_equal(full == 0, plain == 0)
    changed = (full != plain).any(axis=(1, 2, 3)).mean()
    assert 0.5 < changed < 0.85


@pytest.fixture(scope="module")
def ramp():
    """64 images that grow lighter by 4 levels from one column to the next."""
    return jnp.asarray(np.tile(np.arange(32, dtype=np.uint8)[:, None] * 4, (64, 32, 1, 3)))


def levels_outside_the_hole(views):
    """Grey levels of the first channel of strong views; NaN in the hole."""
    views = np.asarray(views)[..., 0]
    return np.where(views == 0, np.nan, np.round((views + 1) * 127.5))


def test_without_flip_a_picture_stays_the_right_way_round(ramp, keys):
    def rises(options):
        levels = levels_outside_the_hole(strong(ramp, keys, **options, operations=("Identity",)))
        # The inner columns are not reflected at any shift.
        return np.nanmedian(np.diff(levels[:, :, 4:28], axis=2), axis=(1, 2)) > 0

    assert rises({"flip": False}).all()
    assert 0.25 < rises({}).mean() < 0.75


def test_shift_and_hole_are_drawn_independently(ramp):
    shifts, centres = [], []
    for seed in range(2, 18):
        keys = jax.random.split(jax.random.key(seed), 64)
        views = strong(ramp, keys, flip=False, operations=("Identity",))
        levels = levels_outside_the_hole(views)
        shifts.append(np.nanmedian((levels / 4 - np.arange(32))[:, :, 4:28], axis=(1, 2)))
        holes = np.isnan(levels).any(axis=1)
        centres.append([np.nonzero(hole)[0].mean() for hole in holes])
    assert set(np.ravel(shifts)) == set(range(-4, 5))
    # The deviation of a correlation of 1024 independent pairs is 0.031.
    assert abs(np.corrcoef(np.ravel(shifts), np.ravel(centres))[0, 1]) < 0.11


def test_a_view_depends_on_its_own_key_and_pixels_only(photos, keys):
    views = strong(photos, keys)
    order = np.random.default_rng(1).permutation(64)
    assert np.array_equal(strong(photos[order], keys[order]), views[order])
    # The first ten again, among others.
    others = jax.random.split(jax.random.key(9), 64).at[:10].set(keys[:10])
    among_others = strong(jnp.concatenate([photos[:10], 255 - photos[10:]]), others)
    assert np.array_equal(among_others[:10], views[:10])
    assert np.any(among_others[10:] != views[10:], axis=(1, 2, 3)).all()


def test_an_unknown_operation_is_refused(photos, keys):
    with pytest.raises(ValueError, match=r"'Sharpen'.*Sharpness"):
        strong(photos, keys, operations=("Sharpen",))
