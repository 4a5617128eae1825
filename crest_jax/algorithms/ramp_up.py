"""Letting the unlabeled term in slowly, while the model's guesses are still poor."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def linear_ramp_up(
    done: Float[Array, ""] | Int[Array, ""] | float, length: int | float
) -> Float[Array, ""]:
    """Rise from 0 to 1 over the first part of training, and stay there.

    Args:
      done: how much of training is done, as a part in [0, 1] or in steps.
      length: how much the rise takes, likewise; at 0 it is 1 throughout.
    """
    return jnp.minimum(done / length, 1.0) if length else jnp.ones(())
