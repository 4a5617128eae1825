"""The published values were typed: what the paper says about them in its text must hold."""

import numpy as np
import pytest
from conftest import load_experiment

from crest_jax.paper.published import TABLES


def means(number, row):
    """Return a row's means, by its name."""
    (found,) = [each for each in TABLES[number].rows if each.name == row]
    return np.array([np.nan if value is None else value.mean for value in found.published])


def gain(number, row, baseline="FixMatch"):
    return (means(number, row) - means(number, baseline)).round(1)


@pytest.mark.parametrize("number", TABLES)
def test_every_row_has_a_value_or_none_for_every_column(number):
    table = TABLES[number]
    assert all(len(row.published) == len(table.columns) for row in table.rows)
    assert len({row.name for row in table.rows}) == len(table.rows)
    assert len({column.name for column in table.columns}) == len(table.columns)
    for row in table.rows:
        for value in filter(None, row.published):
            assert 0 < value.mean < 100
            assert value.deviation is None or 0 < value.deviation < 5


@pytest.mark.parametrize("number", [1, 2, 3])
def test_tables_of_several_folds_have_deviations(number):
    values = [value for row in TABLES[number].rows for value in row.published]
    assert all(value is not None and value.deviation for value in values)


@pytest.mark.parametrize(
    ("number", "sum_of_means", "sum_of_deviations"),
    [(1, 1804.1, 18.83), (2, 2825.3, 46.59), (3, 1931.7, 9.70), (4, 670.5, 0), (5, 4919.5, 0)],
)
def test_values_add_up_to_what_those_in_the_papers_text_do(number, sum_of_means, sum_of_deviations):
    """Added up by a script over the PDF's text, of which these values are no copy."""
    values = [value for row in TABLES[number].rows for value in row.published if value]
    assert sum(value.mean for value in values) == pytest.approx(sum_of_means)
    deviations = sum(value.deviation or 0 for value in values)
    assert deviations == pytest.approx(sum_of_deviations)


def test_gains_in_table_1_are_those_of_the_text():
    assert gain(1, "w/ CReST").max() == 9.6
    progressive = gain(1, "w/ CReST+")
    assert (progressive.min(), progressive.max()) == (3.0, 11.8)
    # "11.8 % and 6.1 % for imbalance ratio 100 with 10 % and 30 % labeled data"
    assert progressive[[1, 4]].tolist() == [11.8, 6.1]


def test_gains_in_table_2_are_those_of_the_text():
    assert gain(2, "FixMatch w/ CReST+").max() == 10.8
    np.testing.assert_array_equal(means(2, "FixMatch w/ CReST+"), means(1, "w/ CReST+")[:3])


def test_gains_over_darp_in_table_3_are_those_of_the_text():
    assert gain(3, "MixMatch w/ CReST+", "MixMatch w/ DARP").max() == 4.0
    assert gain(3, "FixMatch w/ CReST+", "FixMatch w/ DARP").max() == 2.4


def test_the_gain_in_table_4_is_that_of_the_text():
    last = means(4, "FixMatch w/ CReST+")[2]
    assert last - means(4, "FixMatch")[0] == pytest.approx(7.9)
    # CReST's first generation is FixMatch.
    assert means(4, "FixMatch w/ CReST")[0] == means(4, "FixMatch")[0]


@pytest.mark.parametrize(
    ("row", "deltas"),
    [
        ("CReST, test", "-1.0 -1.2 -1.2 -1.6 3.2 12.1 9.6 2.2 38.1 40.7 10.1"),
        ("CReST+, test", "-4.9 -1.8 -2.7 -6.6 2.5 21.6 15.0 8.9 51.4 63.6 14.7"),
        ("CReST, unlabeled", "-0.7 -2.3 0 -1.1 2.7 12.7 14.4 -0.8 45.9 44.5 11.5"),
        ("CReST+, unlabeled", "-6.3 -3.4 -3.9 -7.3 2.9 18.4 20.2 5.6 60.8 53.4 14.0"),
    ],
)
def test_differences_in_table_5_are_those_printed_below_its_rows(row, deltas):
    split = row.split()[-1]
    ours = gain(5, f"w/ {row}", f"FixMatch, {split}")
    np.testing.assert_allclose(ours, np.array(deltas.split(), float))


def test_averages_in_table_5_are_those_of_its_classes():
    for row in TABLES[5].rows:
        by_class = means(5, row.name)
        assert by_class[-1] == pytest.approx(by_class[:10].mean(), abs=0.051)


# What each row of Table 2 and of Table 3 runs, besides FixMatch alone.
RUNS = {
    2: {
        "Pseudo-Labeling": "pseudo_label none",
        "Mean Teacher": "mean_teacher none",
        "MixMatch": "mixmatch none",
        "MixMatch w/ CReST": "mixmatch crest",
        "MixMatch w/ CReST+": "mixmatch crest_plus",
        "FixMatch": "fixmatch none",
        "FixMatch w/ CB": "fixmatch cb",
        "FixMatch w/ RS": "fixmatch rs",
        "FixMatch w/ DA (t=1.0)": "fixmatch da",
        "FixMatch w/ DA (t=0.5)": "fixmatch da 0.5",
        "FixMatch w/ LA": "fixmatch none",
        "FixMatch w/ CReST": "fixmatch crest",
        "FixMatch w/ CReST+": "fixmatch crest_plus",
        "FixMatch w/ CReST+ & LA": "fixmatch crest_plus",
    },
    3: {
        "Supervised": "supervised none",
        "MixMatch": "mixmatch none",
        "MixMatch w/ DARP": "mixmatch darp",
        "MixMatch w/ CReST": "mixmatch crest",
        "MixMatch w/ CReST+": "mixmatch crest_plus",
        "FixMatch": "fixmatch none",
        "FixMatch w/ DARP": "fixmatch darp",
        "FixMatch w/ CReST": "fixmatch crest",
        "FixMatch w/ CReST+": "fixmatch crest_plus",
    },
}


@pytest.mark.parametrize("number", RUNS)
def test_a_row_runs_what_it_is_called(number):
    rows = {row.name: " ".join(row.arguments.values()) for row in TABLES[number].rows}
    assert rows == RUNS[number]
    adjusted = {row.name for row in TABLES[number].rows if "logit_adjusted" in row.reported}
    assert adjusted == {name for name in rows if name.endswith("LA")}


def test_every_cell_names_arguments_that_its_experiment_takes():
    for table in TABLES.values():
        for column in table.columns:
            for row in table.rows:
                arguments = column.arguments | row.arguments
                text = ",".join(f"{key}={value}" for key, value in arguments.items())
                config = load_experiment(column.experiment, text)
                assert (config.method, config.rebalance) == (
                    row.arguments["method"],
                    row.arguments["rebalance"],
                )
                assert not set(column.arguments) & set(row.arguments) - {"beta"}
