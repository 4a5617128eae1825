"""Results of finished runs, with every value that is read from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from crest_jax.layout import FORMAT


def generation(classes: int, **figures: Any) -> dict[str, Any]:
    """Return a result.json, with some of its values given."""
    pseudo_labels = {
        **{name: [0] * classes for name in ("examples", "predicted", "selected")},
        **{name: [None] * classes for name in ("precision", "selected_precision", "recall")},
        **figures.pop("pseudo_labels", {}),
    }
    return {
        "accuracy": 50.0,
        "accuracy_logit_adjusted": 50.0,
        "per_class_recall": [50.0] * classes,
        "per_class_precision": [50.0] * classes,
        "confusion_matrix": [[1] * classes for _ in range(classes)],
        "labeled_per_class": [1] * classes,
        "logit_adjustment": {"tau": 1.0, "class_distribution": [1 / classes] * classes},
        "steps": 12,
        "seconds": 1.0,
        "images_per_second": 1.0,
        "temperature": None,
        "environment": {},
        "pseudo_labels": pseudo_labels,
        **figures,
    }


def results(generations: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
    """Return a results.json of these generations, with some of its fields given."""
    classes = len(generations[0]["per_class_recall"])
    return {
        "format": FORMAT,
        "method": "fixmatch",
        "rebalance": "none",
        "data": "digits",
        "class_names": [str(label) for label in range(classes)],
        "long_tail": {"n_max": 120, "gamma": 10.0, "beta": 0.1},
        "class_distribution": "ideal",
        "labeled_in_unlabeled": True,
        "alignment": {"target": "none", "t": 1.0},
        "unlabeled_distribution": {"source": "labeled", "given": []},
        "fold": 0,
        "splits": {
            name: {"images": classes, "per_class": [1] * classes, "held_out": False}
            for name in ("labeled", "unlabeled", "test", "validation")
        },
        **{name: generations[-1][name] for name in ("accuracy", "accuracy_logit_adjusted")},
        "generations": list(generations),
        **fields,
    }
