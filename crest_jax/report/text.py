"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from crest_jax.results import truth_is_known
from crest_jax.wording import printable


def splits_line(splits: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """Return the number of images per split, and per class of held-out test images."""
    counts = []
    for name, split in splits.items():
        unknown = " (of classes that are not known)" if split["per_class"] is None else ""
        if split["images"]:
            counts.append(f"{split['images']} {name}{unknown}")
    line = f"images: {', '.join(counts)}"
    if splits["test"]["held_out"]:
        by_class = zip(class_names, splits["test"]["per_class"], strict=True)
        line += "\ntest images are held out of those given as labeled; by class, "
        line += ", ".join(f"{printable(name)}: {count}" for name, count in by_class)
    return line


def generation_table(result: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """Format a generation's result.json: a headline, a line per class, and any warning."""
    pseudo = result["pseudo_labels"]
    class_names = [*map(printable, class_names)]
    rows = zip(
        class_names,
        result["labeled_per_class"],
        result["per_class_recall"],
        result["per_class_precision"],
        pseudo["predicted"],
        pseudo["precision"],
        pseudo["selected"],
        pseudo["selected_precision"],
        strict=True,
    )
    headline = (
        f"generation {result['generation'] + 1}: accuracy {result['accuracy']:.1f} % "
        f"({result['accuracy_logit_adjusted']:.1f} % logit-adjusted), "
        f"{result['steps']} steps in {result['seconds']:.0f} s, "
        f"{result['images_per_second']:.0f} images/s"
    )
    if result["temperature"] is not None:
        headline += f", t = {result['temperature']:.2f}"
    known = truth_is_known(pseudo)
    width = max(len("class"), *map(len, class_names))
    title = "---- pseudo-labels (right, %) ----" if known else "-- pseudo-labels --"
    columns = "predicted           selected" if known else "predicted   selected"
    lines = [
        headline,
        f"{'':<{width}}           ------ test -----   {title}",
        f"{'class':<{width}}  labeled  recall  precision   {columns}",
    ]

    def of_which(right: int | float | None) -> str:
        return f" ({_per_cent(right)})" if known else ""

    for name, labeled, recall, precision, predicted, right, selected, selected_right in rows:
        lines.append(
            f"{name:<{width}}  {labeled:>7}  {_per_cent(recall, 6)}  {_per_cent(precision, 9)}"
            f"   {predicted:>9}{of_which(right)}  {selected:>9}{of_which(selected_right)}"
        )
    unlabeled = result.get("unlabeled_distribution")
    if unlabeled:
        shares = _unlabeled_shares(unlabeled)
        lines[1:] = [
            f"{line}   {more}" for line, more in zip(lines[1:], shares, strict=True)
        ] + unlabeled_warning(unlabeled, class_names)
    return "\n".join(lines) + "\n"


def _unlabeled_shares(unlabeled: Mapping[str, Any]) -> list[str]:
    """Return the estimated class distribution, a line per class after two header lines."""
    inside = f"{100 * unlabeled['level']:.0f} % within"
    lines = ["- unlabeled set, % -", f"share  {inside:>14}"]
    for share, low, high in zip(
        unlabeled["estimate"], unlabeled["low"], unlabeled["high"], strict=True
    ):
        lines.append(f"{100 * share:>5.1f}  {100 * low:>5.1f} to {100 * high:>5.1f}")
    return lines


# The most classes that a warning names.
_MOST_NAMED = 5


def unlabeled_warning(unlabeled: Mapping[str, Any], class_names: Sequence[str]) -> list[str]:
    """Return a warning if the unlabeled set's class distribution differs from the labeled one's.

    Args:
      unlabeled: the `unlabeled_distribution` of a generation.
      class_names: the names of the classes, by label.

    Returns:
      The lines of the warning; empty if the distributions do not differ.
    """
    if not unlabeled["differs"]:
        return []
    farthest = sorted(
        unlabeled["differs"],
        key=lambda label: -abs(unlabeled["estimate"][label] - unlabeled["labeled"][label]),
    )
    lines = [
        f"  {class_names[label]}: {100 * unlabeled['low'][label]:.1f} to "
        f"{100 * unlabeled['high'][label]:.1f} % of it, "
        f"{100 * unlabeled['labeled'][label]:.1f} % of the labeled set"
        for label in farthest[:_MOST_NAMED]
    ]
    if len(farthest) > _MOST_NAMED:
        lines.append(f"  and {len(farthest) - _MOST_NAMED} more classes")
    if unlabeled["known_from"] != "validation":
        lines += [
            "Or the model errs more there than on the labeled images, which it was fitted to and",
            "by which its errors are judged; --config.data.validation_fraction=0.2 would tell.",
        ]
    return [
        "warning: the unlabeled set does not look like the labeled one:",
        *lines,
        "See docs/unlabeled_distribution.md.",
    ]


def results_table(generations: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> str:
    """Format accuracy and per-class recall, a column per generation."""
    class_names = [*map(printable, class_names)]
    width = max(len("logit-adjusted"), *map(len, class_names))
    header = "".join(f"  gen {result['generation'] + 1:>2}" for result in generations)
    lines = [f"{'%':<{width}}{header}"]

    def row(name: str, values: Sequence[int | float | None]) -> None:
        lines.append(f"{name:<{width}}" + "".join(f"  {_per_cent(value, 6)}" for value in values))

    row("accuracy", [result["accuracy"] for result in generations])
    row("logit-adjusted", [result["accuracy_logit_adjusted"] for result in generations])
    lines.append("recall of class")
    for label, name in enumerate(class_names):
        row(name, [result["per_class_recall"][label] for result in generations])
    return "\n".join(lines) + "\n"


# The smallest change of the accuracy or of a class' recall that is named, in percentage points.
_WORTH_NAMING = 1.0
# The most classes that are named for a change of recall, in each direction.
_MOST_CHANGED = 3


def self_training_lines(
    generations: Sequence[Mapping[str, Any]], class_names: Sequence[str]
) -> str:
    """Say whether self-training helped, by how much, and which classes.

    The last generation is compared with the first, which has trained for only part of the time.

    Args:
      generations: the result.json of each generation; at least one.
      class_names: the names of the classes, by label.
    """
    first, last = generations[0], generations[-1]
    before, after = first["accuracy"], last["accuracy"]
    change = after - before
    if abs(change) < _WORTH_NAMING:
        verdict = "made little difference"
    else:
        verdict = "helped" if change > 0 else "did not help"
    lines = [
        f"Self-training {verdict}: accuracy was {before:.1f} % after generation 1, and is "
        f"{after:.1f} % after generation {len(generations)} ({change:+.1f} points)."
    ]
    changes = [
        (here - there, f"{printable(name)} ({there:.1f} to {here:.1f} %)")
        for name, there, here in zip(
            class_names, first["per_class_recall"], last["per_class_recall"], strict=True
        )
        if there is not None and here is not None
    ]
    for verb, sign in (("rose", 1), ("fell", -1)):
        most = sorted(
            (each for each in changes if sign * each[0] >= _WORTH_NAMING),
            key=lambda each: -sign * each[0],
        )
        if most:
            named = ", ".join(said for _, said in most[:_MOST_CHANGED])
            lines.append(f"Recall {verb} most for class {named}.")
    return "\n".join(lines) + "\n"


def adjustment_table(generation: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """Format the results of a generation under logit adjustment, a column per tau."""
    adjusted = generation["adjusted"]
    class_names = [*map(printable, class_names)]
    width = max(len("generation 10"), *map(len, class_names))
    title = f"generation {generation['generation'] + 1}"
    taus = "".join(f"  {'tau':>4} {entry['tau']:<4g}" for entry in adjusted)
    lines = [f"{title:<{width}}{taus}"]
    rows = [("accuracy", [entry["accuracy"] for entry in adjusted])]
    rows += [
        (name, [entry["per_class_recall"][label] for entry in adjusted])
        for label, name in enumerate(class_names)
    ]
    for name, values in rows:
        lines.append(f"{name:<{width}}" + "".join(f"  {_per_cent(value, 9)}" for value in values))
    lines.insert(2, "recall of class")
    lines.append("adjusted by the class distribution that the generation was trained on")
    return "\n".join(lines) + "\n"


def _per_cent(value: int | float | None, width: int = 5) -> str:
    return f"{'-' if value is None else f'{value:.1f}':>{width}}"
