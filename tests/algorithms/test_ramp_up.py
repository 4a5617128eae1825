import jax.numpy as jnp
import pytest

from crest_jax.algorithms.ramp_up import linear_ramp_up


@pytest.mark.parametrize(
    ("progress", "length", "expected"),
    [(0.0, 0.4, 0.0), (0.1, 0.4, 0.25), (0.4, 0.4, 1.0), (0.9, 0.4, 1.0), (0.0, 0.0, 1.0),
     (0.5, 1.0, 0.5)],
)  # fmt: skip
def test_it_rises_linearly_and_stays(progress, length, expected):
    assert linear_ramp_up(jnp.float32(progress), length) == pytest.approx(expected)
