"""From stored pixels to network input."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def rescale(
    images: UInt8[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """Maps grey levels 0..255 linearly to [-1, 1] in float32; mid-grey (127.5) becomes 0."""
    # Not x / 127.5 - 1: compiled, that becomes a product with a rounded 1 / 127.5, and white comes
    # out above 1. This way a level and its inverse are also exact negatives of each other.
    return (2.0 * images.astype(jnp.float32) - 255.0) * (1 / 255)
