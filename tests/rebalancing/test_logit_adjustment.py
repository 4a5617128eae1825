import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax.rebalancing.logit_adjustment import adjusted_labels, adjustment

PRIOR = np.array([0.9, 0.09, 0.01])
# Taken for class 0, though class 2 has 40 times the odds that its prior gives it.
LOGITS = jnp.log(jnp.array([[0.6, 0.0001, 0.3999], [0.95, 0.04, 0.01]]))


def test_a_decision_is_flipped_where_the_prior_made_it():
    # 0.6 / 0.9 = 0.67, 0.3999 / 0.01 = 39.99; and 1.06, 0.44, 1.0 in the second row.
    shift = adjustment(PRIOR, 1.0)
    np.testing.assert_allclose(np.exp(LOGITS - shift)[0, [0, 2]], [0.6667, 39.99], rtol=1e-4)
    assert adjusted_labels(LOGITS, jnp.asarray(shift)).tolist() == [2, 0]
    assert LOGITS.argmax(axis=1).tolist() == [0, 0]


def test_tau_scales_the_adjustment():
    np.testing.assert_array_equal(adjustment(PRIOR, 0.0), 0)
    np.testing.assert_allclose(adjustment(PRIOR, 2.0), 2 * np.log(PRIOR))
    stronger = adjusted_labels(LOGITS, jnp.asarray(adjustment(PRIOR, 2.0)))
    assert stronger.tolist() == [2, 2]


def test_a_class_that_has_no_share_is_refused():
    with pytest.raises(ValueError, match="class 1 has no labeled example"):
        adjustment(np.array([0.5, 0.0, 0.5]), 1.0)
