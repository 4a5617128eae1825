import copy

import numpy as np
import pytest

from crest_jax.paper.figures import FIGURES, draw, render
from crest_jax.report.figures import mean_of_folds

# Classes in no order: 1 is the largest, then 2, then 0.
LABELED = [5, 40, 20]
LARGEST_FIRST = [1, 2, 0]


def generation(accuracy, recall, precision=None, labeled=LABELED):
    return {
        "accuracy": accuracy,
        "labeled_per_class": labeled,
        "per_class_recall": recall,
        "per_class_precision": precision or [100.0 - value for value in recall],
        "pseudo_labels": {
            "recall": [value / 2 for value in recall],
            "examples": [10 * size for size in labeled],
        },
    }


RESULTS = {
    "data": "digits",
    "generations": [
        generation(50.0, [10.0, 90.0, 50.0]),
        generation(60.0, [20.0, 92.0, 66.0]),
        generation(64.0, [30.0, 94.0, 68.0]),
    ],
}


def lines(axes):
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


def drawing(number, **changes):
    runs = {curve.name: [{**RESULTS, **changes}] for curve in FIGURES[number].curves}
    return draw(FIGURES[number], runs, ["Small"])


@pytest.mark.parametrize("number", FIGURES)
def test_figures_say_what_they_are_and_are_not(number):
    figure = drawing(number)
    title = figure.get_suptitle()
    assert title.startswith(f"Figure {number}. ")
    assert title.endswith("\nSmall")
    assert all(axes.get_title() and axes.get_xlabel() for axes in figure.axes)


def test_figure_1_is_of_the_bias_and_what_becomes_of_it():
    sizes, bias, pseudo, test = drawing(1).axes
    assert [bar.get_height() for bar in sizes.patches] == [40, 20, 5, 400, 200, 50]
    assert lines(bias) == {"recall": [90, 50, 10], "precision": [10, 50, 90]}
    assert lines(test) == {name: values for name, values in {
        "FixMatch": [90, 50, 10], "CReST": [94, 68, 30], "CReST+": [94, 68, 30],
    }.items()}  # fmt: skip
    assert lines(pseudo)["CReST"] == [47, 34, 15]


def test_the_papers_recall_is_beside_ours_only_on_its_data():
    recall = [float(label) for label in range(10)]
    of_ten = generation(1.0, recall, labeled=list(range(100, 0, -10)))
    figure = drawing(1, data="cifar10", generations=[of_ten])
    published = lines(figure.axes[3])["the paper's"]
    assert published[:2] == [98.7, 99.5]
    assert len(published) == 10
    assert "the paper's" not in lines(drawing(1).axes[3])


@pytest.mark.parametrize(("number", "rows"), [(2, 2), (7, 3)])
def test_recall_and_precision_are_those_of_the_first_generation(number, rows):
    axes = drawing(number).axes
    assert len(axes) == 2 * rows
    for recall, precision in zip(axes[::2], axes[1::2], strict=True):
        assert [list(line.get_ydata()) for line in recall.lines] == [[90, 50, 10]]
        assert [list(line.get_ydata()) for line in precision.lines] == [[10, 50, 90]]


def test_figure_4_has_rates_by_hand_and_accuracies_by_generation():
    rates, accuracy = drawing(4).axes
    # (N_{L+1-l} / N_1)^alpha with sizes 40, 20, 5.
    np.testing.assert_allclose(lines(rates)["α=1"], [5 / 40, 20 / 40, 1])
    np.testing.assert_allclose(lines(rates)["α=1/3"], [0.5, 0.5 ** (1 / 3), 1])
    np.testing.assert_allclose(lines(rates)["α=0"], 1)
    assert lines(accuracy) == {name: [50, 60, 64] for name in lines(rates)}


def test_figure_5_has_targets_by_hand():
    targets, accuracy = drawing(5).axes
    np.testing.assert_allclose(lines(targets)["t=1.0"], np.array([40, 20, 5]) / 65)
    roots = np.sqrt([40, 20, 5])
    np.testing.assert_allclose(lines(targets)["t=0.5"], roots / roots.sum())
    assert len(lines(accuracy)) == 6
    assert lines(accuracy)["progressive t"] == [50, 60, 64]


def test_figure_6_is_of_all_training_images_on_a_logarithmic_axis():
    (axes,) = drawing(6).axes
    assert [bar.get_height() for bar in axes.patches] == [440, 220, 55]
    assert axes.get_yscale() == "log"


def test_only_runs_that_are_there_have_a_curve():
    figure = draw(FIGURES[4], {"α=0": [RESULTS]}, [])
    _, accuracy = figure.axes
    assert list(lines(accuracy)) == ["α=0"]


def test_an_axis_is_as_long_as_its_longest_curve():
    shorter = {**RESULTS, "generations": RESULTS["generations"][:1]}
    runs = {"α=1": [RESULTS], "α=0": [shorter]}
    _, accuracy = draw(FIGURES[4], runs, []).axes
    assert accuracy.get_xlim() == (0.5, 3.5)


def test_crest_plus_does_not_pass_for_fixmatch():
    """Its first generation aligns pseudo-labels already."""
    _, bias, pseudo, _ = draw(FIGURES[1], {"CReST+": [RESULTS]}, []).axes
    assert not bias.lines
    assert list(lines(pseudo)) == ["CReST+"]


def test_curves_are_means_over_folds_with_their_deviation():
    other = {
        "data": "digits",
        "generations": [
            generation(54.0, [10.0, 90.0, 50.0]),
            generation(60.0, [20.0, 92.0, 66.0]),
            generation(70.0, [36.0, 94.0, 68.0]),
        ],
    }
    other["generations"][2]["per_class_precision"] = [80.0, 7.0, None]
    # A list of as many entries as there happen to be in a fold is no figure by class.
    one = copy.deepcopy(RESULTS)
    one["generations"][0]["unlabeled_distribution"] = {"differs": []}
    other["generations"][0]["unlabeled_distribution"] = {"differs": [1]}
    mean = mean_of_folds([one, other])
    assert mean["data"] == "digits"
    last = mean["generations"][2]
    assert last["per_class_recall"] == [33.0, 94.0, 68.0]
    assert last["per_class_precision"] == [75.0, 6.5, 32.0]  # by hand; of the folds that have one
    _, accuracy = draw(FIGURES[4], {"α=0": [RESULTS, other]}, []).axes
    assert lines(accuracy)["α=0"] == [52, 60, 67]
    (bars,) = accuracy.containers[0].lines[2]
    ends = [list(segment[:, 1]) for segment in bars.get_segments()]
    assert ends == [[50, 54], [60, 60], [64, 70]]


def test_a_value_between_classes_without_one_is_still_seen():
    recall = [100.0 - label for label in range(30)]
    precision = [float(label) if label % 2 else None for label in range(30)]
    of_thirty = generation(50.0, recall, precision, labeled=list(range(30, 0, -1)))
    runs = {"CIFAR100-LT": [{"data": "cifar100", "generations": [of_thirty]}]}
    drawn_recall, drawn_precision = draw(FIGURES[2], runs, []).axes
    assert len(drawn_recall.lines) == 1
    _, lone = drawn_precision.lines
    assert list(lone.get_ydata()) == list(range(1, 30, 2))


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_figures_are_files_of_each_kind(kind):
    runs = {curve.name: [RESULTS] for curve in FIGURES[4].curves}
    content = render(FIGURES[4], runs, ["Small"], kind)
    assert {"svg": b"<svg", "pdf": b"%PDF", "png": b"\x89PNG"}[kind] in content[:1000]
    if kind == "svg":
        assert b">sampling rate</text>" in content  # words, not outlines


def test_curves_differ_in_colour_and_in_what_is_left_of_it_in_grey():
    _, accuracy = drawing(5).axes
    assert len({line.get_color() for line in accuracy.lines}) == 6
    assert len({line.get_marker() for line in accuracy.lines}) == 6
