"""The compiled kernels, which are built when first needed and kept for later processes."""

import atexit
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.typing import ArrayLike
from jaxlib.version import __version__ as jaxlib_version

from crest_jax import files

_FOLDER = Path(__file__).parent
_HANDLERS = (
    "Forward", "InputGradient", "KernelGradient",
    "NormSums", "NormForward", "NormGradientSums", "NormInputGradient",
)  # fmt: skip
_FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-w",
)  # fmt: skip
# Errors of compilers, of loading what they produce, and of parsing CXX.
_FAILURES = (AttributeError, OSError, RuntimeError, ValueError, subprocess.CalledProcessError)
# Names of vectors, by the number of float32 values in one.
_VECTORS = {16: "AVX-512", 8: "256-bit"}


class Kernels(NamedTuple):
    """The capabilities of the compiled kernels on this machine."""

    lanes: int  # float32 values in a vector
    tiles: bool  # whether bfloat16 tiles (AMX) can be used
    made_with_tiles: bool = True  # whether the compiler supports tiles for this processor


def describe() -> str:
    """Describe what computes convolutions and norms here, which affects results' last digits."""
    found = kernels()
    if found is None:
        return "float32 and bfloat16: XLA"
    vectors = f"{_VECTORS[found.lanes]} kernels"
    if not found.tiles:
        return f"float32 and bfloat16: {vectors}"
    return f"float32: {vectors}; bfloat16 and precision=high: AMX"


@cache
def kernels() -> Kernels | None:
    """Compile the kernels if necessary, and register them with XLA; None if that is impossible."""
    if jax.default_backend() != "cpu":
        return None
    try:
        found = register(ctypes.CDLL(str(_library())))
    except _FAILURES as error:
        if os.environ.get("CXX") != "false":
            logging.warning(
                "convolutions and norms are XLA's, and steps take several times as long: %s",
                _reason(error),
            )
        return None
    if not found.tiles and _processor_has_tiles():
        logging.warning(
            "bfloat16 is no faster than float32: %s the processor's tiles (AMX)",
            "the operating system refuses"
            if found.made_with_tiles
            else f"{shlex.join(_compiler())} does not know",
        )
    return found


def register(library: ctypes.CDLL) -> Kernels:
    """Register the handlers of a compiled library with XLA, and return what they can do.

    Raises:
      AttributeError: The library lacks a handler.
    """
    for handler in _HANDLERS:
        capsule = jax.ffi.pycapsule(getattr(library, handler))
        jax.ffi.register_ffi_target(target(handler), capsule, platform="cpu")
    library.made_with_tiles.restype = library.may_use_tiles.restype = ctypes.c_bool
    return Kernels(library.lanes(), library.may_use_tiles(), library.made_with_tiles())


def call(
    handler: str,
    like: jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    *arrays: ArrayLike,
    **attributes: Any,
) -> Any:
    """Call a kernel on arrays.

    Args:
      handler: the kernel's name, one of `_HANDLERS`.
      like: shapes and types of the arrays that it returns.
      arrays: the arrays that it takes.
      attributes: its other arguments, which have NumPy types.
    """
    return jax.ffi.ffi_call(target(handler), like, vmap_method="sequential")(*arrays, **attributes)


def target(handler: str) -> str:
    """Return the name by which XLA knows a kernel."""
    return f"crest_jax.{handler}"


def compile_library(folder: Path, name: str, flags: Sequence[str] = _FLAGS) -> Path:
    """Compile the sources into a shared library.

    Args:
      folder: where the library appears once it is complete, since other processes may be compiling
        it, too.
      name: the beginning of the file's name; a digest of its content follows.
      flags: the compiler's flags.

    Raises:
      OSError: There is no such compiler, or the folder cannot be written.
      subprocess.CalledProcessError: The compiler fails.
    """
    with tempfile.TemporaryDirectory(dir=folder) as beside:

        def compiled(source: Path) -> str:
            made = str(Path(beside) / f"{source.stem}.o")
            _run(
                [*_compiler(), *flags, f"-I{jax.ffi.include_dir()}", "-c", str(source), "-o", made]
            )
            return made

        with ThreadPoolExecutor() as threads:
            objects = list(threads.map(compiled, sorted(_FOLDER.glob("*.cc"))))
        made = Path(beside) / name
        _run([*_compiler(), *flags, "-shared", *objects, "-o", str(made)])
        with made.open("rb") as file:
            os.fsync(file.fileno())
        return made.replace(folder / f"{name}_{_digest(made.read_bytes())}.so")


def _processor_has_tiles() -> bool:
    """Return whether the operating system reports that the processor has tiles (AMX)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(errors="replace").split()
    except OSError:
        return False


def _library() -> Path:
    """Return the library for this processor and this JAX, compiled unless it is in the cache."""
    # The macros contain the compiler's version, and everything that -march=native stands for.
    macros = _run([*_compiler(), *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull])
    sources = [path.read_bytes() for path in sorted(_FOLDER.glob("*.[ch]*"))]
    rest = repr((_compiler(), _FLAGS, jaxlib_version)).encode()
    name = f"kernels_{_digest(b''.join([macros, *sources, rest]))}"
    folder = _cache_folder()
    for library in sorted(folder.glob(f"{name}_*.so")):
        # Loading a damaged library could crash the process.
        whole = library.stem == f"{name}_{_digest(library.read_bytes())}"
        if whole and files.is_ours(library):
            return library
    return compile_library(folder, name)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def _run(command: Sequence[str]) -> bytes:
    """Run a command, and return what it prints; raise CalledProcessError if it fails."""
    return subprocess.run(command, check=True, capture_output=True).stdout


def _reason(error: Exception) -> str:
    """Return the first line in which the compiler reports an error, or the exception's text."""
    said = getattr(error, "stderr", None) or b""
    lines = [line for line in said.decode(errors="replace").splitlines() if "error" in line]
    return lines[0] if lines else str(error)


def _cache_folder() -> Path:
    """Return the user's cache folder, or else a temporary one for this process alone.

    The temporary one is used where the user has none that nobody else can change.
    """
    folder = files.user_cache()
    if folder is not None:
        return Path(folder)
    private = Path(tempfile.mkdtemp(prefix="crest_jax_"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return private
