import numpy as np
import pytest

from crest_jax import accuracy, results, unlabeled_classes
from crest_jax.errors import WorkdirError
from crest_jax.rebalancing.label_shift import Interval


def with_unknown(confusion, predicted):
    """Counts of examples of known class, and of some of which only the prediction is known."""
    return np.concatenate([confusion, [predicted]])


@pytest.mark.parametrize("known", [[[0, 0], [0, 0]], [[9, 0], [0, 9]]])
def test_of_pseudo_labels_without_a_truth_only_their_number_is_known(known):
    known = np.array(known)
    summary = results.summarize_pseudo_labels(
        with_unknown(known, [5, 3]), with_unknown(0 * known, [1, 2])
    )
    assert not results.truth_is_known(summary)
    assert summary.pop("predicted") == [5 + known[0, 0], 3 + known[1, 1]]
    assert summary.pop("selected") == [1, 2]
    assert set(summary) == {"examples", "precision", "selected_precision", "recall"}
    assert all(values == [None, None] for values in summary.values())


def test_pseudo_label_statistics_by_hand():
    truth = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 0])
    selected = np.array([True, False, False, True, True, False])
    summary = results.summarize_pseudo_labels(
        with_unknown(accuracy.confusion_matrix(truth, predicted, 3), [0, 0, 0]),
        with_unknown(accuracy.confusion_matrix(truth[selected], predicted[selected], 3), [0, 0, 0]),
    )
    assert results.truth_is_known(summary)
    assert summary == {
        "examples": [3, 2, 1],
        "predicted": [4, 2, 0],
        "selected": [2, 1, 0],
        "precision": [50.0, 50.0, None],
        "selected_precision": [50.0, 100.0, None],
        "recall": [pytest.approx(200 / 3), 50.0, 0.0],
    }


def evaluation(step, ema, raw=((1, 0), (0, 1)), validation=None):
    """A line of metrics.jsonl with these confusion matrices of two classes."""

    def summary(matrix):
        rows = np.array(matrix)
        accuracy = 100 * float(np.mean(rows.diagonal() / rows.sum(axis=1)))
        return {"accuracy": accuracy, "confusion_matrix": matrix,
                "confusion_matrix_logit_adjusted": matrix[::-1]}  # fmt: skip

    line = {"step": step, "seconds": step / 10, "test": {"ema": summary(ema), "raw": summary(raw)}}
    if validation is not None:
        line["validation"] = {"ema": {"accuracy": validation}}
    return line


def test_the_last_five_evaluations_are_pooled():
    best_but_early = evaluation(10, ((10, 0), (0, 10)), validation=50.0)
    history = [
        best_but_early,
        *(evaluation(step, ((8, 2), (wrong, 10 - wrong)), validation=60.0 - wrong)
          for step, wrong in zip((20, 30, 40, 50, 60), (1, 3, 5, 7, 9), strict=True)),
    ]  # fmt: skip
    summary = results.summarize_evaluations(history)
    assert summary["accuracy"] == pytest.approx((80 + 50) / 2)
    assert summary["per_class_recall"] == [80.0, 50.0]
    assert summary["per_class_precision"] == [
        pytest.approx(100 * 40 / 65),
        pytest.approx(100 * 25 / 35),
    ]
    assert summary["confusion_matrix"] == [[40, 10], [25, 25]]
    # Logit-adjusted predictions here are those with the rows exchanged.
    assert summary["accuracy_logit_adjusted"] == pytest.approx((50 + 20) / 2)
    assert summary["accuracy_raw_weights"] == 100.0
    assert (summary["evaluations"], summary["steps"], summary["seconds"]) == (5, 60, 6.0)
    assert summary["best_on_test"] == {"step": 10, "accuracy": 100.0}
    assert summary["selected_on_validation"] == {
        "step": 20,
        "validation_accuracy": 59.0,
        "accuracy": pytest.approx(85.0),
    }


def test_fewer_than_five_evaluations_and_no_validation():
    summary = results.summarize_evaluations([evaluation(5, ((1, 1), (0, 2)))])
    assert summary["accuracy"] == 75.0
    assert summary["evaluations"] == 1
    assert "selected_on_validation" not in summary


@pytest.mark.parametrize(("p_value", "differs"), [(0.002, [0, 2]), (0.3, [])])
def test_the_unlabeled_set_is_another_where_that_is_improbable_and_classes_show_it(
    p_value, differs
):
    summary = unlabeled_classes.summarize(
        np.array([0.2, 0.3, 0.5]),
        Interval(np.array([0.1, 0.2, 0.4]), np.array([0.3, 0.4, 0.6]), p_value),
        np.array([0.7, 0.25, 0.05]),
        known_from="validation",
    )
    assert summary["differs"] == differs
    assert (summary["estimate"], summary["low"], summary["high"], summary["labeled"]) == (
        [0.2, 0.3, 0.5], [0.1, 0.2, 0.4], [0.3, 0.4, 0.6], [0.7, 0.25, 0.05],
    )  # fmt: skip
    assert (summary["known_from"], summary["level"]) == ("validation", 0.9)


def test_nothing_is_chosen_on_a_validation_split_that_not_every_evaluation_has():
    history = [evaluation(5, ((1, 1), (0, 2))), evaluation(10, ((1, 1), (0, 2)), validation=50.0)]
    assert "selected_on_validation" not in results.summarize_evaluations(history)


def test_a_folder_that_is_not_there_is_told_from_one_that_is_not_finished(tmp_path):
    with pytest.raises(WorkdirError, match=r"run does not exist: name the folder of a run"):
        results.read(tmp_path / "run")
    with pytest.raises(WorkdirError, match=r"has no results\.json: run it to the end of"):
        results.read(tmp_path)
