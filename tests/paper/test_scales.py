import pytest

from crest_jax.paper import cells, curves
from crest_jax.paper.figures import FIGURES
from crest_jax.paper.published import TABLES
from crest_jax.paper.scales import SCALES
from crest_jax.validation import validate


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("number", TABLES)
def test_every_listed_config_is_valid(number, scale, cells_of):
    for run in cells.named_runs(cells_of(number, scale, folds=1)):
        validate(run.config())


def test_smaller_scales_have_equal_budgets_too(cells_of):
    for scale in ("small", "smoke"):
        steps = set()
        for run in cells.named_runs(cells_of(2, scale, folds=1)):
            fields = dict(run.fields)
            steps.add(int(fields["steps"]) * int(fields.get("generations", 1)))
        assert len(steps) == 1


def test_in_table_4_a_method_of_one_generation_trains_as_long_as_one(cells_of):
    for scale in ("full", "small", "smoke"):
        steps = {run.config().steps for run in cells.named_runs(cells_of(4, scale, folds=1))}
        assert len(steps) == 1


def test_mnist_stands_for_cifar10_alone(command, cells_of, settings):
    """In Table 1, CIFAR-10 is half of the columns, of three runs over five folds each."""
    found = cells_of(1, "mnist")
    assert {cell.column.experiment for cell in found} == {"cifar10_lt"}
    config = found[-1].runs[1].config()
    assert (config.data.name, config.generations, config.steps) == ("mnist", 3, 2000)
    labeled = {cell.runs[0].config().long_tail.beta for cell in found}
    assert labeled == {0.02, 0.06}  # a fifth of 10 and 30 %
    (one, *_) = curves.of_figure(FIGURES[5], settings("mnist")).values()
    constant = [run.config() for run in one]
    assert [(each.fold, each.generations, each.steps) for each in constant] == [
        (0, 3, 2000),
        (1, 3, 2000),
    ]
    status, printed = command("--figure=6", "--scale=mnist", "--list")
    assert status == 64
    assert "--scale=mnist is for cifar10_lt only" in printed.err
