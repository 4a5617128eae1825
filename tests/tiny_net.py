"""A model as small as one with batch statistics can be, so that steps compile in a moment."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class TinyNet(nn.Module):
    """Takes what `crest_jax.models` take, and looks at no more of it than it must."""

    DEPTHS = range(1, 1000)
    DEPTHS_IN_WORDS = "positive"

    classes: int
    depth: int = 10
    width: int = 1
    batch_norm_momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32
    precision: jax.lax.Precision = jax.lax.Precision.DEFAULT
    axis_name: str | tuple[str, ...] | None = None

    @nn.compact
    def __call__(self, images, *, train):
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.batch_norm_momentum,
            axis_name=self.axis_name,
        )
        x = nn.relu(norm(nn.Conv(16, (3, 3), strides=2, dtype=self.dtype)(images)))
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))
