"""Pseudo-Labeling (Lee, 2013).

"Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks",
ICML workshop on challenges in representation learning.
"""

import jax
import optax

from crest_jax.algorithms.ramp_up import linear_ramp_up
from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.rebalancing.class_balanced_loss import weighted_cross_entropy


def pseudo_label(
    inputs: StepInputs, *, threshold: float, unlabeled_weight: float, ramp_up: float
) -> Loss:
    """Compute the cross-entropy of labels, and of confident predictions for the same view.

    `l_u = mean 1[max(q_b) >= tau] H(argmax(q_b), p(y | u_b))`, with q_b = p(y | u_b) as a constant,
    over all unlabeled images. Labeled and unlabeled images have separate forward passes, and
    running batch statistics come from the labeled images, as in the published FixMatch code.

    Args:
      inputs: the step's inputs.
      threshold: tau, in [0, 1].
      unlabeled_weight: weight of l_u after the ramp-up.
      ramp_up: the fraction of training over which the weight rises from 0, in [0, 1].
    """
    labeled_logits, batch_stats = inputs.forward(inputs.weak(inputs.labeled, inputs.labeled_keys))
    logits, _ = inputs.forward(inputs.weak(inputs.unlabeled, inputs.unlabeled_keys))

    probs = jax.lax.stop_gradient(jax.nn.softmax(logits))
    guesses = inputs.align(probs)
    targets = inputs.refine(guesses)
    confident = targets.max(axis=-1) >= threshold
    pseudo_labels = targets.argmax(axis=-1)

    labels = jax.nn.one_hot(inputs.labels, logits.shape[-1])
    labeled_loss = weighted_cross_entropy(labeled_logits, labels, inputs.class_weights).mean()
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, pseudo_labels)
    unlabeled_loss = (cross_entropy * confident).mean()
    weight = unlabeled_weight * linear_ramp_up(inputs.progress, ramp_up)
    total = labeled_loss + weight * unlabeled_loss
    metrics = {
        "loss": total,
        "labeled_loss": labeled_loss,
        "unlabeled_loss": unlabeled_loss,
        "above_threshold": confident.mean(),
    }
    return Loss(total, batch_stats, metrics, probs.mean(axis=0), guesses)
