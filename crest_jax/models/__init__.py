"""Flax Linen models: images in [-1, 1] to float32 logits.

Each takes `train` (whether batch norm uses the batch's statistics) and is built with `classes`,
`dtype` (of the computation; parameters and statistics stay float32) and `axis_name` (the mesh
axis over which batch norm is synchronised, or None).
"""

from crest_jax.models.wide_resnet import WideResNet

MODELS = {"wide_resnet": WideResNet}
