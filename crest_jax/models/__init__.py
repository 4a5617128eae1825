"""Flax Linen models that map images in [-1, 1] to float32 logits.

Each takes `train` (whether batch norm uses the batch's statistics) and is built with `classes`,
`depth`, `width`, `batch_norm_momentum`, `dtype` (of the computation; parameters and statistics stay
float32), `precision` (of float32 products) and `axis_name` (the mesh axis over which batch norm is
synchronised, or None). `DEPTHS` and `DEPTHS_IN_WORDS` say which depths are available.

Batch norms keep "BatchNorm" in their names, by which the optimiser exempts them from weight decay.
"""

from crest_jax.models.resnet import ResNet
from crest_jax.models.wide_resnet import WideResNet

MODELS = {"wide_resnet": WideResNet, "resnet": ResNet}
