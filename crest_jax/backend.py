"""Set up JAX for all commands: the same random numbers and arithmetic in any environment.

Environment variables that JAX reads may have been set for other work. Those that would change the
random numbers or the arithmetic of a run are overridden, with a warning; those that change the last
digits of its results are recorded with them (`variables`).
"""

import os
import re
import subprocess
import sys
from typing import Any

import jax
from absl import logging
from etils.epath import Path

from crest_jax import files
from crest_jax.errors import DeviceError
from crest_jax.wording import printable

# The settings that results are defined with, which are JAX's defaults.
_SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_numpy_dtype_promotion": "standard",
    # Other values of these would only reject or slow down our code and that of libraries.
    "jax_debug_key_reuse": False,
    "jax_transfer_guard": None,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
    "jax_numpy_rank_promotion": "allow",
    "jax_legacy_prng_key": "allow",
    "jax_disable_jit": False,
    # A run checks for NaN itself, and reports where it was found.
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_error_checking_behavior_nan": "ignore",
    "jax_error_checking_behavior_divide": "ignore",
    "jax_error_checking_behavior_oob": "ignore",
    "jax_no_tracing": False,
}
# The environment variables that the last digits of results depend on.
_VARIABLES = (
    "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "JAX_MEMORY_FITTING_EFFORT", "JAX_MEMORY_FITTING_LEVEL",
    "JAX_OPTIMIZATION_LEVEL", "JAX_SOFTMAX_CUSTOM_JVP", "JAX_USE_DIRECT_LINEARIZE",
    "LIBTPU_INIT_ARGS", "XLA_FLAGS",
)  # fmt: skip
# A program that makes XLA read XLA_FLAGS, and does nothing else.
_READ_XLA_FLAGS = "from jaxlib.xla_client import CompileOptions; CompileOptions()"


def settle() -> None:
    """Give JAX the settings that results are defined with, and warn of those that it replaces.

    Raises:
      DeviceError: XLA_FLAGS has a flag for which XLA would end the process.
    """
    _check_xla_flags()
    aside = []
    for name, ours in _SETTINGS.items():
        theirs = getattr(jax.config, name, ours)  # not every JAX version has all of these
        if theirs != ours:
            jax.config.update(name, ours)
            aside.append(f"{name.upper()}={theirs} (now {ours})")
    if aside:
        logging.warning(
            "left aside, because results are defined with other settings of JAX: %s",
            ", ".join(aside),
        )


def check_devices() -> None:
    """Start JAX's devices; other hosts must have been joined before.

    Raises:
      DeviceError: The devices cannot be started, or there are none of the kind that JAX_PLATFORMS
        names.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = f" ({printable(files.reason(error))})" if str(error) else ""
        named = _setting("jax_platforms")
        if not named:
            one = os.environ.get("JAX_PLATFORM_NAME")
            way_out = f": unset JAX_PLATFORM_NAME={printable(one)}" if one else ""
            raise DeviceError(f"JAX cannot use the devices here{reason}{way_out}") from error
        there = _platform()
        way_out = f", or set it to {there}, which there is" if there else ""
        raise DeviceError(
            f"JAX_PLATFORMS={printable(named)}: there are no such devices here that JAX can use"
            f"{reason}: unset it{way_out}"
        ) from error


def start() -> None:
    """Prepare JAX for a command on a single host with `settle` and `check_devices`."""
    settle()
    check_devices()


def keep_compiled() -> None:
    """Make JAX keep compiled programs on disk, for the next time that the same ones run.

    If there is no writable folder for them, warn and turn this cache off.
    """
    given = _setting("jax_compilation_cache_dir")  # JAX_COMPILATION_CACHE_DIR sets it
    folder = files.given(given, "JAX_COMPILATION_CACHE_DIR") if given else files.user_cache()
    if folder is None or not _can_be_written(folder):
        logging.warning(
            "%s, so that compiled steps are not kept: set JAX_COMPILATION_CACHE_DIR to a folder "
            "for them",
            f"{folder} cannot be written" if folder else "this user has no cache folder",
        )
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder if given else folder / "compiled"))
    # Keep small programs too, since they take longer to compile than to read.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def variables() -> str | None:
    """Return the set environment variables that change the last digits of results.

    Returns:
      `NAME=value` of each, separated by spaces; None if none is set.
    """
    given = [f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)]
    return printable(" ".join(given)) or None


def _setting(name: str) -> Any:
    """Return a setting of JAX, which defines its settings only at run time."""
    return getattr(jax.config, name)


def _can_be_written(folder: Path) -> bool:
    if files.is_remote(folder):
        return True  # only writing shows whether a bucket is writable
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _check_xla_flags() -> None:
    if not os.environ.get("XLA_FLAGS"):
        return
    # Try the flags in another process, since XLA ends the process that it runs in.
    read = subprocess.run([sys.executable, "-c", _READ_XLA_FLAGS], capture_output=True)
    found = re.search(rb"^[EF]\d.*flags.*?\] (.*)$", read.stderr, re.MULTILINE)
    if read.returncode and found:
        said = printable(found[1].decode(errors="replace"))
        raise DeviceError(
            f"XLA_FLAGS={printable(os.environ['XLA_FLAGS'])} cannot be used ({said}): correct or "
            "unset it"
        )


def _platform() -> str | None:
    """Return the kind of devices that JAX chooses by default; None if it finds no devices."""
    jax.config.update("jax_platforms", None)
    try:
        return jax.devices()[0].platform
    except (RuntimeError, AssertionError):
        return None
