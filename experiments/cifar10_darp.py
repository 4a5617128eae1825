"""CIFAR10 with separate long tails of the labeled and the unlabeled set (Table 3).

DARP's protocol (Kim et al., 2020): the largest class has N_1 = 1500 images in the labeled set and
M_1 = 3000 in the unlabeled set, as in DARP's own code; the caption of the paper's Table 3 says
beta = 10 % instead. gamma is 50, 100 or 150 there, for both sets.

DARP's runs all label the first images of each class in CIFAR-10's original order, so folds repeat
the training on the same split. TFDS shuffles the images, but their ids tell the original order.
With split=random, the fold decides which images are labeled.

Arguments: method, rebalance, fold and t as for cifar10_lt; gamma of the labeled set; gamma_u of the
unlabeled set (gamma by default; 1 is uniform); order_u=reversed, which reverses the order of the
unlabeled set's classes, so that the rarest label is its most frequent class; split; and target, the
unlabeled set's class distribution as assumed by da, darp and crest_plus: labeled (that of the
labeled set), given (the true one) or predicted (estimated from the model's predictions).
"""

from crest_jax.config import (
    ARGUMENTS,
    DISTRIBUTIONS,
    ORDERS,
    SPLITS,
    default_config,
    parse_arguments,
    unlabeled_tail,
)
from crest_jax.data.long_tail import unlabeled_sizes

N_1 = 1500
M_1 = 3000
DEFAULTS = {
    **{name: ARGUMENTS[name] for name in ("method", "rebalance", "gamma", "fold", "t")},
    "gamma_u": None,
    "order_u": "same",
    "split": "first",
    "target": "labeled",
}
CHOICES = {"order_u": ORDERS, "split": SPLITS, "target": DISTRIBUTIONS}


def get_config(arguments=None):
    """Return Table 3's setting; the defaults are gamma = 100 for both sets, CReST+, fold 0."""
    args = parse_arguments(arguments, DEFAULTS, CHOICES)
    config = default_config(args)
    config.long_tail = unlabeled_tail(args, labeled=N_1, unlabeled=M_1)
    config.unlabeled_distribution.source = args.target
    gamma_u = config.long_tail.unlabeled_gamma
    if args.target == "given" and gamma_u >= 1:  # validation rejects a smaller one
        sizes = unlabeled_sizes(M_1, gamma_u, 10, args.order_u)
        config.unlabeled_distribution.given = tuple(sizes.tolist())
    return config
