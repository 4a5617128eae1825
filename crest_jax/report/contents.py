"""The values that a page shows, as the text of its tables and the geometry of its charts."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.image import imsave

from crest_jax.data.sources import UNKNOWN
from crest_jax.layout import NAMES
from crest_jax.report import text
from crest_jax.report.charts import Chart, Series, line_chart
from crest_jax.report.pictures import (
    Moved,
    MovedPicture,
    Picture,
    Pictures,
    Prediction,
    PseudoLabeled,
)
from crest_jax.results import truth_is_known

# Confusion matrices of more classes are shown as a picture instead of a table.
_MOST_CELLS = 20

_ACCURACY = "Class-balanced test accuracy (%)"
_RECALL = "Recall on the test set (%)"


class ReportedRun(NamedTuple):
    """A run that a page is made from."""

    name: str
    results: Mapping[str, Any]  # content of results.json
    config: Mapping[str, Any]  # the config in config.json
    pictures: Pictures = Pictures(None, None)

    @property
    def generations(self) -> Sequence[Mapping[str, Any]]:
        """The results of the generations so far."""
        return self.results["generations"]

    @property
    def first(self) -> Mapping[str, Any]:
        """The result of the first generation."""
        return self.generations[0]

    @property
    def last(self) -> Mapping[str, Any]:
        """The result of the last generation so far."""
        return self.generations[-1]

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, by label."""
        return self.results["class_names"]

    @property
    def several_generations(self) -> bool:
        """Return whether there is more than one generation."""
        return len(self.generations) > 1

    @property
    def is_estimated(self) -> bool:
        """Return whether the unlabeled set's class distribution is estimated.

        It is not in runs of an earlier version, and in runs without unlabeled images.
        """
        return "unlabeled_distribution" in self.last

    @property
    def truth_is_known(self) -> bool:
        """Return whether it is known which pseudo-labels are right."""
        return truth_is_known(self.last["pseudo_labels"])


class Table(NamedTuple):
    """A table, in which the first cell of a row is its title."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Comparison(NamedTuple):
    """The section that compares several runs."""

    table: Table
    charts: Sequence[Chart]


class SplitSizes(NamedTuple):
    """The size of a run's splits, and the facts about them that readers should know."""

    images: str
    test_is_held_out: bool
    truth_is_known: bool


class Unlabeled(NamedTuple):
    """The estimate of the unlabeled set's class distribution."""

    known_from_validation: bool  # whether the model's errors are known from the validation split
    warning: Sequence[str]  # lines; empty if there is nothing to warn of
    classes: Table


class Cell(NamedTuple):
    """A share in a confusion matrix, in per cent."""

    exact: str  # for its colour
    rounded: str


class ConfusionMatrix(NamedTuple):
    """A confusion matrix: rows of cells by class, or a picture if it has too many classes."""

    class_names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    picture: str | None  # address


class Thumbnail(NamedTuple):
    """A small picture."""

    address: str  # with the image in it
    caption: str


class ClassAroundCut(NamedTuple):
    """Pseudo-labels of a class on both sides of the selection cut."""

    class_name: str
    selected: Sequence[Thumbnail]
    below: Sequence[Thumbnail]


class ShownPseudoLabels(NamedTuple):
    """Pseudo-labels around the cut after a generation, which is counted from 1."""

    generation: int
    rows: Sequence[ClassAroundCut]


class Changed(NamedTuple):
    """Test images that changed between the first and the last generation, and their numbers."""

    tested: str
    became_right: str
    became_wrong: str
    right: Sequence[Thumbnail]
    wrong: Sequence[Thumbnail]


class Section(NamedTuple):
    """The section of a run."""

    name: str
    setting: str
    splits: SplitSizes | None
    headline: Sequence[tuple[str, str]]
    charts: Sequence[Chart]
    several_generations: bool
    classes: Table
    unlabeled: Unlabeled | None
    generations: Table
    tau: str  # of the logit adjustment
    confusion: ConfusionMatrix
    pseudo_labels: ShownPseudoLabels | None
    changed: Changed | None
    config: str  # with the environment, as JSON


def comparison(runs: Sequence[ReportedRun]) -> Comparison:
    """Return the table and the charts that compare several runs."""
    table = _table(
        ("run", [run.name for run in runs]),
        ("accuracy (%)", [f"{run.last['accuracy']:.1f}" for run in runs]),
        ("logit-adjusted (%)", [f"{run.last['accuracy_logit_adjusted']:.1f}" for run in runs]),
        ("generations", [str(len(run.generations)) for run in runs]),
        ("method", [_method(run) for run in runs]),
        ("data", [_data(run) for run in runs]),
    )
    longest = max(len(run.generations) for run in runs)
    accuracy = [
        Series(run.name, _of_generations(run, "accuracy"), number)
        for number, run in enumerate(runs)
    ]
    charts = [line_chart(_ACCURACY, accuracy, _counted(longest), "generation")]
    names = runs[0].class_names
    if all(run.class_names == names for run in runs):
        recall = [
            Series(run.name, run.last["per_class_recall"], number)
            for number, run in enumerate(runs)
        ]
        charts.append(line_chart(_RECALL, recall, names, "class", within=(0, 100)))
    return Comparison(table, charts)


def section(run: ReportedRun) -> Section:
    """Return what is shown of a run."""
    names = run.class_names
    pseudo_labeled, moved = run.pictures
    environment = run.last["environment"]
    return Section(
        name=run.name,
        setting=_setting(run),
        splits=_splits(run),
        headline=_headline(run),
        charts=_charts(run),
        several_generations=run.several_generations,
        classes=_classes(run),
        unlabeled=_unlabeled(run) if run.is_estimated else None,
        generations=_generations(run),
        tau=f"{run.last['logit_adjustment']['tau']:g}",
        confusion=_confusion_matrix(run.last["confusion_matrix"], names),
        pseudo_labels=pseudo_labels(pseudo_labeled, names) if pseudo_labeled else None,
        changed=changed(moved, names) if moved else None,
        config=json.dumps({"config": run.config, "environment": environment}, indent=1),
    )


def pseudo_labels(found: PseudoLabeled, class_names: Sequence[str]) -> ShownPseudoLabels:
    """Return pseudo-labels around the cut, with the model's confidence.

    The caption has the true class too where it is known and another.
    """

    def thumbnail(picture: Picture) -> Thumbnail:
        caption = per_cent(picture.prediction.confidence)
        if picture.truth not in (UNKNOWN, picture.prediction.label):
            caption += f", is {class_names[picture.truth]}"
        return Thumbnail(_address(picture.thumbnail), caption)

    rows = [
        ClassAroundCut(name, [*map(thumbnail, each.selected)], [*map(thumbnail, each.below)])
        for name, each in zip(class_names, found.by_class, strict=True)
    ]
    return ShownPseudoLabels(found.generation + 1, rows)


def changed(moved: Moved, class_names: Sequence[str]) -> Changed:
    """Return test images that changed, with the predictions of the first and the last model."""

    def shown(prediction: Prediction) -> str:
        return f"{class_names[prediction.label]} ({per_cent(prediction.confidence)})"

    def thumbnail(picture: MovedPicture) -> Thumbnail:
        caption = f"{shown(picture.earlier)} → {shown(picture.prediction)}"
        return Thumbnail(_address(picture.thumbnail), caption)

    return Changed(
        f"{moved.tested:,}",
        f"{moved.became_right:,}",
        f"{moved.became_wrong:,}",
        [*map(thumbnail, moved.right)],
        [*map(thumbnail, moved.wrong)],
    )


def per_cent(share: float) -> str:
    """Format a share in per cent; only a share of exactly 1 is shown as 100 %."""
    return f"{100 if share == 1 else min(round(100 * share, 1), 99.9):g} %"


def _setting(run: ReportedRun) -> str:
    model = run.config["model"]
    labeled = run.config["batch_size"]
    return (
        f"{_method(run)}; {_data(run)}; {model['name']} of depth {model['depth']}, width "
        f"{model['width']}; batches of {labeled} labeled and "
        f"{labeled * run.config['unlabeled_ratio']} unlabeled images"
    )


def _splits(run: ReportedRun) -> SplitSizes | None:
    """Return the sizes of the splits; None if the run's version did not store them."""
    found = run.results.get("splits")
    if found is None:
        return None
    images = ", ".join(
        f"{each['images']:,} {name}"
        for name, each in found.items()
        if name in NAMES and each["images"]
    )
    return SplitSizes(images, found["test"]["held_out"], run.truth_is_known)


def _headline(run: ReportedRun) -> list[tuple[str, str]]:
    """Return the names and values of a run's main results."""
    planned = run.config["generations"]
    trained = f"{len(run.generations)} of {planned} generations" if planned > 1 else "1 generation"
    return [
        ("accuracy", f"{run.last['accuracy']:.1f} %"),
        ("logit-adjusted", f"{run.last['accuracy_logit_adjusted']:.1f} %"),
        ("trained", trained),
        ("steps each", f"{run.last['steps']:,}"),
        ("speed", f"{run.last['images_per_second']:,.0f} images/s"),
    ]


def _charts(run: ReportedRun) -> list[Chart]:
    charts = [*_charts_by_class(run), _pseudo_labels_chart(run)]
    if run.several_generations:
        charts = [_accuracy_chart(run), *charts, _labeled_chart(run)]
    if run.is_estimated:
        charts.append(_unlabeled_chart(run))
    return charts


def _accuracy_chart(run: ReportedRun) -> Chart:
    series = [
        Series("as trained", _of_generations(run, "accuracy"), 0),
        Series("logit-adjusted", _of_generations(run, "accuracy_logit_adjusted"), 1),
    ]
    return line_chart(_ACCURACY, series, _counted(len(run.generations)), "generation")


def _charts_by_class(run: ReportedRun) -> list[Chart]:
    """Chart recall and precision by class, of the first and the last generation."""

    def chart(title: str, first: Sequence[Any], last: Sequence[Any]) -> Chart:
        if run.several_generations:
            series = [
                Series("first generation", first, 1, faint=True),
                Series("last generation", last, 0),
            ]
        else:
            series = [Series("as trained", last, 0)]
        return line_chart(title, series, run.class_names, "class", within=(0, 100))

    first, last = run.first, run.last
    precision = "Precision on the test set (%)"
    charts = [
        chart(_RECALL, first["per_class_recall"], last["per_class_recall"]),
        chart(precision, first["per_class_precision"], last["per_class_precision"]),
    ]
    if run.truth_is_known:
        recall = (each["pseudo_labels"]["recall"] for each in (first, last))
        charts.append(chart("Recall of the pseudo-labels (%)", *recall))
    return charts


def _pseudo_labels_chart(run: ReportedRun) -> Chart:
    """Chart the pseudo-labels that the last generation was given, or those of the only one."""
    *before, _ = run.generations
    pseudo = (before[-1] if before else run.last)["pseudo_labels"]
    lines = {"predicted": pseudo["predicted"]}
    if before:
        lines["selected"] = pseudo["selected"]
    if before and run.truth_is_known:
        lines["selected and right"] = _right(pseudo["selected"], pseudo["selected_precision"])
    elif run.truth_is_known:
        lines["right"] = _right(pseudo["predicted"], pseudo["precision"])
    series = [Series(name, values, look) for look, (name, values) in enumerate(lines.items())]
    title = f"Pseudo-labels of each class{' for the last generation' if before else ''}"
    return line_chart(title, series, run.class_names, "class", counts=True)


def _labeled_chart(run: ReportedRun) -> Chart:
    """Chart the labeled set of the first two generations and of the last."""
    series = [
        Series(f"generation {number}", each["labeled_per_class"], number - 1)
        for number, each in enumerate(run.generations, 1)
        if number in {1, 2, len(run.generations)}
    ]
    title = "Labeled set: images of each class"
    return line_chart(title, series, run.class_names, "class", counts=True)


def _unlabeled_chart(run: ReportedRun) -> Chart:
    shares = _unlabeled_shares(run)
    series = [
        Series("estimate", shares["estimate"], 0),
        Series("low", shares["low"], 0, faint=True),
        Series("high", shares["high"], 0, faint=True),
        Series("labeled set", shares["labeled"], 1),
    ]
    if "truth" in shares:
        series.append(Series("truth", shares["truth"], 2))
    return line_chart("Classes of the unlabeled set (%)", series, run.class_names, "class")


def _right(counts: Sequence[int], precision: Sequence[int | float | None]) -> list[int]:
    """Return how many pseudo-labels of each class are right; precision is in per cent."""
    pairs = zip(counts, precision, strict=True)
    return [round(count * (share or 0.0) / 100) for count, share in pairs]


def _classes(run: ReportedRun) -> Table:
    """Return a table by class: the first and the last generation, and what was selected for it."""
    tested = run.results["splits"]["test"]["per_class"] if "splits" in run.results else None

    def change(name: str, formatted: Callable[[Sequence[Any]], list[str]]) -> list[str]:
        before, after = (formatted(each[name]) for each in (run.first, run.last))
        if not run.several_generations:
            return after
        return [" → ".join(pair) for pair in zip(before, after, strict=True)]

    pseudo = run.last["pseudo_labels"]
    columns = [("class", run.class_names), ("labeled", change("labeled_per_class", _counts))]
    if tested:
        columns.append(("test", _counts(tested)))
    columns += [
        ("recall (%)", change("per_class_recall", _formatted)),
        ("precision (%)", change("per_class_precision", _formatted)),
        ("pseudo-labels", _counts(pseudo["predicted"])),
    ]
    if run.truth_is_known:
        columns.append(("right (%)", _formatted(pseudo["precision"])))
    if run.several_generations:
        given = run.generations[-2]["pseudo_labels"]
        columns.append(("selected", _counts(given["selected"])))
        if run.truth_is_known:
            columns.append(("right (%)", _formatted(given["selected_precision"])))
    return _table(*columns)


def _unlabeled_shares(run: ReportedRun) -> dict[str, list[float]]:
    """Return class distributions of the labeled and the unlabeled set, in per cent.

    The keys are `labeled`, `estimate` (of the unlabeled set), its bounds `low` and `high`, and
    `truth` where that is known.
    """
    unlabeled = run.last["unlabeled_distribution"]
    shares = {
        name: [100 * share for share in unlabeled[name]]
        for name in ("labeled", "estimate", "low", "high")
    }
    examples = run.last["pseudo_labels"]["examples"]
    if None not in examples and sum(examples):
        shares["truth"] = [100 * count / sum(examples) for count in examples]
    return shares


def _unlabeled(run: ReportedRun) -> Unlabeled:
    """Return the unlabeled set's classes, as estimated by the last generation."""
    unlabeled = run.last["unlabeled_distribution"]
    columns_of = {name: _formatted(shares) for name, shares in _unlabeled_shares(run).items()}
    bounds = zip(columns_of["low"], columns_of["high"], strict=True)
    columns = [
        ("class", run.class_names),
        ("labeled set (%)", columns_of["labeled"]),
        ("unlabeled set (%)", columns_of["estimate"]),
        (f"{100 * unlabeled['level']:.0f} % within", [" to ".join(pair) for pair in bounds]),
    ]
    if "truth" in columns_of:
        columns.append(("truth (%)", columns_of["truth"]))
    return Unlabeled(
        unlabeled["known_from"] == "validation",
        text.unlabeled_warning(unlabeled, run.class_names),
        _table(*columns),
    )


def _generations(run: ReportedRun) -> Table:
    """Return a table with a row for each generation."""
    pseudo = [each["pseudo_labels"] for each in run.generations]
    temperatures = _of_generations(run, "temperature")
    labeled = [sum(counts) for counts in _of_generations(run, "labeled_per_class")]
    columns = [
        ("generation", _counted(len(run.generations))),
        ("t", ["-" if t is None else f"{t:.2f}" for t in temperatures]),
        ("accuracy (%)", _formatted(_of_generations(run, "accuracy"))),
        ("logit-adjusted (%)", _formatted(_of_generations(run, "accuracy_logit_adjusted"))),
        ("labeled images", [f"{count:,}" for count in labeled]),
        ("selected", [f"{sum(each['selected']):,}" for each in pseudo]),
    ]
    if run.truth_is_known:
        columns.append(("selected right (%)", _formatted([*map(_selected_right, pseudo)])))
    columns += [
        ("seconds", [f"{seconds:,.0f}" for seconds in _of_generations(run, "seconds")]),
        ("images/s", [f"{speed:,.0f}" for speed in _of_generations(run, "images_per_second")]),
    ]
    return _table(*columns)


def _selected_right(pseudo: Mapping[str, Any]) -> float | None:
    """Return the share of right pseudo-labels among the selected ones, in per cent."""
    chosen = sum(pseudo["selected"])
    right = sum(_right(pseudo["selected"], pseudo["selected_precision"]))
    return 100 * right / chosen if chosen else None


def _confusion_matrix(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str]
) -> ConfusionMatrix:
    """Return a confusion matrix in per cent of its rows."""
    counts = np.array(confusion, float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(class_names) > _MOST_CELLS:
        picture = io.BytesIO()
        imsave(picture, shares, cmap=mpl.colormaps["Blues"], vmin=0, vmax=100, format="png")
        return ConfusionMatrix(class_names, [], _address(picture.getvalue()))
    rows = [[Cell(f"{share:.1f}", f"{share:.0f}") for share in row] for row in shares]
    return ConfusionMatrix(class_names, [*zip(class_names, rows, strict=True)], None)


def _of_generations(run: ReportedRun, name: str) -> list[Any]:
    return [each[name] for each in run.generations]


def _method(run: ReportedRun) -> str:
    return f"{run.results['method']}, rebalance={run.results['rebalance']}"


def _data(run: ReportedRun) -> str:
    long_tail = [
        f"{name} = {value:g}" if isinstance(value, int | float) else f"{name} = {value}"
        for name, value in run.results["long_tail"].items()
    ]
    return ", ".join([run.results["data"], *long_tail, f"fold {run.results['fold']}"])


def _table(*columns: tuple[str, Sequence[str]]) -> Table:
    header, values = zip(*columns, strict=True)
    return Table(header, [*zip(*values, strict=True)])


def _counted(number: int) -> list[str]:
    return [str(place) for place in range(1, number + 1)]


def _counts(values: Sequence[int]) -> list[str]:
    return [*map(str, values)]


def _formatted(values: Sequence[int | float | None]) -> list[str]:
    return ["-" if value is None else f"{value:.1f}" for value in values]


def _address(image: bytes) -> str:
    """Return an address that contains an image, PNG or JPEG."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
