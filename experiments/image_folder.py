"""Your own images: a folder for each class, and a folder of those whose class nobody knows.

Arguments: labeled, a folder of folders, or a CSV file with the columns path and label; unlabeled,
any folder, or a CSV file with the column path; test, as labeled. Without test, a fifth of the
labeled images is held out to test on. Without unlabeled, `beta` of the others keep their labels,
and the rest goes without; with it, all keep theirs. image_size is what images are resized to, in
pixels; method, rebalance, fold and t as for cifar10_lt. A path with a comma in it is given as
--config.data.labeled=PATH.

WRN-28-2 at 64 pixels, 3 generations of 2^14 steps of 960 images: some hours on a GPU. With fewer
images, --config.steps; on a CPU, also a smaller image_size and --config.model.width=1. Images are
kept in memory, decoded, 12 KB each at 64 pixels; --config.data.stream=True reads them from disk.
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
    """Returns a setting to start from; the defaults are CReST+, fold 0, beta = 10 % or 1."""
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
