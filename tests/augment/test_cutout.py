import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax import augment

BATCH = 2048

cutout = jax.jit(augment.cutout, static_argnames=("fraction", "fill"))


def holes(height, width, **options):
    """Return where cutout wrote into images that are 1 everywhere; shape [batch, height, width]."""
    keys = jax.random.split(jax.random.key(0), BATCH)
    cut = np.asarray(cutout(jnp.ones((BATCH, height, width, 2)), keys, **options))
    assert np.isin(cut, [0, 1]).all()
    assert np.array_equal(cut[..., 0], cut[..., 1])
    return cut[..., 0] == 0


def expected_hole(centre, shape, lengths):
    hole = np.zeros(shape, bool)
    first = [at - length // 2 for at, length in zip(centre, lengths, strict=True)]
    rows, columns = (
        slice(max(start, 0), start + length) for start, length in zip(first, lengths, strict=True)
    )
    hole[rows, columns] = True
    return hole


@pytest.mark.parametrize(
    ("shape", "fraction", "lengths"),
    [((8, 8), 0.5, (4, 4)), ((12, 6), 0.3, (4, 2))],
)
def test_holes_are_clipped_rectangles_with_a_uniform_centre(shape, fraction, lengths):
    drawn = [hole.tobytes() for hole in holes(*shape, fraction=fraction)]
    expected = {
        expected_hole((y, x), shape, lengths).tobytes(): 0
        for y in range(shape[0])
        for x in range(shape[1])
    }
    assert len(expected) == shape[0] * shape[1]
    for hole in drawn:
        expected[hole] += 1  # a KeyError is a hole that no centre gives
    counts = np.array(list(expected.values()))
    mean = BATCH / len(counts)
    chi_square = ((counts - mean) ** 2 / mean).sum()
    degrees = len(counts) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


def test_half_the_side_blanks_a_quarter_in_the_middle_and_a_sixteenth_in_a_corner():
    areas = holes(32, 32).sum(axis=(1, 2))
    assert areas.max() == 16 * 16
    assert 8 * 8 <= areas.min() < 9 * 9
    # Along a side, centres 8..24 keep all 16 pixels, the others lose one pixel per step outside.
    along_a_side = sum(min(centre + 8, 32) - max(centre - 8, 0) for centre in range(32)) / 32
    assert areas.mean() == pytest.approx(along_a_side**2, rel=0.02)


def test_pixels_outside_the_hole_are_kept_and_inside_take_the_fill():
    images = np.random.default_rng(0).uniform(-1, 1, (BATCH, 12, 12, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), BATCH)
    cut = np.asarray(cutout(jnp.asarray(images), keys, fill=-7.0))
    changed = cut != images
    assert (cut[changed] == -7).all()
    assert changed.any(axis=(1, 2, 3)).all()
    assert cut.dtype == np.float32


def test_fractions_outside_zero_to_one_are_refused():
    images, keys = jnp.ones((BATCH, 8, 8, 2)), jax.random.split(jax.random.key(0), BATCH)
    for fraction in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"fraction is {fraction}"):
            cutout(images, keys, fraction=fraction)


def test_a_hole_depends_on_its_own_key_only():
    images = jnp.ones((BATCH, 32, 32, 2))
    keys = jax.random.split(jax.random.key(3), BATCH)
    cut = np.asarray(cutout(images, keys))
    order = np.random.default_rng(1).permutation(BATCH)
    assert np.array_equal(cutout(images, keys[order]), cut[order])
    # The first ten again, among others.
    others = jax.random.split(jax.random.key(4), BATCH).at[:10].set(keys[:10])
    among_others = np.asarray(cutout(images, others))
    assert np.array_equal(among_others[:10], cut[:10])
    assert not np.array_equal(among_others[10:], cut[10:])
