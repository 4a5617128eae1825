import json
import sys

import finished_run
import numpy as np
import pytest

from crest_jax.errors import DataError
from crest_jax.report import figures


def results(rebalance, accuracies, recall):
    generations = [
        finished_run.generation(
            3,
            accuracy=accuracy,
            labeled_per_class=[90, 9, 1],
            # Towards the final recall, by as much each generation.
            per_class_recall=[value * number / len(accuracies) for value in recall],
        )
        for number, accuracy in enumerate(accuracies, start=1)
    ]
    return finished_run.results(generations, rebalance=rebalance, class_names=["cat", "dog", "emu"])


@pytest.fixture
def runs():
    return [
        results("crest_plus", [50.0, 60.0, 70.0], [90.0, 70.0, 50.0]),
        results("crest_plus", [54.0, 64.0, 74.0], [92.0, 72.0, 58.0]),
        results("none", [55.0], [98.0, 60.0, 7.0]),
    ]


def test_the_overview_draws_the_runs_own_figures(runs):
    runs[0]["generations"][-1]["per_class_precision"] = [80.0, 90.0, None]
    runs[1]["generations"][-1]["per_class_precision"] = [60.0, None, None]
    sizes, precision, recall, accuracy = figures.overview(runs).axes
    assert [bar.get_height() for bar in sizes.patches] == [90, 9, 1]
    assert sizes.get_yscale() == "log"
    lines = {line.get_label(): line.get_ydata() for line in recall.lines}
    np.testing.assert_allclose(lines["CReST+"], [91, 71, 54])
    np.testing.assert_allclose(lines["FixMatch"], [98, 60, 7])
    np.testing.assert_allclose(lines["_first"], np.array([91, 71, 54]) / 3)
    assert len(lines) == 3
    lines = {line.get_label(): line.get_ydata() for line in precision.lines}
    np.testing.assert_allclose(lines["CReST+"], [70, 90, np.nan])
    np.testing.assert_allclose(lines["_first"], 50)
    several, one = sorted(accuracy.lines, key=lambda line: -len(set(line.get_ydata())))
    np.testing.assert_allclose(several.get_ydata(), [52, 62, 72])
    np.testing.assert_allclose(one.get_ydata(), 55)
    band = accuracy.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (50, 74)  # mean and standard deviation of two runs


@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_command_draws_the_results_of_workdirs(runs, tmp_path, monkeypatch, suffix, begins):
    for number, run in enumerate(runs):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "results.json").write_text(json.dumps(run))
    output = tmp_path / f"overview.{suffix}"
    folders = [str(tmp_path / str(number)) for number in range(3)]
    monkeypatch.setattr(sys, "argv", ["figures", f"--output={output}", *folders])
    figures.main()
    assert output.read_bytes().startswith(begins)
    if suffix == "svg":
        assert all(name in output.read_text() for name in ("CReST+", "FixMatch", "generation"))


def test_a_run_that_is_not_finished_is_named(runs):
    runs[1]["generations"].pop()
    with pytest.raises(DataError, match=r"CReST\+ runs have \[2, 3\] generations"):
        figures.overview(runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "cifar10"}, "runs differ in data, digits and cifar10"),
        ({"method": "mixmatch"}, "a run is of method=mixmatch, rebalance=none: only those"),
        ({"rebalance": "cb"}, "a run is of method=fixmatch, rebalance=cb: only those"),
    ],
)
def test_runs_that_would_be_drawn_as_what_they_are_not_are_refused(runs, change, message):
    runs[-1] |= change
    with pytest.raises(DataError, match=message):
        figures.overview(runs)


def test_folds_of_different_length_are_no_mean(runs):
    runs[1]["generations"].pop()
    with pytest.raises(ValueError, match="shorter"):
        figures.mean_of_folds(runs[:2])


def test_a_kind_of_file_that_cannot_be_drawn_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["figures", f"--output={tmp_path}/all.txt", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        figures.main()
    assert ended.value.code == 64
    assert "all.txt must end in ." in capsys.readouterr().err
