"""The class distribution of the unlabeled split, estimated from a model's predictions on it."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from crest_jax import hosts
from crest_jax.accuracy import confusion_matrix
from crest_jax.data.splits import Split, Splits
from crest_jax.program import Run
from crest_jax.rebalancing import label_shift
from crest_jax.scoring import by_ema
from crest_jax.train_state import TrainState

# The probability that each interval of the unlabeled set's class distribution contains, and the
# p-value below which that distribution counts as different from the labeled set's.
LEVEL = 0.9
IMPROBABLE = 0.01


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
    return summarize(
        label_shift.estimate(confusion, predicted, labeled),
        label_shift.interval(
            confusion, predicted, labeled, seed=[run.program.seed, generation], level=LEVEL
        ),
        labeled,
        known_from=_known(run.splits)[0],
    )


def summarize(
    estimate: Float[np.ndarray, " classes"],
    interval: label_shift.Interval,
    labeled: Float[np.ndarray, " classes"],
    *,
    known_from: str,
) -> dict[str, Any]:
    """Return a summary of the unlabeled split's estimated class distribution, in shares.

    Args:
      estimate: the estimated share of each class.
      interval: the interval of `LEVEL` around the estimate, with its p-value.
      labeled: the class distribution of the original labeled set.
      known_from: the name of the split from which the model's errors are known.

    Returns:
      The arguments, and in `differs` the classes whose labeled share is outside its interval, if
      the p-value is below `IMPROBABLE`. Among many intervals some miss by chance, so one miss alone
      does not show that the distributions differ.
    """
    outside = (labeled < interval.low) | (labeled > interval.high)
    improbable = interval.p_value < IMPROBABLE
    return {
        "estimate": estimate.tolist(),
        "low": interval.low.tolist(),
        "high": interval.high.tolist(),
        "level": LEVEL,
        "labeled": labeled.tolist(),
        "known_from": known_from,
        "p_value": interval.p_value,
        "differs": np.flatnonzero(outside & improbable).tolist(),
    }


def known_errors(run: Run, state: TrainState) -> Int[np.ndarray, "classes classes"]:
    """Return the EMA model's confusion matrix on images whose classes are known.

    They are distributed as the labeled ones.
    """
    _, classes, predictions = by_ema(_known(run.splits)[1], state, run.program)
    confusion = confusion_matrix(classes, predictions.labels, run.classes)
    return hosts.total(confusion)


def _known(splits: Splits) -> tuple[str, Split]:
    """Return the validation split, or if there is none the labeled one, which is trained on."""
    if splits.validation.examples:
        return "validation", splits.validation
    return "labeled", splits.labeled
