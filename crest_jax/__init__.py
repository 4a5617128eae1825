"""CReST: class-rebalancing self-training for imbalanced semi-supervised learning, in JAX and Flax.

Wei et al., CVPR 2021, https://arxiv.org/abs/2102.09559. Start reading at `crest_jax.generations`.

Example:
  config = crest_jax.experiment("mnist_lt", rebalance="crest_plus")
  run = crest_jax.train(config, "runs/mnist_lt")     # or crest_jax.load, of a run that is there
  run.rows()                                         # figures by generation and class
  run.model().predict(images)
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors, type checkers and the API reference, which do not run this file
    from crest_jax.data.arrays import arrays as arrays
    from crest_jax.errors import ConfigError as ConfigError
    from crest_jax.errors import CrestError as CrestError
    from crest_jax.errors import DataError as DataError
    from crest_jax.errors import DeviceError as DeviceError
    from crest_jax.errors import HostError as HostError
    from crest_jax.errors import NonFiniteError as NonFiniteError
    from crest_jax.errors import PluginError as PluginError
    from crest_jax.errors import Preempted as Preempted
    from crest_jax.errors import UnavailableError as UnavailableError
    from crest_jax.errors import WorkdirError as WorkdirError
    from crest_jax.experiments import experiment as experiment
    from crest_jax.job import train as train
    from crest_jax.saved_run import SavedRun as SavedRun
    from crest_jax.saved_run import load as load

# For whichever module imports TensorFlow first; epath does for paths in buckets. It reports its CPU
# instruction sets, missing GPUs and oneDNN as news; nothing that it computes here goes through the
# last.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# By default it trusts what it knows of a file in a bucket for five seconds, and reserves 64 MB for
# each file that it reads; a stream reads hundreds at a time.
os.environ.setdefault("GCS_STAT_CACHE_MAX_AGE", "0")
os.environ.setdefault("GCS_READ_CACHE_BLOCK_SIZE_MB", "4")
# Its Keras would make a folder called `~` for its settings where there is no home.
if os.path.expanduser("~").startswith("~"):  # noqa: PTH111
    os.environ.setdefault("KERAS_HOME", os.devnull)
# One of this package's commands starts, and Python is looking for its module, which imports JAX. An
# error of JAX in reading its variables can be made one line only here.
if (
    sys.argv[:1] == ["-m"]
    and any(word.removeprefix("-m").startswith(f"{__name__}.") for word in sys.orig_argv)
    and any(name.startswith("JAX_") for name in os.environ)
):
    try:
        import jax  # noqa: F401
    except ValueError as error:
        sys.exit(f"error: JAX cannot be started ({error}): correct or unset the variable")

__version__ = "0.2.0"

# The names that are imported only when they are asked for, each with its module.
_FACE = {
    "arrays": "data.arrays",
    "experiment": "experiments",
    "load": "saved_run",
    "train": "job",
    "SavedRun": "saved_run",
    **dict.fromkeys(
        ("CrestError", "ConfigError", "PluginError", "DataError", "WorkdirError",
         "UnavailableError", "NonFiniteError", "DeviceError", "HostError", "Preempted"),
        "errors",
    ),
}  # fmt: skip
__all__ = [*_FACE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_FACE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})
