"""MixMatch (Berthelot et al., 2019, https://arxiv.org/abs/1905.02249)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from crest_jax.algorithms.ramp_up import linear_ramp_up
from crest_jax.algorithms.step_inputs import Loss, StepInputs
from crest_jax.augment.mixup import coefficients, mix
from crest_jax.rebalancing.class_balanced_loss import weighted_cross_entropy


def sharpen(
    probs: Float[Array, "batch classes"], temperature: float
) -> Float[Array, "batch classes"]:
    """Return `Normalize(p^(1/T))` (MixMatch Eq. 7): one-hot as T goes to 0, unchanged at T = 1."""
    return jax.nn.softmax(jnp.log(probs) / temperature)


def mixmatch(
    inputs: StepInputs,
    *,
    unlabeled_weight: float,
    ramp_up_steps: int,
    sharpening_temperature: float,
    mixup_alpha: float,
) -> Loss:
    """Compute the loss of labels and sharpened guesses that are mixed with each other.

    The guess for an unlabeled image is the mean prediction on two weak views, aligned (CReST
    section 3.4) and sharpened. Every labeled image, and both views of every unlabeled image, are
    mixed with a partner drawn from all of these (MixUp). Then `l_s = mean H(p, p(y | x))` over the
    mixed labeled images and `l_u = mean (q - p(y | u))^2` over mixed unlabeled views and classes
    (MixMatch Eqs. 3 and 4). The mixed images share one forward pass, whose batch statistics are
    kept; those of the pass for the guesses are not.

    Args:
      inputs: the step's inputs.
      unlabeled_weight: lambda_u, the weight of l_u after the ramp-up.
      ramp_up_steps: the number of steps over which the weight rises from 0, independent of the
        length of a generation.
      sharpening_temperature: T, in (0, 1].
      mixup_alpha: parameter of the Beta distribution of MixUp's coefficients, above 0.
    """
    labeled_view_key, labeled_mix_key = jnp.moveaxis(
        jax.vmap(jax.random.split)(inputs.labeled_keys), 1, 0
    )
    *view_keys, first_mix_key, second_mix_key = jnp.moveaxis(
        jax.vmap(lambda key: jax.random.split(key, 4))(inputs.unlabeled_keys), 1, 0
    )
    labeled = inputs.weak(inputs.labeled, labeled_view_key)
    views = [inputs.weak(inputs.unlabeled, key) for key in view_keys]

    logits, _ = inputs.forward(jnp.concatenate(views))
    of_first_view, of_second_view = jnp.split(jax.nn.softmax(logits), 2)
    probs = jax.lax.stop_gradient((of_first_view + of_second_view) / 2)
    guesses = sharpen(inputs.align(probs), sharpening_temperature)
    targets = inputs.refine(guesses)

    labels = jax.nn.one_hot(inputs.labels, logits.shape[-1])
    examples = [(labeled, labels), (views[0], targets), (views[1], targets)]
    keys = [labeled_mix_key, first_mix_key, second_mix_key]
    mixed = [
        mix(mine, other, coefficients(key, mixup_alpha))
        for mine, other, key in zip(examples, inputs.shuffle(examples), keys, strict=True)
    ]
    images, mixed_targets = (jnp.concatenate(parts) for parts in zip(*mixed, strict=True))
    mixed_logits, batch_stats = inputs.forward(images)

    first = len(labeled)
    labeled_loss = weighted_cross_entropy(
        mixed_logits[:first], mixed_targets[:first], inputs.class_weights
    ).mean()
    squared_error = (jax.nn.softmax(mixed_logits[first:]) - mixed_targets[first:]) ** 2
    unlabeled_loss = squared_error.mean()
    weight = unlabeled_weight * linear_ramp_up(inputs.step, ramp_up_steps)
    total = labeled_loss + weight * unlabeled_loss
    metrics = {"loss": total, "labeled_loss": labeled_loss, "unlabeled_loss": unlabeled_loss}
    return Loss(total, batch_stats, metrics, probs.mean(axis=0), guesses)
