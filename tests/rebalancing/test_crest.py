import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from crest_jax.rebalancing import crest
from crest_jax.rebalancing.crest import Scores

# CIFAR10-LT, gamma = 100, beta = 10 %.
LABELED = np.array([500, 300, 180, 108, 65, 39, 24, 14, 9, 5])
SHUFFLED = np.random.default_rng(3).permutation(10)


def select_one_by_one(pseudo_labels, confidence, rates):
    """Select as `select` should, class by class and example by example."""
    selected = [False] * len(pseudo_labels)
    for label, rate in enumerate(rates):
        candidates = [row for row, guess in enumerate(pseudo_labels) if guess == label]
        candidates.sort(key=lambda row: (-confidence[row], row))
        for row in candidates[: int(len(candidates) * rate)]:
            selected[row] = True
    return selected


def select(pseudo_labels, confidence, rates):
    """Select on one host that has all examples at once."""
    (selected,) = crest.select([Scores(pseudo_labels, confidence)], rates)
    return selected


def select_among_hosts(parts_of_hosts, rates):
    """Return the selection of each host, in threads that exchange only what they gather."""
    hosts = len(parts_of_hosts)
    barrier = threading.Barrier(hosts)
    shared = [None] * hosts

    def of_host(host):
        def all_gather(array):
            shared[host] = array
            barrier.wait()
            gathered = np.stack(shared)
            barrier.wait()
            return gathered

        return list(crest.select(parts_of_hosts[host], rates, all_gather=all_gather, host=host))

    with ThreadPoolExecutor(hosts) as pool:
        return list(pool.map(of_host, range(hosts)))


# Sampling rates, Eq. 1


@pytest.mark.parametrize("alpha", [1 / 3, 0.5, 0.7, 1.0])
def test_the_smallest_class_keeps_all_and_the_largest_one_over_gamma_to_the_alpha(alpha):
    rates = crest.sampling_rates(LABELED, alpha)
    assert rates[9] == 1.0
    assert rates[0] == pytest.approx(0.01**alpha)


def test_rates_of_cifar10_are_equation_1_by_hand():
    # mu_l = (N_{11-l} / N_1)^(1/3): 5/500, 9/500, 14/500, ... 500/500.
    by_hand = np.cbrt([0.01, 0.018, 0.028, 0.048, 0.078, 0.13, 0.216, 0.36, 0.6, 1.0])
    np.testing.assert_allclose(crest.sampling_rates(LABELED, 1 / 3), by_hand)
    assert by_hand[0] == pytest.approx(0.2154, abs=1e-4)


def test_alpha_0_keeps_everything():
    np.testing.assert_array_equal(crest.sampling_rates(LABELED, 0.0), np.ones(10))


def test_the_larger_alpha_the_less_is_kept():
    mild, strong = (crest.sampling_rates(LABELED, alpha) for alpha in (0.2, 0.8))
    assert (strong[:-1] < mild[:-1]).all()


def test_classes_rank_by_size_and_not_by_index():
    rates = crest.sampling_rates(LABELED, 1 / 3)
    np.testing.assert_array_equal(crest.sampling_rates(LABELED[SHUFFLED], 1 / 3), rates[SHUFFLED])
    np.testing.assert_array_equal(crest.sampling_rates(LABELED[::-1], 1 / 3), rates[::-1])


def test_of_classes_of_one_size_the_lower_index_ranks_first():
    # Ranks: class 1 (40), class 0 (20), class 3 (20), class 2 (10).
    rates = crest.sampling_rates(np.array([20, 40, 10, 20]), 1.0)
    np.testing.assert_allclose(rates, [20 / 40, 10 / 40, 40 / 40, 20 / 40])


def test_balanced_classes_keep_everything():
    np.testing.assert_array_equal(crest.sampling_rates(np.full(7, 25), 0.5), np.ones(7))


def test_a_class_without_labeled_examples_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="class 2 "):
        crest.sampling_rates(np.array([10, 5, 0, 1]), 0.5)


def test_a_negative_alpha_is_an_error_that_gives_it():
    with pytest.raises(ValueError, match=r"alpha=-0\.5"):
        crest.sampling_rates(LABELED, -0.5)


# Selection


@pytest.mark.parametrize("seed", range(5))
def test_selection_takes_the_most_confident_of_each_predicted_class(seed):
    rng = np.random.default_rng(seed)
    pseudo_labels = rng.choice(10, 700, p=LABELED / LABELED.sum())
    # Rounded, so that there are many ties.
    confidence = rng.uniform(0.1, 1.0, 700).round(1)
    rates = crest.sampling_rates(LABELED[SHUFFLED], 1 / 3)
    selected = select(pseudo_labels, confidence, rates)
    assert selected.tolist() == select_one_by_one(pseudo_labels, confidence, rates)
    assert 0 < selected.sum() < 700


def test_counts_are_rounded_down_and_go_by_prediction():
    # 7 predicted as class 0, 5 as class 1.
    pseudo_labels = np.array([0] * 7 + [1] * 5)
    confidence = np.linspace(0.3, 0.9, 12)
    selected = select(pseudo_labels, confidence, np.array([0.5, 0.79]))
    assert np.flatnonzero(selected).tolist() == [4, 5, 6, 9, 10, 11]


def test_no_threshold_is_applied():
    confidence = np.array([0.11, 0.12, 0.13])
    assert select(np.array([4, 4, 4]), confidence, np.ones(10)).all()


def test_of_equally_confident_examples_the_earlier_ones_are_taken():
    selected = select(np.zeros(6, int), np.full(6, 0.8), np.array([0.5]))
    assert selected.tolist() == [True, True, True, False, False, False]


def test_float32_confidence_near_one_is_ranked():
    # What a confident network gives: the order is in the last bits.
    confidence = np.nextafter(np.float32(1), np.float32(0)) - np.float32(6e-8) * np.arange(
        8, dtype=np.float32
    )
    assert len(set(confidence.tolist())) == 8
    selected = select(np.zeros(8, int), confidence[::-1], np.array([0.25]))
    assert np.flatnonzero(selected).tolist() == [6, 7]


def test_a_class_that_is_never_predicted_gets_nothing_and_takes_nothing_from_others():
    pseudo_labels = np.array([0, 0, 2, 2])
    selected = select(pseudo_labels, np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.5, 1, 1]))
    assert selected.tolist() == [True, False, True, True]


def test_nothing_unlabeled_selects_nothing():
    selected = select(np.zeros(0, int), np.zeros(0), np.ones(3))
    assert selected.shape == (0,)


@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("decimals", [1, 7])
def test_hosts_and_parts_select_what_one_would_that_has_everything(hosts, decimals):
    rng = np.random.default_rng(hosts)
    pseudo_labels = rng.choice(10, 900, p=LABELED / LABELED.sum())
    confidence = rng.uniform(0.1, 1.0, 900).round(decimals).astype(np.float32)
    rates = crest.sampling_rates(LABELED, 1 / 3)
    # Hosts of different size, each with parts of different size, one of them empty.
    ends = np.sort(rng.choice(900, hosts - 1, replace=False))
    parts_of_hosts = [
        [Scores(pseudo_labels[rows], confidence[rows])
         for rows in np.split(of_host, [0, len(of_host) // 3])]
        for of_host in np.split(np.arange(900), ends)
    ]  # fmt: skip
    selected = select_among_hosts(parts_of_hosts, rates)
    assert np.concatenate([part for parts in selected for part in parts]).tolist() == (
        select_one_by_one(pseudo_labels, confidence, rates)
    )


def test_what_hosts_exchange_does_not_grow_with_the_examples():
    sent = []

    def all_gather(array):
        sent.append(array.nbytes)
        return array[None]

    for examples in (10, 1000):
        scores = Scores(np.arange(examples) % 5, np.linspace(0.2, 1, examples))
        list(crest.select([scores], np.ones(5), all_gather=all_gather))
    assert sent == [8 * 5 * 1024] * 6


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.5, np.inf])
def test_a_confidence_that_is_no_probability_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        select(np.zeros(2, int), np.array([0.5, wrong]), np.ones(1))


def test_self_training_makes_the_labeled_set_less_imbalanced():
    # Predictions as imbalanced as the labels, as Fig. 3 of the paper has it.
    unlabeled = 9 * LABELED
    pseudo_labels = np.repeat(np.arange(10), unlabeled)
    confidence = np.random.default_rng(0).uniform(size=len(pseudo_labels))
    selected = select(pseudo_labels, confidence, crest.sampling_rates(LABELED, 1 / 3))
    after = LABELED + np.bincount(pseudo_labels[selected], minlength=10)
    assert after[0] / after[9] < 0.5 * LABELED[0] / LABELED[9]
