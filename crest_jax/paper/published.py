"""The values in the paper's tables, each with the run that ours comes from.

Accuracies are in per cent on a balanced test set, as means and standard deviations over folds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Value(NamedTuple):
    """A mean over folds and its standard deviation, which is None where there is none."""

    mean: float
    deviation: float | None = None


class Column(NamedTuple):
    """A column of a table: what its cells have in common."""

    name: str
    experiment: str  # name of a file in experiments/
    arguments: Mapping[str, str] = {}
    # The generation of the values, from 1; None for the row's generation, or else the last.
    generation: int | None = None
    # The class of the values, from 0, in a table by class; None for the mean over classes.
    label: int | None = None


class Row(NamedTuple):
    """A method, with the paper's value in each column; None where it has none."""

    name: str
    arguments: Mapping[str, str]
    published: tuple[Value | None, ...]
    # Where a generation's result has our value: a key, or two keys joined by a dot.
    reported: str = "accuracy"
    generation: int | None = None  # as in `Column`


class PaperTable(NamedTuple):
    """One of the paper's tables."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    folds: int


def _values(text: str) -> tuple[Value | None, ...]:
    """Parse values as the paper prints them: 84.2±0.39, or 46.0, or - for none."""

    def read(word: str) -> Value | None:
        mean, _, deviation = word.partition("±")
        return None if mean == "-" else Value(float(mean), float(deviation) if deviation else None)

    return tuple(map(read, text.split()))


def arguments_of(text: str) -> dict[str, str]:
    """Return an experiment's arguments, as in `rebalance=crest,gamma=50`, by their names."""
    return dict(pair.split("=") for pair in text.split(","))


def _row(name: str, arguments: str, published: str, **where: Any) -> Row:
    return Row(name, {"method": "fixmatch", **arguments_of(arguments)}, _values(published), **where)


def _columns(experiment: str, title: str, arguments: Mapping[str, str]) -> tuple[Column, ...]:
    return tuple(
        Column(f"{title}, {name}", experiment, arguments_of(text))
        for name, text in arguments.items()
    )


def _by_beta_and_gamma(experiment: str, title: str, gammas: Sequence[int]) -> tuple[Column, ...]:
    arguments = {
        f"β={beta}%, γ={gamma}": f"gamma={gamma},beta={beta / 100}"
        for beta in (10, 30)
        for gamma in gammas
    }
    return _columns(experiment, title, arguments)


# The first generation of self-training is the plain algorithm, trained for one generation.
_FIRST = {"generation": 1}
_LOGIT_ADJUSTED = {"reported": "accuracy_logit_adjusted"}

_TABLE_1 = PaperTable(
    "Accuracy on CIFAR10-LT and CIFAR100-LT by label fraction and imbalance ratio",
    (
        *_by_beta_and_gamma("cifar10_lt", "CIFAR10-LT", (50, 100, 200)),
        *_by_beta_and_gamma("cifar100_lt", "CIFAR100-LT", (50, 100)),
    ),
    (
        _row(
            "FixMatch",
            "rebalance=crest",
            "79.4±0.65 66.3±1.74 59.7±0.74 81.9±0.30 73.1±0.58 64.7±0.69"
            " 33.7±0.94 28.3±0.66 43.1±0.24 38.6±0.45",
            **_FIRST,
        ),
        _row(
            "w/ CReST",
            "rebalance=crest",
            "83.8±0.45 75.9±0.62 64.1±0.23 84.2±0.13 77.6±0.86 67.7±0.82"
            " 37.4±0.29 32.1±1.52 45.6±0.19 40.2±0.53",
        ),
        _row(
            "w/ CReST+",
            "rebalance=crest_plus",
            "84.2±0.39 78.1±0.84 67.7±1.39 84.9±0.27 79.2±0.20 70.5±0.56"
            " 38.8±1.03 34.6±0.74 46.7±0.34 42.0±0.44",
        ),
    ),
    folds=5,
)

_TABLE_2 = PaperTable(
    "Accuracy on CIFAR10-LT, β=10%, after 6 x 2^16 steps each",
    _columns("cifar10_lt", "CIFAR10-LT", {f"γ={g}": f"gamma={g},beta=0.1" for g in (50, 100, 200)}),
    (
        _row(
            "Pseudo-Labeling", "method=pseudo_label,rebalance=none", "52.5±0.74 46.5±1.29 42.0±1.39"
        ),
        _row("Mean Teacher", "method=mean_teacher,rebalance=none", "57.1±3.00 48.1±0.71 45.1±1.28"),
        _row("MixMatch", "method=mixmatch,rebalance=none", "69.1±1.18 60.4±2.24 54.5±1.87"),
        _row(
            "MixMatch w/ CReST", "method=mixmatch,rebalance=crest", "69.8±1.06 60.5±1.56 55.2±2.25"
        ),
        _row(
            "MixMatch w/ CReST+",
            "method=mixmatch,rebalance=crest_plus",
            "76.7±0.35 66.1±0.79 57.6±1.30",
        ),
        _row("FixMatch", "rebalance=none", "80.1±0.44 67.3±1.19 59.7±0.63"),
        _row("FixMatch w/ CB", "rebalance=cb", "80.2±0.45 67.6±1.88 60.8±0.26"),
        _row("FixMatch w/ RS", "rebalance=rs", "80.2±0.78 69.6±1.30 60.9±1.25"),
        _row("FixMatch w/ DA (t=1.0)", "rebalance=da", "80.2±0.45 69.7±1.27 62.0±0.84"),
        _row("FixMatch w/ DA (t=0.5)", "rebalance=da,t=0.5", "82.4±0.33 73.6±0.63 63.7±1.17"),
        _row(
            "FixMatch w/ LA", "rebalance=none", "83.2±0.87 70.4±2.90 62.4±1.24", **_LOGIT_ADJUSTED
        ),
        _row("FixMatch w/ CReST", "rebalance=crest", "83.2±0.37 74.8±1.09 63.4±0.32", generation=6),
        _row("FixMatch w/ CReST+", "rebalance=crest_plus", "84.2±0.39 78.1±0.84 67.7±1.39"),
        _row(
            "FixMatch w/ CReST+ & LA",
            "rebalance=crest_plus",
            "85.6±0.36 81.2±0.70 71.9±2.24",
            **_LOGIT_ADJUSTED,
        ),
    ),
    folds=5,
)

_TABLE_3 = PaperTable(
    "Accuracy on CIFAR10 under DARP's protocol",
    _columns("cifar10_darp", "CIFAR10", {f"γ={g}": f"gamma={g}" for g in (50, 100, 150)}),
    (
        _row("Supervised", "method=supervised,rebalance=none", "65.2±0.05 58.8±0.13 55.6±0.43"),
        _row("MixMatch", "method=mixmatch,rebalance=none", "73.2±0.56 64.8±0.28 62.5±0.31"),
        _row("MixMatch w/ DARP", "method=mixmatch,rebalance=darp", "75.2±0.47 67.9±0.14 65.8±0.52"),
        _row(
            "MixMatch w/ CReST", "method=mixmatch,rebalance=crest", "78.4±0.36 70.0±0.49 64.7±0.96"
        ),
        _row(
            "MixMatch w/ CReST+",
            "method=mixmatch,rebalance=crest_plus",
            "79.0±0.26 71.9±0.33 68.3±0.57",
        ),
        _row("FixMatch", "rebalance=none", "79.2±0.33 71.5±0.72 68.4±0.15"),
        _row("FixMatch w/ DARP", "rebalance=darp", "81.8±0.24 75.5±0.05 70.4±0.25"),
        _row("FixMatch w/ CReST", "rebalance=crest", "83.0±0.39 75.7±0.38 70.8±0.25"),
        _row("FixMatch w/ CReST+", "rebalance=crest_plus", "83.9±0.14 77.4±0.36 72.8±0.58"),
    ),
    folds=5,
)

_TABLE_4 = PaperTable(
    "Mean recall on ImageNet127, β=10%, by generation",
    tuple(Column(f"Gen{number}", "imagenet127", generation=number) for number in (1, 2, 3)),
    (
        _row("Supervised (100% labels)", "method=supervised,rebalance=none,beta=1.0", "75.8 - -"),
        _row("Supervised (10% labels)", "method=supervised,rebalance=none,beta=0.1", "46.0 - -"),
        _row("FixMatch", "rebalance=none,beta=0.1", "65.8 - -"),
        _row("FixMatch w/ DA (t=0.5)", "rebalance=da,beta=0.1,t=0.5", "69.1 - -"),
        _row("FixMatch w/ CReST", "rebalance=crest,beta=0.1", "65.8 67.6 67.7"),
        _row("FixMatch w/ CReST+", "rebalance=crest_plus,beta=0.1", "68.3 70.7 73.7"),
    ),
    folds=1,
)

_ON_TEST = {"reported": "per_class_recall"}
_ON_UNLABELED = {"reported": "pseudo_labels.recall"}

_TABLE_5 = PaperTable(
    "Recall by class on CIFAR10-LT, γ=100, β=10%",
    tuple(
        Column(name, "cifar10_lt", arguments_of("gamma=100,beta=0.1"), label=label)
        for name, label in [*((f"{label + 1}", label) for label in range(10)), ("Avg.", None)]
    ),
    (
        _row(
            "FixMatch, test",
            "rebalance=crest",
            "98.7 99.5 90.0 83.5 85.0 47.6 69.9 59.0 8.9 7.2 64.9",
            **_ON_TEST,
            **_FIRST,
        ),
        _row(
            "w/ CReST, test",
            "rebalance=crest",
            "97.7 98.3 88.8 81.9 88.2 59.7 79.5 61.2 47.0 47.9 75.0",
            **_ON_TEST,
        ),
        _row(
            "w/ CReST+, test",
            "rebalance=crest_plus",
            "93.8 97.7 87.3 76.9 87.5 69.2 84.9 67.9 60.3 70.8 79.6",
            **_ON_TEST,
        ),
        _row(
            "FixMatch, unlabeled",
            "rebalance=crest",
            "98.5 99.1 90.0 84.0 84.7 49.7 64.9 65.6 14.9 22.2 67.4",
            **_ON_UNLABELED,
            **_FIRST,
        ),
        _row(
            "w/ CReST, unlabeled",
            "rebalance=crest",
            "97.8 96.8 90.0 82.9 87.4 62.4 79.3 64.8 60.8 66.7 78.9",
            **_ON_UNLABELED,
        ),
        _row(
            "w/ CReST+, unlabeled",
            "rebalance=crest_plus",
            "92.2 95.7 86.1 76.7 87.6 68.1 85.1 71.2 75.7 75.6 81.4",
            **_ON_UNLABELED,
        ),
    ),
    folds=1,
)

TABLES = {1: _TABLE_1, 2: _TABLE_2, 3: _TABLE_3, 4: _TABLE_4, 5: _TABLE_5}
