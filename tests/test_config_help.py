import pytest
from conftest import REPOSITORY, flat, load_experiment

from crest_jax import config_help
from crest_jax.algorithms import ALGORITHMS
from crest_jax.config import common_fields, fields_of
from crest_jax.models import MODELS
from crest_jax.rebalancing import REBALANCING
from crest_jax.rebalancing.distribution_alignment import TARGETS


def test_the_page_is_that_of_the_declarations():
    """If it is not, run `python -m crest_jax.config_help > docs/config.md`."""
    assert (REPOSITORY / "docs" / "config.md").read_text() == config_help.markdown() + "\n"


def test_every_default_is_valid_and_every_field_has_a_help_of_a_sentence():
    for name, field in fields_of("fixmatch", "none").items():
        assert field.expected(field.default) == "", name
        assert field.help[0].isupper(), name
        assert field.help[-1] == ".", name


@pytest.mark.parametrize(
    ("name", "arguments"), [("mnist_lt", "method=mixmatch"), ("cifar10_darp", None)]
)
def test_the_help_of_an_experiment_has_its_fields_and_values(name, arguments):
    config = load_experiment(name, arguments)
    printed = config_help.text(config)
    lines = [line for line in printed.splitlines() if line.startswith("--config.")]
    expected = dict(flat(config.to_dict()))
    assert len(lines) == len(expected)
    for field, value in expected.items():
        (line,) = [line for line in lines if line.startswith(f"--config.{field}=")]
        assert str(value).startswith(line.partition("=")[2].split(",")[0])


def test_without_an_experiment_all_fields_have_their_defaults(command_line):
    status = command_line("--help_config")
    printed, errors = status.communicate(timeout=60)
    assert status.returncode == 0, errors
    for name in common_fields():
        assert f"--config.{name}=" in printed
    words = " ".join(printed.split())
    assert "Source: Eq. 2, section 4.1." in words
    assert "Must be at least 0." in words


def test_the_help_says_that_the_defaults_of_the_optimiser_are_for_sgd():
    fields = fields_of("fixmatch", "none")
    for name in ("name", "learning_rate", "weight_decay"):
        assert "for sgd" in fields[f"optimizer.{name}"].help


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("method", ALGORITHMS),
        ("rebalance", REBALANCING),
        ("model.name", MODELS),
        ("alignment.target", TARGETS),
    ],
)
def test_the_help_has_the_names_of_the_registries(field, names):
    assert f" of {', '.join(names)}" in fields_of("fixmatch", "none")[field].valid
