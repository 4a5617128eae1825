"""Look-ups in both forms, by index and as a TPU computes them, against NumPy and each other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from crest_jax import augment
from crest_jax.augment import indexing

RNG = np.random.default_rng(0)
PLANES = RNG.integers(0, 256, (3, 5 * 7), dtype=np.uint8)
PLANES[0, :2] = 0, 255
TABLES = RNG.permuted(np.tile(np.arange(256, dtype=np.uint8), (3, 1)), axis=1)


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    """Compile for a CPU what is compiled for a TPU, but for the type of the factors."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *arrays, tpu, default: tpu(*arrays))
    # XLA has no product of bfloat16 matrices with a float32 result for every layout on a CPU.
    monkeypatch.setattr(indexing, "_FACTOR", jnp.float32)


@pytest.fixture(params=["by index", "as on a TPU"])
def form(request):
    if request.param == "as on a TPU":
        request.getfixturevalue("as_on_a_tpu")


def test_the_factors_have_every_whole_number_that_is_looked_up():
    levels = np.arange(257)
    np.testing.assert_array_equal(jnp.asarray(levels).astype(indexing._FACTOR), levels)


def test_each_pixel_is_replaced_by_its_entry_in_its_channels_table(form):
    found = indexing.look_up(jnp.asarray(TABLES), jnp.asarray(PLANES))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(
        found, [table[plane] for table, plane in zip(TABLES, PLANES, strict=True)]
    )


def test_levels_are_counted_exactly(form):
    planes = np.concatenate([PLANES, np.full((3, 5000), 200, np.uint8)], axis=1)
    counts = indexing.level_counts(jnp.asarray(planes))
    np.testing.assert_array_equal(counts, [np.bincount(plane, minlength=256) for plane in planes])


@pytest.mark.parametrize("width", [7, 8])
def test_pixels_at_any_places(form, width):
    images = RNG.integers(0, 256, (3, 5, width), dtype=np.uint8)
    rows, columns = RNG.integers(0, 5, 60), RNG.integers(0, width, 60)
    given = images.reshape(3, -1), rows, columns
    found = indexing.pixels_at(*map(jnp.asarray, given), width=width)
    np.testing.assert_array_equal(found, images[:, rows, columns])


def test_rows_and_columns(form):
    image, rows, columns = np.moveaxis(PLANES.reshape(3, 5, 7), 0, -1), [4, 0, 0], [6, 6, 1, 2]
    found = indexing.rows_and_columns(*map(jnp.asarray, (image, rows, columns)))
    np.testing.assert_array_equal(found, image[rows][:, columns])


def test_the_candidate_with_a_number(form):
    candidates = [jnp.asarray(PLANES) + np.uint8(each) for each in range(3)]
    for number in range(3):
        found = indexing.choose(candidates, jnp.int32(number))
        np.testing.assert_array_equal(found, candidates[number])


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda tables, planes, _: indexing.look_up(tables, planes), 1),
        (lambda _, planes, numbers: indexing.level_counts(planes), 1),
        (lambda _, planes, numbers: indexing.pixels_at(planes, numbers, numbers, width=7), 1),
        (lambda _, planes, numbers: indexing.rows_and_columns(planes[None], numbers, numbers), 2),
        (lambda _, planes, numbers: indexing.choose([planes, planes + 1], numbers[0]), 0),
    ],
    ids=["look_up", "level_counts", "pixels_at", "rows_and_columns", "choose"],
)
def test_a_tpu_gets_exact_products_and_others_index(function, products):
    traced = jax.jit(function).trace(*map(jnp.asarray, (TABLES, PLANES, [0, 0, 1])))
    on_tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
    found = [line for line in on_tpu.splitlines() if "stablehlo.dot_general" in line]
    assert len(found) == products
    for line in found:
        factors, result = line.rpartition(" : ")[2].split(" -> ")
        assert factors.count("xbf16>") == 2
        assert result.endswith("xf32>")
    indexed = re.compile(r"stablehlo\.(gather|scatter|dynamic_slice|dynamic_gather)")
    assert not indexed.search(on_tpu)
    for platform in ("cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert indexed.search(text)
        assert "stablehlo.dot_general" not in text


def test_all_operations_give_the_same_bits_in_both_forms(request):
    """Compiled, as in training: every operation, weak views and whole strong views."""
    count = 8 * len(augment.OPERATIONS)
    images = RNG.integers(0, 256, (count, 16, 12, 3), dtype=np.uint8)
    images[::3] = images[::3] // 4 + 60  # of few levels
    operations = jnp.tile(jnp.arange(len(augment.OPERATIONS)), 8)
    magnitudes = jnp.asarray(RNG.random(count, dtype=np.float32))
    signs = jnp.asarray(RNG.choice(np.float32([-1, 1]), count))

    def views(images):
        keys = jax.random.split(jax.random.key(0), count)
        return (
            augment.apply_operations(images, operations, magnitudes, signs),
            augment.weak(images, keys),
            augment.strong(images, keys),
        )

    expected = jax.jit(lambda images: views(images))(images)
    request.getfixturevalue("as_on_a_tpu")
    found = jax.jit(lambda images: views(images))(images)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
