"""Everything that touches data before it is on a device: sources, the long tail, records, streams.

The only package, with the metric writers, that imports TensorFlow, which is kept off the
accelerators here.
"""

import os

# TensorFlow would import Keras, and with it scikit-learn, which is a third of its start. With this
# it looks for the older Keras when that is asked for; so not for longer than the import.
_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
_given = os.environ.get(_LEGACY_KERAS)
os.environ[_LEGACY_KERAS] = "1"

import tensorflow as tf  # noqa: E402

if _given is None:
    del os.environ[_LEGACY_KERAS]
else:
    os.environ[_LEGACY_KERAS] = _given

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)
