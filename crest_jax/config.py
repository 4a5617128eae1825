"""Defaults that every experiment starts from, experiment arguments, and validation.

The defaults are the paper's FixMatch on CIFAR-10-LT, to the last hyper-parameter.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from crest_jax.algorithms import ALGORITHMS
from crest_jax.augment.rand_augment import OPERATIONS
from crest_jax.errors import ConfigError
from crest_jax.models import MODELS
from crest_jax.rebalancing.distribution_alignment import TARGETS

# What each value of `rebalance` may set `alignment.target` to; the first one is its default.
REBALANCE = {
    "none": ("none",),
    "da": ("constant", "labeled_average"),
    "crest": ("none", "constant", "labeled_average"),
    "crest_plus": ("progressive",),
}
DTYPES = ("float32", "bfloat16")
SELF_TRAINING = ("crest", "crest_plus")

# The arguments of the CIFAR experiments, with Table 1's middle column as defaults.
ARGUMENTS: Mapping[str, Any] = {
    "method": "fixmatch",
    "rebalance": "crest_plus",
    "gamma": 100.0,
    "beta": 0.1,
    "fold": 0,
    "t": 1.0,
}
_CHOICES = {"method": ALGORITHMS, "rebalance": REBALANCE}


def parse_arguments(text: str | None, defaults: Mapping[str, Any] = ARGUMENTS) -> ConfigDict:
    """Parses an experiment's arguments, as in `cifar10_lt.py:rebalance=crest,gamma=50`.

    Args:
      text: comma-separated `key=value` pairs, or nothing.
      defaults: every valid key with its default; a value is converted to its default's type.

    Raises:
      ConfigError: a key or a value is not valid. The message lists those that are.
    """
    arguments = dict(defaults)
    for pair in filter(None, (text or "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key not in defaults:
            raise ConfigError(
                f"experiment argument {pair!r} is not key=value with a key among "
                f"{', '.join(defaults)}"
            )
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ConfigError(f"{key}={value} is not one of {', '.join(_CHOICES[key])}")
        kind = type(defaults[key])
        try:
            arguments[key] = kind(value)
        except ValueError as error:
            raise ConfigError(f"{key}={value} is not of type {kind.__name__}") from error
    return ConfigDict(arguments)


def default_config(
    arguments: ConfigDict,
    *,
    steps: int = 2**16,
    generations: Mapping[str, int] | None = None,
) -> ConfigDict:
    """Returns the paper's config for these experiment arguments.

    Args:
      arguments: as `parse_arguments` gives them.
      steps: training steps of one generation of self-training.
      generations: how many generations `crest` and `crest_plus` take (paper section 4.1: 15
        and 6). Methods of a single generation train as long as all generations of
        `crest_plus` together (Table 2).

    Raises:
      ConfigError: `t` is given for another `rebalance` than `da`.
    """
    generations = generations or {"crest": 15, "crest_plus": 6}
    rebalance = arguments.rebalance
    if rebalance != "da" and arguments.t != ARGUMENTS["t"]:
        raise ConfigError(f"t={arguments.t} is an argument of rebalance=da, not of {rebalance}")
    self_training = rebalance in SELF_TRAINING
    return ConfigDict(
        {
            "seed": 0,
            "fold": arguments.fold,
            "method": arguments.method,
            "rebalance": rebalance,
            "generations": generations[rebalance] if self_training else 1,
            "steps": steps if self_training else generations["crest_plus"] * steps,
            "eval_every": 2**10,
            "checkpoint_every": 2**10,
            "batch_size": 64,
            "unlabeled_ratio": 7,
            "eval_batch_size": 1024,
            "dtype": "float32",
            "sync_batch_norm": True,
            "ema_decay": 0.999,
            "threshold": 0.95,
            "unlabeled_weight": 1.0,
            "logit_adjustment_tau": 1.0,
            "model": {
                "name": "wide_resnet",
                "depth": 28,
                "width": 2,
                "batch_norm_momentum": 0.999,
            },
            "data": {
                "name": "cifar10",
                "data_dir": "",
                "download": True,
                "shards": 4,
                "validation_fraction": 0.0,
            },
            "long_tail": {
                "n_max": 5000,
                "gamma": arguments.gamma,
                "beta": arguments.beta,
            },
            "augment": {"flip": True, "operations": OPERATIONS},
            "optimizer": {
                "learning_rate": 0.03,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "cosine_level": 1,
            },
            "alignment": {"target": REBALANCE[rebalance][0], "t": arguments.t},
            "crest": {"alpha": 1 / 3, "t_min": 0.5},
        }
    )


def validate(config: ConfigDict, *, devices: int = 1) -> None:
    """Checks every field before any work starts.

    Raises:
      ConfigError: one line for each field that is not usable, with its value and what is.
    """
    problems: list[str] = []

    def check(field: str, valid: bool, expected: str) -> None:
        if not valid:
            problems.append(f"{field}={_get(config, field)!r} must be {expected}")

    def check_range(field: str, low: int, high: int | float = math.inf) -> None:
        value = _get(config, field)
        bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        check(field, math.isfinite(value) and low <= value <= high, bounds)

    def check_choice(field: str, choices: Sequence[str]) -> None:
        check(field, _get(config, field) in choices, f"one of {', '.join(choices)}")

    check_choice("method", tuple(ALGORITHMS))
    check_choice("rebalance", tuple(REBALANCE))
    check_choice("model.name", tuple(MODELS))
    check_choice("alignment.target", TARGETS)
    check_choice("dtype", DTYPES)
    for field in (
        "generations", "steps", "eval_every", "checkpoint_every", "batch_size", "unlabeled_ratio",
        "eval_batch_size", "model.width", "data.shards", "long_tail.n_max", "long_tail.gamma",
    ):  # fmt: skip
        check_range(field, 1)
    for field in (
        "fold", "seed", "crest.alpha", "unlabeled_weight", "logit_adjustment_tau",
        "optimizer.weight_decay",
    ):  # fmt: skip
        check_range(field, 0)
    for field in (
        "crest.t_min", "alignment.t", "threshold", "ema_decay", "optimizer.momentum",
        "model.batch_norm_momentum",
    ):  # fmt: skip
        check_range(field, 0, 1)
    check("long_tail.beta", 0 < config.long_tail.beta <= 1, "in (0, 1]")
    validation = config.data.validation_fraction
    check("data.validation_fraction", 0 <= validation < 1, "in [0, 1)")
    check_range("optimizer.cosine_level", 0, 8)
    check("optimizer.learning_rate", 0 < config.optimizer.learning_rate < math.inf, "above 0")
    depth = config.model.depth
    check("model.depth", depth >= 10 and (depth - 4) % 6 == 0, "6 n + 4 with n >= 1 (10, 16, 28)")
    operations = config.augment.operations
    check(
        "augment.operations",
        bool(operations) and set(operations) <= set(OPERATIONS),
        f"a non-empty selection of {', '.join(OPERATIONS)}",
    )
    for field in ("batch_size", "eval_batch_size"):
        check(field, _get(config, field) % devices == 0, f"divisible by the {devices} devices")
    if config.rebalance in REBALANCE:
        targets = REBALANCE[config.rebalance]
        check(
            "alignment.target",
            config.alignment.target in targets,
            f"one of {', '.join(targets)} when rebalance={config.rebalance}",
        )
        if config.generations > 1:
            check(
                "generations",
                config.rebalance in SELF_TRAINING,
                f"1 when rebalance={config.rebalance}; {' and '.join(SELF_TRAINING)} self-train",
            )
            check(
                "long_tail.beta",
                config.long_tail.beta < 1,
                "below 1 for more than one generation: at 1 nothing is left to pseudo-label",
            )
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as JSON sees it, so that one that was read back compares equal."""
    return json.loads(config.to_json())


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lists the fields in which two plain configs differ, as `field: old -> new`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines


def _get(config: ConfigDict, field: str) -> Any:
    for key in field.split("."):
        config = config[key]
    return config
