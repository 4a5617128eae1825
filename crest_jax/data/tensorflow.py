"""TensorFlow, imported quickly and kept off the accelerators: `tf`.

All other modules take TensorFlow from here, so that none imports it otherwise.
"""

import gc
import os

# TensorFlow would import Keras, and with it scikit-learn, which takes a third of its start-up time.
# With this variable set, it instead looks for the older Keras, and only when Keras is used. The
# variable is restored after the import, so that it does not affect anything else.
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
_given = os.environ.get(_LEGACY_KERAS)
os.environ[_LEGACY_KERAS] = "1"

# Nor does it look for garbage, of which an import makes little: that takes a fifth of the time.
_collected = gc.isenabled()
gc.disable()

import tensorflow as tf  # noqa: E402

if _collected:
    gc.enable()
if _given is None:
    del os.environ[_LEGACY_KERAS]
else:
    os.environ[_LEGACY_KERAS] = _given

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)
