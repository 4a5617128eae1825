import pytest

from crest_jax.paper import comparison, progress


def value_of(run, cell):
    """Return our value, as `compare` computes it."""
    so_far = progress.read(run)
    return None if so_far is None else comparison.value_of(so_far, cell.row, cell.column)


def test_a_value_is_that_of_its_generation(cells_of, finish):
    plain, crest, plus = (cells_of(1, "small", folds=1)[at] for at in (0, 10, 20))
    (run,) = crest.runs
    assert plain.runs == crest.runs != plus.runs
    assert value_of(run, crest) is None
    finish(run, {"accuracy": 70.0}, {"accuracy": 75.0})
    assert value_of(run, plain) == 70.0
    assert value_of(run, crest) is None  # the last of 3 is not done
    assert not progress.read(run).is_finished
    finish(run, {"accuracy": 70.0}, {"accuracy": 75.0}, {"accuracy": 77.0})
    assert value_of(run, crest) == 77.0
    assert progress.read(run).is_finished


def test_a_generation_beyond_the_last_is_the_last(cells_of, finish):
    accuracies = [{"accuracy": float(number)} for number in range(1, 16)]
    for scale, generations, expected in (("full", 15, 6.0), ("small", 3, 3.0), ("full", 5, None)):
        (cell,) = [
            cell for cell in cells_of(2, scale, folds=1)
            if cell.row.name == "FixMatch w/ CReST" and "γ=100" in cell.column.name
        ]  # fmt: skip
        finish(cell.runs[0], *accuracies[:generations])
        assert value_of(cell.runs[0], cell) == expected


def test_values_by_class_and_their_mean(cells_of, finish):
    found = cells_of(5, folds=1)
    recall = [float(10 * label) for label in range(9)]
    result = {"per_class_recall": [*recall, 5.0], "pseudo_labels": {"recall": [*recall, None]}}
    finish(found[0].runs[0], *[result] * 15)
    by_name = {(cell.row.name, cell.column.name): cell for cell in found}

    def ours(row, column):
        cell = by_name[row, column]
        return value_of(cell.runs[0], cell)

    assert ours("FixMatch, test", "3") == 20.0
    assert ours("FixMatch, test", "Avg.") == pytest.approx((360 + 5) / 10)
    # A class without unlabeled examples has no recall.
    assert ours("FixMatch, unlabeled", "10") is None
    assert ours("FixMatch, unlabeled", "Avg.") == 40.0
