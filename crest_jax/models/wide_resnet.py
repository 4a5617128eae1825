"""Wide ResNet (Zagoruyko & Komodakis, 2016) as FixMatch uses it on CIFAR.

Pre-activation blocks, leaky ReLU, no convolution biases, global average pooling.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from crest_jax.models.convolution import Conv

_activation = partial(nn.leaky_relu, negative_slope=0.1)
_convolution = partial(
    Conv,
    padding="SAME",
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),
)


class WideResNetBlock(nn.Module):
    """Two 3 x 3 convolutions, and a 1 x 1 projection of the raw input where the width changes."""

    filters: int
    stride: int
    norm: Callable[[], nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width filters"]:
        """Returns features, at a lower resolution if the stride is above 1."""
        conv = partial(_convolution, self.filters, dtype=self.dtype)
        y = _activation(self.norm()(x))
        y = conv((3, 3), self.stride)(y)
        y = _activation(self.norm()(y))
        y = conv((3, 3))(y)
        if x.shape[-1] != self.filters:
            x = conv((1, 1), self.stride, name="projection")(x)
        return x + y


class WideResNet(nn.Module):
    """WRN-`depth`-`width`: three groups of `(depth - 4) / 6` blocks at full, half, quarter size.

    WRN-28-2 with 10 classes has 1 467 610 parameters.
    """

    DEPTHS: ClassVar = range(10, 1000, 6)
    DEPTHS_IN_WORDS: ClassVar[str] = "6 n + 4 with n >= 1 (10, 16, 28)"

    classes: int
    depth: int = 28
    width: int = 2
    # Of the running statistics; a run of fewer than some 5000 steps needs them to forget faster.
    batch_norm_momentum: float = 0.999
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns float32 logits for images in [-1, 1]."""
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.batch_norm_momentum,
            epsilon=1e-3,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        x = _convolution(16, (3, 3), dtype=self.dtype)(images)
        for group in range(3):
            for block in range((self.depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                filters = 16 * self.width * 2**group
                x = WideResNetBlock(filters, stride, norm, self.dtype)(x)
        x = _activation(norm()(x)).mean(axis=(1, 2), dtype=jnp.float32)
        logits = nn.Dense(self.classes, kernel_init=nn.initializers.glorot_normal())(x)
        return logits.astype(jnp.float32)
