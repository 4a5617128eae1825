"""JAX as every command has it: the same random numbers and arithmetic, whatever the environment.

Variables that JAX reads may have been set for other work. Those that would change what a run draws
or computes with are left aside, and that is said; those that change its last digits are recorded
with the results (`variables`).
"""

import os
import re
import subprocess
import sys

import jax
from absl import logging
from etils.epath import Path

from crest_jax import files
from crest_jax.errors import DeviceError
from crest_jax.schema import printable

# Settings that results are defined with, which are JAX's own.
_SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_numpy_dtype_promotion": "standard",
    # These would only refuse, or slow down, what we and others have written.
    "jax_debug_key_reuse": False,
    "jax_transfer_guard": None,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
    "jax_numpy_rank_promotion": "allow",
    "jax_legacy_prng_key": "allow",
    "jax_disable_jit": False,
    # A run looks for NaN itself, and says where it was.
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_error_checking_behavior_nan": "ignore",
    "jax_error_checking_behavior_divide": "ignore",
    "jax_error_checking_behavior_oob": "ignore",
    "jax_no_tracing": False,
}
# Last digits depend on these.
_VARIABLES = (
    "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "JAX_MEMORY_FITTING_EFFORT", "JAX_MEMORY_FITTING_LEVEL",
    "JAX_OPTIMIZATION_LEVEL", "JAX_SOFTMAX_CUSTOM_JVP", "JAX_USE_DIRECT_LINEARIZE",
    "LIBTPU_INIT_ARGS", "XLA_FLAGS",
)  # fmt: skip
# Reads XLA_FLAGS and nothing else.
_READ_XLA_FLAGS = "from jaxlib.xla_client import CompileOptions; CompileOptions()"


def settle() -> None:
    """Gives JAX the settings that results are defined with, and says where it had others.

    Raises:
      DeviceError: XLA_FLAGS has a flag that XLA would end the process for.
    """
    _check_xla_flags()
    aside = []
    for name, ours in _SETTINGS.items():
        theirs = getattr(jax.config, name, ours)  # which not every version of JAX has
        if theirs != ours:
            jax.config.update(name, ours)
            aside.append(f"{name.upper()}={theirs} (now {ours})")
    if aside:
        logging.warning(
            "left aside, because results are defined with other settings of JAX: %s",
            ", ".join(aside),
        )


def check_devices() -> None:
    """Starts JAX's devices. Other hosts have to be joined before.

    Raises:
      DeviceError: they cannot be, or there are none of the kind that JAX_PLATFORMS names.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = f" ({printable(files.reason(error))})" if str(error) else ""
        named = jax.config.jax_platforms
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
    """Prepares JAX for a command of a single host, as `settle` and `check_devices` do."""
    settle()
    check_devices()


def keep_compiled() -> None:
    """Lets JAX keep what it compiles, for the next time that the same is run."""
    given = jax.config.jax_compilation_cache_dir  # JAX_COMPILATION_CACHE_DIR sets it
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
    # There are small programs too, which take longer to compile than to read.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def variables() -> str | None:
    """What the environment says that changes the last digits of results; None if nothing."""
    given = [f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)]
    return printable(" ".join(given)) or None


def _can_be_written(folder: Path) -> bool:
    if files.is_remote(folder):
        return True  # only writing shows
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _check_xla_flags() -> None:
    if not os.environ.get("XLA_FLAGS"):
        return
    # Another process finds out: XLA ends the one that it is in.
    read = subprocess.run([sys.executable, "-c", _READ_XLA_FLAGS], capture_output=True)
    found = re.search(rb"^[EF]\d.*flags.*?\] (.*)$", read.stderr, re.MULTILINE)
    if read.returncode and found:
        said = printable(found[1].decode(errors="replace"))
        raise DeviceError(
            f"XLA_FLAGS={printable(os.environ['XLA_FLAGS'])} cannot be used ({said}): correct or "
            "unset it"
        )


def _platform() -> str | None:
    """The kind of devices that JAX chooses where nothing is said; None where it finds none."""
    jax.config.update("jax_platforms", None)
    try:
        return jax.devices()[0].platform
    except (RuntimeError, AssertionError):
        return None
