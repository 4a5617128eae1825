"""Ramp-up of the unlabeled loss, for the time when the model's guesses are still poor."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def linear_ramp_up(
    done: Float[Array, ""] | Int[Array, ""] | float, length: int | float
) -> Float[Array, ""]:
    """Return a factor that rises from 0 to 1 over the first part of training and then stays at 1.

    Args:
      done: how much of training is done, as a fraction in [0, 1] or in steps.
      length: how long the rise takes, in the same unit; at 0 the factor is always 1.
    """
    return jnp.minimum(done / length, 1.0) if length else jnp.ones(())
