import numpy as np
import pytest

from crest_jax.errors import DataError
from crest_jax.rebalancing.resampling import sampling_probabilities


def test_probabilities_are_inverse_to_the_size_of_the_class():
    labels = np.array([0, 1, 0, 2, 0, 1])
    probabilities = sampling_probabilities(labels, ("a", "b", "c"))
    assert probabilities.sum() == pytest.approx(1)
    np.testing.assert_allclose(probabilities, [1 / 9, 1 / 6, 1 / 9, 1 / 3, 1 / 9, 1 / 6])


def test_a_class_without_examples_is_named_with_what_to_do():
    with pytest.raises(DataError, match=r"cannot draw 'b', 'd', of which .* another rebalance"):
        sampling_probabilities(np.array([0, 2, 0]), ("a", "b", "c", "d"))
