"""The compiled kernels: made when they are first asked for, and kept for the next process."""

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
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
from absl import logging
from jax.typing import ArrayLike

from crest_jax import files

_FOLDER = Path(__file__).parent
_HANDLERS = (
    "Forward", "InputGradient", "KernelGradient",
    "NormSums", "NormForward", "NormGradientSums", "NormInputGradient",
)  # fmt: skip
_FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-w",
)  # fmt: skip
# Of compilers, of what they make, and of CXX.
_FAILURES = (AttributeError, OSError, RuntimeError, ValueError, subprocess.CalledProcessError)
# By the float32 that a vector holds.
_VECTORS = {16: "AVX-512", 8: "256-bit"}


class Kernels(NamedTuple):
    """What the compiled kernels can do here."""

    lanes: int  # float32 numbers of a vector
    tiles: bool  # whether there are tiles of bfloat16 (AMX)
    made_with_tiles: bool = True  # whether the compiler knows them, for this processor


def whose() -> str:
    """Return who computes convolutions and norms here. The last digits of results differ."""
    found = kernels()
    if found is None:
        return "float32 and bfloat16: XLA"
    vectors = f"{_VECTORS[found.lanes]} kernels"
    if not found.tiles:
        return f"float32 and bfloat16: {vectors}"
    return f"float32: {vectors}; bfloat16 and precision=high: AMX"


@cache
def kernels() -> Kernels | None:
    """Compile the kernels if need be, and make them known to XLA; None if that cannot be."""
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
    """Make the handlers of a compiled library known to XLA, and return what they can do.

    Raises:
      AttributeError: it has no such handlers.
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
    """Have a kernel compute on arrays.

    Args:
      handler: its name.
      like: shapes and types of what it returns.
      arrays: that it takes.
      attributes: that it takes besides, of NumPy's types.
    """
    return jax.ffi.ffi_call(target(handler), like, vmap_method="sequential")(*arrays, **attributes)


def target(handler: str) -> str:
    """Return the name by which XLA knows a kernel."""
    return f"crest_jax.{handler}"


def compile_library(folder: Path, name: str, flags: Sequence[str] = _FLAGS) -> Path:
    """Compile the sources into a shared library.

    Args:
      folder: that it appears in when it is whole, as others may be at it, too.
      name: that the file's begins with; a digest of its content follows.
      flags: of the compiler.

    Raises:
      OSError: there is no such compiler, or the folder cannot be written.
      subprocess.CalledProcessError: it refuses.
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
    """As far as the operating system says."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(errors="replace").split()
    except OSError:
        return False


def _library() -> Path:
    """The compiled kernels; made unless they have been, for this processor and this JAX."""
    # The compiler's version, and all that -march=native stands for.
    macros = _run([*_compiler(), *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull]).stdout
    sources = [path.read_bytes() for path in sorted(_FOLDER.glob("*.[ch]*"))]
    rest = repr((_compiler(), _FLAGS, jaxlib.__version__)).encode()
    name = f"kernels_{_digest(b''.join([macros, *sources, rest]))}"
    folder = _cache_folder()
    for library in sorted(folder.glob(f"{name}_*.so")):
        # A damaged one could end the process.
        whole = library.stem == f"{name}_{_digest(library.read_bytes())}"
        if whole and files.is_ours(library):
            return library
    return compile_library(folder, name)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


_run = partial(subprocess.run, check=True, capture_output=True)


def _reason(error: Exception) -> str:
    """The first line in which a compiler says what is wrong, or the error."""
    said = getattr(error, "stderr", None) or b""
    lines = [line for line in said.decode(errors="replace").splitlines() if "error" in line]
    return lines[0] if lines else str(error)


def _cache_folder() -> Path:
    """The user's, or one for this process alone where there is none that nobody else can change."""
    folder = files.user_cache()
    if folder is not None:
        return Path(folder)
    private = Path(tempfile.mkdtemp(prefix="crest_jax_"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return private
