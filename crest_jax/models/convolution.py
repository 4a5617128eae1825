"""Convolutions that are as fast on a CPU as TensorFlow's.

XLA's own take two to four times as long there. Float32 images go through `convolution.cc` instead,
which XLA calls on its own buffers and threads (`jax.ffi`). The C++ compiler compiles it when the
first model is built, into the user's cache, for the processor at hand; where that fails, there
being no compiler, say, everything is XLA's. So it is on GPUs and TPUs, in bfloat16, and in exported
models, which must run without this package. `CXX=false` in the environment leaves it off.

Results do not depend on the number of threads, nor on who else is computing.
"""

import atexit
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from crest_jax import files

_SOURCE = Path(__file__).with_name("convolution.cc")
_FLAGS = ("-std=c++20", "-O3", "-funroll-loops", "-march=native", "-fPIC", "-shared", "-w")
_HANDLERS = ("Forward", "InputGradient", "KernelGradient")
_Pair = tuple[int, int]  # of the height and the width
Padding = str | Sequence[_Pair]


class Conv(nn.Module):
    """`flax.linen.Conv` of images, without a bias; its parameter has the same name and values."""

    features: int
    kernel_size: _Pair
    strides: int = 1
    padding: Padding = "SAME"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width {self.features}"]:
        """Convolves, in `dtype`."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding)


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "batch new_height new_width features"]:
    """Convolves images; can be differentiated once, in reverse.

    On a CPU whose devices share arrays, map it over them (`jax.shard_map`): in a function that is
    only compiled for them, each device would convolve all images.
    """
    strides = (stride, stride)
    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    within = all(0 <= low < size for (low, _), size in zip(pads, kernel.shape, strict=False))
    float32 = x.dtype == kernel.dtype == jnp.float32
    # An exported model takes any number of images.
    exported = jax.export.is_symbolic_dim(x.shape[0])
    if exported or not float32 or not within or not _compiled():
        return _by_xla(x, kernel, strides, padding)
    if 0 in jax.eval_shape(partial(_by_xla, strides=strides, padding=pads), x, kernel).shape:
        return _by_xla(x, kernel, strides, padding)
    # In a mapped function either may be all devices', but its gradient is each device's own: JAX
    # sums them where it has to make one vary as the other does.
    x, kernel = x + jnp.zeros_like(kernel, shape=()), kernel + jnp.zeros_like(x, shape=())
    return _convolve(x, kernel, strides, tuple(map(tuple, pads)))


def _by_xla(x: Array, kernel: Array, strides: _Pair, padding: Padding) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair]) -> Array:
    by_xla = partial(_by_xla, strides=strides, padding=pads)
    like = jax.eval_shape(by_xla, x, kernel)

    def by_call(x, kernel):
        return _call("Forward", like, x, kernel, strides, [low for low, _ in pads])

    return lax.platform_dependent(x, kernel, cpu=by_call, default=by_xla)


def _forward(x: Array, kernel: Array, strides: _Pair, pads: tuple[_Pair, _Pair]):
    return _convolve(x, kernel, strides, pads), (x, kernel)


def _backward(strides: _Pair, pads: tuple[_Pair, _Pair], inputs: tuple[Array, Array], dy: Array):
    before = [low for low, _ in pads]

    def by_call(x, kernel, dy):
        back = kernel.swapaxes(2, 3)
        if strides == (1, 1):  # a convolution, which is faster
            rest = [size - 1 - low for low, size in zip(before, kernel.shape, strict=False)]
            dx = _call("Forward", x, dy, jnp.flip(back, (0, 1)), strides, rest)
        else:
            dx = _call("InputGradient", x, dy, back, strides, before)
        return dx, _call("KernelGradient", kernel, x, dy, strides, before)

    def by_xla(x, kernel, dy):
        return jax.vjp(partial(_by_xla, strides=strides, padding=pads), x, kernel)[1](dy)

    return lax.platform_dependent(*inputs, dy, cpu=by_call, default=by_xla)


_convolve.defvjp(_forward, _backward)


def whose() -> str:
    """Who computes float32 convolutions here: "crest_jax" or "XLA". Their last digits differ."""
    return "crest_jax" if _compiled() else "XLA"


def _call(
    handler: str,
    like: Array | jax.ShapeDtypeStruct,
    a: Array,
    b: Array,
    strides: _Pair,
    before: Sequence[int],
) -> Array:
    call = jax.ffi.ffi_call(_target(handler), jax.typeof(like), vmap_method="sequential")
    return call(a, b, strides=np.array(strides), before=np.array(before))


def _target(handler: str) -> str:
    return f"crest_jax.{handler}"


@cache
def _compiled() -> bool:
    """Compiles the handlers if need be, and makes them known to XLA; False if that cannot be."""
    if jax.default_backend() != "cpu":
        return False
    try:
        library = ctypes.CDLL(str(_library()))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        if os.environ.get("CXX") != "false":
            logging.warning("convolutions are XLA's, which are several times slower: %s", error)
        return False
    for handler in _HANDLERS:
        capsule = jax.ffi.pycapsule(getattr(library, handler))
        jax.ffi.register_ffi_target(_target(handler), capsule, platform="cpu")
    return True


def _library() -> Path:
    """The compiled handlers; made unless they have been, for this processor and this JAX."""
    compile = partial(subprocess.run, check=True, capture_output=True)
    compiler = (*shlex.split(os.environ.get("CXX", "g++")), *_FLAGS)
    # The compiler's version, and all that -march=native stands for.
    macros = compile([*compiler, "-dM", "-E", "-x", "c++", os.devnull]).stdout
    rest = repr((compiler, jax.__version__)).encode()
    identity = hashlib.sha256(macros + _SOURCE.read_bytes() + rest)
    library = _cache_folder() / f"convolution_{identity.hexdigest()[:16]}.so"
    if not (library.exists() and files.is_ours(library)):
        # Other processes may be at it, too: a file appears under its name when it is whole.
        with tempfile.TemporaryDirectory(dir=library.parent) as beside:
            made = Path(beside) / library.name
            compile([*compiler, f"-I{jax.ffi.include_dir()}", str(_SOURCE), "-o", str(made)])
            with made.open("rb") as file:
                os.fsync(file.fileno())
            made.replace(library)
    return library


def _cache_folder() -> Path:
    """The user's, or one for this process alone where there is none that nobody else can change."""
    folder = files.user_cache()
    if folder is not None:
        return Path(folder)
    private = Path(tempfile.mkdtemp(prefix="crest_jax_"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return private
