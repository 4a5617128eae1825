"""Conversion of stored pixels to network input."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def rescale(
    images: UInt8[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """Map grey levels 0..255 linearly to [-1, 1] in float32; mid-grey (127.5) becomes 0."""
    # Compiled, x / 127.5 - 1 would become a product with a rounded 1 / 127.5, and white would be
    # above 1. In this form a level and its inverse are also exact negatives of each other.
    return (2.0 * images.astype(jnp.float32) - 255.0) * (1 / 255)
