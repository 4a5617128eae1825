import importlib.util
import math
import re

import pytest
from conftest import flat
from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax.algorithms import ALGORITHMS
from crest_jax.augment.rand_augment import OPERATIONS
from crest_jax.config import (
    ARGUMENTS,
    ORDERS,
    completed,
    default_config,
    parse_arguments,
    to_plain,
)
from crest_jax.data import long_tail
from crest_jax.differences import differences
from crest_jax.errors import ConfigError
from crest_jax.rebalancing import REBALANCING, SELF_TRAINING, alignment_targets
from crest_jax.validation import validate

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))

# The paper's CIFAR10-LT setting with FixMatch and CReST+, and where the paper is silent what the
# published implementation does.
PAPER = {
    "method": "fixmatch",
    "rebalance": "crest_plus",
    "generations": 6,
    "steps": 65536,
    "eval_every": 1024,
    "batch_size": 64,
    "unlabeled_ratio": 7,
    "ema_decay": 0.999,
    "threshold": 0.95,
    "unlabeled_weight": 1.0,
    "logit_adjustment_tau": 1.0,
    "model.name": "wide_resnet",
    "model.depth": 28,
    "model.width": 2,
    "model.batch_norm_momentum": 0.999,
    "data.name": "cifar10",
    "long_tail.n_max": 5000,
    "long_tail.gamma": 100.0,
    "long_tail.beta": 0.1,
    "long_tail.split": "random",
    "class_distribution": "ideal",
    "data.labeled_in_unlabeled": True,
    "ema_batch_norm": False,
    "augment.flip": True,
    "augment.shift": True,
    "augment.cutout": 0.5,
    "augment.from_weak_view": False,
    "optimizer.learning_rate": 0.03,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0005,
    "optimizer.cosine_level": 1,
    "alignment.target": "progressive",
    "crest.alpha": 1 / 3,
    "crest.t_min": 0.5,
}
PAPER_OPERATIONS = {
    "AutoContrast", "Brightness", "Color", "Contrast", "Equalize", "Identity", "Invert",
    "Posterize", "Rotate", "Sharpness", "ShearX", "ShearY", "Solarize", "SolarizeAdd",
    "TranslateX", "TranslateY",
}  # fmt: skip


def experiment(path, arguments=None):
    """Loads a config file as the command line does: by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if path.stem == "image_folder":  # whose images are not given by default
        arguments = f"labeled=photos,{arguments or ''}"
    return module.get_config(arguments)


def named(stem):
    return next(path for path in EXPERIMENTS if path.stem == stem)


def config_with(**changes):
    """The default config with fields changed; `__` stands for a dot."""
    config = default_config(parse_arguments(None))
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def problems_of(config, **options):
    with pytest.raises(ConfigError) as caught:
        validate(config, **options)
    return str(caught.value).splitlines()


# Arguments

EVERY_REBALANCE = ("none", *REBALANCING, "crest+rs", "crest_plus+cb", "da+rs", "darp+crest")


@pytest.mark.parametrize("text", [None, ""])
def test_no_arguments_are_the_defaults(text):
    assert parse_arguments(text).to_dict() == dict(ARGUMENTS)
    assert (ARGUMENTS["gamma"], ARGUMENTS["beta"], ARGUMENTS["fold"]) == (100, 0.1, 0)


def test_arguments_take_the_type_of_their_default():
    parsed = parse_arguments("rebalance=crest,gamma=50,beta=.3,fold=2")
    assert parsed.rebalance == "crest"
    assert (parsed.gamma, type(parsed.gamma)) == (50.0, float)
    assert (parsed.beta, type(parsed.beta)) == (0.3, float)
    assert (parsed.fold, type(parsed.fold)) == (2, int)
    assert parsed.method == ARGUMENTS["method"], "an argument that is not given keeps its default"


def test_an_experiment_may_have_arguments_of_its_own():
    assert parse_arguments("classes=3", {"classes": 10}).to_dict() == {"classes": 3}
    with pytest.raises(ConfigError, match="gamma=3"):
        parse_arguments("gamma=3", {"classes": 10})


@pytest.mark.parametrize(
    ("text", "value", "valid"),
    [
        ("gama=50", "gama=50", list(ARGUMENTS)),
        ("fold=1,seed=3", "seed=3", list(ARGUMENTS)),
        ("crest", "crest", [*ARGUMENTS, "key=value"]),
        ("method=fixmatsch", "method=fixmatsch", list(ALGORITHMS)),
        ("method=", "method=", list(ALGORITHMS)),
        ("rebalance=CReST", "rebalance=CReST", list(REBALANCING)),
        ("rebalance=crest+", "rebalance=crest+", list(REBALANCING)),
        ("rebalance=none+rs", "'none'", list(REBALANCING)),
        ("rebalance=cb+rs", "cb and rs", ["the labeled examples", "at most one of cb, rs"]),
        ("rebalance=da+darp", "da and darp", ["at most one of da, darp, crest_plus"]),
        ("rebalance=crest+crest_plus", "crest and crest_plus", ["at most one of"]),
        ("gamma=many", "gamma=many", ["float"]),
        ("beta=10%", "beta=10%", ["float"]),
        ("fold=1.5", "fold=1.5", ["int"]),
        ("fold=", "fold=", ["int"]),
    ],
)
def test_a_bad_argument_is_named_with_what_is_valid(text, value, valid):
    with pytest.raises(ConfigError) as caught:
        parse_arguments(text)
    message = str(caught.value)
    assert value in message
    for word in valid:
        assert word in message


def test_an_experiment_has_the_choices_of_its_own_arguments():
    defaults, choices = {"data": "mnist"}, {"data": ("mnist", "mnist_5k")}
    assert parse_arguments("data=mnist_5k", defaults, choices).data == "mnist_5k"
    assert parse_arguments("data=anything", defaults).data == "anything"
    with pytest.raises(ConfigError, match="data=cifar10 is not one of mnist, mnist_5k"):
        parse_arguments("data=cifar10", defaults, choices)


def test_an_argument_without_a_default_is_a_number():
    defaults = {"gamma_u": None}
    assert parse_arguments(None, defaults).gamma_u is None
    assert parse_arguments("gamma_u=50", defaults).gamma_u == 50.0


# Defaults


@pytest.mark.parametrize(
    ("name", "changes"),
    [("cifar10_lt", {}), ("cifar100_lt", {"data.name": "cifar100", "long_tail.n_max": 500})],
)
def test_the_cifar_experiments_are_the_papers(name, changes):
    config = dict(flat(to_plain(experiment(named(name)))))
    expected = PAPER | changes
    assert {field: config[field] for field in expected} == pytest.approx(expected)
    assert set(config["augment.operations"]) == PAPER_OPERATIONS
    assert config["data.validation_fraction"] == 0, "the paper trains on all that is labeled"


def test_arguments_reach_the_fields_they_stand_for():
    config = experiment(named("cifar10_lt"), "rebalance=da,gamma=50,beta=0.3,fold=3,t=0.5")
    tail = {"n_max": 5000, "gamma": 50.0, "beta": 0.3, "split": "random"}
    assert config.long_tail.to_dict() == tail
    assert (config.rebalance, config.fold) == ("da", 3)
    assert config.alignment.to_dict() == {"target": "constant", "t": 0.5}


@pytest.mark.parametrize(("rebalance", "generations"), [("crest", 15), ("crest_plus", 6)])
def test_self_training_takes_the_papers_generations_of_2_16_steps(rebalance, generations):
    config = default_config(parse_arguments(f"rebalance={rebalance}"))
    assert (config.generations, config.steps) == (generations, 2**16)


def test_mixmatch_takes_the_papers_generations_and_its_own_settings():
    config = dict(flat(to_plain(default_config(parse_arguments("method=mixmatch")))))
    expected = {
        "generations": 3,
        "steps": 2**17,
        "optimizer.cosine_level": 5,
        "crest.alpha": 0.5,
        "crest.t_min": 0.8,
        "unlabeled_weight": 75.0,
        "sharpening_temperature": 0.5,
        "mixup_alpha": 0.75,
        "unlabeled_ratio": 1,
    }
    assert {field: config[field] for field in expected} == expected
    assert config["ramp_up_steps"] == 2**14
    assert "threshold" not in config


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("pseudo_label", {"threshold": 0.95, "unlabeled_weight": 1.0, "ramp_up": 0.4}),
        ("mean_teacher", {"unlabeled_weight": 50.0, "ramp_up": 0.4}),
        ("supervised", {"unlabeled_ratio": 0}),
    ],
)
def test_baselines_have_the_fields_that_they_take(method, expected):
    config = default_config(parse_arguments(f"method={method},rebalance=none"))
    assert {field: config[field] for field in expected} == expected
    assert ("threshold" in config) == ("threshold" in expected)


@pytest.mark.parametrize(
    "path",
    # Table 4 compares with the first generation instead.
    [path for path in EXPERIMENTS if path.stem != "imagenet127"],
    ids=lambda path: path.stem,
)
@pytest.mark.parametrize("method", ALGORITHMS)
@pytest.mark.parametrize("rebalance", ["none", "da", "darp", "cb", "rs"])
def test_methods_of_one_generation_get_the_budget_of_all_of_crest_plus(path, method, rebalance):
    one = experiment(path, f"method={method},rebalance={rebalance}")
    many = experiment(path, f"method={method},rebalance=crest_plus")
    fixmatch = experiment(path, "rebalance=crest_plus")
    assert one.generations == 1
    assert many.generations > 1
    assert one.steps == many.generations * many.steps == fixmatch.generations * fixmatch.steps


def test_only_da_and_crest_plus_align_pseudo_labels():
    for rebalance, target in [
        ("none", "none"),
        ("cb", "none"),
        ("darp", "none"),
        ("crest", "none"),
        ("da", "constant"),
        ("da+rs", "constant"),
        ("crest+da", "constant"),
        ("crest_plus", "progressive"),
        ("crest_plus+cb", "progressive"),
    ]:
        config = default_config(parse_arguments(f"rebalance={rebalance}"))
        assert config.alignment.target == target


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("method", ALGORITHMS)
@pytest.mark.parametrize("rebalance", EVERY_REBALANCE)
def test_every_experiment_is_valid_with_every_method_and_rebalancing(path, method, rebalance):
    config = experiment(path, f"method={method},rebalance={rebalance}")
    assert (config.method, config.rebalance) == (method, rebalance)
    if method == "supervised" and rebalance not in ("none", "cb", "rs"):
        (line,) = [line for line in problems_of(config) if not line.startswith("data.stream")]
        assert line.startswith(f"method=supervised, rebalance={rebalance}: ")
        assert "unlabeled data; without one, rebalance may be none, cb, rs" in line
    elif config.data.stream and {"rs", "darp"} & set(rebalance.split("+")):
        (line,) = problems_of(config)
        assert line.startswith("data.stream=True must be False when rebalance has ")
    else:
        validate(config)


# ImageNet127


@pytest.mark.parametrize("rebalance", ["none", "crest", "crest_plus"])
def test_imagenet127_has_the_settings_of_section_4_2(rebalance):
    config = experiment(named("imagenet127"), f"rebalance={rebalance}")
    # Of a tenth of ImageNet's images, 1024 a step, 3000 epochs.
    assert config.steps == 375_000
    assert config.generations == (1 if rebalance == "none" else 3)
    assert (config.crest.alpha, config.crest.t_min) == (0.7, 0.5)
    assert (config.model.name, config.model.depth, config.model.width) == ("resnet", 50, 1)
    assert (config.batch_size, config.unlabeled_ratio) == (1024, 5)
    assert (config.threshold, config.unlabeled_weight) == (0.7, 10.0)
    assert config.optimizer.to_dict() == {
        "name": "sgd", "learning_rate": 0.4, "momentum": 0.9, "nesterov": True, "b1": 0.9,
        "b2": 0.999, "eps": 1e-8, "trust_coefficient": 0.001, "weight_decay": 6e-4,
        "cosine_level": 0, "warm_up": 6250, "drops": (62_500, 125_000, 187_500, 250_000, 312_500),
    }  # fmt: skip
    assert config.ema_batch_norm
    assert config.augment.to_dict() == {
        "flip": True, "shift": False, "operations": OPERATIONS, "cutout": 0, "from_weak_view": True
    }  # fmt: skip
    assert config.long_tail.to_dict() == {"beta": 0.1, "split": "random"}
    assert config.class_distribution == "counts"
    assert config.data.image_size == 224


def test_imagenet127_is_affordable_at_32_and_64_pixels():
    config = experiment(named("imagenet127"), "resolution=32")
    assert config.data.name == "imagenet_resized/32x32"
    assert (config.model.name, config.batch_size, config.data.stream) == ("wide_resnet", 64, False)
    with pytest.raises(ConfigError, match="resolution=100 is not one of 32, 64, 224"):
        experiment(named("imagenet127"), "resolution=100")


# One's own images


def test_own_images_are_all_labeled_where_there_are_unlabeled_ones():
    config = experiment(named("image_folder"), "unlabeled=more,test=held=out,image_size=32")
    found = (config.data.labeled, config.data.unlabeled, config.data.test)
    assert found == ("photos", "more", "held=out")
    assert (config.data.name, config.data.image_size) == ("image_folder", 32)
    assert config.long_tail.to_dict() == {"beta": 1.0, "split": "random"}
    validate(config)
    with pytest.raises(ConfigError, match=r"beta=0\.5 is the part of data\.labeled"):
        experiment(named("image_folder"), "unlabeled=more,beta=0.5")


def test_a_part_of_own_images_is_labeled_where_there_are_no_others():
    tail = experiment(named("image_folder")).long_tail.to_dict()
    assert tail == {"beta": 0.1, "split": "random"}
    config = experiment(named("image_folder"), "beta=0.3")
    assert config.long_tail.to_dict() == {"beta": 0.3, "split": "random"}
    validate(config)
    config.long_tail.beta = 1.0
    (line,) = problems_of(config)
    assert line.startswith("long_tail.beta=1.0 must be below 1 for more than one generation")


def test_own_images_may_be_given_as_fields():
    config = experiment(named("image_folder"))
    config.data.labeled = "a,b"
    validate(config)
    config.data.unlabeled = "c,d"
    (line,) = problems_of(config)
    assert line.startswith("data.unlabeled='c,d' must be empty unless long_tail.beta=1")
    config.long_tail.beta = 1.0
    validate(config)
    with pytest.raises(ConfigError, match=r"'b'.* a value with a comma .* config field"):
        experiment(named("image_folder"), "labeled=a,b")


@pytest.mark.parametrize("field", ["labeled", "unlabeled", "test"])
def test_own_images_are_of_the_source_that_takes_them(field):
    config = config_with(**{f"data.{field}": "photos"})
    assert f"data.{field}='photos' must be empty when data.name=cifar10" in problems_of(config)


def test_own_images_must_be_given():
    config = experiment(named("image_folder"))
    config.data.labeled = ""
    assert problems_of(config) == ["data.labeled='' must be the path of a folder or CSV file"]


@pytest.mark.parametrize("value", [None, [], "some", b"some", True])
@pytest.mark.parametrize("field", ["test_fraction", "unreadable", "max_pixels", "crop", "labeled"])
def test_a_field_of_another_type_is_named(field, value):
    if field == "labeled" and value == "some":
        value = 3
    plain = experiment(named("image_folder")).to_dict()
    plain["data"][field] = value
    lines = problems_of(ConfigDict(plain))
    assert [line.split("=")[0] for line in lines] == [f"data.{field}"] * len(lines)


def test_a_cut_needs_a_size_to_resize_to():
    for crop in ("central", "random"):
        (line,) = problems_of(config_with(data__crop=crop))
        assert line == f"data.crop={crop!r} must be none when data.image_size=0"
        validate(config_with(data__crop=crop, data__image_size=16))


# DARP's protocol


def test_table_3_has_separate_labeled_and_unlabeled_long_tails():
    config = experiment(named("cifar10_darp"), "gamma=150,rebalance=darp")
    assert config.long_tail.to_dict() == {
        "n_max": 1500,
        "gamma": 150.0,
        "unlabeled_n_max": 3000,
        "unlabeled_gamma": 150.0,
        "unlabeled_order": "same",
        "split": "first",
    }
    assert config.unlabeled_distribution.to_dict() == {"source": "labeled", "given": ()}
    assert config.darp.to_dict() == {"start": 0.4, "every": 10, "delta": 2.0}
    validate(config)


def test_the_unlabeled_set_may_have_another_long_tail():
    config = experiment(
        named("cifar10_darp"), "gamma_u=50,order_u=reversed,target=given,rebalance=darp"
    )
    assert config.long_tail.gamma == 100.0
    assert config.long_tail.unlabeled_gamma == 50.0
    given = config.unlabeled_distribution.given
    assert (given[0], given[-1]) == (60, 3000)
    validate(config)
    uniform = experiment(named("cifar10_darp"), "gamma_u=1,target=given,rebalance=da")
    assert set(uniform.unlabeled_distribution.given) == {3000}
    validate(uniform)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("order_u=backwards", "same, reversed"),
        ("target=true", "labeled, given, predicted"),
        ("beta=0.1", "gamma_u"),
    ],
)
def test_a_bad_argument_of_darps_protocol_is_named(text, valid):
    with pytest.raises(ConfigError) as caught:
        experiment(named("cifar10_darp"), text)
    assert text in str(caught.value)
    assert valid in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("long_tail.unlabeled_n_max", 0, "at least 1"),
        ("long_tail.unlabeled_gamma", 0.5, "at least 1"),
        ("long_tail.unlabeled_order", "random", "same, reversed"),
    ],
)
def test_a_bad_unlabeled_long_tail_is_named(field, value, valid):
    config = experiment(named("cifar10_darp"))
    config.update_from_flattened_dict({field: value})
    (line,) = problems_of(config)
    assert line.startswith(f"{field}={value!r} must be ")
    assert valid in line


def test_orders_are_those_of_the_long_tail():
    assert ORDERS == long_tail.ORDERS


@pytest.mark.parametrize("given", [(), (0.0, 0.0), (0.5, -0.5), (1.0, math.nan)])
def test_darp_without_a_target_is_refused(given):
    config = default_config(parse_arguments("rebalance=darp"))
    config.unlabeled_distribution = {"source": "given", "given": given}
    (line,) = problems_of(config)
    assert line.startswith(f"unlabeled_distribution.given={given!r} must be one share or size per")
    assert "labeled" in line
    assert "predicted" in line


@pytest.mark.parametrize("rebalance", ["none", "cb", "crest", "crest+rs"])
def test_an_unlabeled_distribution_that_nothing_looks_at_is_refused(rebalance):
    config = default_config(parse_arguments(f"rebalance={rebalance}"))
    config.unlabeled_distribution.source = "predicted"
    (line,) = problems_of(config)
    assert line.startswith("unlabeled_distribution.source='predicted' must be labeled")
    assert "da, darp, crest_plus" in line


def test_a_distribution_is_given_only_where_it_is_the_source():
    config = default_config(parse_arguments("rebalance=darp"))
    config.unlabeled_distribution.given = (1.0,) * 10
    (line,) = problems_of(config)
    assert line.startswith("unlabeled_distribution.given=")
    assert line.endswith("must be () when unlabeled_distribution.source=labeled")


@pytest.mark.parametrize("rates", [(1.0, 1.1), (-0.1, 1.0), (math.nan,)])
def test_a_sampling_rate_is_a_share(rates):
    config = default_config(parse_arguments("rebalance=crest"))
    config.crest.rates = rates
    (line,) = problems_of(config)
    assert line.startswith(f"crest.rates={rates!r} must be one rate in [0, 1] per class")


@pytest.mark.parametrize("rebalance", ["none", "darp", "cb+da"])
def test_sampling_rates_are_given_only_where_they_are_used(rebalance):
    config = default_config(parse_arguments(f"rebalance={rebalance}"))
    config.crest.rates = (1.0, 0.5)
    (line,) = problems_of(config)
    assert line.startswith(f"crest.rates=(1.0, 0.5) must be () when rebalance={rebalance}")


def test_rates_and_alpha_are_not_both_chosen():
    config = default_config(parse_arguments("rebalance=crest_plus"))
    config.crest.rates = (0, 1)
    validate(config)
    config.crest.alpha = 0.5
    (line,) = problems_of(config)
    assert line.startswith("crest.alpha=0.5 must be left at 0.3333")
    assert "crest.rates is given, which counts in its place" in line


def test_digits_may_have_an_unlabeled_set_of_another_order():
    config = experiment(named("digits_lt"), "order_u=reversed,gamma=5,target=predicted")
    assert config.long_tail.to_dict() == {
        "n_max": 40,
        "gamma": 5.0,
        "unlabeled_n_max": 80,
        "unlabeled_gamma": 5.0,
        "unlabeled_order": "reversed",
        "split": "random",
    }
    assert config.unlabeled_distribution.source == "predicted"
    validate(config)
    assert "unlabeled_order" not in experiment(named("digits_lt"), "gamma=5").long_tail


@pytest.mark.parametrize(
    ("arguments", "long_tail", "generations", "steps"),
    [
        ("", {"n_max": 5000, "gamma": 100.0, "beta": 0.02}, 3, 2000),
        ("rebalance=none", {"n_max": 5000, "gamma": 100.0, "beta": 0.02}, 1, 6000),
        ("data=mnist_5k", {"n_max": 400, "gamma": 20.0, "beta": 0.05}, 3, 1000),
        (
            "data=mnist_5k,rebalance=da,gamma=5,beta=0.1",
            {"n_max": 400, "gamma": 5.0, "beta": 0.1},
            1,
            3000,
        ),
    ],
)
def test_mnist_has_a_long_tail_for_each_of_its_sizes(arguments, long_tail, generations, steps):
    config = experiment(named("mnist_lt"), arguments)
    assert config.long_tail.to_dict() == {**long_tail, "split": "random"}
    assert (config.generations, config.steps) == (generations, steps)
    validate(config)


def test_mnist_may_have_an_unlabeled_set_of_another_order():
    config = experiment(named("mnist_lt"), "order_u=reversed")
    assert config.long_tail.to_dict() == {
        "n_max": 100,
        "gamma": 100.0,
        "unlabeled_n_max": 4900,
        "unlabeled_gamma": 100.0,
        "unlabeled_order": "reversed",
        "split": "random",
    }
    validate(config)


def test_without_a_formula_the_classes_are_counted():
    config = config_with(class_distribution="ideal")
    config.long_tail = ConfigDict({"beta": 0.1, "split": "random"})
    (line,) = problems_of(config)
    assert line.startswith("class_distribution='ideal' must be counts where long_tail has no gamma")
    validate(config_with(class_distribution="counts"))


def test_labeled_images_cannot_be_left_out_of_an_unlabeled_stream_that_has_no_others():
    config = default_config(parse_arguments("rebalance=none"))
    config.data.labeled_in_unlabeled = False
    validate(config)
    config.long_tail.beta = 1.0
    (line,) = problems_of(config)
    assert line.startswith("data.labeled_in_unlabeled=False must be True when long_tail.beta=1")


# Validation

BAD_FIELDS = [
    ("augment.cutout", 1.1, "between 0 and 1"),
    ("class_distribution", "guessed", "ideal, counts"),
    ("long_tail.split", "last", "random, first"),
    ("data.crop", "middle", "none, central, random"),
    ("data.test_fraction", 0.0, "in (0, 1)"),
    ("data.test_fraction", 1.0, "in (0, 1)"),
    ("data.test_fraction", math.nan, "in (0, 1)"),
    ("data.unreadable", -0.1, "[0, 1), or a whole number"),
    ("data.unreadable", 1.5, "[0, 1), or a whole number"),
    ("data.unreadable", math.inf, "[0, 1), or a whole number"),
    ("data.unreadable", math.nan, "[0, 1), or a whole number"),
    ("data.max_pixels", 0, "between 1 and 178956970"),
    ("data.max_pixels", 178_956_971, "between 1 and 178956970"),
    ("method", "fixmatsch", "fixmatch"),
    ("model.name", "vgg", "wide_resnet, resnet"),
    ("alignment.target", "uniform", "progressive"),
    ("unlabeled_distribution.source", "guessed", "labeled, given, predicted"),
    ("class_balanced_loss.b", 1.0, "[0, 1)"),
    ("class_balanced_loss.b", -0.1, "[0, 1)"),
    ("darp.start", 1.1, "between 0 and 1"),
    ("darp.every", 0, "at least 1"),
    ("darp.delta", 0.5, "at least 1"),
    ("dtype", "float16", "float32, bfloat16"),
    ("precision", "float32", "default, high, highest"),
    ("generations", 0, "between 1 and 1000"),
    ("steps", 0, "at least 1"),
    ("eval_every", 0, "at least 1"),
    ("checkpoint_every", -5, "at least 1"),
    ("batch_size", 0, "between 1 and 1048576"),
    ("unlabeled_ratio", 0, "at least 1"),
    ("eval_batch_size", 0, "between 1 and 1048576"),
    ("model.width", 0, "between 1 and 1000"),
    ("data.shards", 0, "between 1 and 99999"),
    ("long_tail.n_max", 0, "at least 1"),
    ("long_tail.gamma", 0.99, "at least 1"),
    ("long_tail.gamma", math.inf, "at least 1"),
    ("long_tail.gamma", math.nan, "at least 1"),
    ("fold", -1, "at least 0"),
    ("seed", -1, "at least 0"),
    ("crest.alpha", -0.1, "at least 0"),
    ("unlabeled_weight", -1.0, "at least 0"),
    ("logit_adjustment_tau", -1.0, "at least 0"),
    ("optimizer.weight_decay", -1e-4, "at least 0"),
    ("optimizer.cosine_level", -1, "between 0 and 8"),
    ("optimizer.cosine_level", 9, "between 0 and 8"),
    ("crest.t_min", -0.1, "between 0 and 1"),
    ("crest.t_min", 1.1, "between 0 and 1"),
    ("alignment.t", 1.5, "between 0 and 1"),
    ("threshold", 95.0, "between 0 and 1"),
    ("threshold", math.nan, "between 0 and 1"),
    ("ema_decay", 1.001, "between 0 and 1"),
    ("optimizer.momentum", -0.9, "between 0 and 1"),
    ("model.batch_norm_momentum", 2.0, "between 0 and 1"),
    ("long_tail.beta", 0.0, "(0, 1]"),
    ("long_tail.beta", -0.1, "(0, 1]"),
    ("long_tail.beta", 1.1, "(0, 1]"),
    ("long_tail.beta", math.nan, "(0, 1]"),
    ("data.validation_fraction", 1.0, "[0, 1)"),
    ("data.validation_fraction", -0.1, "[0, 1)"),
    ("optimizer.learning_rate", 0.0, "above 0"),
    ("optimizer.learning_rate", math.inf, "above 0"),
    ("optimizer.learning_rate", math.nan, "above 0"),
    ("model.depth", 11, "6 n + 4"),
    ("model.depth", 4, "6 n + 4"),
    ("optimizer.name", "rmsprop", "one of sgd, adam, adamw, lars"),
    ("optimizer.b2", 1.0, "[0, 1)"),
    ("optimizer.b1", 0.8, "left at 0.9 when optimizer.name=sgd, which has no b1"),
    ("optimizer.eps", 0.0, "above 0"),
    ("optimizer.trust_coefficient", -1.0, "above 0"),
    ("optimizer.warm_up", 2**20, "at most steps=65536"),
]


@pytest.mark.parametrize(("field", "value", "valid"), BAD_FIELDS)
def test_a_bad_field_is_named_with_its_value_and_what_is_valid(field, value, valid):
    lines = problems_of(config_with(**{field.replace(".", "__"): value}))
    (line,) = [line for line in lines if line.startswith(f"{field}={value!r} ") and valid in line]
    assert " must be " in line


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("long_tail.gamma", 1.0),
        ("crest.alpha", 0.0),
        ("crest.t_min", 0.0),
        ("crest.t_min", 1.0),
        ("threshold", 0.0),
        ("unlabeled_weight", 0.0),
        ("optimizer.weight_decay", 0.0),
        ("ema_decay", 0.0),
        ("model.depth", 10),
        ("model.depth", 16),
        ("model.depth", 40),
        ("augment.operations", ("Invert",)),
        ("dtype", "bfloat16"),
        ("precision", "high"),
        ("precision", "highest"),
    ],
)
def test_the_limits_themselves_are_valid(field, value):
    validate(config_with(**{field.replace(".", "__"): value}))


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_bfloat16_has_no_precision_but_the_default(precision):
    (line,) = problems_of(config_with(dtype="bfloat16", precision=precision))
    assert line.startswith(f"precision={precision!r} must be default when dtype=bfloat16")
    assert "set dtype=float32" in line


def test_each_model_has_depths_of_its_own():
    for name, depths in {"resnet": (14, 26, 50, 101, 152), "wide_resnet": (10, 16, 28, 40)}.items():
        for depth in depths:
            validate(config_with(model__name=name, model__depth=depth))
    (line,) = problems_of(config_with(model__name="resnet"))
    assert line == "model.depth=28 must be one of 14, 26, 50, 101, 152"
    (line,) = problems_of(config_with(model__depth=50))
    assert line.startswith("model.depth=50 must be 6 n + 4 ")


def test_an_unknown_or_missing_operation_is_an_error_that_lists_all():
    for operations in [("Identity", "Shear"), ()]:
        (line,) = problems_of(config_with(augment__operations=operations))
        assert line.startswith(f"augment.operations={operations!r}")
        for name in OPERATIONS:
            assert name in line


def test_batches_must_be_divisible_by_the_devices():
    lines = problems_of(config_with(batch_size=64, eval_batch_size=1000), devices=3)
    assert lines == [
        "batch_size=64 must be divisible by the 3 devices",
        "eval_batch_size=1000 must be divisible by the 3 devices",
    ]
    (line,) = problems_of(config_with(batch_size=64, eval_batch_size=1002), devices=6)
    assert line.startswith("batch_size=64 ")
    validate(config_with(batch_size=64, eval_batch_size=1000), devices=8)


def test_groups_of_batch_norm_must_divide_the_devices():
    for group in (0, 2, 4, 8):
        validate(config_with(sync_batch_norm_group=group), devices=8)
        validate(config_with(sync_batch_norm_group=group))
    for group in (3, 16):
        (line,) = problems_of(config_with(sync_batch_norm_group=group), devices=8)
        assert line == f"sync_batch_norm_group={group} must be a divisor of the 8 devices"
    for group in (-2, 1):
        for devices in (None, 8):
            (line,) = problems_of(config_with(sync_batch_norm_group=group), devices=devices)
            assert line.startswith(f"sync_batch_norm_group={group} must be 0 for all devices, or")
    config = config_with(sync_batch_norm_group=2, sync_batch_norm=False)
    (line,) = problems_of(config, devices=8)
    assert line.startswith("sync_batch_norm_group=2 must be 0 when sync_batch_norm=False")


HYPER_PARAMETERS = [
    ("mixmatch", "sharpening_temperature", 0.0, "between 0.01 and 1"),
    ("mixmatch", "mixup_alpha", -1.0, "at least 0.01"),
    ("mixmatch", "ramp_up_steps", -1, "at least 0"),
    ("mixmatch", "unlabeled_ratio", 0, "at least 1"),
    ("pseudo_label", "threshold", 2.0, "between 0 and 1"),
    ("mean_teacher", "unlabeled_weight", -1.0, "at least 0"),
    ("supervised", "unlabeled_ratio", 7, "0 when method=supervised"),
]


@pytest.mark.parametrize(("method", "field", "value", "valid"), HYPER_PARAMETERS)
def test_a_bad_hyper_parameter_is_named(method, field, value, valid):
    config = default_config(parse_arguments(f"method={method},rebalance=none"))
    config[field] = value
    assert problems_of(config) == [f"{field}={value!r} must be {valid}"]


def test_an_unknown_rebalancing_is_an_error_that_lists_all():
    (line,) = problems_of(config_with(rebalance="crestplus"))
    assert "'crestplus' is not one of cb, rs, da, darp, crest, crest_plus" in line


@pytest.mark.parametrize(
    ("rebalance", "target", "valid"),
    [
        ("none", "constant", {"none"}),
        ("rs", "progressive", {"none"}),
        ("da", "none", {"constant", "labeled_average"}),
        ("crest+da", "progressive", {"constant", "labeled_average"}),
        ("crest", "constant", {"none"}),
        ("darp", "constant", {"none"}),
        ("crest_plus", "none", {"progressive"}),
        ("crest_plus+cb", "labeled_average", {"progressive"}),
    ],
)
def test_alignment_that_contradicts_rebalance_is_refused(rebalance, target, valid):
    config = default_config(parse_arguments(f"rebalance={rebalance}"))
    config.alignment.target = target
    (line,) = problems_of(config)
    offered = ", ".join(alignment_targets(rebalance))
    assert line == (
        f"alignment.target={target!r} must be one of {offered} when rebalance={rebalance}"
    )
    assert set(alignment_targets(rebalance)) == valid
    for other in valid:
        config.alignment.target = other
        validate(config)


@pytest.mark.parametrize("rebalance", ["none", "da", "cb"])
def test_more_generations_need_a_rebalancing_that_self_trains(rebalance):
    config = default_config(parse_arguments(f"rebalance={rebalance}"))
    config.generations = 2
    (line,) = problems_of(config)
    assert line.startswith("generations=2 ")
    assert f"rebalance={rebalance}" in line
    assert "crest and crest_plus" in line
    assert SELF_TRAINING == ("crest", "crest_plus")


def test_self_training_needs_something_unlabeled():
    (line,) = problems_of(config_with(long_tail__beta=1.0))
    assert line.startswith("long_tail.beta=1.0 ")
    assert "nothing is left to pseudo-label" in line
    # The fully supervised bound has no need of it.
    validate(default_config(parse_arguments("rebalance=none,beta=1")))


@pytest.mark.parametrize("rebalance", ["crest", "crest_plus+rs"])
def test_self_training_takes_more_than_one_generation(rebalance):
    """This happens if rebalance is changed as a field, and not as an argument of the experiment."""
    config = default_config(parse_arguments("rebalance=none"))
    config.rebalance = rebalance
    config.alignment.target = alignment_targets(rebalance)[0]
    (line,) = problems_of(config)
    assert line.startswith("generations=1 must be at least 2 ")


@pytest.mark.parametrize(
    ("argument", "field"),
    [("fixmatch", "mixmatch"), ("pseudo_label", "mean_teacher"), ("mixmatch", "supervised")],
)
def test_a_method_that_is_not_the_experiments_is_refused(argument, field):
    """Its hyper-parameters and settings would be those of another."""
    config = default_config(parse_arguments(f"method={argument},rebalance=none"))
    config.method = field
    (line,) = problems_of(config)
    assert f"--config=FILE.py:method={field}" in line


def test_a_distribution_is_not_predicted_where_all_is_labeled():
    config = default_config(parse_arguments("rebalance=da,beta=1"))
    config.unlabeled_distribution.source = "predicted"
    (line,) = problems_of(config)
    assert line.startswith("unlabeled_distribution.source='predicted' must be labeled when")


def test_all_problems_are_listed_together_and_once():
    lines = problems_of(
        config_with(
            method="mixmatsch",
            long_tail__gamma=0.5,
            crest__alpha=-1.0,
            model__depth=11,
            steps=0,
            eval_batch_size=1000,
        ),
        devices=5,
    )
    fields = [line.split("=")[0] for line in lines]
    assert sorted(fields) == [
        "batch_size", "crest.alpha", "long_tail.gamma", "method", "model.depth", "steps",
    ]  # fmt: skip


# Comparing configs


@pytest.mark.parametrize("name", ["digits", "image_folder", "cifar10"])
def test_only_of_a_tfds_data_set_a_part_of_train_is_tested_on(name):
    config = default_config(parse_arguments(None))
    config.data.name, config.data.test_split = name, ""
    config.data.labeled = "pictures" if name == "image_folder" else ""
    if name == "cifar10":
        validate(config)
        return
    with pytest.raises(
        ConfigError, match=r"data\.test_split='' must be .* only be empty for a data"
    ):
        validate(config)


def test_a_config_read_back_from_json_has_no_differences():
    config = default_config(parse_arguments(None))
    assert differences(to_plain(config), to_plain(config)) == []
    # Tuples come back from JSON as lists; that is not a difference.
    assert to_plain(config)["augment"]["operations"] == list(OPERATIONS)


def test_differences_name_the_field_and_both_values():
    old = to_plain(config_with())
    new = to_plain(config_with(seed=7, long_tail__gamma=50.0, rebalance="crest"))
    assert differences(old, new) == [
        "long_tail.gamma: 100.0 -> 50.0",
        "rebalance: 'crest_plus' -> 'crest'",
        "seed: 0 -> 7",
    ]


@pytest.mark.parametrize("rebalance", ["none", "crest", "crest_plus", "darp+crest"])
def test_a_temperature_that_would_not_be_used_is_refused(rebalance):
    with pytest.raises(
        ConfigError, match=rf"t=0\.5 is an argument of rebalance=da.*{re.escape(rebalance)}"
    ):
        default_config(parse_arguments(f"rebalance={rebalance},t=0.5"))


@pytest.mark.parametrize("name", ["adam", "adamw", "lars"])
def test_each_optimizer_takes_its_own_parameters(name):
    validate(config_with(optimizer__name=name))
    given = {"adam": "b1", "adamw": "eps", "lars": "momentum"}[name]
    validate(config_with(optimizer__name=name, **{f"optimizer__{given}": 0.5}))
    if name != "lars":
        (line,) = problems_of(config_with(optimizer__name=name, optimizer__momentum=0.5))
        assert line == (
            f"optimizer.momentum=0.5 must be left at 0.9 when optimizer.name={name}, which has no "
            "momentum"
        )


# Types, which are those of the defaults


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("method", ["fixmatch"], "method=['fixmatch'] must be text without control characters"),
        ("data.data_dir", "a\0b", "data.data_dir='a\\x00b' must be text without"),
        ("data.download", "yes", "data.download='yes' must be True or False"),
        ("sync_batch_norm", 1, "sync_batch_norm=1 must be True or False"),
        ("steps", True, "steps=True must be a whole number"),
        ("steps", 1000.5, "steps=1000.5 must be a whole number"),
        ("seed", 2**32, "seed=4294967296 must be a whole number"),  # JAX has the key of 0 for it
        ("ema_decay", 10**400, "ema_decay=1000"),
        ("logit_adjustment_tau", None, "logit_adjustment_tau=None must be a number"),
        ("optimizer.drops", "abc", "optimizer.drops='abc' must be a list"),
        ("optimizer.drops", (1, None), "optimizer.drops[1]=None must be a number"),
        ("optimizer.drops", (1.5,), "optimizer.drops=(1.5,) must be steps in ascending order"),
        ("augment.operations", ("Rotate", 3), "augment.operations[1]=3 must be text"),
        ("model", 3, "model=3 must have the fields name, depth, width"),
        ("data.name", "", "data.name='' must be the name of one"),
    ],
)
def test_a_field_has_the_type_of_its_default(field, value, line):
    config = default_config(parse_arguments(None))
    *above, name = field.split(".")
    holder = config[above[0]] if above else config
    del holder[name]
    holder[name] = value
    (found,) = problems_of(config)
    assert found.startswith(line)


def test_missing_and_unknown_fields_are_named():
    config = default_config(parse_arguments(None))
    del config.model.depth
    config.model.dpeth = 28
    lines = problems_of(config)
    assert lines[0] == "model.depth is missing"
    assert lines[1].startswith(
        "model.dpeth is not a field: name, depth, width, batch_norm_momentum, init_from are"
    )
    config = default_config(parse_arguments(None))
    del config.long_tail.gamma
    (line,) = problems_of(config)
    assert line.startswith("long_tail has beta, n_max, split, but must have beta, split; or n_max,")


@pytest.mark.parametrize("given", [None, 3, {"steps": 3}])
def test_an_experiment_must_return_a_config(given):
    with pytest.raises(ConfigError, match="get_config must return a ConfigDict"):
        validate(given)


def test_no_lanes_are_not_divided_by():
    lines = problems_of(config_with(data__stream=True, data__lanes=0))
    assert any(line.startswith("data.lanes=0 must be at least 1") for line in lines)


@pytest.mark.parametrize("value", ["nan", "inf", "1e999"])
def test_an_argument_is_a_finite_number(value):
    with pytest.raises(ConfigError, match=f"gamma={value} is not a finite number"):
        parse_arguments(f"gamma={value}")


def test_a_config_of_an_earlier_version_is_completed_and_a_later_ones_is_refused():
    plain = to_plain(default_config(parse_arguments("rebalance=crest")))
    new = ("heartbeat_timeout", "precision")
    earlier = {name: value for name, value in plain.items() if name not in new}
    assert to_plain(completed(earlier)) == plain
    for change, message in [
        ({"foresight": 1}, "foresight is not a field"),
        ({"method": []}, "method=\\[\\] must be text"),
        ({"method": "oracle"}, "method='oracle' must be one of supervised, .* module:name"),
        ({"rebalance": "oracle"}, "'oracle' is not one of"),
        ({"model": []}, "model=\\[\\] must have the fields"),
    ]:
        with pytest.raises(ConfigError, match=message):
            completed(plain | change)
