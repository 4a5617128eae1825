"""Wide ResNet (Zagoruyko & Komodakis, 2016), as in the published CReST code for CIFAR.

Pre-activation blocks, leaky ReLU, no convolution biases, global average pooling. The networks of
the FixMatch codebase and of DARP's differ from this one in the input that a block's shortcut takes,
and FixMatch's also in how 3 x 3 convolutions of stride 2 are padded.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from crest_jax.models.convolution import Conv
from crest_jax.models.norm import AxisNames, BatchNorm

SLOPE = 0.1  # of the leaky ReLU
EPSILON = 1e-3  # of batch normalisation


class WideResNetBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut around them.

    The shortcut of a group's first block begins after the first batch norm and activation, and that
    of any other block before them. It is a 1 x 1 convolution where the width changes.
    """

    filters: int
    stride: int
    begins_group: bool
    norm: Callable[[], BatchNorm]
    dtype: DTypeLike
    precision: lax.Precision

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        y: Float[Array, "batch height width channels"] | None,
    ) -> tuple[
        Float[Array, "batch new_height new_width {self.filters}"],
        Float[Array, "batch new_height new_width {self.filters}"],
    ]:
        """Return features of x, or of x + y if y is not None, as two arrays to be added.

        The next norm adds them. They are at a lower resolution if the stride is above 1.
        """
        conv = partial(Conv, self.filters, dtype=self.dtype, precision=self.precision)
        # One pixel on each side, even at stride 2, where "SAME" would pad an even side only at its
        # end.
        conv_3x3 = partial(conv, (3, 3), padding=((1, 1), (1, 1)))
        if self.begins_group:
            y = shortcut = self.norm()(x, y)
        else:
            y, shortcut = self.norm()(x, y, with_sum=True)
        y = conv_3x3(self.stride)(y)
        y = conv_3x3()(self.norm()(y))
        if shortcut.shape[-1] != self.filters:
            shortcut = conv((1, 1), self.stride, name="projection")(shortcut)
        return shortcut, y


class WideResNet(nn.Module):
    """WRN-`depth`-`width`: three groups of `(depth - 4) / 6` blocks at full, half and quarter size.

    WRN-28-2 with 10 classes has 1 467 610 parameters.
    """

    DEPTHS: ClassVar[range] = range(10, 1000, 6)
    DEPTHS_IN_WORDS: ClassVar[str] = "6 n + 4 with n >= 1 (10, 16, 28)"

    classes: int
    depth: int = 28
    width: int = 2
    # Momentum of the running statistics; runs shorter than about 5000 steps need a smaller one.
    batch_norm_momentum: float = 0.999
    dtype: DTypeLike = jnp.float32
    precision: lax.Precision = lax.Precision.DEFAULT
    axis_name: AxisNames = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Return float32 logits for images in [-1, 1]."""
        norm = partial(
            BatchNorm,
            use_running_average=not train,
            negative_slope=SLOPE,
            momentum=self.batch_norm_momentum,
            epsilon=EPSILON,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        first = Conv(16, (3, 3), dtype=self.dtype, precision=self.precision)
        x = first(images)
        y: Array | None = None
        for group in range(3):
            for block in range((self.depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                filters = 16 * self.width * 2**group
                layer = WideResNetBlock(
                    filters, stride, block == 0, norm, self.dtype, self.precision
                )
                x, y = layer(x, y)
        x = norm()(x, y).mean(axis=(1, 2), dtype=jnp.float32)
        logits = nn.Dense(
            self.classes, kernel_init=nn.initializers.glorot_uniform(), precision=self.precision
        )(x)
        return logits.astype(jnp.float32)
