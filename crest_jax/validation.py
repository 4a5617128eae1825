"""The check of a config, before any work starts: each field by itself, then together."""

import math
from typing import Any

from ml_collections import ConfigDict

from crest_jax import algorithms, optimizers, plugins, program, rebalancing, schema, wording
from crest_jax.algorithms import ALGORITHMS, Algorithm
from crest_jax.config import (
    DISTRIBUTIONS,
    FIELDS,
    LONG_TAILS,
    by_name,
    fields_of,
    schema_of,
)
from crest_jax.data.sources import ARRAYS
from crest_jax.errors import ConfigError
from crest_jax.models import MODELS
from crest_jax.optimizers import OPTIMIZERS
from crest_jax.rebalancing import (
    PSEUDO_LABELS,
    REBALANCING,
    SELF_TRAINING,
    acts_on,
    alignment_targets,
    hyper_parameters,
    parts,
    problems,
    self_trains,
)
from crest_jax.rebalancing.crest import CREST


def validate(config: Any, *, devices: int | None = None, hosts: int = 1) -> None:
    """Check every field before any work starts.

    Args:
      config: the config to check; an experiment's file may have returned anything.
      devices: number of devices of all hosts together; None if it is not known yet.
      hosts: number of hosts.

    Raises:
      ConfigError: Some fields are not usable. The message has one line for each, with its value and
        the valid ones. If fields are missing, or of another type than their defaults, it has one
        line for each of these instead.
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"an experiment's get_config must return a ConfigDict, not {wording.shown(config)}"
        )
    values = by_name(config)
    names = [name for name in ("method", "rebalance", "model.name", "data.name") if name in values]
    no_names = list(filter(None, (plugins.no_name(name, values[name]) for name in names)))
    if no_names:
        raise ConfigError("\n".join(no_names))
    fields = schema_of(config.get("method"), config.get("rebalance"))
    mistyped = list(schema.mismatches(config.to_dict(), fields, closed=True))
    if mistyped:
        raise ConfigError("\n".join(mistyped))
    checks = _Checks(config)
    _check_each(checks)
    _check_training(checks, devices)
    _check_optimizer(checks)
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


class _Checks:
    """A config under validation, and the problems found in its fields."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.values = by_name(config)
        self.found: list[str] = []

    def require(self, field: str, valid: bool, expected: str) -> None:
        if not valid:
            self.found.append(f"{field}={wording.shown(self.values[field])} must be {expected}")


def _check_each(checks: _Checks) -> None:
    """Check each field against its own declaration."""
    for name, field in fields_of(checks.config.method, checks.config.rebalance).items():
        if name in checks.values:
            expected = field.expected(checks.values[name])
            checks.require(name, not expected, expected)


def _check_training(checks: _Checks, devices: int | None) -> None:
    config = checks.config
    _check_model(checks)
    if config.dtype == "bfloat16" and config.precision in FIELDS["precision"].choices:
        checks.require(
            "precision",
            config.precision == "default",
            "default when dtype=bfloat16: it says how float32 is multiplied, so set dtype=float32 "
            "with it",
        )
    checks.require("data.name", bool(config.data.name), "the name of one")
    checks.require(
        "data.test_split",
        bool(config.data.test_split) or _is_of_tfds(config.data.name),
        "the name of one; it may only be empty for a data set of TFDS",
    )
    warm_up, drops = config.optimizer.warm_up, config.optimizer.drops
    checks.require(
        "optimizer.warm_up",
        warm_up <= config.steps,
        f"at most steps={config.steps}",
    )
    checks.require(
        "optimizer.drops",
        list(drops) == sorted(set(drops))
        and all(isinstance(drop, int) and 0 < drop < config.steps for drop in drops),
        f"steps in ascending order, between 1 and {config.steps - 1}",
    )
    group = config.sync_batch_norm_group
    checks.require(
        "sync_batch_norm_group",
        group == 0 or group >= 2,
        "0 for all devices, or at least 2; set sync_batch_norm=False for statistics of each device "
        "alone",
    )
    checks.require(
        "sync_batch_norm_group",
        group == 0 or config.sync_batch_norm,
        "0 when sync_batch_norm=False, which shares no statistics",
    )
    if devices is not None:
        _check_devices(checks, devices)


def _check_devices(checks: _Checks, devices: int) -> None:
    config = checks.config
    for field in ("batch_size", "eval_batch_size"):
        size = checks.values[field]
        checks.require(field, size % devices == 0, f"divisible by the {devices} devices")
    checks.require(
        "sync_batch_norm_group",
        config.sync_batch_norm_group < 2 or devices % config.sync_batch_norm_group == 0,
        f"a divisor of the {devices} devices",
    )
    if config.batch_size % devices == 0:
        checks.require(
            "accumulation",
            config.accumulation < 1 or config.batch_size // devices % config.accumulation == 0,
            f"a divisor of the {config.batch_size // devices} labeled images of a device",
        )


def _check_model(checks: _Checks) -> None:
    config = checks.config
    model = MODELS.get(config.model.name)
    if model is not None:
        checks.require("model.depth", config.model.depth in model.DEPTHS, model.DEPTHS_IN_WORDS)
        return
    if any(FIELDS[name].expected(config[name]) for name in ("dtype", "precision")):
        return
    try:
        # The number of classes is known with the data.
        program.model_of(config, 10, axis_name=None)
    except ConfigError as error:
        checks.found.append(str(error))


def _is_of_tfds(data_set: str) -> bool:
    from crest_jax.data.digits import BUNDLED  # imports TensorFlow

    return data_set not in (*BUNDLED, "image_folder")


def _check_optimizer(checks: _Checks) -> None:
    """Check that fields of other optimisers than the config's are not set."""
    name = checks.config.optimizer.name
    if name not in OPTIMIZERS:
        return
    theirs = {field for other in OPTIMIZERS for field in optimizers.parameters(other)}
    for field in sorted(theirs - set(optimizers.parameters(name))):
        default = FIELDS[f"optimizer.{field}"].default
        checks.require(
            f"optimizer.{field}",
            checks.config.optimizer[field] == default,
            f"left at {default!r} when optimizer.name={name}, which has no {field}",
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
        size = checks.values[field]
        checks.require(field, size % data.lanes == 0, f"divisible by data.lanes={data.lanes}")


def _check_images(checks: _Checks) -> None:
    data = checks.config.data
    from_files = data.name == "image_folder"
    for field in ("labeled", "unlabeled", "test"):
        name, value = f"data.{field}", data[field]
        if field == "labeled" and from_files:
            checks.require(name, bool(value), "the path of a folder or CSV file")
        elif not from_files and not (field == "unlabeled" and data.name.startswith(ARRAYS)):
            checks.require(name, not value, f"empty when data.name={data.name}")
    limit = data.unreadable
    checks.require(
        "data.unreadable",
        0 <= limit < 1 or (1 <= limit < math.inf and limit == int(limit)),
        "a part of all files, in [0, 1), or a whole number of them",
    )
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
    if "gamma" not in long_tail:
        checks.require(
            "class_distribution",
            checks.config.class_distribution == "counts",
            "counts where long_tail has no gamma, and so no formula",
        )
    if "beta" in long_tail and checks.config.generations > 1:
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
            "the method as an argument of the experiment, "
            f"{wording.as_argument('method', config.method)}"
        )
        return
    if algorithm.unlabeled:
        checks.require("unlabeled_ratio", config.unlabeled_ratio != 0, "at least 1")
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
    lacking = sorted(set(hyper_parameters(config.rebalance)) - set(checks.values))
    if lacking:
        checks.found.append(
            f"the config lacks {', '.join(lacking)} of rebalance={config.rebalance}: choose it as "
            "an argument of the experiment, "
            f"{wording.as_argument('rebalance', config.rebalance)}"
        )
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
    users = [name for name, way in REBALANCING.items() if "crest.rates" in way.hyper_parameters]
    checks.require(
        "crest.rates",
        "crest.rates" in hyper_parameters(checks.config.rebalance),
        f"() when rebalance={checks.config.rebalance}; {' and '.join(users)} select by it",
    )
    alpha = CREST.hyper_parameters["crest.alpha"].default
    checks.require(
        "crest.alpha",
        checks.config.crest.alpha == alpha,
        f"left at {alpha!r} when crest.rates is given, which counts in its place",
    )


def _check_unlabeled_distribution(checks: _Checks) -> None:
    source = checks.config.unlabeled_distribution.source
    given = checks.config.unlabeled_distribution.given
    users = [name for name, each in REBALANCING.items() if PSEUDO_LABELS in each.acts_on]
    used = checks.config.alignment.target != "labeled_average" and PSEUDO_LABELS in acts_on(
        checks.config.rebalance
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
