import numpy as np
import pytest

from crest_jax import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((100, 8, 8)), "array of float64 (100, 8, 8)"),
        ((np.zeros((2, 3), np.uint8), [1]), "(array of uint8 (2, 3), [1])"),
        (np.float32(0.5), repr(np.float32(0.5))),
        (np.ndarray, "<class 'numpy.ndarray'>"),
        ([0.5, "a\nb"], "[0.5, 'a\\nb']"),
    ],
)
def test_values_are_shown_in_a_few_words(value, text):
    assert wording.shown(value) == text


def test_an_argument_is_given_on_the_command_line_or_in_python():
    assert wording.as_argument("method", "mixmatch") == (
        "--config=FILE.py:method=mixmatch or crest_jax.experiment(..., method='mixmatch')"
    )
