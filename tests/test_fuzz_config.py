"""Any config is usable, or refused with an error of ours that says why."""

import math

import fuzz
import numpy as np
import pytest
from conftest import REPOSITORY, load_experiment
from hypothesis import example, given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from crest_jax import config as config_lib
from crest_jax.config import completed, default_config, parse_arguments, to_plain
from crest_jax.data.splits import Split, Splits
from crest_jax.differences import differences
from crest_jax.errors import ConfigError
from crest_jax.program import (
    generation_keys,
    model_of,
    optimizer_of,
    schedule_of,
    target_distribution,
)
from crest_jax.validation import validate

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.py"))
CONFIGS = {
    name: load_experiment(name, "labeled=photos" if name == "image_folder" else None)
    for name in EXPERIMENTS
}


def fields_of(config, prefix=""):
    """The names of all fields, and of those that have fields themselves."""
    for name, value in config.items():
        yield f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            yield from fields_of(value, f"{prefix}{name}.")


FIELDS = {name: sorted(fields_of(config)) for name, config in CONFIGS.items()}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, -(10**30), 2**31 - 1, 2**31, 2**32, 2**63, 10**400]),
    st.integers(),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 5e-324, 0.5, 1.0, -1.0]),
    st.text(max_size=8),
    st.sampled_from(["", "none", "crest", "da+darp", "\0", "\x1b[31m", "ü", "\ud800", "a\nb"]),
    st.binary(max_size=4),
    st.complex_numbers(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text("abcdef", max_size=5), inner, max_size=3),
        st.sets(st.integers(), max_size=2),
    ),
    max_leaves=5,
)


def replaced(config, field, value):
    """Sets a field, whatever its type, or removes it where there is no value."""
    *above, name = field.split(".")
    for each in above:
        config = config.get(each)
        if not isinstance(config, ConfigDict):  # which another change has made of it
            return
    with config.ignore_type(), config.unlocked():
        if name in config:  # or the value would be converted to what is there
            del config[name]
        if value is not fuzz.REMOVED:
            config[name] = value


@st.composite
def damaged_configs(draw):
    name = draw(st.sampled_from(EXPERIMENTS))
    config = CONFIGS[name].copy_and_resolve_references()
    for field in draw(st.lists(st.sampled_from(FIELDS[name]), min_size=1, max_size=3)):
        replaced(config, field, draw(st.one_of(VALUES, st.just(fuzz.REMOVED))))
    if draw(st.booleans()) and draw(st.booleans()):
        replaced(config, draw(st.sampled_from(["extra", "data.extra", "model.extra"])), 3)
    return config


FLOATS = {
    name
    for of_all in CONFIGS.values()
    for config in [of_all, *(each for each in of_all.values() if isinstance(each, ConfigDict))]
    for name, value in config.items()
    if isinstance(value, float)
}


def with_floats(config):
    """A whole number where a float is the default serves as one, but for the tests' type checks."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            with_floats(value)
        elif name in FLOATS and isinstance(value, int):
            replaced(config, name, float(value))


def use(config):
    """Do all that is done with a config before there is data, without compiling."""
    with_floats(config)
    assert not differences(to_plain(completed(to_plain(config))), to_plain(config))
    model_of(config, 10, axis_name=None)
    optimizer_of(config)
    for generation in (0, config.generations - 1):
        generation_keys(config, generation)
    steps = schedule_of(config).reported
    assert 1 <= len(steps) <= 5
    assert steps[-1] == config.steps
    split = Split(30, np.full(10, 3), [])
    splits = Splits(split, split, split, split, tuple("0123456789"), (8, 8, 3))
    try:
        shares = target_distribution(config, splits, None)
    except ConfigError:  # of another number of classes
        return
    assert np.isfinite(shares).all()


@fuzz.settings(short=150)
@given(damaged_configs())
def test_a_config_is_usable_or_every_problem_is_named(config):
    try:
        validate(config)
    except ConfigError as error:
        fuzz.check_message(error)
    else:
        use(config)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_field_of_every_experiment_is_checked_for_its_type(name):
    """None takes None, text with a NUL, a list of such, or a number of thousands of digits."""
    for field in FIELDS[name]:
        for value in (None, b"", object(), ["\0"], {"\0": None}, 10**5000):
            config = CONFIGS[name].copy_and_resolve_references()
            replaced(config, field, value)
            with pytest.raises(ConfigError) as caught:
                validate(config)
            fuzz.check_message(caught.value)
            assert str(caught.value).startswith(field), (field, value)


@fuzz.settings(short=100)
@given(st.one_of(
    st.text(max_size=30),
    st.lists(
        st.tuples(st.sampled_from([*config_lib.ARGUMENTS, "gamma_u", "target", "resolution"]),
                  st.one_of(st.text(max_size=8), st.floats().map(str), st.integers().map(str),
                            st.sampled_from(["crest", "da+rs", "given", "reversed", "1e999"])))
        .map("=".join), max_size=4).map(",".join),
), st.sampled_from(EXPERIMENTS))  # fmt: skip
@example("gamma=nan", "cifar10_lt")
@example("gamma_u=0,target=given,rebalance=da", "cifar10_darp")
@example("fold=" + "9" * 5000, "cifar10_lt")
def test_any_arguments_give_a_config_or_an_error_of_ours(text, name):
    try:
        config = load_experiment(name, text)
        validate(config)
    except ConfigError as error:
        fuzz.check_message(error)
    else:
        use(config)


@fuzz.settings(short=100)
@given(fuzz.damaged_json(to_plain(default_config(parse_arguments(None)))))
def test_a_config_that_is_read_back_is_complete_or_an_error_of_ours(plain):
    try:
        config = completed(plain)
    except ConfigError as error:
        fuzz.check_message(error)
        return
    try:
        validate(config)
    except ConfigError as error:
        fuzz.check_message(error)
    else:
        use(config)
