"""Mean Teacher (Tarvainen and Valpola, 2017, https://arxiv.org/abs/1703.01780)."""

import jax
import jax.numpy as jnp

from crest_jax.algorithms.ramp_up import linear_ramp_up
from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.rebalancing.class_balanced_loss import weighted_cross_entropy


def mean_teacher(inputs: StepInputs, *, unlabeled_weight: float, ramp_up: float) -> Loss:
    """Compute the cross-entropy of labels, and the squared difference from the teacher.

    `l_u = mean (p_student(y | u'_b) - p_teacher(y | u''_b))^2` over unlabeled images and classes,
    for two weak views of each image. The teacher is the average of the model's past weights, and no
    gradient reaches it. Labeled images, student views and teacher views have separate forward
    passes, and running batch statistics come from the labeled images, as in the published FixMatch
    code.

    Args:
      inputs: the step's inputs.
      unlabeled_weight: weight of l_u after the ramp-up.
      ramp_up: the fraction of training over which the weight rises from 0, in [0, 1].
    """
    student_key, teacher_key = jnp.moveaxis(jax.vmap(jax.random.split)(inputs.unlabeled_keys), 1, 0)
    labeled_logits, batch_stats = inputs.forward(inputs.weak(inputs.labeled, inputs.labeled_keys))
    student_logits, _ = inputs.forward(inputs.weak(inputs.unlabeled, student_key))
    probs = jax.nn.softmax(inputs.teacher(inputs.weak(inputs.unlabeled, teacher_key)))

    guesses = inputs.align(probs)
    targets = inputs.refine(guesses)

    labels = jax.nn.one_hot(inputs.labels, labeled_logits.shape[-1])
    labeled_loss = weighted_cross_entropy(labeled_logits, labels, inputs.class_weights).mean()
    unlabeled_loss = ((jax.nn.softmax(student_logits) - targets) ** 2).mean()
    weight = unlabeled_weight * linear_ramp_up(inputs.progress, ramp_up)
    total = labeled_loss + weight * unlabeled_loss
    metrics = {"loss": total, "labeled_loss": labeled_loss, "unlabeled_loss": unlabeled_loss}
    return Loss(total, batch_stats, metrics, probs.mean(axis=0), guesses)
