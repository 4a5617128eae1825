import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import COMPILER, needs_compiler
from jax import lax

import crest_jax.cpu
from crest_jax.cpu import library
from crest_jax.models.convolution import convolve

HERE = Path(__file__).parent
SANITIZED = ("-Og", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

# Flags of the compiler, and how many shapes take a few seconds: as the kernels are compiled here;
# as on a processor without AVX-512; and with tiles made of vectors, which any processor has.
# `make test-fuzz` takes ten times as many.
BUILDS = {
    "as here": ((), 150),
    "AVX2 and portable tiles": (("-march=x86-64-v3", "-DPORTABLE_TILES"), 50),
    "sanitized": (("-DPORTABLE_TILES", *SANITIZED), 10),
}
MANY = 10 if "FUZZ" in os.environ else 1


@needs_compiler
@pytest.mark.parametrize("build", BUILDS)
def test_random_shapes_agree_with_float64_on_any_number_of_threads(tmp_path, build):
    flags, shapes = BUILDS[build]
    command = [*COMPILER, *library._FLAGS, *flags, "-pthread"]
    probe = ["-x", "c++", "-", "-o", str(tmp_path / "probe")]
    if subprocess.run([*command, *probe], input=b"int main() {}", capture_output=True).returncode:
        pytest.skip("the compiler has not all of these flags")
    if "-march=x86-64-v3" in flags and " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the processor has no AVX2")
    sources = f"-I{Path(crest_jax.cpu.__file__).parent}"
    program = str(tmp_path / "random_shapes")
    subprocess.run([*command, sources, str(HERE / "random_shapes.cc"), "-o", program], check=True)
    # New memory is full of NaN where the sanitizer has it.
    options = {"ASAN_OPTIONS": "malloc_fill_byte=255:max_malloc_fill_size=1000000000"}
    done = subprocess.run(
        [program, str(MANY * shapes), "17"],
        env=os.environ | options,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "bfloat16 by vectors" in done.stdout
    if "-DPORTABLE_TILES" in flags:
        assert "float32 by tiles" in done.stdout
        assert "bfloat16 by tiles" in done.stdout


class Way(NamedTuple):
    """A way to compute a convolution."""

    dtype: type
    precision: lax.Precision
    tiles: bool


WAYS = {
    "float32 by vectors": Way(jnp.float32, lax.Precision.DEFAULT, False),
    "float32 by tiles": Way(jnp.float32, lax.Precision.HIGH, True),
    "bfloat16 by vectors": Way(jnp.bfloat16, lax.Precision.DEFAULT, False),
    "bfloat16 by tiles": Way(jnp.bfloat16, lax.Precision.DEFAULT, True),
}


@contextmanager
def computing(way: Way) -> Iterator[bool]:
    """Compute with tiles or without; yield whether the machine can do so."""
    kernels = library.kernels()
    with mock.patch.object(library, "kernels", return_value=kernels._replace(tiles=way.tiles)):
        yield kernels.tiles or not way.tiles


@pytest.fixture(params=WAYS)
def way(request):
    found = WAYS[request.param]
    with computing(found) as possible:
        if not possible:
            pytest.skip("the processor has no tiles")
        yield found


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_gradients(x, kernel, dy, stride, precision):
    y, pullback = jax.vjp(partial(convolve, stride=stride, precision=precision), x, kernel)
    return y, *pullback(dy)


def by_way(way, x, kernel, dy, stride):
    """Return a convolution and both of its gradients, and the program that computes them."""
    arrays = [jnp.asarray(array, way.dtype) for array in (x, kernel, dy)]
    lowered = jax.jit(
        partial(with_gradients, stride=stride, precision=way.precision)
    ).lower(*arrays)  # fmt: skip
    return lowered.compile()(*arrays), lowered.as_text()


@needs_compiler
def test_tiles_are_for_bfloat16_and_for_float32_of_a_high_precision(way):
    _, program = by_way(way, normal(1, 4, 4, 3), normal(3, 3, 3, 5), normal(1, 4, 4, 5), stride=1)
    assert program.count("@crest_jax.") == 3
    assert program.count(f"tiles = {str(way.tiles).lower()}") == 3


@needs_compiler
@pytest.mark.parametrize("precision", [lax.Precision.DEFAULT, lax.Precision.HIGHEST])
def test_float32_of_another_precision_is_not_made_of_bfloat16(precision):
    with computing(Way(jnp.float32, precision, tiles=True)):
        program = jax.jit(partial(convolve, precision=precision)).lower(
            normal(1, 4, 4, 3), normal(3, 3, 3, 5)
        )
    assert "tiles = false" in program.as_text()


@needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "features"), [(3, 16), (16, 40)])
def test_without_tiles_bfloat16_is_computed_in_float32(channels, features, stride):
    arrays = [
        np.asarray(jnp.asarray(array, jnp.bfloat16), np.float32)
        for array in (
            normal(5, 8, 8, channels),
            normal(3, 3, channels, features),
            normal(5, 8 // stride, 8 // stride, features),
        )
    ]
    with computing(WAYS["bfloat16 by vectors"]):
        ours, _ = by_way(WAYS["bfloat16 by vectors"], *arrays, stride)
        exact, _ = by_way(WAYS["float32 by vectors"], *arrays, stride)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_array_equal(mine, theirs.astype(jnp.bfloat16))


@needs_compiler
@pytest.mark.parametrize(
    ("length", "channels", "features", "by_vectors"),
    [
        (16, 32, 32, (False, False, False)),
        (8, 1, 16, (True, False, True)),  # of a row of 32 terms a window has 9, and each tap 1
        (2, 64, 64, (True, True, True)),  # of a tile's 16 pixels an image has 4
    ],
)
def test_vectors_take_the_place_of_tiles_that_would_be_mostly_zeros(
    length, channels, features, by_vectors
):
    """The result of `high` then equals that of float32, forward and in both gradients."""
    arrays = (
        normal(4, length, length, channels),
        normal(3, 3, channels, features),
        normal(4, length, length, features),
    )
    with computing(WAYS["float32 by tiles"]) as possible:
        if not possible:
            pytest.skip("the processor has no tiles")
        high, _ = by_way(WAYS["float32 by tiles"], *arrays, stride=1)
    with computing(WAYS["float32 by vectors"]):
        exact, _ = by_way(WAYS["float32 by vectors"], *arrays, stride=1)
    same = tuple(np.array_equal(a, b) for a, b in zip(high, exact, strict=True))
    assert same == by_vectors


# Channels, features, and the size and stride of windows: where tiles, and vectors, are filled up
# with what else is in memory, and where they are not.
SHAPES = [
    (3, 5, 3, 1),
    (5, 16, 3, 2),
    (16, 40, 3, 1),
    (40, 3, 5, 2),
    (16, 16, 1, 2),
    (40, 16, 2, 3),
]
SPOTS = [  # which of x, kernel and dy; where; and what is there
    (0, (1, 0, 0, 0), np.inf),
    (0, (1, 4, 3, -1), np.nan),
    (1, (0, 0, 0, 0), np.nan),
    (1, (-1, -1, -1, -1), -np.inf),
    (2, (1, 0, 0, 0), np.nan),
    (2, (2, -1, 1, -1), np.inf),
]


@functools.cache
def finite_in_xla_s(shape):
    """Return where XLA's convolution and its gradients are finite for each spot, and the arrays."""
    channels, features, size, stride = shape
    x, kernel = normal(3, 9, 7, channels), normal(size, size, channels, features)

    def convolution(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=layout
        )

    dy = normal(*jax.eval_shape(convolution, x, kernel).shape)

    @jax.jit
    def results(x, kernel, dy):
        y, pullback = jax.vjp(convolution, x, kernel)
        return y, *pullback(dy)

    each = []
    for which, place, value in SPOTS:
        arrays = [x.copy(), kernel.copy(), dy.copy()]
        arrays[which][place] = value
        each.append((arrays, [np.isfinite(result) for result in results(*arrays)]))
    return each


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_not_finite_reaches_what_it_reaches_in_xla_s(way, shape):
    stride = shape[-1]
    ours = jax.jit(partial(with_gradients, stride=stride, precision=way.precision))
    spoilt = finite_in_xla_s(shape)
    # Windows may leave a spot out, but not all of them.
    assert not all(each.all() for _, finite in spoilt for each in finite)
    for arrays, finite in spoilt:
        results = ours(*(jnp.asarray(array, way.dtype) for array in arrays))
        for mine, theirs in zip(results, finite, strict=True):
            np.testing.assert_array_equal(np.isfinite(np.asarray(mine, np.float32)), theirs)


def bits():
    """Return digests of convolutions and gradients in all ways; another process calls this too."""
    digests = []
    for way in WAYS.values():
        with computing(way) as possible:
            for features, size, stride in [(32, 3, 1), (40, 3, 2), (5, 1, 1)] * possible:
                dy = normal(37, 12 // stride, 12 // stride, features, seed=1)
                x, kernel = normal(37, 12, 12, 8), normal(size, size, 8, features)
                results, _ = by_way(way, x, kernel, dy, stride)
                digests += [hashlib.sha256(np.asarray(result)).hexdigest() for result in results]
    return digests


@needs_compiler
def test_bits_are_the_same_at_every_call_in_every_process_and_on_any_number_of_threads():
    program = f"""
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
import test_convolution
print(*test_convolution.bits())
"""
    one_thread = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    here = bits()
    assert len(here) >= 18
    assert here == bits() == one_thread.stdout.split()


@needs_compiler
def test_where_memory_is_short_xla_says_so():
    program = """
import resource
import jax, numpy as np
from crest_jax.models.convolution import convolve
features = 1 << 21
x, dy = np.ones((16, 1, 1, 1), np.float32), np.ones((16, 1, 1, features), np.float32)
def gradient(x, dy):
    kernel = jax.numpy.zeros((1, 1, 1, features))
    return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](dy)[0]
x, dy = jax.device_put((x, dy))
compiled = jax.jit(gradient).lower(x, dy).compile()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)  # it needs as much as dy
try:
    compiled(x, dy).block_until_ready()
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "memory is short for a kernel" in done.stdout
