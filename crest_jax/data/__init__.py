"""Everything that touches data before it is on a device: sources, the long tail, records, streams.

The only package, with the metric writers, that imports TensorFlow, which is kept off the
accelerators here.
"""

import os

# Before the import: TensorFlow reports its CPU instruction sets, missing GPUs and oneDNN as news.
# Nothing that it computes here goes through oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)
