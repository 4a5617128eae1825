"""Distribution alignment with a constant or progressive temperature t (paper section 3.4).

Adapted from ReMixMatch (Berthelot et al., 2020), where the target is the labeled set's own
distribution and t = 1.
"""

from jaxtyping import Array, Float

from crest_jax.field import Field
from crest_jax.rebalancing.protocol import PSEUDO_LABELS, Rebalancing

# none: pseudo-labels are not aligned. labeled_average: the target is the running average of the
# labeled batches' class frequencies. constant: p(y)^t. progressive: p(y)^t with t falling from 1 to
# t_min over the generations.
TARGETS = ("none", "labeled_average", "constant", "progressive")

# The number of batches over whose mean predictions the model's distribution is averaged.
WINDOW = 128
LABELED_DECAY = 0.999
_EPSILON = 1e-6


def progressive_temperature(generation: int, generations: int, t_min: float) -> float:
    """Return `t_g = (1 - g/G) 1.0 + g/G t_min` for g = 0 .. G (Eq. 2).

    With a single generation it is 1.

    Args:
      generation: g, from 0.
      generations: G + 1, the number of generations.
      t_min: temperature of the last generation, in [0, 1].
    """
    progress = generation / max(generations - 1, 1)
    return (1.0 - progress) + progress * t_min


def temperature_scaled(
    class_distribution: Float[Array, " classes"], temperature: Float[Array, ""] | float
) -> Float[Array, " classes"]:
    """Return `Normalize(p(y)^t)`: p(y) itself at t = 1, uniform at t = 0."""
    powered = class_distribution**temperature
    return powered / powered.sum()


def align(
    probs: Float[Array, "batch classes"],
    target: Float[Array, " classes"],
    model_distribution: Float[Array, " classes"],
) -> Float[Array, "batch classes"]:
    """Return `Normalize(q p(y) / p~(y))`, the label guess used instead of q (section 3.4).

    Args:
      probs: q, the model's predictions.
      target: p(y), or its temperature-scaled form.
      model_distribution: p~(y), the moving average of the model's predictions.
    """
    scaled = probs * (target + _EPSILON) / (model_distribution + _EPSILON)
    return scaled / scaled.sum(axis=-1, keepdims=True)


DA = Rebalancing(
    (PSEUDO_LABELS,),
    {
        "alignment.t": Field(
            1.0, "Temperature t of a constant target.", "[0, 1]", source="section 3.4"
        )
    },
    alignment_targets=("constant", "labeled_average"),
)
