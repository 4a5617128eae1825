"""CIFAR100-LT with WRN-28-2 (section 4.1).

The arguments are those of cifar10_lt. The paper has gamma = 50 and 100, beta = 10 % and 30 %.
"""

from crest_jax.config import default_config, parse_arguments


def get_config(arguments=None):
    """Return the paper's setting; the defaults are gamma = 100, beta = 10 %, CReST+, fold 0."""
    config = default_config(parse_arguments(arguments))
    config.data.name = "cifar100"
    config.long_tail.n_max = 500
    return config
