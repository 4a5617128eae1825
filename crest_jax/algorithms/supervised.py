"""Supervised training: the labeled images and nothing else."""

import jax

from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.rebalancing.class_balanced_loss import weighted_cross_entropy


def supervised(inputs: StepInputs) -> Loss:
    """Cross-entropy on the labels of weakly augmented images.

    With 10 % and with 100 % of the labels, what semi-supervised learning starts from and what it
    aims at (paper Tables 3 and 4).

    Args:
      inputs: the step; its unlabeled images are not looked at.
    """
    logits, batch_stats = inputs.forward(inputs.weak(inputs.labeled, inputs.labeled_keys))
    labels = jax.nn.one_hot(inputs.labels, logits.shape[-1])
    loss = weighted_cross_entropy(logits, labels, inputs.class_weights).mean()
    return Loss(loss, batch_stats, {"loss": loss, "labeled_loss": loss})
