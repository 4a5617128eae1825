"""ResNet with bottleneck blocks (He et al., 2016), in the form known as v1.5.

The stride is on the 3 x 3 convolution of a block, not on its first 1 x 1, as in Goyal et al. (2017)
and torchvision. Padding is also the same as there: at stride 2, "SAME" would read other pixels.
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

EPSILON = 1e-5  # of batch normalisation
_AROUND = ((1, 1), (1, 1))  # the padding of a 3 x 3 window

# The number of blocks at 1/4, 1/8, 1/16 and 1/32 of the image's size, by depth. Depths of 50 and
# above are those of He et al. (Table 1), the others are for small data.
BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, and a projection of the input where its shape changes.

    At initialisation a block is the identity, or its projection, because the scale of the last
    batch norm starts at 0 (Goyal et al., 2017, section 5.1).
    """

    filters: int
    stride: int
    norm: Callable[..., BatchNorm]
    dtype: DTypeLike
    precision: lax.Precision

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width 4*{self.filters}"]:
        """Return features, at a lower resolution if the stride is above 1."""
        conv = partial(Conv, dtype=self.dtype, precision=self.precision)
        y = self.norm()(conv(self.filters, (1, 1))(x))
        y = self.norm()(conv(self.filters, (3, 3), self.stride, padding=_AROUND)(y))
        y = conv(4 * self.filters, (1, 1))(y)
        last_norm = self.norm(scale_init=nn.initializers.zeros)
        if self.stride > 1 or x.shape[-1] != y.shape[-1]:
            x = conv(y.shape[-1], (1, 1), self.stride, name="projection")(x)
            x = self.norm(negative_slope=1.0)(x)
        return last_norm(y, behind=x)


class ResNet(nn.Module):
    """ResNet-`depth`, with `width` times the paper's filters in every layer.

    ResNet-50 has 25 557 032 parameters with 1000 classes, 23 768 255 with 127. An image of
    224 x 224 takes 4 089 184 256 multiply-adds (4 087 396 352 with 127 classes) in the convolutions
    and the last layer, calculated from their shapes. XLA's own count of a forward pass, which
    excludes operations on padding and includes batch norm, is 8.00 * 10^9 floating-point
    operations.

    The last layer is initialised as in Goyal et al. (2017): Gaussian, of standard deviation 0.01.
    """

    DEPTHS: ClassVar[tuple[int, ...]] = tuple(BLOCKS)
    DEPTHS_IN_WORDS: ClassVar[str] = f"one of {', '.join(map(str, BLOCKS))}"

    classes: int
    depth: int = 50
    width: int = 1
    batch_norm_momentum: float = 0.9
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
            negative_slope=0.0,
            momentum=self.batch_norm_momentum,
            epsilon=EPSILON,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        filters = 64 * self.width
        conv = partial(Conv, dtype=self.dtype, precision=self.precision)
        x = conv(filters, (7, 7), 2, padding=((3, 3), (3, 3)))(images)
        x = nn.max_pool(norm()(x), (3, 3), (2, 2), padding=_AROUND)
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(filters * 2**stage, stride, norm, self.dtype, self.precision)(x)
        x = x.mean(axis=(1, 2), dtype=jnp.float32)
        logits = nn.Dense(
            self.classes, kernel_init=nn.initializers.normal(0.01), precision=self.precision
        )(x)
        return logits.astype(jnp.float32)
