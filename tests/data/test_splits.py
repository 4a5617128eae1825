import numpy as np
import pytest
from ml_collections import ConfigDict

from crest_jax.data import splits
from crest_jax.errors import DataError

# Digits has at least 110 training images of each class.
DARP = {
    "n_max": 30,
    "gamma": 10.0,
    "unlabeled_n_max": 60,
    "unlabeled_gamma": 20.0,
    "unlabeled_order": "same",
}


@pytest.fixture
def prepared(tiny_config, tmp_path):
    """Writes and reads splits of the digits with another `long_tail`."""

    def prepare(long_tail, name="splits", **overrides):
        config = tiny_config("gamma=10,beta=0.2", **overrides)
        if long_tail:
            config.long_tail = ConfigDict(long_tail)
        splits.prepare(config, tmp_path / name)
        return splits.load(tmp_path / name)

    return prepare


def sizes(largest, gamma, classes=10):
    """N_1 gamma^(-(l-1)/(L-1)), one class after the other."""
    return [int(largest * gamma ** (-label / (classes - 1)) + 1e-9) for label in range(classes)]


def counts(images):
    return np.bincount(images.labels, minlength=10).tolist()


def test_a_fraction_of_one_long_tail_is_labeled(prepared):
    data = prepared({"n_max": 100, "gamma": 10.0, "beta": 0.2})
    both = np.add(counts(data.labeled), counts(data.unlabeled))
    assert both.tolist() == sizes(100, 10)
    np.testing.assert_allclose(counts(data.labeled), 0.2 * both, atol=1)
    np.testing.assert_allclose(data.class_distribution, data.labeled_counts / len(data.labeled.ids))
    assert data.class_names == tuple("0123456789")


@pytest.mark.parametrize(("order", "step"), [("same", 1), ("reversed", -1)])
def test_labeled_and_unlabeled_sets_have_sizes_of_their_own(prepared, order, step):
    data = prepared({**DARP, "unlabeled_order": order})
    assert counts(data.labeled) == sizes(30, 10)
    assert counts(data.unlabeled) == sizes(60, 20)[::step]
    assert not set(data.labeled.ids) & set(data.unlabeled.ids)
    assert counts(data.test) == [50] * 10  # as it is


def test_an_unlabeled_set_may_be_uniform(prepared):
    data = prepared({**DARP, "unlabeled_gamma": 1.0})
    assert counts(data.unlabeled) == [60] * 10


def test_validation_is_cut_from_the_labels(prepared):
    plain = prepared(DARP)
    cut = prepared(DARP, "cut", **{"data.validation_fraction": 0.4})
    assert set(cut.labeled.ids) | set(cut.validation.ids) == set(plain.labeled.ids)
    assert not set(cut.labeled.ids) & set(cut.validation.ids)
    assert cut.unlabeled.ids == plain.unlabeled.ids


def test_more_than_there_is_of_a_class_is_refused(prepared):
    with pytest.raises(DataError, match=r"class '0' has \d+ training examples, .* unlabeled_n_max"):
        prepared({**DARP, "unlabeled_n_max": 200})
