"""Letting the unlabeled term in slowly, while the model's guesses are still poor."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def linear_ramp_up(progress: Float[Array, ""] | float, length: float) -> Float[Array, ""]:
    """Rises from 0 to 1 over the first part of training, and stays there.

    Args:
      progress: how much of training is done, in [0, 1].
      length: the part of training that the rise takes, in [0, 1]; at 0 it is 1 throughout.
    """
    return jnp.minimum(progress / length, 1.0) if length else jnp.ones(())
