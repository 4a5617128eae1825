"""CIFAR10-LT with WRN-28-2: the paper's main setting (section 4.1).

Arguments: method, rebalance, gamma (imbalance ratio), beta (labeled fraction), fold, and t (the
constant temperature of rebalance=da). CReST+ trains 6 generations of 2^16 steps of 960 images.
"""

from crest_jax.config import default_config, parse_arguments


def get_config(arguments=None):
    """Return the paper's setting; the defaults are gamma = 100, beta = 10 %, CReST+, fold 0."""
    return default_config(parse_arguments(arguments))
