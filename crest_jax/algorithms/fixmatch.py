"""FixMatch (Sohn et al., 2020, https://arxiv.org/abs/2001.07685)."""

import jax
import jax.numpy as jnp
import optax

from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.rebalancing.class_balanced_loss import weighted_cross_entropy

# Whether the weak views of unlabeled images, through which no gradient flows, share the forward
# pass and batch statistics of the other views, or have a separate pass without a backward pass.
WEAK_FORWARD = ("joint", "separate")


def fixmatch(
    inputs: StepInputs, *, threshold: float, unlabeled_weight: float, weak_forward: str
) -> Loss:
    """Compute the cross-entropy of labels, and of confident pseudo-labels for strong views.

    `l_s = mean H(p_b, p(y | weak(x_b)))` over labeled images and
    `l_u = mean 1[max(q_b) >= tau] H(argmax(q_b), p(y | strong(u_b)))` over all unlabeled images,
    where those below the threshold count as zero (FixMatch Eqs. 3 and 4). q is the prediction on
    the weak view. It is aligned first (CReST section 3.4); threshold and argmax are applied to the
    aligned q.

    Args:
      inputs: the step's inputs.
      threshold: tau, in [0, 1].
      unlabeled_weight: lambda_u in `l_s + lambda_u l_u`.
      weak_forward: one of `WEAK_FORWARD`; the published FixMatch code's is "joint". Either way all
        views have the same weight in the running batch statistics.
    """
    weak_keys, strong_keys = jnp.moveaxis(jax.vmap(jax.random.split)(inputs.unlabeled_keys), 1, 0)
    labeled = inputs.weak(inputs.labeled, inputs.labeled_keys)
    weak = inputs.weak(inputs.unlabeled, weak_keys)
    strong = inputs.strong(inputs.unlabeled, strong_keys, weak_keys)
    if weak_forward == "joint":
        logits, batch_stats = inputs.forward(jnp.concatenate([labeled, weak, strong]))
        labeled_logits, weak_logits, strong_logits = jnp.split(
            logits, [len(labeled), len(labeled) + len(weak)]
        )
    else:
        weak_logits, of_weak = inputs.forward(weak)
        logits, of_others = inputs.forward(jnp.concatenate([labeled, strong]))
        labeled_logits, strong_logits = jnp.split(logits, [len(labeled)])
        share = len(weak) / (len(weak) + len(logits))
        batch_stats = optax.incremental_update(of_weak, of_others, share)

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
