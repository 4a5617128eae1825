"""FixMatch (Sohn et al., 2020, https://arxiv.org/abs/2001.07685)."""

import jax
import jax.numpy as jnp
import optax

from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.rebalancing.class_balanced_loss import weighted_cross_entropy


def fixmatch(inputs: StepInputs, *, threshold: float, unlabeled_weight: float) -> Loss:
    """Cross-entropy on labels, and on confident pseudo-labels of weak views for strong views.

    `l_s = mean H(p_b, p(y | weak(x_b)))` over labeled images and
    `l_u = mean 1[max(q_b) >= tau] H(argmax(q_b), p(y | strong(u_b)))` over all unlabeled images,
    those below the threshold counted as zero (Eqs. 3 and 4 there). q is aligned first (CReST
    section 3.4); threshold and argmax see the aligned q. All views share one forward pass, and so
    batch statistics.

    Args:
      inputs: the step.
      threshold: tau, in [0, 1].
      unlabeled_weight: lambda_u in `l_s + lambda_u l_u`.
    """
    weak_key, strong_key = jnp.moveaxis(jax.vmap(jax.random.split)(inputs.unlabeled_keys), 1, 0)
    images = jnp.concatenate(
        [
            inputs.weak(inputs.labeled, inputs.labeled_keys),
            inputs.weak(inputs.unlabeled, weak_key),
            inputs.strong(inputs.unlabeled, strong_key),
        ]
    )
    logits, batch_stats = inputs.forward(images)
    labeled, unlabeled = len(inputs.labeled), len(inputs.unlabeled)
    labeled_logits, weak_logits, strong_logits = jnp.split(logits, [labeled, labeled + unlabeled])

    probs = jax.lax.stop_gradient(jax.nn.softmax(weak_logits))
    guesses = inputs.align(probs)
    targets = inputs.refine(guesses)
    confident = targets.max(axis=-1) >= threshold
    pseudo_labels = targets.argmax(axis=-1)

    labels = jax.nn.one_hot(inputs.labels, logits.shape[-1])
    labeled_loss = weighted_cross_entropy(labeled_logits, labels, inputs.class_weights).mean()
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(strong_logits, pseudo_labels)
    unlabeled_loss = (cross_entropy * confident).mean()
    total = labeled_loss + unlabeled_weight * unlabeled_loss
    metrics = {
        "loss": total,
        "labeled_loss": labeled_loss,
        "unlabeled_loss": unlabeled_loss,
        "above_threshold": confident.mean(),
    }
    return Loss(total, batch_stats, metrics, probs.mean(axis=0), guesses)
