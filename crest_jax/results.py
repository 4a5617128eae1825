"""The content of result.json and results.json: the results of a generation and of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils.epath import Path
from jaxtyping import Int
from ml_collections import ConfigDict

from crest_jax import accuracy, files, schema, versions
from crest_jax.errors import WorkdirError
from crest_jax.layout import FORMAT, NAMES, RunFolder
from crest_jax.schedule import LAST_EVALUATIONS

# The key of the estimated class distribution of the unlabeled split, in the results of an
# evaluation or of a generation.
UNLABELED_DISTRIBUTION = "unlabeled_distribution"

_Fields = Mapping[str, schema.Schema | schema.Maybe]


def read(folder: Path) -> dict[str, Any]:
    """Read a run's results.json.

    Raises:
      WorkdirError: The folder does not exist, no generation of the run is finished, or the file is
        damaged or was written by another version.
    """
    path = RunFolder(folder).results
    if not path.exists():
        if not folder.exists():
            raise WorkdirError(f"{folder} does not exist: name the folder of a run")
        raise WorkdirError(f"{folder} has no {path.name}: run it to the end of a generation first")
    results = files.read_json(path)
    if isinstance(results, dict) and "method" in results:
        found = results.get("format", 1)
        if found != FORMAT:
            raise versions.of_another_format(folder, found)
    wrong = next(schema.mismatches(results, {"class_names": schema.Each(schema.TEXT)}), None)
    if wrong is None:
        wrong = next(schema.mismatches(results, _of_run(len(results["class_names"]))), None)
    if wrong is None and not results["generations"]:
        wrong = "there is no generation"
    if wrong is not None:
        raise WorkdirError(
            f"{path} is damaged, or was written by another version of this program ({wrong}): run "
            "it again"
        )
    return results


def read_generation(path: Path, classes: int) -> dict[str, Any]:
    """Read a generation's result.json.

    Raises:
      WorkdirError: The file is missing, damaged, or has another number of classes.
    """
    result = files.read_json(path)
    for wrong in schema.mismatches(result, {"generation": schema.COUNT, **_of_generation(classes)}):
        raise WorkdirError(
            f"{path} is damaged, or was written by another version of this program ({wrong}): "
            "delete it and run again"
        )
    return result


def _of_generation(classes: int) -> _Fields:
    """Return the schema of those members of a result.json that are read."""
    counts = schema.Each(schema.COUNT, classes)
    shares = schema.Each(schema.FIGURE_OR_NONE, classes)
    numbers = schema.Each(schema.FIGURE, classes)
    label = schema.Kind("a label", lambda value: schema.COUNT.fits(value) and value < classes)
    return {
        "accuracy": schema.FIGURE,
        "accuracy_logit_adjusted": schema.FIGURE,
        "per_class_recall": shares,
        "per_class_precision": shares,
        "confusion_matrix": schema.CONFUSION_MATRIX,
        "labeled_per_class": counts,
        "logit_adjustment": {"tau": schema.FIGURE, "class_distribution": numbers},
        "steps": schema.COUNT,
        "seconds": schema.FIGURE,
        "images_per_second": schema.FIGURE,
        "temperature": schema.FIGURE_OR_NONE,
        "pseudo_labels": {
            "examples": shares,
            "predicted": counts,
            "selected": counts,
            "precision": shares,
            "selected_precision": shares,
            "recall": shares,
        },
        "unlabeled_distribution": schema.Maybe(
            {
                **dict.fromkeys(("estimate", "low", "high", "labeled"), numbers),
                **dict.fromkeys(("level", "p_value"), schema.FIGURE),
                "known_from": schema.TEXT,
                "differs": schema.Each(label),
            }
        ),
        "environment": schema.Members(schema.SETTING),
    }


def _of_run(classes: int) -> _Fields:
    """Return the schema of those members of a results.json that are read."""
    counts = schema.or_null(schema.Each(schema.COUNT, classes), "counts by class")
    split = {"images": schema.COUNT, "per_class": counts}
    test = {**split, "held_out": schema.TRUTH}
    return {
        "method": schema.TEXT,
        "rebalance": schema.TEXT,
        "data": schema.TEXT,
        "class_names": schema.Each(schema.TEXT),
        "long_tail": schema.Members(schema.SETTING),
        "class_distribution": schema.TEXT,
        "labeled_in_unlabeled": schema.TRUTH,
        "alignment": {"t": schema.FIGURE},
        "unlabeled_distribution": {"source": schema.TEXT},
        "fold": schema.COUNT,
        "accuracy": schema.FIGURE,
        "accuracy_logit_adjusted": schema.FIGURE,
        "splits": schema.Maybe({**dict.fromkeys(NAMES, split), "test": test}),
        "generations": schema.Each(_of_generation(classes)),
    }


_OF_WEIGHTS = {
    "accuracy": schema.FIGURE,
    "confusion_matrix": schema.CONFUSION_MATRIX,
    "confusion_matrix_logit_adjusted": schema.CONFUSION_MATRIX,
}
# The schema of those members of a line of metrics.jsonl that are read.
EVALUATION: schema.Schema = {
    "step": schema.COUNT,
    "seconds": schema.FIGURE,
    "test": {"ema": _OF_WEIGHTS, "raw": _OF_WEIGHTS},
    "validation": schema.Maybe({"ema": {"accuracy": schema.FIGURE}}),
    "unlabeled_distribution": schema.Maybe(schema.Each(schema.FIGURE)),
}


def check_classes(line: Mapping[str, Any], classes: int, where: Path) -> None:
    """Check that a line of metrics.jsonl has the given number of classes.

    Raises:
      WorkdirError: The line has another number of classes.
    """
    matrices = [of[name] for of in line["test"].values() for name in of if "matrix" in name]
    lists = [*matrices, line.get("unlabeled_distribution", [None] * classes)]
    for each in lists:
        if len(each) != classes:
            raise WorkdirError(
                f"{where} is damaged: step {line['step']} is of {len(each)} classes, not "
                f"{classes}: delete {where.parent} and run again"
            )


def summarize_evaluations(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the reported results of a generation, computed from its evaluations.

    The EMA model's confusion matrices of the last evaluations are summed, so that the accuracy is
    the mean of their accuracies, and recall and precision are those of all their predictions
    together.
    """
    last = [line["test"] for line in history[-LAST_EVALUATIONS:]]

    def pooled(weights: str, matrix: str) -> Int[np.ndarray, "classes classes"]:
        return np.sum([test[weights][matrix] for test in last], axis=0)

    plain = pooled("ema", "confusion_matrix")
    adjusted = pooled("ema", "confusion_matrix_logit_adjusted")
    best = max(history, key=lambda line: line["test"]["ema"]["accuracy"])
    summary = {
        "accuracy": accuracy.class_balanced_accuracy(plain),
        "accuracy_logit_adjusted": accuracy.class_balanced_accuracy(adjusted),
        "accuracy_raw_weights": accuracy.class_balanced_accuracy(pooled("raw", "confusion_matrix")),
        "per_class_recall": accuracy.per_class_recall(plain),
        "per_class_precision": accuracy.per_class_precision(plain),
        "per_class_recall_logit_adjusted": accuracy.per_class_recall(adjusted),
        "per_class_precision_logit_adjusted": accuracy.per_class_precision(adjusted),
        "confusion_matrix": plain.tolist(),
        "evaluations": len(last),
        # Selected on the test set, so not a result to report.
        "best_on_test": {"step": best["step"], "accuracy": best["test"]["ema"]["accuracy"]},
        "steps": history[-1]["step"],
        "seconds": history[-1]["seconds"],
    }
    if all("validation" in line for line in history):
        chosen = max(history, key=lambda line: line["validation"]["ema"]["accuracy"])
        summary["selected_on_validation"] = {
            "step": chosen["step"],
            "validation_accuracy": chosen["validation"]["ema"]["accuracy"],
            "accuracy": chosen["test"]["ema"]["accuracy"],
        }
    return summary


def summarize_pseudo_labels(
    all_of_them: Int[np.ndarray, "truths classes"], chosen: Int[np.ndarray, "truths classes"]
) -> dict[str, list[Any]]:
    """Count pseudo-labels by predicted class, and compare them with the true classes.

    Args:
      all_of_them: numbers of unlabeled examples by true class (row) and pseudo-label (column); the
        last row counts those whose true class is unknown.
      chosen: the same for the examples that the next generation trains on.

    Returns:
      Lists with one entry per class: the number of `examples`, the numbers of `predicted` and
      `selected` pseudo-labels, their `precision` and `selected_precision` (per cent that are
      correct, None where there are none), and the `recall` on the unlabeled split (per cent). Where
      the true class of any example is unknown, all entries but those of `predicted` and `selected`
      are None.
    """
    counts = {
        "predicted": all_of_them.sum(axis=0).tolist(),
        "selected": chosen.sum(axis=0).tolist(),
    }
    if all_of_them[-1].any():
        unknown = [None] * all_of_them.shape[1]
        names = ("examples", "precision", "selected_precision", "recall")
        return counts | {name: unknown for name in names}
    known, chosen = all_of_them[:-1], chosen[:-1]
    return counts | {
        "examples": known.sum(axis=1).tolist(),
        "precision": accuracy.per_class_precision(known),
        "selected_precision": accuracy.per_class_precision(chosen),
        "recall": accuracy.per_class_recall(known),
    }


def truth_is_known(pseudo_labels: Mapping[str, Any]) -> bool:
    """Return whether a result of `summarize_pseudo_labels` says how many labels are correct."""
    return None not in pseudo_labels["examples"]


# The results of the last generation that results.json has at its top level, too.
_HEADLINE = (
    "accuracy", "accuracy_logit_adjusted", "per_class_recall", "per_class_precision",
    "labeled_per_class", "logit_adjustment", "pseudo_labels", "steps", "seconds",
    "images_per_second", "environment",
)  # fmt: skip


def of_run(
    config: ConfigDict,
    data: str,
    class_names: Sequence[str],
    splits: Mapping[str, Any],
    generations: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the content of results.json: the last generation's results, and all generations.

    Args:
      config: the config of the run.
      data: the data that was read, from `sources.data_of`.
      class_names: the names of the classes, in the order of the labels.
      splits: the numbers of images in each split.
      generations: the content of each generation's result.json.
    """
    return {
        "format": FORMAT,
        "method": config.method,
        "rebalance": config.rebalance,
        "data": data,
        "class_names": list(class_names),
        "splits": dict(splits),
        "long_tail": config.long_tail.to_dict(),
        "class_distribution": config.class_distribution,
        "labeled_in_unlabeled": config.data.labeled_in_unlabeled,
        "alignment": config.alignment.to_dict(),
        "unlabeled_distribution": {
            **config.unlabeled_distribution.to_dict(),
            **generations[-1].get("unlabeled_distribution", {}),
        },
        "fold": config.fold,
        "seed": config.seed,
        **{name: generations[-1][name] for name in _HEADLINE},
        "generations": list(generations),
    }
