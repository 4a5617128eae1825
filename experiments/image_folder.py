"""User-provided images: a folder for each class, and a folder of images of unknown class.

Arguments: labeled, a folder with a folder for each class, or a CSV file with the columns path and
label; unlabeled, any folder, or a CSV file with the column path; test, in the format of labeled.
Without test, a fifth of the labeled images is held out for testing. Without unlabeled, a fraction
`beta` of the other labeled images keep their labels, and the rest are used as unlabeled; with
unlabeled, all keep their labels. image_size is the side in pixels to which images are resized.
method, rebalance, fold and t are as for cifar10_lt. A path that contains a comma is given as
--config.data.labeled=PATH.

The defaults are WRN-28-2 at 64 pixels and 3 generations of 2^14 steps of 960 images, which take
some hours on a GPU. For fewer images, lower --config.steps; on a CPU, also use a smaller image_size
and --config.model.width=1. Decoded images are kept in memory, 12 KB each at 64 pixels;
--config.data.stream=True reads them from disk instead.
"""

from ml_collections import ConfigDict

from crest_jax.config import ARGUMENTS, default_config, parse_arguments
from crest_jax.errors import ConfigError
from crest_jax.rebalancing import SELF_TRAINING

GENERATIONS = 3
DEFAULTS = {
    "labeled": "",
    "unlabeled": "",
    "test": "",
    "image_size": 64,
    **{name: ARGUMENTS[name] for name in ("method", "rebalance", "fold", "t")},
    "beta": None,
}


def get_config(arguments=None):
    """Return a setting to start from; the defaults are CReST+, fold 0, beta = 10 % or 1."""
    args = parse_arguments(arguments, DEFAULTS)
    if args.unlabeled and args.beta is not None:
        raise ConfigError(
            f"beta={args.beta} is the part of data.labeled that is labeled where there is no other "
            "unlabeled data: leave it out, or unlabeled"
        )
    config = default_config(
        args,
        budget=GENERATIONS * 2**14,
        generations=dict.fromkeys(SELF_TRAINING, GENERATIONS),
    )
    beta = ARGUMENTS["beta"] if args.beta is None else args.beta
    config.long_tail = ConfigDict({"beta": 1.0 if args.unlabeled else beta, "split": "random"})
    config.class_distribution = "counts"
    config.data.name = "image_folder"
    config.data.labeled = args.labeled
    config.data.unlabeled = args.unlabeled
    config.data.test = args.test
    config.data.image_size = args.image_size
    config.eval_batch_size = 256
    return config
