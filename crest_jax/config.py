"""The config: its fields, arguments of experiments, and the defaults of each experiment.

Every experiment starts from the defaults, which are the paper's FixMatch on CIFAR-10-LT, to the
last hyper-parameter. `validation` checks a config before any work starts.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from crest_jax import algorithms, plugins, schema, wording
from crest_jax.algorithms import ALGORITHMS
from crest_jax.augment import OPERATIONS
from crest_jax.augment.strong import CUTOUT
from crest_jax.errors import ConfigError, PluginError
from crest_jax.field import Field
from crest_jax.models import MODELS
from crest_jax.optimizers import OPTIMIZERS
from crest_jax.rebalancing import (
    REBALANCING,
    SELF_TRAINING,
    alignment_targets,
    hyper_parameters,
    named,
    parts,
    problems,
    self_trains,
)
from crest_jax.rebalancing.distribution_alignment import TARGETS
from crest_jax.schema import MOST_PIXELS

# The order of the unlabeled set's class sizes: that of the labeled set, or its reverse.
ORDERS = ("same", "reversed")
# Which images of a class are labeled: a random draw that depends on the fold, or the first ones of
# the data set.
SPLITS = ("random", "first")
# Where the unlabeled data's class distribution is taken from.
DISTRIBUTIONS = ("labeled", "given", "predicted")
# The fields of each kind of long tail: a natural one, which the data set already has; one that
# labeled and unlabeled images share; and separate ones for labeled and unlabeled images.
LONG_TAILS = (
    ("beta", "split"),
    ("n_max", "gamma", "beta", "split"),
    ("n_max", "gamma", "unlabeled_n_max", "unlabeled_gamma", "unlabeled_order", "split"),
)
_FIXMATCH = "FixMatch (Sohn et al., 2020)"
_PUBLISHED = "the published code"

# Every field but the hyper-parameters of algorithms (`algorithms`) and of ways of rebalancing
# (`rebalancing`), which are declared beside them.
FIELDS: Mapping[str, Field] = {
    "seed": Field(
        0, "Seed of the weights, the augmentation and the order of the images.", "[0, inf)"
    ),
    "reseed": Field(0, "Raised by 1 to continue after NaN with other random numbers.", "[0, inf)"),
    "fold": Field(
        0,
        "Seed of which images are labeled.",
        "[0, inf)",
        source="section 4.1: five folds",
    ),
    "method": Field(
        "fixmatch",
        "Semi-supervised algorithm.",
        words=f"one of {', '.join(ALGORITHMS)}, or module:name of your own",
        source="section 4.1",
    ),
    "rebalance": Field(
        "crest_plus",
        "Ways of rebalancing, none or several.",
        words=f"none, or one or more of {', '.join(REBALANCING)} and module:name of your own, "
        "joined by +",
        source="section 4.1",
    ),
    "generations": Field(
        1,
        "Number of generations; more than 1 for self-training alone.",
        "[1, 1000]",
        source="sections 4.1, 4.2",
    ),
    "steps": Field(2**16, "Training steps of a generation.", "[1, inf)", source="section 4.1"),
    "eval_every": Field(2**10, "Steps between two evaluations.", "[1, inf)", source="section 4.1"),
    "checkpoint_every": Field(2**10, "Steps between two checkpoints.", "[1, inf)"),
    # The rows of all images of a step are indexed with 32 bits.
    "batch_size": Field(
        64,
        "Labeled images of a step, on all devices together.",
        "[1, 1048576]",
        source=_FIXMATCH,
    ),
    "unlabeled_ratio": Field(
        7,
        "Unlabeled images of a step for each labeled one; 0 for algorithms that use none.",
        "[0, 1024]",
        source=f"{_FIXMATCH}: mu",
    ),
    "eval_batch_size": Field(
        1024, "Images of a batch in evaluations and scoring, on all devices.", "[1, 1048576]"
    ),
    "accumulation": Field(
        1, "Parts of a batch that are computed one after the other, to save memory.", "[1, inf)"
    ),
    "steps_at_once": Field(8, "Steps that the devices are sent together, at most.", "[1, inf)"),
    "heartbeat_timeout": Field(
        60, "Seconds after which a host that has died ends the others.", "[1, inf)"
    ),
    "dtype": Field(
        "float32",
        "Type of the computation; weights, statistics and the loss stay float32.",
        choices=("float32", "bfloat16"),
    ),
    # By the names of `jax.lax.Precision`. On a TPU: 1, 3 or 6 passes of bfloat16. On a GPU: TF32,
    # but float32 with `highest`. On a CPU: float32, but `high` is three products of bfloat16 where
    # the CPU has tiles for them (AMX) and they are faster.
    "precision": Field(
        "default",
        "Precision of float32 products; docs/speed.md shows its effect on a gradient.",
        choices=("default", "high", "highest"),
    ),
    "sync_batch_norm": Field(
        True,
        "Whether batch statistics are those of all devices, or of each group of them, together.",
        source=_FIXMATCH,
    ),
    "sync_batch_norm_group": Field(
        0,
        "Number of devices that share batch statistics, neighbours; 0 for all devices.",
        words="0, or a divisor of the number of devices that is at least 2",
    ),
    "ema_decay": Field(
        0.999,
        "Decay of the moving average of the weights, whose accuracy is reported.",
        "[0, 1]",
        source=_FIXMATCH,
    ),
    "ema_batch_norm": Field(
        False,
        "Whether batch norm's running statistics are averaged too; otherwise they are copied.",
        source=_PUBLISHED,
    ),
    "logit_adjustment_tau": Field(
        1.0,
        "Strength tau of logit adjustment in evaluations; 0 adjusts nothing.",
        "[0, inf)",
        source="Menon et al., 2021",
    ),
    "model.name": Field(
        "wide_resnet",
        "Network.",
        words=f"one of {', '.join(MODELS)}, or module:name of your own",
        source="section 4.1",
    ),
    "model.depth": Field(
        28, "Number of layers; each network says which it can have.", source="section 4.1"
    ),
    "model.width": Field(2, "Factor of the number of channels.", "[1, 1000]", source="section 4.1"),
    "model.batch_norm_momentum": Field(
        0.999, "Decay of batch norm's running statistics.", "[0, 1]", source=_PUBLISHED
    ),
    "model.init_from": Field(
        "",
        "Weights that every generation starts from: a .safetensors or .npz file, an export or a "
        "run; empty for random ones.",
    ),
    "data.name": Field(
        "cifar10",
        "Data set: a name of TFDS, digits, mnist_5k, image_folder, or module:name.",
        source="section 4.1",
    ),
    "data.data_dir": Field("", "Folder of prepared data sets; empty for that of TFDS."),
    "data.download": Field(True, "Whether a data set that is not there may be downloaded."),
    "data.test_split": Field(
        "test",
        "Split of a TFDS data set to test on; empty to put aside a part of train.",
        source="section 4.1",
    ),
    "data.class_table": Field(
        "", "TSV file that merges classes into superclasses.", source="section 4.2"
    ),
    "data.labeled": Field("", "Labeled images: a folder or CSV file, or several, by commas."),
    "data.unlabeled": Field("", "Unlabeled images: likewise."),
    "data.test": Field("", "Test images: likewise; empty to put aside labeled ones."),
    "data.test_fraction": Field(
        0.2, "Part of each class put aside for testing, without test images.", "(0, 1)"
    ),
    "data.unreadable": Field(
        0.01, "Most image files that may be damaged: a part of all if below 1, else a number."
    ),
    "data.max_pixels": Field(100_000_000, "Most pixels of an image file.", f"[1, {MOST_PIXELS}]"),
    "data.image_size": Field(
        0,
        "Side in pixels to which images are resized; 0 for as they are.",
        f"[0, {math.isqrt(MOST_PIXELS)}]",
    ),
    "data.crop": Field(
        "none",
        "Part that is resized: all of the image, the square in its middle, or in training a "
        "random part.",
        choices=("none", "central", "random"),
    ),
    "data.stream": Field(
        False, "Whether images are read from files all along, instead of kept in memory."
    ),
    "data.lanes": Field(1, "Number of streams of files, when streaming.", "[1, inf)"),
    "data.window": Field(
        4096, "Images among which streaming shuffles, in all lanes together.", "[1, inf)"
    ),
    # Shards are sorted by their names, which have five digits.
    "data.shards": Field(4, "Number of files of each split.", "[1, 99999]"),
    "data.validation_fraction": Field(
        0.0, "Part of each class's labeled images put aside for validation.", "[0, 1)"
    ),
    "data.labeled_in_unlabeled": Field(
        True,
        "Whether the unlabeled stream has the labeled images too.",
        source=_PUBLISHED,
    ),
    "long_tail.n_max": Field(
        5000, "Images of the largest class, N_1.", "[1, inf)", source="section 4.1"
    ),
    "long_tail.gamma": Field(
        100.0, "Imbalance ratio gamma, N_1 / N_L.", "[1, inf)", source="section 3.1"
    ),
    "long_tail.beta": Field(
        0.1, "Part beta of each class that is labeled.", "(0, 1]", source="section 3.1"
    ),
    "long_tail.unlabeled_n_max": Field(
        3000, "Unlabeled images of their largest class.", "[1, inf)", source="DARP's protocol"
    ),
    "long_tail.unlabeled_gamma": Field(
        100.0, "Imbalance ratio of the unlabeled images.", "[1, inf)", source="DARP's protocol"
    ),
    "long_tail.unlabeled_order": Field(
        "same",
        "Whether the unlabeled images have the labeled ones' order of classes by size.",
        choices=ORDERS,
        source="DARP's protocol",
    ),
    "long_tail.split": Field(
        "random",
        "Which images of a class are labeled: drawn by the fold, or the first of the data set.",
        choices=SPLITS,
        source="section 4.1: five folds",
    ),
    "class_distribution": Field(
        "ideal",
        "Distribution p(y) for sampling rates and alignment: the long tail's formula, or counts.",
        choices=("ideal", "counts"),
        source=_PUBLISHED,
    ),
    "augment.flip": Field(True, "Whether weak views are flipped at random.", source=_FIXMATCH),
    "augment.shift": Field(True, "Whether weak views are shifted at random.", source=_FIXMATCH),
    "augment.operations": Field(
        OPERATIONS, "Operations that RandAugment draws from.", choices=OPERATIONS, source=_PUBLISHED
    ),
    "augment.cutout": Field(
        CUTOUT,
        "Side of Cutout's square, relative to that of the image; 0 for none.",
        "[0, 1]",
        source=_FIXMATCH,
    ),
    "augment.from_weak_view": Field(
        False, "Whether a strong view starts from the weak view that the loss uses."
    ),
    "optimizer.name": Field(
        "sgd",
        "Optimiser, of optax; lars is for large batches. The learning rate and the weight decay "
        "have defaults for sgd: set them too.",
        choices=tuple(OPTIMIZERS),
        source=_FIXMATCH,
    ),
    "optimizer.learning_rate": Field(
        0.03,
        "Learning rate after warm-up. The default is for sgd; adam and adamw usually take a tenth "
        "of it or less.",
        "(0, inf)",
        source=_FIXMATCH,
    ),
    "optimizer.momentum": Field(0.9, "Momentum of sgd and lars.", "[0, 1]", source=_FIXMATCH),
    "optimizer.nesterov": Field(
        True, "Whether the momentum of sgd and lars is Nesterov's.", source=_FIXMATCH
    ),
    "optimizer.b1": Field(
        0.9,
        "Decay of the mean of the gradients of adam and adamw.",
        "[0, 1)",
        source="Kingma and Ba, 2015",
    ),
    "optimizer.b2": Field(
        0.999,
        "Decay of the mean of the squared gradients of adam and adamw.",
        "[0, 1)",
        source="Kingma and Ba, 2015",
    ),
    "optimizer.eps": Field(
        1e-8,
        "Number that adam and adamw add to the root of that mean.",
        "(0, inf)",
        source="Kingma and Ba, 2015",
    ),
    "optimizer.trust_coefficient": Field(
        0.001,
        "Length of a step of lars, relative to a layer's weights.",
        "(0, inf)",
        source="You et al., 2017",
    ),
    "optimizer.weight_decay": Field(
        5e-4,
        "Factor w of the L2 term 0.5 w |x|^2 of all weights but batch norm's; of adamw and lars, "
        "of weight decay. The default is for sgd.",
        "[0, inf)",
        source=_FIXMATCH,
    ),
    "optimizer.cosine_level": Field(
        1,
        "How far the rate goes down the cosine, in 16ths of pi; 8 ends at 0.",
        "[0, 8]",
        source="section 4.1",
    ),
    "optimizer.warm_up": Field(
        0,
        "Steps within which the rate rises to the learning rate.",
        "[0, inf)",
        source=_FIXMATCH,
    ),
    "optimizer.drops": Field(
        (), "Steps from which on the rate is a tenth of the one before.", source=_FIXMATCH
    ),
    "unlabeled_distribution.source": Field(
        "labeled",
        "Where p(y) of the unlabeled images comes from: the labeled ones, what is given, or the "
        "model's predictions.",
        choices=DISTRIBUTIONS,
        source="section 3.4",
    ),
    "unlabeled_distribution.given": Field(
        (), "Share or size of each class, where it is given.", source="section 3.4"
    ),
    "alignment.target": Field(
        "none",
        "Temperature of the alignment target; rebalance says which are possible.",
        words=f"one of {', '.join(TARGETS)}",
        source="section 3.4",
    ),
}

# The arguments of the CIFAR experiments, with Table 1's middle column as defaults. t is that of a
# constant target of alignment.
ARGUMENTS: Mapping[str, Any] = {
    "method": "fixmatch",
    "rebalance": "crest_plus",
    "gamma": 100.0,
    "beta": 0.1,
    "fold": 0,
    "t": 1.0,
}


def parse_arguments(
    text: str | None,
    defaults: Mapping[str, Any] = ARGUMENTS,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> ConfigDict:
    """Parse an experiment's arguments, as in `cifar10_lt.py:rebalance=crest,gamma=50`.

    Args:
      text: comma-separated `key=value` pairs; may be empty or None.
      defaults: every valid key with its default. A value is converted to the type of its default,
        or to a float if the default is None.
      choices: the valid values of some keys; those of `method` and `rebalance` are known.

    Raises:
      ConfigError: A key or a value is not valid. The message lists the valid ones.
    """
    arguments = dict(defaults)
    valid = {"method": tuple(ALGORITHMS), **(choices or {})}
    for pair in filter(None, (text or "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key not in defaults:
            raise ConfigError(
                f"experiment argument {wording.shown(pair)} is not key=value with a key among "
                f"{', '.join(defaults)}; a value with a comma in it can only be given as a config "
                f"field, such as --config.data.data_dir=VALUE{wording.meant(key, defaults)}"
            )
        given = f"{key}={wording.printable(value)}"
        is_own = key == "method" and plugins.is_plugin(value)
        if key in valid and value not in valid[key] and not is_own:
            own = ", or module:name of your own" if key == "method" else ""
            raise ConfigError(f"{given} is not one of {', '.join(valid[key])}{own}")
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
      ConfigError: `t` differs from its default, but `rebalance` aligns with no constant target.
      PluginError: A plug-in declares hyper-parameters or settings that a config cannot have.
    """
    arguments = ConfigDict({**ARGUMENTS, **arguments})
    algorithm = algorithms.named(arguments.method)
    generations = generations or algorithm.generations
    if not _is_constant(alignment_targets(arguments.rebalance)) and arguments.t != ARGUMENTS["t"]:
        aligning = [
            name for name, way in REBALANCING.items() if _is_constant(way.alignment_targets)
        ]
        raise ConfigError(
            f"t={arguments.t} is an argument of rebalance={' or '.join(aligning)}, not of "
            f"{arguments.rebalance}"
        )
    # A plug-in that self-trains has as many generations as CReST.
    names = parts(arguments.rebalance)
    kind = next((name for name in names if name in generations), SELF_TRAINING[0])
    several = self_trains(arguments.rebalance)
    _check_declared(arguments.method, arguments.rebalance)
    tail = {f"long_tail.{name}" for name in LONG_TAILS[1]}
    fields = {
        **common_fields(),
        **hyper_parameters(arguments.rebalance),
        **algorithm.hyper_parameters,
    }
    config = ConfigDict(
        _nested(
            {
                name: each.default
                for name, each in fields.items()
                if name in tail or not name.startswith("long_tail.")
            }
        )
    )
    config.update_from_flattened_dict(
        {
            "fold": arguments.fold,
            "method": arguments.method,
            "rebalance": arguments.rebalance,
            "generations": generations[kind] if several else 1,
            "steps": budget // generations["crest_plus"] if several else budget,
            "long_tail.gamma": arguments.gamma,
            "long_tail.beta": arguments.beta,
            "alignment.target": alignment_targets(arguments.rebalance)[0],
            "alignment.t": arguments.t,
        }
    )
    config.update_from_flattened_dict(algorithm.settings)
    return config


def _is_constant(targets: Sequence[str]) -> bool:
    """Return whether the target of alignment is p(y)^t with one t, by default."""
    return targets[:1] == ("constant",)


def _check_declared(method: str, rebalance: str) -> None:
    """Check the fields that a method and the parts of a rebalancing declare against all others.

    Raises:
      PluginError: A hyper-parameter has the name of another field, or a setting is none of a field.
    """
    fields = common_fields()
    declared = {f"rebalance={name}": named(name).hyper_parameters for name in parts(rebalance)}
    algorithm = algorithms.named(method)
    for whose, theirs in {**declared, f"method={method}": algorithm.hyper_parameters}.items():
        taken = []
        for name, field in theirs.items():
            # Ways of rebalancing may share a field.
            if fields[name] != field if name in fields else _is_taken(name, fields):
                taken.append(name)
            fields[name] = field
        if taken:
            raise PluginError(
                f"{whose} has hyper-parameters with the names of other fields, "
                f"{', '.join(sorted(taken))}: rename them"
            )
    fields = {name: each for name, each in fields.items() if not name.startswith("long_tail.")}
    for name, value in algorithm.settings.items():
        wrong = (
            f"{wording.shown(name)} is not a field{wording.meant(str(name), fields)}"
            if name not in fields
            else next(schema.mismatches(value, type_of(fields[name].default), name), "")
        )
        expected = "" if wrong else fields[name].expected(value)
        if wrong or expected:
            wrong = wrong or f"{name}={wording.shown(value)} must be {expected}"
            raise PluginError(f"method={method}: in its settings, {wrong}")


def _is_taken(name: str, fields: Iterable[str]) -> bool:
    """Return whether a field of this name would be around or within another, or hide a method."""
    nested = any(each.startswith(f"{name}.") or name.startswith(f"{each}.") for each in fields)
    return nested or any(hasattr(ConfigDict, word) for word in name.split("."))


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by their dotted names as nested objects."""
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        *above, last = name.split(".")
        holder = nested
        for key in above:
            holder = holder.setdefault(key, {})
        holder[last] = value
    return nested


def by_name(config: ConfigDict) -> dict[str, Any]:
    """Return the values of a config by the dotted names of their fields."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            values |= {f"{key}.{name}": each for name, each in by_name(value).items()}
        else:
            values[key] = value
    return values


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


def common_fields() -> dict[str, Field]:
    """Return the fields that every config has, but of the long tail's only those of its kind."""
    fields = dict(FIELDS)
    for way in REBALANCING.values():
        fields |= way.hyper_parameters
    return fields


def fields_of(method: Any, rebalance: Any) -> dict[str, Field]:
    """Return all fields that a config can have, by their dotted names.

    Args:
      method: the method of the config, whose hyper-parameters are included if it is a plug-in.
      rebalance: likewise.
    """
    fields = common_fields()
    for name in filter(plugins.is_plugin, rebalance.split("+") if _is_text(rebalance) else ()):
        fields |= named(name).hyper_parameters
    known = list(ALGORITHMS.values())
    if _is_text(method) and (method in ALGORITHMS or plugins.is_plugin(method)):
        known.append(algorithms.named(method))  # last, so that its declarations count
    for algorithm in known:
        fields |= algorithm.hyper_parameters
    return fields


def schema_of(method: Any, rebalance: Any) -> schema.Schema:
    """Return the schema of a config; fields that only some experiments have are optional.

    Args:
      method: as for `fields_of`.
      rebalance: as for `fields_of`.
    """
    required = {name for name in common_fields() if not name.startswith("long_tail.")}

    def kind(name: str, field: Field) -> schema.Schema | schema.Maybe:
        of_field = type_of(field.default)
        return of_field if name in required else schema.Maybe(of_field)

    found = _nested({name: kind(name, each) for name, each in fields_of(method, rebalance).items()})
    known = {name.partition(".")[0] for name in common_fields()}
    return {
        name: each if name in known or isinstance(each, schema.Maybe) else schema.Maybe(each)
        for name, each in found.items()
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def type_of(default: Any) -> schema.Schema:
    """Return the schema of a field, inferred from its default."""
    if isinstance(default, tuple):
        return schema.Each(kind_of(default[0]) if default else schema.NUMBER)
    return kind_of(default)


def kind_of(default: Any) -> schema.Kind:
    """Return the kind of a field of a single value, inferred from its default."""
    match default:
        case bool():
            return schema.TRUTH
        case int():
            return schema.WHOLE
        case float():
            return schema.NUMBER
        case str():
            return schema.TEXT
    raise TypeError(f"no field has values such as {default!r}")


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
    mistyped = list(
        schema.mismatches(filled, schema_of(filled["method"], filled["rebalance"]), closed=True)
    )
    if mistyped:
        raise ConfigError("; ".join(mistyped))
    return ConfigDict(filled)


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Return the config as parsed from its own JSON, so that it equals one that was read back."""
    return json.loads(config.to_json())
