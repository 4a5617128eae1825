"""Batch norm fused with an addition before or behind it and with an activation.

All of it is computed in as few passes over memory as possible. In training there are two forward
passes, one for the statistics and one for the rest, and two backward passes, which recompute the
activation's input; they are done by `crest_jax.cpu` on a CPU and by XLA elsewhere, in a form of
their own on a GPU. With running statistics, as in evaluation and in exported models, there is one
pass, done by XLA.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal, NamedTuple, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from crest_jax import cpu

_Images = Float[Array, "*batch channels"]
# The axes of the mesh over which batch norm is synchronised, if it is.
AxisNames = str | tuple[str, ...] | None


class BatchNorm(nn.Module):
    """`flax.linen.BatchNorm` with leaky ReLU; parameters and statistics have the same names.

    If `axis_name` is given, statistics are those of all devices along these axes. Gradients flow
    through the statistics that normalise, but not through the updates of the running statistics.
    """

    use_running_average: bool
    negative_slope: float = 1.0  # of the leaky ReLU: 0 is ReLU, 1 the identity
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32  # of the images; per-channel values are float32
    axis_name: AxisNames = None
    scale_init: Initializer = nn.initializers.ones

    @overload
    def __call__(
        self,
        x: _Images,
        before: _Images | None = None,
        *,
        behind: _Images | None = None,
        with_sum: Literal[False] = False,
    ) -> _Images: ...

    @overload
    def __call__(
        self,
        x: _Images,
        before: _Images | None = None,
        *,
        behind: _Images | None = None,
        with_sum: Literal[True],
    ) -> tuple[_Images, _Images]: ...

    @nn.compact
    def __call__(
        self,
        x: _Images,
        before: _Images | None = None,
        *,
        behind: _Images | None = None,
        with_sum: bool = False,
    ) -> _Images | tuple[_Images, _Images]:
        """Return the activation of norm(x + before) + behind; differentiable in reverse mode.

        Args:
          x: the images.
          before: images to add to x before the norm, if any.
          behind: images to add between norm and activation, if any.
          with_sum: whether to return x + before as well, for a shortcut around what follows.
        """
        channels = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        x, before, behind = jax.tree.map(lambda a: a.astype(self.dtype), (x, before, behind))
        if self.use_running_average or self.is_initializing():
            x = x if before is None else x + before
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            numbers = jnp.stack([factor, running_mean.value, bias])
            y = _normalized(x, behind, numbers, slope=self.negative_slope)
        else:
            settings = _Settings(self.epsilon, self.negative_slope, self.axis_name, with_sum)
            y, total, moved, var = _norm(
                *_vary_alike(x, before, behind, scale, bias, running_mean.value), settings
            )
            x = x if total is None else total
            running_mean.value += (1 - self.momentum) * moved
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        return (y, x) if with_sum else y


class _Settings(NamedTuple):
    epsilon: float
    slope: float
    axis_name: AxisNames
    with_sum: bool

    def mean(self, sums: Array, x: Array) -> Array:
        """Return sums over the pixels of x as means, also over the devices along `axis_name`."""
        mean = sums / (x.size // x.shape[-1])
        return mean if self.axis_name is None else lax.pmean(mean, self.axis_name)


def _vary_alike(*arrays: Array | None) -> tuple[Array | None, ...]:
    """Make all arrays vary over the devices if one of them does; JAX sums their gradients."""
    zeros = (jnp.zeros_like(a, jnp.float32, shape=()) for a in jax.tree.leaves(arrays))
    zero = reduce(jnp.add, zeros)
    return jax.tree.map(lambda a: a + zero.astype(a.dtype), arrays)


_Results = tuple[Array, Array | None, Array, Array]
# The values that the backward pass needs; and () if an array was added before the norm, else None.
_Kept = tuple[tuple[Array, Array | None, Array, Array], tuple[()] | None]


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _norm(
    x: Array,
    before: Array | None,
    behind: Array | None,
    scale: Array,
    bias: Array,
    about: Array,
    settings: _Settings,
) -> _Results:
    """Return what the module returns, the mean's distance from `about`, and the variance.

    Sums are taken of distances from `about`, the running mean. Only rounding depends on it:
    E[d^2] - E[d]^2 loses digits if the mean of d is large relative to the deviation, which the mean
    distance from the running mean is not.
    """
    return _forward(x, before, behind, scale, bias, about, settings)[0]


def _forward(
    x: Array,
    before: Array | None,
    behind: Array | None,
    scale: Array,
    bias: Array,
    about: Array,
    settings: _Settings,
) -> tuple[_Results, _Kept]:
    total, sums = _compute(cpu.norm.sums, _sums_in_parts, _sums, x, before, about)
    x = x if before is None else total
    moved, squares = settings.mean(sums, x)
    var = jnp.maximum(squares - moved**2, 0)
    over_deviation = lax.rsqrt(var + settings.epsilon)
    numbers = jnp.stack([scale * over_deviation, about + moved, bias])
    slope = {"slope": settings.slope}
    y = _compute(cpu.norm.forward, _normalized, _normalized, x, behind, numbers, **slope)
    # The backward pass recomputes the activation's input from x, or takes its signs from y.
    kept = (x, None if behind is None else y, numbers, over_deviation)
    had_before = None if before is None else ()
    return (y, x if settings.with_sum else None, moved, var), (kept, had_before)


def _backward(
    settings: _Settings, kept: _Kept, gradients: _Results
) -> tuple[Array, Array | None, Array | None, Array, Array, None]:
    (x, y, numbers, over_deviation), had_before = kept
    dy, past, _, _ = gradients
    slope = {"slope": settings.slope}
    dbias, times_distance = sums = _compute(
        cpu.norm.gradient_sums, _gradient_sums_in_parts, _gradient_sums, x, y, dy, numbers, **slope
    )
    of_mean, of_distance = settings.mean(sums, x)
    # dx = factor * (g - mean(g) - d * mean(g * d) / variance), where d = x - mean(x).
    factor = numbers[0]
    rise, offset = -factor * over_deviation**2 * of_distance, -factor * of_mean
    numbers = jnp.stack([*numbers, rise, offset])
    dx, dbehind = _compute(
        cpu.norm.input_gradient, _written_input_gradient, _input_gradient,
        x, y, dy, past, numbers, **slope,
    )  # fmt: skip
    dbefore = None if had_before is None else dx
    return dx, dbefore, dbehind, times_distance * over_deviation, dbias, None


_norm.defvjp(_forward, _backward)


def _compute(
    by_cpu: Callable[..., Any],
    by_gpu: Callable[..., Any],
    by_xla: Callable[..., Any],
    x: Array,
    *arrays: Any,
    **settings: Any,
) -> Any:
    by_cpu, by_gpu, by_xla = (partial(form, **settings) for form in (by_cpu, by_gpu, by_xla))
    # An exported model takes any number of images, so their number is symbolic.
    exported = jax.export.is_symbolic_dim(x.shape[0])
    if exported or x.size == 0:
        return by_xla(x, *arrays)
    forms = {"cuda": by_gpu, "rocm": by_gpu, "default": by_xla}
    if cpu.norm.takes(x):
        forms["cpu"] = by_cpu
    return lax.platform_dependent(x, *arrays, **forms)


# XLA's versions of the functions of `cpu.norm`.


def _sums(x: Array, y: Array | None, about: Array) -> tuple[Array | None, Array]:
    x = x if y is None else x + y
    distance = x.astype(jnp.float32) - about
    return (None if y is None else x), _two_sums(distance, distance**2)


def _normalized(x: Array, added: Array | None, numbers: Array, *, slope: float) -> Array:
    factor, mean, bias = numbers
    z = (x.astype(jnp.float32) - mean) * factor + bias
    z = z if added is None else z + added
    return _activation(z, slope).astype(x.dtype)


def _gradient_sums(x: Array, y: Array | None, dy: Array, numbers: Array, *, slope: float) -> Array:
    distance, g = _distance_and_gradient(x, y, dy, numbers, slope)
    return _two_sums(g, g * distance)


def _input_gradient(
    x: Array, y: Array | None, dy: Array, past: Array | None, numbers: Array, *, slope: float
) -> tuple[Array, Array | None]:
    factor, _, _, rise, offset = numbers
    distance, g = _distance_and_gradient(x, y, dy, numbers[:3], slope)
    dx = g * factor + (distance * rise + offset)
    dx = dx if past is None else dx + past
    return dx.astype(x.dtype), (None if y is None else g.astype(x.dtype))


def _two_sums(a: Array, b: Array) -> Array:
    axes = tuple(range(a.ndim - 1))
    return jnp.stack([a.sum(axes), b.sum(axes)])


def _distance_and_gradient(
    x: Array, y: Array | None, dy: Array, numbers: Array, slope: float
) -> tuple[Array, Array]:
    factor, mean, bias = numbers
    distance = x.astype(jnp.float32) - mean
    z = distance * factor + bias if y is None else y.astype(jnp.float32)
    _, pullback = jax.vjp(partial(_activation, slope=slope), z)
    (g,) = pullback(dy.astype(jnp.float32))
    return distance, g


def _activation(z: Array, slope: float) -> Array:
    return nn.relu(z) if slope == 0 else nn.leaky_relu(z, slope)


# The forms for GPUs, where docs/speed.md has their effect.

# XLA would sum over the pixels of a few channels in loads of a few bytes. So images are taken as
# rows of several pixels, with at most `_ROW` numbers, or of one pixel. At most `_PARTS` parts of
# the rows are summed by themselves, and then their sums.
_ROW, _PARTS = 1024, 128


def _sums_in_parts(x: Array, y: Array | None, about: Array) -> tuple[Array | None, Array]:
    (x_parts, y_parts), about = _parts((x, y), about)
    total, sums = jax.vmap(_sums, in_axes=(0, 0, None))(x_parts, y_parts, about)
    return (None if total is None else total.reshape(x.shape)), _whole(x, sums)


def _gradient_sums_in_parts(
    x: Array, y: Array | None, dy: Array, numbers: Array, *, slope: float
) -> Array:
    (x_parts, y_parts, dy_parts), numbers = _parts((x, y, dy), numbers)
    of_parts = jax.vmap(partial(_gradient_sums, slope=slope), in_axes=(0, 0, 0, None))
    return _whole(x, of_parts(x_parts, y_parts, dy_parts, numbers))


def _parts(images: Any, numbers: Array) -> tuple[Any, Array]:
    """Return images as [parts, rows, row], and the channels' numbers repeated as in a row."""
    channels, pixels = numbers.shape[-1], math.prod(images[0].shape[:-1])
    of_row = _divisor(pixels, _ROW // channels)
    shape = _divisor(pixels // of_row, _PARTS), -1, of_row * channels
    return jax.tree.map(lambda each: each.reshape(shape), images), jnp.tile(numbers, of_row)


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is not above `most`, or 1."""
    return next((each for each in range(most, 1, -1) if number % each == 0), 1)


def _whole(x: Array, sums: Array) -> Array:
    """Return the sums of x's channels from those of the columns of each part."""
    return sums.sum(axis=0).reshape(2, -1, x.shape[-1]).sum(axis=1)


def _written_input_gradient(*arrays: Any, slope: float) -> tuple[Array, Array | None]:
    """Return the input's gradient, which others read instead of computing it anew."""
    return lax.optimization_barrier(_input_gradient(*arrays, slope=slope))
