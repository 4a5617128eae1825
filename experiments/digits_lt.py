"""Long-tailed handwritten digits: the whole method in minutes on a CPU, with nothing to download.

scikit-learn's 8 x 8 digits with WRN-10-1. Arguments as for cifar10_lt. Not an experiment of the
paper: it is here to see, and to test, everything at work.
"""

from crest_jax.config import ARGUMENTS, default_config, parse_arguments

# Grey images have no colour, and white on black is what tells a digit from its background.
OPERATIONS = (
    "AutoContrast", "Brightness", "Contrast", "Equalize", "Identity", "Posterize", "Rotate",
    "Sharpness", "ShearX", "ShearY", "Solarize", "TranslateX", "TranslateY",
)  # fmt: skip


def get_config(arguments=None):
    """Returns the setting of the README's figures."""
    args = parse_arguments(arguments, {**ARGUMENTS, "gamma": 10.0, "beta": 0.1})
    config = default_config(args, budget=3 * 600, generations={"crest": 3, "crest_plus": 3})
    config.data.name = "digits"
    config.data.shards = 1
    config.long_tail.n_max = 120
    config.model.depth = 10
    config.model.width = 1
    config.model.batch_norm_momentum = 0.97
    config.augment.flip = False  # a mirrored digit is no digit
    config.augment.operations = OPERATIONS
    config.batch_size = 16
    config.optimizer.learning_rate = 0.1
    config.eval_every = 20
    config.checkpoint_every = 200
    config.eval_batch_size = 512
    config.ema_decay = 0.99
    return config
