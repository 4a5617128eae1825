"""CReST: class-rebalancing self-training for imbalanced semi-supervised learning, in JAX and Flax.

Wei et al., CVPR 2021, https://arxiv.org/abs/2102.09559. Start reading at `crest_jax.generations`.
"""

__version__ = "0.1.0"
