"""TensorFlow, imported quickly and kept off the accelerators: `tf`.

All other modules import TensorFlow from here.
"""

import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

# TensorFlow would import Keras, and with it scikit-learn, which takes a third of its start-up time.
# With this variable set, it instead looks for the older Keras, and only when Keras is used. The
# variable is restored after the import, so that it does not affect anything else.
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
_given = os.environ.get(_LEGACY_KERAS)
os.environ[_LEGACY_KERAS] = "1"

import tensorflow as tf  # noqa: E402

__all__ = ["tf", "without_autograph"]

if _given is None:
    del os.environ[_LEGACY_KERAS]
else:
    os.environ[_LEGACY_KERAS] = _given

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def without_autograph(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Keep AutoGraph from the functions that a function passes to tf.data.

    AutoGraph would write files to convert their Python into TensorFlow code, which none of them
    needs.
    """
    return tf.autograph.experimental.do_not_convert(function)
