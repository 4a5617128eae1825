"""The class distribution of the unlabeled split, estimated from a model's predictions on it."""

from typing import Any

import numpy as np
from jaxtyping import Int

from crest_jax import evaluate, hosts, results
from crest_jax.data.splits import Split, Splits
from crest_jax.program import Run
from crest_jax.rebalancing import label_shift
from crest_jax.scoring import by_ema
from crest_jax.train_state import TrainState


def estimate(run: Run, state: TrainState) -> list[float]:
    """Estimate the class distribution from the EMA model's predictions and its known errors."""
    _, _, predictions = by_ema(run.splits.unlabeled, state, run.program)
    counts = hosts.total(np.bincount(predictions.labels, minlength=run.classes))
    confusion = known_errors(run, state)
    return label_shift.estimate(confusion, counts, run.splits.labeled_distribution).tolist()


def describe(
    run: Run, generation: int, predicted: Int[np.ndarray, " classes"], state: TrainState
) -> dict[str, Any]:
    """Return the estimate at the end of a generation and how sure it is, ready for JSON.

    Args:
      run: the run.
      generation: seeds the draws that the intervals come from, together with the run's seed.
      predicted: the number of unlabeled examples by pseudo-label.
      state: of the generation's last step.
    """
    labeled = run.splits.labeled_distribution
    confusion = known_errors(run, state)
    return results.summarize_unlabeled(
        label_shift.estimate(confusion, predicted, labeled),
        label_shift.interval(
            confusion, predicted, labeled, seed=[run.config.seed, generation], level=results.LEVEL
        ),
        labeled,
        known_from=_known(run.splits)[0],
    )


def known_errors(run: Run, state: TrainState) -> Int[np.ndarray, "classes classes"]:
    """Return the EMA model's confusion matrix on images whose classes are known.

    They are distributed as the labeled ones.
    """
    _, classes, predictions = by_ema(_known(run.splits)[1], state, run.program)
    confusion = evaluate.confusion_matrix(classes, predictions.labels, run.classes)
    return hosts.total(confusion)


def _known(splits: Splits) -> tuple[str, Split]:
    """Return the validation split, or if there is none the labeled one, which is trained on."""
    if splits.validation.examples:
        return "validation", splits.validation
    return "labeled", splits.labeled
