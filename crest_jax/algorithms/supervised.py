"""Supervised training on the labeled images only."""

import jax

from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.rebalancing.class_balanced_loss import weighted_cross_entropy


def supervised(inputs: StepInputs) -> Loss:
    """Compute the cross-entropy of the labels of weakly augmented images.

    With 10 % of the labels this is what semi-supervised learning starts from, and with 100 % what
    it aims for (paper Tables 3 and 4).

    Args:
      inputs: the step's inputs; unlabeled images are ignored.
    """
    logits, batch_stats = inputs.forward(inputs.weak(inputs.labeled, inputs.labeled_keys))
    labels = jax.nn.one_hot(inputs.labels, logits.shape[-1])
    loss = weighted_cross_entropy(logits, labels, inputs.class_weights).mean()
    return Loss(loss, batch_stats, {"loss": loss, "labeled_loss": loss})
