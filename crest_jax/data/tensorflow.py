"""TensorFlow, imported quickly and kept off the accelerators: `tf`.

All other modules import TensorFlow from here.
"""

import gc
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

# TensorFlow would import Keras, and with it scikit-learn, which takes a third of its start-up time.
# With this variable set, it instead looks for the older Keras, and only when Keras is used. Garbage
# collection takes a fifth, and an import leaves little garbage. Both are restored afterwards.
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
_given, _collects = os.environ.get(_LEGACY_KERAS), gc.isenabled()
os.environ[_LEGACY_KERAS] = "1"
gc.disable()
try:
    import tensorflow as tf
finally:
    if _given is None:
        del os.environ[_LEGACY_KERAS]
    else:
        os.environ[_LEGACY_KERAS] = _given
    if _collects:
        gc.enable()

__all__ = ["tf", "without_autograph"]

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
