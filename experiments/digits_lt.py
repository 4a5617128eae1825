"""Long-tailed handwritten digits: the whole method in minutes on a CPU, with nothing to download.

The data are scikit-learn's 8 x 8 digits, the model is WRN-10-1, and the arguments are those of
cifar10_lt. This is not an experiment of the paper: it demonstrates and tests all parts together.

With gamma_u or order_u=reversed, as for cifar10_darp, the unlabeled set has its own long tail. Its
largest class then has 80 images, and that of the labeled set 40; beta is not used. target is the
unlabeled set's class distribution as assumed by da, darp and crest_plus: labeled, predicted, or
given (by --config.unlabeled_distribution.given).
"""

from crest_jax.augment import DIGITS_OPERATIONS
from crest_jax.config import (
    ARGUMENTS,
    DISTRIBUTIONS,
    ORDERS,
    default_config,
    parse_arguments,
    unlabeled_tail,
)

DEFAULTS = {
    **ARGUMENTS,
    "gamma": 10.0,
    "beta": 0.1,
    "gamma_u": None,
    "order_u": "same",
    "target": "labeled",
}
CHOICES = {"order_u": ORDERS, "target": DISTRIBUTIONS}


def get_config(arguments=None):
    """Return the setting; the defaults are gamma = 10, beta = 10 %, CReST+, fold 0."""
    args = parse_arguments(arguments, DEFAULTS, CHOICES)
    config = default_config(args, budget=3 * 600, generations={"crest": 3, "crest_plus": 3})
    config.data.name = "digits"
    config.data.shards = 1
    config.long_tail.n_max = 120
    if args.gamma_u is not None or args.order_u != "same":
        config.long_tail = unlabeled_tail(args, labeled=40, unlabeled=80)
    config.unlabeled_distribution.source = args.target
    config.model.depth = 10
    config.model.width = 1
    config.model.batch_norm_momentum = 0.97
    config.augment.flip = False  # a mirrored digit is not a digit
    config.augment.operations = DIGITS_OPERATIONS
    config.batch_size = 16
    config.optimizer.learning_rate = 0.1
    if config.method == "mixmatch":
        config.ramp_up_steps = 75
    config.eval_every = 20
    config.checkpoint_every = 200
    config.eval_batch_size = 512
    config.ema_decay = 0.99
    return config
