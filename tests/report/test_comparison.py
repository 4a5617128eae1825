import json
import math

import finished_run
import pytest

from crest_jax.errors import ConfigError, DataError
from crest_jax.report import comparison


def run(method, rebalance, fold, accuracy, adjusted, **changes):
    return {
        "method": method,
        "rebalance": rebalance,
        "fold": fold,
        "data": "digits",
        "long_tail": {"n_max": 120, "gamma": 10.0, "beta": 0.1},
        "class_distribution": "ideal",
        "labeled_in_unlabeled": True,
        "class_names": list("0123456789"),
        "alignment": {"target": "constant", "t": 1.0},
        "unlabeled_distribution": {"source": "labeled", "given": []},
        "generations": [{"steps": 900}] * 2 if "crest" in rebalance else [{"steps": 1800}],
        "accuracy": accuracy,
        "accuracy_logit_adjusted": adjusted,
        **changes,
    }


RUNS = [
    run("fixmatch", "crest+rs", 0, 70.0, 71.0),
    run("fixmatch", "none", 0, 60.0, 61.0),
    run("fixmatch", "none", 1, 62.0, 65.0),
    run("supervised", "none", 1, 50.5, 52.0),
    run("supervised", "none", 0, 49.5, 52.0),
    run("supervised", "cb", 1, 55.04, 56.0),
]


def test_a_line_per_method_and_figure_a_column_per_rebalancing():
    assert comparison.comparison(RUNS).splitlines() == [
        "| | none | cb | crest+rs |",
        "|---|---|---|---|",
        "| supervised | 50.0 ± 0.5 | 55.0 (1 of 2 folds) | - |",
        "| supervised + la | 52.0 ± 0.0 | 56.0 (1 of 2 folds) | - |",
        "| fixmatch | 61.0 ± 1.0 | - | 70.0 (1 of 2 folds) |",
        "| fixmatch + la | 63.0 ± 2.0 | - | 71.0 (1 of 2 folds) |",
    ]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (run("fixmatch", "none", 1, 1.0, 1.0), "two runs are of .*rebalance=none, fold=1"),
        (run("fixmatch", "none", 2, 1.0, 1.0, data="cifar10"), "differ in data, digits and cifar"),
        (run("fixmatch", "da", 2, 1.0, 1.0, long_tail={}), "differ in long_tail"),
        (
            run("fixmatch", "da", 2, 1.0, 1.0, class_distribution="counts"),
            "differ in class_distribution",
        ),
        (
            run("fixmatch", "da", 2, 1.0, 1.0, labeled_in_unlabeled=False),
            "differ in data.labeled_in_unlabeled",
        ),
        (run("fixmatch", "da", 2, 1.0, 1.0, generations=[{"steps": 9}]), "in all, 1800 and 9"),
    ],
)
def test_what_cannot_stand_side_by_side_is_refused(extra, message):
    with pytest.raises(DataError, match=message):
        comparison.comparison([*RUNS, extra])
    with pytest.raises(DataError, match="no runs"):
        comparison.comparison([])


def test_temperatures_and_targets_have_columns_of_their_own():
    half = {"target": "constant", "t": 0.5}
    predicted = {"source": "predicted", "given": []}
    table = comparison.comparison(
        [
            run("fixmatch", "da", 0, 60.0, 61.0),
            run("fixmatch", "da", 0, 62.0, 65.0, alignment=half),
            run("fixmatch", "darp", 0, 63.0, 65.0, unlabeled_distribution=predicted),
        ]
    )
    assert table.splitlines()[0] == "| | da | da t=0.5 | darp (predicted p(y)) |"


def with_config(method, rebalance, fold, accuracy, **config):
    model = {"name": "wide_resnet", "width": 2}
    return run(method, rebalance, fold, accuracy, accuracy, config={"model": model, **config})


def test_hyper_parameters_and_models_that_differ_have_names_in_the_table():
    runs = [
        with_config("sq:adaptive", "none", 0, 60.0, floor=0.3, threshold=0.9),
        with_config("sq:adaptive", "none", 1, 62.0, floor=0.3, threshold=0.9),
        with_config("sq:adaptive", "none", 0, 63.0, floor=0.5, threshold=0.9),
        with_config("fixmatch", "none", 0, 64.0, threshold=0.95, steps=9),
        with_config("fixmatch", "my:way", 0, 64.5, threshold=0.95, my={"power": 2}),
        with_config("fixmatch", "my:way", 0, 65.5, threshold=0.95, my={"power": 3}),
    ]
    assert comparison.comparison(runs).splitlines()[::2] == [
        "| | none | my:way my.power=2 | my:way my.power=3 |",
        "| fixmatch | 64.0 (1 of 2 folds) | 64.5 (1 of 2 folds) | 65.5 (1 of 2 folds) |",
        "| sq:adaptive floor=0.3 | 61.0 ± 1.0 | - | - |",
        "| sq:adaptive floor=0.5 | 63.0 (1 of 2 folds) | - | - |",
    ]


def test_a_methods_own_defaults_of_a_rebalancing_share_its_column():
    runs = [
        with_config("fixmatch", "crest", 0, 60.0, crest={"alpha": 1 / 3}),
        with_config("mixmatch", "crest", 0, 61.0, crest={"alpha": 1 / 2}),
    ]
    assert comparison.comparison(runs).splitlines()[0] == "| | crest |"


def test_models_that_differ_are_named_in_each_row():
    mixer = {"name": "my:Mixer", "width": 2}
    weights = {"name": "my:Mixer", "width": 2, "init_from": "a.safetensors"}
    runs = [
        with_config("fixmatch", "crest", 0, 60.0, crest={"alpha": 0.5}),
        with_config("fixmatch", "crest", 0, 61.0, crest={"alpha": 1.0}, model=mixer),
        with_config("fixmatch", "none", 0, 62.0, crest={"alpha": 1.0}, model=weights),
        {**with_config("supervised", "none", 0, 62.0), "config": {}},
    ]
    for each in runs:
        each["generations"] = [{"steps": 9}]
    rows = [line.split("|")[1].strip() for line in comparison.comparison(runs).splitlines()[2::2]]
    assert rows == [
        "supervised",
        "fixmatch model=my:Mixer model.init_from=False",
        "fixmatch model=my:Mixer model.init_from=True",
        "fixmatch model=wide_resnet model.init_from=False",
    ]
    head = comparison.comparison(runs).splitlines()[0]
    assert head == "| | none | crest crest.alpha=0.5 | crest crest.alpha=1.0 |"


def test_the_rarest_classes_have_lines_for_recall_and_precision():
    """Classes 2 and 0 have the fewest labels; nothing was predicted as 0 in fold 1."""

    def of_fold(fold, recall, precision):
        first = {"labeled_per_class": [2, 9, 1, 5], "steps": 900}
        last = {**first, "per_class_recall": recall, "per_class_precision": precision}
        first |= {"per_class_recall": [0.0] * 4, "per_class_precision": [0.0] * 4}
        generations = [first, last]
        return run("fixmatch", "crest", fold, 60.0, 61.0, generations=generations)

    runs = [
        of_fold(0, [20.0, 90.0, 10.0, 80.0], [99.0, 50.0, 95.0, 60.0]),
        of_fold(1, [0.0, 90.0, 50.0, 80.0], [None, 50.0, 99.0, 60.0]),
        run("fixmatch", "none", 0, 60.0, 61.0, generations=[
            {
                "labeled_per_class": [2, 9, 1, 5], "steps": 1800,
                "per_class_recall": [0.0] * 4, "per_class_precision": [None, 50.0, None, 50.0],
            }
        ]),
    ]  # fmt: skip
    for each in runs:
        each["class_names"] = list("abcd")
    assert comparison.comparison(runs, rarest=2).splitlines()[-2:] == [
        "| fixmatch, recall of rarest 2 | 0.0 (1 of 2 folds) | 20.0 ± 5.0 |",
        "| fixmatch, precision of rarest 2 | - | 98.0 ± 1.0 |",
    ]
    for count in (-1, 5):
        with pytest.raises(ConfigError, match=f"--rarest={count} must be from 0 to 4"):
            comparison.comparison(runs, rarest=count)


def test_the_command_reads_workdirs(tmp_path, monkeypatch, capsys):
    folders = []
    for number, each in enumerate(RUNS):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        generations = [finished_run.generation(10, **figures) for figures in each["generations"]]
        content = finished_run.results(generations) | each | {"generations": generations}
        (folders[-1] / "results.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["comparison", *map(str, folders)])
    comparison.main()
    assert capsys.readouterr().out == comparison.comparison(RUNS)
    monkeypatch.setattr("sys.argv", ["comparison", "--baseline=cb", *map(str, folders)])
    with pytest.raises(SystemExit):
        comparison.main()
    assert "no runs share two folds" in capsys.readouterr().err

    monkeypatch.setattr("sys.argv", ["comparison", str(tmp_path)])
    with pytest.raises(SystemExit):
        comparison.main()
    assert "run it to the end of a generation" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"accuracy": 3}')
    with pytest.raises(SystemExit):
        comparison.main()
    assert "another version" in capsys.readouterr().err


def test_methods_are_held_against_a_baseline_on_the_same_folds():
    """Differences 2, 4 and 9: mean 5, deviation sqrt(13), t = 5 / sqrt(13 / 3) = 2.402.

    With two degrees of freedom P(T > t) is (1 - t / sqrt(2 + t^2)) / 2, and the 95 % quantile of
    |T| is 4.303.
    """
    runs = [run("fixmatch", "none", fold, 60.0 + fold, 61.0) for fold in range(4)]
    runs += [
        run("fixmatch", "crest", fold, 60.0 + fold + ahead, 61.5)
        for fold, ahead in enumerate((2.0, 4.0, 9.0))
    ]
    runs += [run("fixmatch", "da", 0, 1.0, 1.0), run("supervised", "none", 0, 1.0, 1.0)]
    t = 5 / math.sqrt(13 / 3)
    chance = (1 - t / math.sqrt(2 + t**2)) / 2
    low, high = (5 + sign * 4.303 * math.sqrt(13 / 3) for sign in (-1, 1))
    assert comparison.paired(runs, "none").splitlines() == [
        "| against none | folds | points ahead | p | points ahead + la | p |",
        "|---|---|---|---|---|---|",
        f"| fixmatch, crest | 3 | +5.0 ({low:+.1f} to {high:+.1f}) | {chance:.2g} | +0.5 | - |",
    ]
    with pytest.raises(DataError, match="no runs share two folds with runs of rebalance=rs"):
        comparison.paired(runs, "rs")
