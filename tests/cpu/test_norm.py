import hashlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs_compiler

from crest_jax import cpu
from crest_jax.cpu import library

pytestmark = needs_compiler
SLOPES = [0.0, 0.1, 1.0]
# Fewer pixels than a row of vectors takes, whole rows and what is left over of them, several parts.
SHAPES = [
    (1, 1), (1009, 1), (5, 3), (7001, 3), (1, 17), (1500, 17), (33, 33), (4097, 16), (700, 32),
    (333, 48), (131, 100), (257, 128), (35, 333), (3, 5, 7, 160), (40, 2048),
]  # fmt: skip


@pytest.fixture(autouse=True)
def compiled():
    assert library.kernels()


def normal(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arrays(shape, dtype=jnp.float32):
    """Two arrays of images, a gradient of each, and numbers of their channels."""
    images = [normal(*shape, dtype=dtype, seed=seed) for seed in range(4)]
    return *images, normal(5, shape[-1], seed=4)


def results(x, y, dy, past, numbers, *, slope, both):
    """Return all results of the kernels, with every optional array or with none."""
    total, sums = cpu.norm.sums(x, y if both else None, numbers[0])
    z = cpu.norm.forward(x, y if both else None, numbers[:3], slope)
    kept = z if both else None
    gradient_sums = cpu.norm.gradient_sums(x, kept, dy, numbers[:3], slope)
    dx, g = cpu.norm.input_gradient(x, kept, dy, past if both else None, numbers, slope)
    return {"total": total, "sums": sums, "z": z, "gradients": gradient_sums, "dx": dx, "g": g}


def by_hand(x, y, dy, past, numbers, *, slope, both, rounded):
    """Return the same results in float64, from the definition."""
    x, y, dy, past, numbers = (np.asarray(a, np.float64) for a in (x, y, dy, past, numbers))
    factor, mean, bias, rise, offset = numbers
    axes = tuple(range(x.ndim - 1))
    total = rounded(x + y) if both else x
    z = (x - mean) * factor + bias + (y if both else 0)
    g = np.where(z > 0, dy, slope * dy)
    dx = g * factor + (x - mean) * rise + offset + (past if both else 0)
    distance = total - factor
    return {
        "total": total if both else None,
        "sums": np.stack([distance.sum(axes), (distance**2).sum(axes)]),
        "z": np.where(z > 0, z, slope * z),
        "gradients": np.stack([g.sum(axes), (g * (x - mean)).sum(axes)]),
        "dx": dx,
        "g": g if both else None,
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_are_their_definitions_in_float64(shape, dtype):
    given = arrays(shape, dtype)
    pixels = np.prod(shape[:-1])
    for slope in SLOPES:
        for both in (False, True):
            options = {"slope": slope, "both": both}
            ours = jax.jit(partial(results, **options))(*given)
            theirs = by_hand(
                *given, **options, rounded=lambda a: np.asarray(a.astype(dtype), float)
            )
            for name, expected in theirs.items():
                if expected is None:
                    assert ours[name] is None
                    continue
                if name in ("sums", "gradients"):
                    assert ours[name].dtype == jnp.float32
                    tolerance = {"rtol": 2e-6, "atol": 2e-6 * pixels}
                else:
                    assert ours[name].dtype == dtype
                    tolerance = {"rtol": float(jnp.finfo(dtype).eps), "atol": 4e-6}
                np.testing.assert_allclose(
                    np.asarray(ours[name], np.float64), expected, err_msg=name, **tolerance
                )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_place_and_in_the_sums_of_its_channel(value, dtype):
    given = arrays((50, 17), dtype)
    for slope in SLOPES:
        compute = jax.jit(partial(results, slope=slope, both=True))
        unharmed = compute(*given)
        for harmed in range(4):
            ours = compute(
                *(a.at[20, 5].set(value) if i == harmed else a for i, a in enumerate(given))
            )
            for name, whole in unharmed.items():
                mine, whole = np.array(ours[name], np.float32), np.asarray(whole, np.float32)
                place = (slice(None), 5) if name in ("sums", "gradients") else (20, 5)
                if harmed == 0 and name in ("total", "sums"):
                    assert not np.isfinite(mine[place]).any()
                mine[place] = whole[place]
                np.testing.assert_array_equal(mine, whole, err_msg=name)


@pytest.mark.parametrize("slope", SLOPES)
def test_activations_of_what_is_not_finite_are_ieee_s(slope):
    x = jnp.asarray([[np.nan, np.inf, -np.inf]])
    unchanged = jnp.asarray([[1.0] * 3, [0.0] * 3, [0.0] * 3])
    y = jax.jit(partial(cpu.norm.forward, slope=slope))(x, None, unchanged)
    np.testing.assert_array_equal(y, [[np.nan, np.inf, -np.inf if slope else 0]])


def bits():
    """Return results in a form to compare; another process calls this too."""
    assert library.kernels()
    hashes = []
    for shape in [(3001, 48), (9001, 3), (300, 1024)]:
        compute = jax.jit(partial(results, slope=0.1, both=True))
        hashes += [
            hashlib.sha256(np.asarray(a)).hexdigest() for a in compute(*arrays(shape)).values()
        ]
    return hashes


def test_bits_are_the_same_at_every_call_in_every_process_and_on_any_number_of_threads():
    program = f"""
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
import test_norm
print(*test_norm.bits())
"""
    one_thread = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert bits() == bits() == one_thread.stdout.split()
