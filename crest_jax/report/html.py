"""A page that shows one run, or compares several, and needs no network."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.image import imsave

from crest_jax.data.sources import UNKNOWN
from crest_jax.report import text
from crest_jax.report.charts import Series, line_chart
from crest_jax.report.pictures import Moved, Picture, Pictures, PseudoLabeled, Said
from crest_jax.results import SPLITS, truth_is_known

# Confusion matrices of more classes are shown as a picture instead of a table.
_MOST_CELLS = 20


class Run(NamedTuple):
    """A run that a page is made from."""

    name: str
    results: Mapping[str, Any]  # content of results.json
    config: Mapping[str, Any]  # the config in config.json
    pictures: Pictures = Pictures(None, None)

    @property
    def first(self) -> Mapping[str, Any]:
        """The result of the first generation."""
        return self.results["generations"][0]

    @property
    def truth_is_known(self) -> bool:
        """Whether it is known which pseudo-labels are right."""
        return truth_is_known(self.last["pseudo_labels"])

    @property
    def last(self) -> Mapping[str, Any]:
        """The result of the last generation so far."""
        return self.results["generations"][-1]


def page(runs: Sequence[Run]) -> str:
    """Return the page as HTML.

    Args:
      runs: At least one run. Several are compared first, then each has its own section.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    body = [_comparison(runs)] if len(runs) > 1 else []
    body += [_section(run) for run in runs]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{''.join(body)}</body>\n</html>\n"
    )


def _comparison(runs: Sequence[Run]) -> str:
    rows = [
        [
            run.name,
            f"{run.last['accuracy']:.1f}",
            f"{run.last['accuracy_logit_adjusted']:.1f}",
            str(len(run.results["generations"])),
            _name(run),
            _data(run),
        ]
        for run in runs
    ]
    longest = max(len(run.results["generations"]) for run in runs)
    accuracy = [
        Series(run.name, [each["accuracy"] for each in run.results["generations"]], number)
        for number, run in enumerate(runs)
    ]
    charts = [
        line_chart("Class-balanced test accuracy (%)", accuracy, _counted(longest), "generation")
    ]
    names = runs[0].results["class_names"]
    if all(run.results["class_names"] == names for run in runs):
        recall = [
            Series(run.name, run.last["per_class_recall"], number)
            for number, run in enumerate(runs)
        ]
        title = "Recall on the test set (%)"
        charts.append(line_chart(title, recall, names, "class", within=(0, 100)))
    header = ["run", "accuracy (%)", "logit-adjusted (%)", "generations", "method", "data"]
    return (
        f"<section><h1>{len(runs)} runs</h1>{_table(header, rows)}"
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def _section(run: Run) -> str:
    generations = run.results["generations"]
    names = run.results["class_names"]
    of = run.config["generations"]
    progress = f"{len(generations)} of {of} generations" if of > 1 else "1 generation"
    model = run.config["model"]
    setting = (
        f"{_name(run)}; {_data(run)}; {model['name']} of depth {model['depth']}, width "
        f"{model['width']}; batches of {run.config['batch_size']} labeled and "
        f"{run.config['batch_size'] * run.config['unlabeled_ratio']} unlabeled images"
    )
    figures = [
        ("accuracy", f"{run.last['accuracy']:.1f} %"),
        ("logit-adjusted", f"{run.last['accuracy_logit_adjusted']:.1f} %"),
        ("trained", progress),
        ("steps each", f"{run.last['steps']:,}"),
        ("speed", f"{run.last['images_per_second']:,.0f} images/s"),
    ]
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures
    )
    return (
        f"<section><h1>{escape(run.name)}</h1><p>{escape(setting)}</p>{_splits(run)}"
        f"<dl>{cards}</dl>"
        f'<div class="charts">{_charts(run)}</div>'
        f"<h2>By class</h2>{_classes(run)}"
        # Missing in runs of an earlier version, and in runs without unlabeled images.
        f"{_unlabeled(run) if 'unlabeled_distribution' in run.last else ''}"
        f"<h2>By generation</h2>{_generations(run)}"
        "<h2>Confusion matrix</h2><p>Rows: true class; columns: prediction; the last five "
        "evaluations of the last generation, in % of the row.</p>"
        f"{_confusion(run.last['confusion_matrix'], names)}"
        f"{_pictures(run)}"
        f"<details><summary>Config and versions</summary><pre>"
        f"{escape(json.dumps({'config': run.config, **_environment(run)}, indent=1))}</pre>"
        "</details></section>"
    )


def _splits(run: Run) -> str:
    """Return the number of images in each split; empty if the run's version did not store it."""
    splits = run.results.get("splits")
    if splits is None:
        return ""
    counts = ", ".join(
        f"{each['images']:,} {name}"
        for name, each in splits.items()
        if name in SPLITS and each["images"]
    )
    said = f"Images: {counts}."
    if splits["test"]["held_out"]:
        said += " The test images were held out of those given as labeled."
    if not run.truth_is_known:
        said += (
            " The classes of the unlabeled images are not known, and so it is not known either how "
            "many pseudo-labels are right."
        )
    return f"<p>{escape(said)}</p>"


def _recall_of_pseudo_labels(result: Mapping[str, Any]) -> Sequence[int | float | None]:
    return result["pseudo_labels"]["recall"]


_BY_CLASS: Mapping[str, Callable[[Mapping[str, Any]], Sequence[int | float | None]]] = {
    "Recall on the test set (%)": lambda result: result["per_class_recall"],
    "Precision on the test set (%)": lambda result: result["per_class_precision"],
    "Recall of the pseudo-labels (%)": _recall_of_pseudo_labels,
}


def _charts(run: Run) -> str:
    generations = run.results["generations"]
    names = run.results["class_names"]
    several = len(generations) > 1
    charts = []
    if several:
        accuracy = [
            Series("as trained", [each["accuracy"] for each in generations], 0),
            Series("logit-adjusted", [each["accuracy_logit_adjusted"] for each in generations], 1),
        ]
        title = "Class-balanced test accuracy (%)"
        charts.append(line_chart(title, accuracy, _counted(len(generations)), "generation"))
    for title, values_of in _BY_CLASS.items():
        if values_of is _recall_of_pseudo_labels and not run.truth_is_known:
            continue
        series = [Series("last generation" if several else "as trained", values_of(run.last), 0)]
        if several:
            series.insert(0, Series("first generation", values_of(run.first), 1, faint=True))
        charts.append(line_chart(title, series, names, "class", within=(0, 100)))
    charts.append(_pseudo_labels_chart(run))
    if several:
        grown = [
            Series(f"generation {number}", each["labeled_per_class"], number - 1)
            for number, each in enumerate(generations, 1)
            if number in {1, 2, len(generations)}
        ]
        title = "Labeled set: images of each class"
        charts.append(line_chart(title, grown, names, "class", counts=True))
    if "unlabeled_distribution" in run.last:
        charts.append(_unlabeled_chart(run))
    return "".join(charts)


def _pseudo_labels_chart(run: Run) -> str:
    """Chart the pseudo-labels that the last generation was given, or those of the only one."""
    *before, _ = run.results["generations"]
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
    return line_chart(title, series, run.results["class_names"], "class", counts=True)


def _right(counts: Sequence[int], precision: Sequence[int | float | None]) -> list[int]:
    """Return how many pseudo-labels of each class are right; precision is in per cent."""
    pairs = zip(counts, precision, strict=True)
    return [round(count * (share or 0.0) / 100) for count, share in pairs]


def _classes(run: Run) -> str:
    """Return a table by class: the first and the last generation, and what was selected for it."""
    generations = run.results["generations"]
    several = len(generations) > 1
    selected = generations[-2]["pseudo_labels"] if several else None
    right = ["right (%)"] if run.truth_is_known else []
    header = ["class", "labeled", "recall (%)", "precision (%)", "pseudo-labels", *right]
    if selected:
        header += ["selected", *right]
    tested = run.results["splits"]["test"]["per_class"] if "splits" in run.results else None
    if tested:
        header.insert(2, "test")

    def change(name: str, label: int) -> str:
        before, after = run.first[name][label], run.last[name][label]
        if isinstance(after, int):
            shown = [str(before), str(after)]
        else:
            shown = [_figure(before), _figure(after)]
        return " → ".join(shown) if several else shown[1]

    rows = []
    for label, name in enumerate(run.results["class_names"]):
        pseudo = run.last["pseudo_labels"]
        row = [
            name,
            change("labeled_per_class", label),
            change("per_class_recall", label),
            change("per_class_precision", label),
            str(pseudo["predicted"][label]),
        ]
        if right:
            row.append(_figure(pseudo["precision"][label]))
        if selected:
            row.append(str(selected["selected"][label]))
        if selected and right:
            row.append(_figure(selected["selected_precision"][label]))
        if tested:
            row.insert(2, str(tested[label]))
        rows.append(row)
    note = "<p>First generation → last; selected for the last.</p>" if several else ""
    return note + _table(header, rows)


def _unlabeled_shares(run: Run) -> dict[str, list[float]]:
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


def _unlabeled_chart(run: Run) -> str:
    shares = _unlabeled_shares(run)
    series = [
        Series("estimate", shares["estimate"], 0),
        Series("low", shares["low"], 0, faint=True),
        Series("high", shares["high"], 0, faint=True),
        Series("labeled set", shares["labeled"], 1),
    ]
    if "truth" in shares:
        series.append(Series("truth", shares["truth"], 2))
    names = run.results["class_names"]
    return line_chart("Classes of the unlabeled set (%)", series, names, "class")


def _unlabeled(run: Run) -> str:
    """Return the section on the unlabeled set's classes, as estimated by the last generation."""
    unlabeled, shares = run.last["unlabeled_distribution"], _unlabeled_shares(run)
    names = run.results["class_names"]
    header = [
        "class",
        "labeled set (%)",
        "unlabeled set (%)",
        f"{100 * unlabeled['level']:.0f} % within",
    ]
    if "truth" in shares:
        header.append("truth (%)")
    rows = []
    for label, name in enumerate(names):
        figure = {which: _figure(values[label]) for which, values in shares.items()}
        row = [name, figure["labeled"], figure["estimate"], f"{figure['low']} to {figure['high']}"]
        rows.append([*row, figure["truth"]] if "truth" in figure else row)
    known = {
        "validation": "the validation split",
        "labeled": "the labeled images, which it was fitted to, so that this is too sure",
    }[unlabeled["known_from"]]
    warning = "<br>".join(map(escape, text.unlabeled_warning(unlabeled, names)))
    return (
        "<h2>The unlabeled set</h2><p>Its class distribution, estimated from what the model of the "
        f"last generation takes it for and from how that errs on {known}.</p>"
        f"{f'<p>{warning}</p>' if warning else ''}{_table(header, rows)}"
    )


def _generations(run: Run) -> str:
    known = run.truth_is_known
    header = [
        "generation", "t", "accuracy (%)", "logit-adjusted (%)", "labeled images", "selected",
        *(["selected right (%)"] if known else []), "seconds", "images/s",
    ]  # fmt: skip
    rows = []
    for number, each in enumerate(run.results["generations"], 1):
        pseudo = each["pseudo_labels"]
        chosen = sum(pseudo["selected"])
        right = sum(_right(pseudo["selected"], pseudo["selected_precision"]))
        share = _figure(100 * right / chosen if chosen else None)
        rows.append(
            [
                str(number),
                "-" if each["temperature"] is None else f"{each['temperature']:.2f}",
                f"{each['accuracy']:.1f}",
                f"{each['accuracy_logit_adjusted']:.1f}",
                f"{sum(each['labeled_per_class']):,}",
                f"{chosen:,}",
                *([share] if known else []),
                f"{each['seconds']:,.0f}",
                f"{each['images_per_second']:,.0f}",
            ]
        )
    return (
        f"{_table(header, rows)}<p>Logits are adjusted with "
        f"τ = {run.last['logit_adjustment']['tau']:g}, by the class distribution of what each "
        "generation was trained on.</p>"
    )


def _confusion(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    counts = np.array(confusion, float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(names) > _MOST_CELLS:
        picture = io.BytesIO()
        imsave(picture, shares, cmap=mpl.colormaps["Blues"], vmin=0, vmax=100, format="png")
        data = base64.b64encode(picture.getvalue()).decode()
        return f'<img class="confusion" alt="confusion matrix" src="data:image/png;base64,{data}">'
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f'<td style="--share:{share:.1f}%">{share:.0f}</td>' for share in row)
        + "</tr>"
        for name, row in zip(names, shares, strict=True)
    )
    return (
        f'<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>{rows}</table></div>'
    )


def _pictures(run: Run) -> str:
    names = run.results["class_names"]
    pseudo_labels, moved = run.pictures
    return (_pseudo_labeled(pseudo_labels, names) if pseudo_labels else "") + (
        _moved(moved, names) if moved else ""
    )


def _pseudo_labeled(shown: PseudoLabeled, names: Sequence[str]) -> str:
    def caption(picture: Picture) -> str:
        wrong = picture.truth not in (UNKNOWN, picture.said.label)
        confidence = _per_cent(picture.said.confidence)
        return f"{confidence}, is {names[picture.truth]}" if wrong else confidence

    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{_thumbnails(each.selected, caption)}</td>"
        f"<td>{_thumbnails(each.below, caption)}</td></tr>"
        for name, each in zip(names, shown.by_class, strict=True)
    )
    return (
        "<h2>Pseudo-labels around the cut</h2><p>Of each class the most confident images that were "
        f"selected after generation {shown.generation + 1}, and the most confident ones that were "
        "not, with the model's confidence. Where the true class is known and another, it is said."
        '</p><div class="wide"><table class="pictures"><tr><th>class</th><th>selected</th>'
        f"<th>just below the cut</th></tr>{rows}</table></div>"
    )


def _moved(moved: Moved, names: Sequence[str]) -> str:
    def said(said: Said) -> str:
        return f"{names[said.label]} ({_per_cent(said.confidence)})"

    def caption(picture: Picture) -> str:
        return f"{said(picture.earlier)} → {said(picture.said)}"

    return (
        "<h2>Test images that changed</h2><p>From the first generation to the last, "
        f"{moved.became_right:,} of {moved.tested:,} test images went from wrong to right, and "
        f"{moved.became_wrong:,} from right to wrong. Some of each, in the order of their true "
        "classes, with what the model said first and last.</p>"
        "<h3>From wrong to right</h3>"
        f'<div class="pictures">{_thumbnails(moved.right, caption)}</div>'
        "<h3>From right to wrong</h3>"
        f'<div class="pictures">{_thumbnails(moved.wrong, caption)}</div>'
    )


def _thumbnails(pictures: Sequence[Picture], caption: Callable[[Picture], str]) -> str:
    return "".join(
        f'<figure><img alt="" src="data:image/{_kind(picture.thumbnail)};base64,'
        f'{base64.b64encode(picture.thumbnail).decode()}"><figcaption>{escape(caption(picture))}'
        "</figcaption></figure>"
        for picture in pictures
    )


def _kind(thumbnail: bytes) -> str:
    return "png" if thumbnail.startswith(b"\x89PNG") else "jpeg"


def _per_cent(share: float) -> str:
    """Format a share in per cent; only a share of exactly 1 is shown as 100 %."""
    return f"{100 if share == 1 else min(round(100 * share, 1), 99.9):g} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _name(run: Run) -> str:
    return f"{run.results['method']}, rebalance={run.results['rebalance']}"


def _data(run: Run) -> str:
    long_tail = [
        f"{name} = {value:g}" if isinstance(value, int | float) else f"{name} = {value}"
        for name, value in run.results["long_tail"].items()
    ]
    return ", ".join([run.results["data"], *long_tail, f"fold {run.results['fold']}"])


def _counted(number: int) -> list[str]:
    return [str(place) for place in range(1, number + 1)]


def _environment(run: Run) -> Mapping[str, Any]:
    return {"environment": run.last["environment"]}


def _figure(value: int | float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


# Okabe and Ito's colours, with lighter ones for the dark scheme.
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --rule: #d9d9d9;
  --soft: #666666; --fill: 0 114 178;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #cc79a7; --s4: #8a6d00; --s5: #555555; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181b; --rule: #3a3d42;
  --soft: #a0a4aa; --fill: 86 180 233;
  --s0: #56b4e9; --s1: #e69f00; --s2: #2fc79a; --s3: #e59ac4; --s4: #f0e442; --s5: #bbbbbb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink);
  background: var(--paper); font: 15px/1.45 system-ui, sans-serif; }
section + section { border-top: 1px solid var(--rule); margin-top: 2rem; padding-top: 1rem; }
h1 { font-size: 1.35rem; margin: 0.5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 1.6rem 0 0.3rem; }
p, figcaption { color: var(--soft); margin: 0.2rem 0 0.6rem; }
dl { display: flex; flex-wrap: wrap; gap: 0.4rem 2rem; margin: 0.8rem 0; }
dl div { display: flex; flex-direction: column; }
dt { color: var(--soft); font-size: 0.85rem; }
dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
  gap: 1rem 2rem; }
figure { margin: 0.6rem 0; min-width: 0; }
figure > svg { width: 100%; height: auto; font-size: 12px; fill: var(--soft); overflow: visible; }
.grid { stroke: var(--rule); }
@media (max-width: 40rem) { figure > svg { font-size: 16px; } }
.line { fill: none; stroke: var(--colour); stroke-width: 2; }
.mark { fill: var(--colour); }
.s0 { --colour: var(--s0); } .s1 { --colour: var(--s1); } .s2 { --colour: var(--s2); }
.s3 { --colour: var(--s3); } .s4 { --colour: var(--s4); } .s5 { --colour: var(--s5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 0.2rem 0;
  padding: 0 0 0 2rem; font-size: 0.85rem; }
.legend svg { margin-right: 0.4rem; vertical-align: -1px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; font-weight: normal; }
tr:first-child th { color: var(--soft); font-size: 0.8rem; }
th:first-child { text-align: left; }
.confusion td { padding: 0.2rem 0.45rem; text-align: center;
  background: rgb(var(--fill) / calc(var(--share) * 0.55)); }
.pictures th, .pictures td { text-align: left; }
.pictures td { white-space: normal; vertical-align: top; }
.pictures figure { display: inline-block; width: 5.2rem; margin: 0.2rem; text-align: center;
  vertical-align: top; }
.pictures td figure { width: 3.9rem; margin: 0.1rem; }
.pictures img { width: 3rem; height: 3rem; object-fit: contain; image-rendering: pixelated; }
.pictures figcaption { margin: 0; font-size: 0.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h3 { font-size: 0.95rem; margin: 0.8rem 0 0.2rem; font-weight: normal; }
img.confusion { width: min(100%, 40rem); image-rendering: pixelated; background: #ffffff; }
pre { overflow-x: auto; font-size: 0.8rem; }
summary { margin-top: 1.2rem; cursor: pointer; }
"""
