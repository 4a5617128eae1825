"""MixUp (Zhang et al., 2018) in MixMatch's form: the mixture stays closer to its first image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree


def coefficients(keys: Key[Array, " batch"], alpha: float) -> Float[Array, " batch"]:
    """Return `max(lambda, 1 - lambda)` with lambda ~ Beta(alpha, alpha), one for each example.

    MixMatch section 3.3, Eqs. 8 and 9.

    Args:
      keys: one key per example.
      alpha: above 0; the smaller it is, the nearer the coefficients are to 1.
    """
    drawn = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    return jnp.maximum(drawn, 1 - drawn)


def mix(first: PyTree, second: PyTree, coefficients: Float[Array, " batch"]) -> PyTree:
    """Return `lambda first + (1 - lambda) second`, for images and their targets alike.

    MixMatch Eqs. 10 and 11.

    Args:
      first: a tree of arrays whose leading axis is the batch.
      second: a tree of arrays of the same shapes.
      coefficients: lambda of each example, in [0, 1].
    """

    def mix_leaf(one: Array, other: Array) -> Array:
        weight = coefficients.reshape(-1, *[1] * (one.ndim - 1))
        return weight * one + (1 - weight) * other

    return jax.tree.map(mix_leaf, first, second)
