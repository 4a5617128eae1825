"""Everything that touches data before it is on a device: sources, the long tail, records, streams.

The only package, with the metric writers, that imports TensorFlow, which is kept off the
accelerators here.
"""

import tensorflow as tf

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)
