"""Predictions of trained weights on a run's splits, of which every host takes its share."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped, UInt8

from crest_jax import evaluate, hosts
from crest_jax.data.splits import Split
from crest_jax.mesh import to_local
from crest_jax.program import Program
from crest_jax.train_state import TrainState

# A function from images, as they are stored, to predictions.
Predictor = Callable[[UInt8[np.ndarray, "images height width channels"]], evaluate.Classification]


def predictor(
    weights: tuple[PyTree, PyTree], program: Program, adjustment: Float[np.ndarray, " classes"]
) -> Predictor:
    """Return the predictions of some weights as a function of images.

    Args:
      weights: parameters and batch statistics.
      program: the run's program.
      adjustment: offsets from `logit_adjustment`, for the adjusted labels.
    """
    params, batch_stats = to_local(weights, program.local_mesh)
    return lambda images: program.predict(params, batch_stats, images, adjustment)


def over_share(
    split: Split, models: Mapping[str, Predictor]
) -> tuple[
    Shaped[np.ndarray, " examples"],
    Int[np.ndarray, " examples"],
    dict[str, evaluate.Classification],
]:
    """Return ids, classes, and each model's predictions on this host's share of a split."""
    share = split.share(jax.process_index(), jax.process_count())
    return hosts.on_all(evaluate.over_chunks, share, models)


def by_ema(
    split: Split, state: TrainState, program: Program
) -> tuple[Shaped[np.ndarray, " examples"], Int[np.ndarray, " examples"], evaluate.Classification]:
    """Return ids, classes, and the EMA model's predictions on this host's share of a split."""
    no_adjustment = np.zeros(state.labeled_distribution.shape)
    model = predictor(state.ema_weights, program, no_adjustment)
    ids, classes, predictions = over_share(split, {"ema": model})
    return ids, classes, predictions["ema"]
