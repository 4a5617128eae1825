"""The config: default values, arguments of experiments, and validation.

Every experiment starts from the defaults, which are the paper's FixMatch on CIFAR-10-LT, to the
last hyper-parameter.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from crest_jax import algorithms, models, plugins, rebalancing, schema
from crest_jax.algorithms import ALGORITHMS, Algorithm, Choice, HyperParameter
from crest_jax.augment import OPERATIONS, Augmentation
from crest_jax.errors import ConfigError
from crest_jax.models import MODELS
from crest_jax.rebalancing import (
    PSEUDO_LABELS,
    REBALANCING,
    SELF_TRAINING,
    all_of,
    parts,
    problems,
    self_trains,
)
from crest_jax.schema import MOST_PIXELS

# The version of what a run depends on besides its config: networks, class distributions, random
# numbers. A run of another format belongs to another version of this program, whose weights and
# figures would be mistaken for those of this one.
FORMAT = 2
DTYPES = ("float32", "bfloat16")
# The precision of float32 products, by the names of `jax.lax.Precision`. On a TPU: 1, 3 or 6 passes
# of bfloat16. On a GPU: TF32, but float32 with `highest`. On a CPU: float32, but `high` is three
# products of bfloat16 where the CPU has tiles for them (AMX) and they are faster. docs/speed.md
# shows the effect of each on a gradient.
PRECISIONS = ("default", "high", "highest")
# The order of the unlabeled set's class sizes: that of the labeled set, or its reverse.
ORDERS = ("same", "reversed")
# Which images of a class are labeled: a random draw that depends on the fold, or the first ones of
# the data set.
SPLITS = ("random", "first")
# How p(y) is computed for sampling rates and the alignment target: by the formula of the long tail,
# as in the published code, or from the counts of the labeled set.
CLASS_DISTRIBUTIONS = ("ideal", "counts")
# The part of an image that becomes a square of `data.image_size`: all of it, squeezed; the square
# in its middle; or a random part in training and the square in the middle in evaluations.
CROPS = ("none", "central", "random")
# Where the unlabeled data's class distribution is taken from.
DISTRIBUTIONS = ("labeled", "given", "predicted")
# The fields of each kind of long tail: a natural one, which the data set already has; one that
# labeled and unlabeled images share; and separate ones for labeled and unlabeled images.
LONG_TAILS = (
    ("beta", "split"),
    ("n_max", "gamma", "beta", "split"),
    ("n_max", "gamma", "unlabeled_n_max", "unlabeled_gamma", "unlabeled_order", "split"),
)

# The values of `data.name` that are not data sets of TFDS.
_NOT_OF_TFDS = ("digits", "mnist_5k", "image_folder")
# The beginning of the name of images given as arrays, which ends in a digest of them.
ARRAYS = "arrays-"
# The default of alpha in the sampling rates (Eq. 1).
ALPHA = 1 / 3

# The arguments of the CIFAR experiments, with Table 1's middle column as defaults.
ARGUMENTS: Mapping[str, Any] = {
    "method": "fixmatch",
    "rebalance": "crest_plus",
    "gamma": 100.0,
    "beta": 0.1,
    "fold": 0,
    "t": 1.0,
}
_CHOICES = {
    "method": ALGORITHMS,
    "order_u": ORDERS,
    "target": DISTRIBUTIONS,
    "split": SPLITS,
    "data": ("mnist", "mnist_5k"),
}


def parse_arguments(text: str | None, defaults: Mapping[str, Any] = ARGUMENTS) -> ConfigDict:
    """Parse an experiment's arguments, as in `cifar10_lt.py:rebalance=crest,gamma=50`.

    Args:
      text: comma-separated `key=value` pairs; may be empty or None.
      defaults: every valid key with its default. A value is converted to the type of its default,
        or to a float if the default is None.

    Raises:
      ConfigError: A key or a value is not valid. The message lists the valid ones.
    """
    arguments = dict(defaults)
    for pair in filter(None, (text or "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key not in defaults:
            raise ConfigError(
                f"experiment argument {schema.shown(pair)} is not key=value with a key among "
                f"{', '.join(defaults)}; a value with a comma in it can only be given as a config "
                f"field, such as --config.data.data_dir=VALUE{schema.meant(key, defaults)}"
            )
        given = f"{key}={schema.printable(value)}"
        is_own = key == "method" and plugins.is_plugin(value)
        if key in _CHOICES and value not in _CHOICES[key] and not is_own:
            raise ConfigError(f"{given} is not one of {', '.join(_CHOICES[key])}")
        if key == "rebalance":
            for problem in problems(value, unlabeled=True):
                raise ConfigError(f"{given}: {problem}")
        kind = float if defaults[key] is None else type(defaults[key])
        try:
            arguments[key] = kind(value)
        except ValueError as error:
            raise ConfigError(f"{given} is not of type {kind.__name__}") from error
        if kind is float and not math.isfinite(arguments[key]):
            raise ConfigError(f"{given} is not a finite number")
    return ConfigDict(arguments)


def default_config(
    arguments: ConfigDict,
    *,
    budget: int = 6 * 2**16,
    generations: Mapping[str, int] | None = None,
) -> ConfigDict:
    """Return the paper's config for these experiment arguments.

    Args:
      arguments: the result of `parse_arguments`; missing ones have the defaults in `ARGUMENTS`.
      budget: training steps of all generations of CReST+ together. Methods of a single generation
        take all of these steps in it (Table 2). CReST's generations are as long as those of CReST+.
      generations: the number of generations of `crest` and `crest_plus`; by default, that of the
        algorithm.

    Raises:
      ConfigError: `t` differs from its default, but `rebalance` does not include `da`.
    """
    arguments = ConfigDict({**ARGUMENTS, **arguments})
    algorithm = algorithms.named(arguments.method)
    generations = generations or algorithm.generations
    names = parts(arguments.rebalance)
    if "da" not in names and arguments.t != ARGUMENTS["t"]:
        raise ConfigError(
            f"t={arguments.t} is an argument of rebalance=da, not of {arguments.rebalance}"
        )
    # Of the user's own, as many as of CReST.
    kind = next((name for name in names if name in generations), SELF_TRAINING[0])
    several = self_trains(arguments.rebalance)
    config = ConfigDict(
        {
            "seed": 0,
            "reseed": 0,
            "fold": arguments.fold,
            "method": arguments.method,
            "rebalance": arguments.rebalance,
            "generations": generations[kind] if several else 1,
            "steps": budget // generations["crest_plus"] if several else budget,
            "eval_every": 2**10,
            "checkpoint_every": 2**10,
            "batch_size": 64,
            "unlabeled_ratio": 7,
            "eval_batch_size": 1024,
            "accumulation": 1,
            "steps_at_once": 8,
            "heartbeat_timeout": 60,
            "dtype": "float32",
            "precision": "default",
            "sync_batch_norm": True,
            "ema_decay": 0.999,
            "ema_batch_norm": False,
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
                "test_split": "test",
                "class_table": "",
                "labeled": "",
                "unlabeled": "",
                "test": "",
                "test_fraction": 0.2,
                "unreadable": 0.01,
                "max_pixels": 100_000_000,
                "image_size": 0,
                "crop": "none",
                "stream": False,
                "lanes": 1,
                "window": 4096,
                "shards": 4,
                "validation_fraction": 0.0,
                "labeled_in_unlabeled": True,
            },
            "long_tail": {
                "n_max": 5000,
                "gamma": arguments.gamma,
                "beta": arguments.beta,
                "split": "random",
            },
            "class_distribution": "ideal",
            "augment": Augmentation()._asdict(),
            "optimizer": {
                "learning_rate": 0.03,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "cosine_level": 1,
                "warm_up": 0,
                "drops": (),
            },
            "unlabeled_distribution": {"source": "labeled", "given": ()},
            "class_balanced_loss": {"b": 0.999},
            "alignment": {"target": alignment_targets(arguments.rebalance)[0], "t": arguments.t},
            "darp": {"start": 0.4, "every": 10, "delta": 2.0},
            "crest": {"alpha": ALPHA, "rates": (), "t_min": 0.5},
        }
    )
    taken = sorted(set(config) & algorithm.hyper_parameters.keys())
    if taken:
        raise ConfigError(
            f"method={arguments.method} has hyper-parameters with the names of other fields, "
            f"{', '.join(taken)}: rename them"
        )
    config.update({name: each.default for name, each in algorithm.hyper_parameters.items()})
    config.update_from_flattened_dict(algorithm.settings)
    return config


def unlabeled_tail(arguments: ConfigDict, *, labeled: int, unlabeled: int) -> ConfigDict:
    """Return a config's `long_tail` with separate tails of labeled and unlabeled images (DARP).

    Args:
      arguments: `gamma` of the labeled images, `gamma_u` of the unlabeled images (None for the same
        as `gamma`), and `order_u`.
      labeled: number of labeled images of their largest class.
      unlabeled: number of unlabeled images of their largest class.
    """
    gamma_u = arguments.gamma if arguments.gamma_u is None else arguments.gamma_u
    return ConfigDict(
        {
            "n_max": labeled,
            "gamma": arguments.gamma,
            "unlabeled_n_max": unlabeled,
            "unlabeled_gamma": gamma_u,
            "unlabeled_order": arguments.order_u,
            "split": arguments.get("split", SPLITS[0]),
        }
    )


def alignment_targets(rebalance: str) -> tuple[str, ...]:
    """Return the valid values of `alignment.target`, the default first."""
    for each in all_of(rebalance):
        if each.alignment_targets:
            return each.alignment_targets
    return ("none",)


def validate(config: Any, *, devices: int = 1, hosts: int = 1) -> None:
    """Check every field before any work starts.

    Args:
      config: the config to check; an experiment's file may have returned anything.
      devices: number of devices of all hosts together.
      hosts: number of hosts.

    Raises:
      ConfigError: Some fields are not usable. The message has one line for each, with its value and
        the valid ones. If fields are missing, or of another type than their defaults, it has one
        line for each of these instead.
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"an experiment's get_config must return a ConfigDict, not {schema.shown(config)}"
        )
    mistyped = list(schema.mismatches(config.to_dict(), _fields(config.get("method")), closed=True))
    if mistyped:
        raise ConfigError("\n".join(mistyped))
    checks = _Checks(config)
    _check_training(checks, devices)
    _check_streaming(checks, hosts)
    _check_images(checks)
    _check_long_tail(checks)
    try:
        algorithm = algorithms.named(config.method)
    except ConfigError as error:
        checks.found.append(str(error))
    else:
        _check_algorithm(checks, algorithm)
        _check_rebalancing(checks, algorithm)
    if checks.found:
        raise ConfigError("\n".join(dict.fromkeys(checks.found)))


def _fields(method: Any) -> schema.Schema:
    """Infer the schema from the defaults; fields that only some experiments have are optional.

    Args:
      method: the config's, whose hyper-parameters are fields if it is a user's own.
    """
    defaults = default_config(parse_arguments(None)).to_dict()
    known = list(ALGORITHMS.values())
    if isinstance(method, str) and plugins.is_plugin(method):
        known.append(algorithms.named(method))
    some = {
        name: schema.Maybe(type_of(each.default))
        for algorithm in known
        for name, each in algorithm.hyper_parameters.items()
    }
    tail = {**defaults["long_tail"], "unlabeled_n_max": 3000, "unlabeled_gamma": 100.0}
    tail["unlabeled_order"] = ORDERS[0]
    parts_of_tail = {name: schema.Maybe(type_of(value)) for name, value in tail.items()}
    return {**type_of(defaults), **some, "long_tail": parts_of_tail}


def type_of(default: Any) -> schema.Schema:
    """Return the schema of a field, inferred from its default."""
    match default:
        case bool():
            return schema.TRUTH
        case int():
            return schema.WHOLE
        case float():
            return schema.NUMBER
        case str():
            return schema.TEXT
        case tuple():
            return schema.Each(type_of(default[0]) if default else schema.NUMBER)
    return {name: type_of(value) for name, value in default.items()}


class _Checks:
    """A config under validation, and the problems found in its fields."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.found: list[str] = []

    def value(self, field: str) -> Any:
        value = self.config
        for key in field.split("."):
            value = value[key]
        return value

    def require(self, field: str, valid: bool, expected: str) -> None:
        if not valid:
            self.found.append(f"{field}={schema.shown(self.value(field))} must be {expected}")

    def within(self, low: int | float, high: int | float, *fields: str) -> None:
        at_least, at_most = (
            f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in (low, high)
        )
        bounds = f"at least {at_least}" if high == math.inf else f"between {at_least} and {at_most}"
        for field in fields:
            value = self.value(field)
            self.require(field, math.isfinite(value) and low <= value <= high, bounds)

    def above_zero(self, *fields: str) -> None:
        for field in fields:
            self.require(field, 0 < self.value(field) < math.inf, "above 0")

    def one_of(self, field: str, choices: Sequence[str]) -> None:
        self.require(field, self.value(field) in choices, f"one of {', '.join(choices)}")


def _check_training(checks: _Checks, devices: int) -> None:
    config = checks.config
    try:
        models.check(config.model.name)
    except ConfigError as error:
        checks.found.append(str(error))
    checks.one_of("dtype", DTYPES)
    checks.one_of("precision", PRECISIONS)
    if config.dtype == "bfloat16" and config.precision in PRECISIONS:
        checks.require(
            "precision",
            config.precision == "default",
            "default when dtype=bfloat16: it says how float32 is multiplied, so set dtype=float32 "
            "with it",
        )
    checks.within(
        1, math.inf, "steps", "eval_every", "checkpoint_every", "steps_at_once",
        "heartbeat_timeout", "data.lanes", "data.window", "darp.every", "darp.delta",
    )  # fmt: skip
    checks.within(1, 1000, "generations", "model.width")
    # The rows of all images of a step are indexed with 32 bits.
    checks.within(1, 1 << 20, "batch_size", "eval_batch_size")
    checks.within(0, 1 << 10, "unlabeled_ratio")
    # Shards are sorted by their names, which have five digits.
    checks.within(1, 99_999, "data.shards")
    checks.within(0, math.isqrt(MOST_PIXELS), "data.image_size")
    checks.within(
        0, math.inf, "fold", "seed", "reseed", "crest.alpha", "logit_adjustment_tau",
        "optimizer.weight_decay",
    )  # fmt: skip
    checks.require("data.name", bool(config.data.name), "the name of one")
    checks.require(
        "data.test_split",
        bool(config.data.test_split) or config.data.name not in _NOT_OF_TFDS,
        "the name of one; it may only be empty for a data set of TFDS",
    )
    checks.within(
        0, 1, "crest.t_min", "alignment.t", "ema_decay", "optimizer.momentum",
        "model.batch_norm_momentum", "darp.start", "augment.cutout",
    )  # fmt: skip
    checks.within(0, 8, "optimizer.cosine_level")
    checks.within(0, config.steps, "optimizer.warm_up")
    drops = config.optimizer.drops
    checks.require(
        "optimizer.drops",
        list(drops) == sorted(set(drops))
        and all(isinstance(drop, int) and 0 < drop < config.steps for drop in drops),
        f"steps in ascending order, between 1 and {config.steps - 1}",
    )
    checks.above_zero("optimizer.learning_rate")
    b = config.class_balanced_loss.b
    checks.require("class_balanced_loss.b", 0 <= b < 1, "in [0, 1)")
    validation = config.data.validation_fraction
    checks.require("data.validation_fraction", 0 <= validation < 1, "in [0, 1)")
    model = MODELS.get(config.model.name)
    if model is not None:
        checks.require("model.depth", config.model.depth in model.DEPTHS, model.DEPTHS_IN_WORDS)
    operations = config.augment.operations
    checks.require(
        "augment.operations",
        bool(operations) and set(operations) <= set(OPERATIONS),
        f"a non-empty selection of {', '.join(OPERATIONS)}",
    )
    for field in ("batch_size", "eval_batch_size"):
        size = checks.value(field)
        checks.require(field, size % devices == 0, f"divisible by the {devices} devices")
    if config.batch_size % devices == 0:
        checks.require(
            "accumulation",
            config.accumulation >= 1 and config.batch_size // devices % config.accumulation == 0,
            f"a divisor of the {config.batch_size // devices} labeled images of a device",
        )


def _check_streaming(checks: _Checks, hosts: int) -> None:
    data = checks.config.data
    if not data.stream:
        checks.require("data.lanes", data.lanes == 1, "1 unless data.stream=True")
        return
    if data.lanes < 1:
        return
    checks.require("data.lanes", data.lanes % hosts == 0, f"divisible by the {hosts} hosts")
    for field in ("batch_size", "data.shards"):
        size = checks.value(field)
        checks.require(field, size % data.lanes == 0, f"divisible by data.lanes={data.lanes}")


def _check_images(checks: _Checks) -> None:
    data = checks.config.data
    one_s_own = data.name == "image_folder"
    for field in ("labeled", "unlabeled", "test"):
        name, value = f"data.{field}", data[field]
        if field == "labeled" and one_s_own:
            checks.require(name, bool(value), "the path of a folder or CSV file")
        elif not one_s_own and not (field == "unlabeled" and data.name.startswith(ARRAYS)):
            checks.require(name, not value, f"empty when data.name={data.name}")
    fraction, limit = data.test_fraction, data.unreadable
    checks.require("data.test_fraction", 0 < fraction < 1, "in (0, 1)")
    checks.require(
        "data.unreadable",
        0 <= limit < 1 or (1 <= limit < math.inf and limit == int(limit)),
        "a part of all files, in [0, 1), or a whole number of them",
    )
    checks.within(1, MOST_PIXELS, "data.max_pixels")
    checks.one_of("data.crop", CROPS)
    if not data.image_size:
        checks.require("data.crop", data.crop == "none", "none when data.image_size=0")
    if data.unlabeled:
        checks.require(
            "data.unlabeled",
            set(checks.config.long_tail) == {"beta", "split"} and checks.config.long_tail.beta == 1,
            "empty unless long_tail.beta=1: with it, all images of data.labeled are labeled",
        )


def _all_labeled(config: ConfigDict) -> bool:
    """Return whether every image is labeled, so that none is left to pseudo-label."""
    return config.long_tail.get("beta", 0) == 1 and not config.data.unlabeled


def _check_long_tail(checks: _Checks) -> None:
    long_tail = checks.config.long_tail
    if set(long_tail) not in map(set, LONG_TAILS):
        kinds = "; or ".join(map(", ".join, LONG_TAILS))
        checks.found.append(f"long_tail has {', '.join(long_tail)}, but must have {kinds}")
        return
    checks.one_of("long_tail.split", SPLITS)
    checks.one_of("class_distribution", CLASS_DISTRIBUTIONS)
    if "gamma" not in long_tail:
        checks.require(
            "class_distribution",
            checks.config.class_distribution == "counts",
            "counts where long_tail has no gamma, and so no formula",
        )
    if "n_max" in long_tail:
        checks.within(1, math.inf, "long_tail.n_max", "long_tail.gamma")
    if "unlabeled_n_max" in long_tail:
        checks.within(1, math.inf, "long_tail.unlabeled_n_max", "long_tail.unlabeled_gamma")
        checks.one_of("long_tail.unlabeled_order", ORDERS)
        return
    checks.require("long_tail.beta", 0 < long_tail.beta <= 1, "in (0, 1]")
    if checks.config.generations > 1:
        checks.require(
            "long_tail.beta",
            not _all_labeled(checks.config),
            "below 1 for more than one generation: at 1 nothing is left to pseudo-label",
        )


def _check_algorithm(checks: _Checks, algorithm: Algorithm) -> None:
    config = checks.config
    method = f"method={config.method}"
    known = [*ALGORITHMS.values(), algorithm]
    theirs = {name for each in known for name in each.hyper_parameters}
    if theirs & set(config) != set(algorithm.hyper_parameters):
        checks.found.append(
            f"the config has the hyper-parameters of another method than {config.method}: choose "
            f"the method as an argument of the experiment, --config=FILE.py:{method}"
        )
        return
    for name, values in algorithm.hyper_parameters.items():
        match values:
            case HyperParameter(_, low, high):
                checks.within(low, high, name)
            case Choice(_, choices):
                checks.one_of(name, choices)
    if algorithm.unlabeled:
        checks.within(1, math.inf, "unlabeled_ratio")
        checks.require(
            "data.labeled_in_unlabeled",
            config.data.labeled_in_unlabeled or not _all_labeled(config),
            "True when long_tail.beta=1, where no image is unlabeled",
        )
    else:
        checks.require("unlabeled_ratio", config.unlabeled_ratio == 0, f"0 when {method}")


def _check_rebalancing(checks: _Checks, algorithm: Algorithm) -> None:
    config = checks.config
    method = f"method={config.method}"
    impossible = problems(config.rebalance, unlabeled=algorithm.unlabeled)
    if impossible:
        where = f"{method}, rebalance={config.rebalance}"
        checks.found += [f"{where}: {problem}" for problem in impossible]
        return
    needy = [name for name in parts(config.rebalance) if rebalancing.named(name).needs_all_examples]
    checks.require(
        "data.stream",
        not (config.data.stream and needy),
        f"False when rebalance has {', '.join(sorted(needy))}, which needs every example at hand",
    )
    targets = alignment_targets(config.rebalance)
    checks.require(
        "alignment.target",
        config.alignment.target in targets,
        f"one of {', '.join(targets)} when rebalance={config.rebalance}",
    )
    if self_trains(config.rebalance):
        checks.require(
            "generations",
            config.generations > 1,
            f"at least 2 when rebalance={config.rebalance}, which trains again on its own labels",
        )
    else:
        checks.require(
            "generations",
            config.generations <= 1,
            f"1 when rebalance={config.rebalance}; {' and '.join(SELF_TRAINING)} self-train",
        )
    _check_sampling_rates(checks)
    _check_unlabeled_distribution(checks)


def _check_sampling_rates(checks: _Checks) -> None:
    rates = checks.config.crest.rates
    if not rates:
        return
    checks.require(
        "crest.rates",
        all(isinstance(rate, int | float) and 0 <= rate <= 1 for rate in rates),
        "one rate in [0, 1] per class, or () for those of Eq. 1",
    )
    checks.require(
        "crest.rates",
        self_trains(checks.config.rebalance),
        f"() when rebalance={checks.config.rebalance}; {' and '.join(SELF_TRAINING)} select by it",
    )
    checks.require(
        "crest.alpha",
        checks.config.crest.alpha == ALPHA,
        f"left at {ALPHA!r} when crest.rates is given, which counts in its place",
    )


def _check_unlabeled_distribution(checks: _Checks) -> None:
    source = checks.config.unlabeled_distribution.source
    given = checks.config.unlabeled_distribution.given
    checks.one_of("unlabeled_distribution.source", DISTRIBUTIONS)
    users = [name for name, each in REBALANCING.items() if PSEUDO_LABELS in each.acts_on]
    used = checks.config.alignment.target != "labeled_average" and any(
        PSEUDO_LABELS in each.acts_on for each in all_of(checks.config.rebalance)
    )
    if source in DISTRIBUTIONS and not used:
        checks.require(
            "unlabeled_distribution.source",
            source == "labeled",
            f"labeled where nothing looks at it; {', '.join(users)} do, but for "
            "alignment.target=labeled_average",
        )
    if source == "predicted" and _all_labeled(checks.config):
        checks.require(
            "unlabeled_distribution.source",
            False,
            "labeled when long_tail.beta=1, where there is nothing to predict",
        )
    shares = all(0 <= share < math.inf for share in given)
    if source == "given":
        checks.require(
            "unlabeled_distribution.given",
            shares and sum(given) > 0,
            "one share or size per class, not all 0; or set unlabeled_distribution.source to "
            "labeled (as the labeled set) or predicted (estimated from the model)",
        )
    else:
        checks.require(
            "unlabeled_distribution.given",
            not given,
            f"() when unlabeled_distribution.source={source}",
        )


def completed(plain: Any) -> ConfigDict:
    """Return the config of an earlier version, with defaults for the fields that it lacks.

    Args:
      plain: the config as parsed from JSON.

    Raises:
      ConfigError: `plain` is not a config, is the config of a later version, or has a field of
        another type than its default.
    """
    found = list(schema.mismatches(plain, {"method": schema.TEXT, "rebalance": schema.TEXT}))
    if not found:
        algorithms.named(plain["method"])
        found = problems(plain["rebalance"], unlabeled=True)
    if found:
        raise ConfigError("; ".join(found))
    arguments = ConfigDict({name: plain[name] for name in ("method", "rebalance")})
    defaults = default_config(arguments).to_dict()
    filled = dict(plain)
    for key, value in defaults.items():
        if key not in filled:
            filled[key] = value
        # The fields that a long tail lacks tell its kind, so they are not filled in.
        elif isinstance(value, dict) and isinstance(filled[key], dict) and key != "long_tail":
            lacking = {name: each for name, each in value.items() if name not in filled[key]}
            filled[key] = {**filled[key], **lacking}
    mistyped = list(schema.mismatches(filled, _fields(filled["method"]), closed=True))
    if mistyped:
        raise ConfigError("; ".join(mistyped))
    return ConfigDict(filled)


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Return the config as parsed from its own JSON, so that it equals one that was read back."""
    return json.loads(config.to_json())
