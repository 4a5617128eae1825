import hashlib
import itertools
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from crest_jax.data import long_tail
from crest_jax.errors import DataError

CIFAR10_GAMMA_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def exact_sizes(n_max, gamma, classes):
    """Evaluate the formula in 50 digits; a power that is nearly whole is taken as whole."""
    with localcontext() as context:
        context.prec = 50
        sizes = []
        for rank in range(classes):
            size = n_max / Decimal(gamma) ** (Decimal(rank) / Decimal(classes - 1))
            nearest = size.to_integral_value()
            whole = abs(size - nearest) < Decimal("1e-40")
            sizes.append(int(nearest) if whole else math.floor(size))
        return sizes


def balanced_labels(per_class, classes, seed=0):
    """Labels in no particular order, as a data set has them."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class))


def cut(labels, sizes, *, beta, **options):
    """A split by the labeled fraction (paper section 4.1)."""
    return long_tail.split(labels, *long_tail.by_fraction(sizes, beta), **options)


# Sizes


def test_cifar10_at_gamma_100_has_the_published_counts():
    sizes = long_tail.class_sizes(5000, 100.0, 10)
    assert sizes.tolist() == CIFAR10_GAMMA_100
    assert sizes.sum() == 12406


@pytest.mark.parametrize("gamma", [2, 10, 20, 50, 100, 150, 200])
@pytest.mark.parametrize(("n_max", "classes"), [(5000, 10), (1500, 10), (500, 100), (120, 10)])
def test_sizes_are_the_formula_in_exact_arithmetic(n_max, gamma, classes):
    sizes = long_tail.class_sizes(n_max, float(gamma), classes)
    assert sizes.tolist() == exact_sizes(n_max, gamma, classes)


@pytest.mark.parametrize(("gamma", "smallest"), [(50.0, 100), (100.0, 50), (200.0, 25)])
def test_the_smallest_class_is_the_largest_divided_by_gamma(gamma, smallest):
    sizes = long_tail.class_sizes(5000, gamma, 10)
    assert (sizes[0], sizes[-1]) == (5000, smallest)
    assert (np.diff(sizes) < 0).all()


@pytest.mark.parametrize(
    ("n_max", "gamma", "classes", "total"),
    [
        (1500, 100, 10, 3720), (3000, 100, 10, 7443), (500, 100, 10, 1236), (4000, 100, 10, 9922),
        (150, 10, 100, 5835), (300, 10, 100, 11720), (50, 20, 100, 1545), (400, 20, 100, 12719),
        (150, 10, 10, 609),
    ],
)  # fmt: skip
def test_other_protocols_have_as_many_images_as_docs_comparing_says(n_max, gamma, classes, total):
    sizes = long_tail.class_sizes(n_max, float(gamma), classes)
    # As the public code of DARP and its successors cuts them.
    first = [int(n_max * (1 / gamma) ** (rank / (classes - 1))) for rank in range(classes - 1)]
    assert sizes.tolist() == [*first, int(n_max / gamma)]
    assert sizes.sum() == total


def test_gamma_1_is_balanced():
    assert long_tail.class_sizes(5000, 1.0, 10).tolist() == [5000] * 10


@pytest.mark.parametrize(("gamma", "classes"), [(100.0, 10), (200.0, 10), (50.0, 100), (1.0, 5)])
def test_the_ideal_distribution_falls_by_one_ratio_from_class_to_class(gamma, classes):
    ideal = long_tail.ideal_distribution(gamma, classes)
    assert ideal.sum() == pytest.approx(1)
    ratio = Decimal(gamma) ** (Decimal(-1) / Decimal(classes - 1))
    np.testing.assert_allclose(ideal[1:] / ideal[:-1], float(ratio))
    assert ideal[0] / ideal[-1] == pytest.approx(gamma)


# Split


@pytest.mark.parametrize("beta", [0.1, 0.3, 1 / 3, 0.5, 1.0])
def test_the_labeled_set_has_ceil_of_beta_of_each_class(beta):
    labels = balanced_labels(600, 10)
    sizes = long_tail.class_sizes(500, 100.0, 10)
    parts = cut(labels, sizes, beta=beta, fold=0)
    # beta as it is written: 0.1 is a tenth, not the double next to it.
    exact = Fraction(beta).limit_denominator(1000)
    expected = [math.ceil(int(size) * exact) for size in sizes]
    assert np.bincount(labels[parts.labeled], minlength=10).tolist() == expected
    rest = [size - labeled for size, labeled in zip(sizes, expected, strict=True)]
    assert np.bincount(labels[parts.unlabeled], minlength=10).tolist() == rest
    assert len(parts.validation) == 0


def test_a_tenth_of_cifar10_lt_is_1244_labeled_images():
    labels = balanced_labels(5000, 10)
    parts = cut(labels, np.array(CIFAR10_GAMMA_100), beta=0.1, fold=0)
    counts = np.bincount(labels[parts.labeled]).tolist()
    assert counts == [500, 300, 180, 108, 65, 39, 24, 14, 9, 5]
    assert len(parts.labeled) + len(parts.unlabeled) == 12406


def test_the_splits_are_disjoint_ascending_and_cover_the_long_tail():
    labels = balanced_labels(60, 5)
    sizes = np.array([60, 31, 17, 8, 3])
    parts = cut(labels, sizes, beta=0.4, fold=1, validation_fraction=0.3)
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows) == sizes.sum()
    assert np.bincount(labels[rows]).tolist() == sizes.tolist()
    for part in parts:
        assert (np.diff(part) > 0).all()


def test_folds_share_the_long_tailed_set_and_differ_in_what_is_labeled():
    labels = balanced_labels(200, 4)
    sizes = np.array([150, 60, 30, 10])
    folds = [cut(labels, sizes, beta=0.3, fold=fold) for fold in range(5)]
    whole = {frozenset(np.concatenate(parts).tolist()) for parts in folds}
    labeled = {frozenset(parts.labeled.tolist()) for parts in folds}
    assert len(whole) == 1
    assert len(labeled) == 5
    # Folds are independent draws: of 45 from 150, two share 13.5 on average.
    majority = [set(parts.labeled[labels[parts.labeled] == 0].tolist()) for parts in folds]
    shared = [len(majority[a] & majority[b]) for a in range(5) for b in range(a)]
    assert 5 <= min(shared) <= max(shared) <= 25


def test_the_same_fold_is_the_same_split():
    labels = balanced_labels(50, 3)
    sizes = np.array([40, 20, 10])
    arguments = {"beta": 0.25, "fold": 3, "validation_fraction": 0.2}
    first = cut(labels, sizes, **arguments)
    second = cut(labels.copy(), sizes, **arguments)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


# SHA-256 of the rows of the labeled, unlabeled and validation splits of CIFAR10-LT, gamma = 100,
# by beta and fold, where the labels are those of `balanced_labels`. Who changes a fold changes what
# every figure of it is of.
DIGESTS = {
    (0.1, 0): "1ba560fad7981bb1ebe46342ca6e643e85029d46aa0f5ba548abd55100c3364c",
    (0.1, 1): "ca7411bf74231d5190b9f49d1fc607ebfefa593f3b235c21de762460ba99f328",
    (0.1, 4): "88a58d7639ceb88e1d98cc75d729cc0439fe7c12ddbf1f8271d5c50890bf2f4d",
    (0.3, 0): "a76a62f0e5b30324f4a3d682f42cc20eb423085ce10291bdbe961f6bbec06e13",
}


@pytest.mark.parametrize(("beta", "fold"), DIGESTS)
def test_the_rows_that_a_fold_draws_never_change(beta, fold):
    parts = cut(
        balanced_labels(5000, 10),
        np.array(CIFAR10_GAMMA_100),
        beta=beta,
        fold=fold,
        validation_fraction=0.2,
    )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.astype("<i8").tobytes())
    assert digest.hexdigest() == DIGESTS[beta, fold]


def test_without_a_fold_the_first_rows_of_a_class_are_labeled_and_the_next_unlabeled():
    labels = np.array([0, 1, 0, 0, 1, 1, 0, 1, 0])
    parts = long_tail.split(labels, np.array([2, 1]), np.array([2, 2]), fold=None)
    assert parts.labeled.tolist() == [0, 1, 2]
    assert parts.unlabeled.tolist() == [3, 4, 5, 6]
    # Where the data set keeps its rows in another order than its own, that counts.
    order = np.arange(9)[::-1]
    parts = long_tail.split(labels, np.array([2, 1]), np.array([2, 2]), fold=None, order=order)
    assert parts.labeled.tolist() == [6, 7, 8]
    assert parts.unlabeled.tolist() == [2, 3, 4, 5]
    # As in DARP's code: idxs[:n] and idxs[n : n + m] of each class.
    labels = balanced_labels(50, 3)
    labeled, unlabeled = np.array([20, 9, 4]), np.array([30, 18, 9])
    parts = long_tail.split(labels, labeled, unlabeled, fold=None)
    for label, (n, m) in enumerate(zip(labeled, unlabeled, strict=True)):
        rows = np.flatnonzero(labels == label)
        assert parts.labeled[labels[parts.labeled] == label].tolist() == rows[:n].tolist()
        of_class = parts.unlabeled[labels[parts.unlabeled] == label]
        assert of_class.tolist() == rows[n : n + m].tolist()


def test_what_is_kept_is_drawn_and_not_the_first_rows():
    labels = np.repeat([0, 1], 1000)
    parts = cut(labels, np.array([1000, 100]), beta=0.5, fold=0)
    kept = np.concatenate([parts.labeled, parts.unlabeled])
    minority = kept[kept >= 1000] - 1000
    # Mean of 100 draws from 0..999 without replacement: 499.5, standard error 27.
    assert abs(minority.mean() - 499.5) < 5 * 27


def test_a_smaller_betas_labeled_set_is_part_of_a_larger_ones():
    labels = balanced_labels(100, 4)
    sizes = np.array([100, 50, 20, 9])
    nested = [
        set(cut(labels, sizes, beta=beta, fold=2).labeled.tolist())
        for beta in (0.05, 0.1, 0.3, 0.5, 1.0)
    ]
    for smaller, larger in itertools.pairwise(nested):
        assert smaller < larger


def test_validation_is_cut_by_class_from_the_labeled_set_alone():
    labels = balanced_labels(200, 4)
    sizes = np.array([200, 100, 50, 10])
    without = cut(labels, sizes, beta=0.3, fold=0)
    parts = cut(labels, sizes, beta=0.3, fold=0, validation_fraction=0.25)
    # 60, 30, 15, 3 are labeled; a quarter, rounded down, is validation.
    assert np.bincount(labels[parts.validation], minlength=4).tolist() == [15, 7, 3, 0]
    assert np.bincount(labels[parts.labeled], minlength=4).tolist() == [45, 23, 12, 3]
    np.testing.assert_array_equal(parts.unlabeled, without.unlabeled)
    assert set(parts.labeled) | set(parts.validation) == set(without.labeled)


def test_validation_is_not_short_of_one_by_a_rounding_error():
    labels = np.zeros(100, np.int64)
    parts = cut(labels, np.array([100]), beta=1.0, fold=0, validation_fraction=0.29)
    assert len(parts.validation) == 29


def test_every_class_keeps_a_labeled_example_whatever_is_held_out():
    labels = balanced_labels(20, 3)
    parts = cut(labels, np.array([20, 4, 1]), beta=0.1, fold=0, validation_fraction=0.99)
    assert np.bincount(labels[parts.labeled], minlength=3).min() >= 1


def test_a_class_with_too_few_examples_is_named_with_both_counts():
    labels = np.repeat([0, 1, 2], [50, 19, 50])
    with pytest.raises(DataError) as caught:
        cut(labels, np.array([50, 20, 5]), beta=0.1, fold=0, class_names=("cat", "dog", "emu"))
    message = str(caught.value)
    for part in ("'dog'", "19", "20", "long_tail.n_max"):
        assert part in message


def test_a_class_without_a_name_goes_by_its_number():
    with pytest.raises(DataError, match="class '1' has 1 training examples"):
        cut(np.array([0, 0, 1]), np.array([2, 2]), beta=0.5, fold=0)


def test_a_class_that_the_long_tail_leaves_empty_is_an_error():
    sizes = long_tail.class_sizes(50, 100.0, 3)
    assert sizes.tolist() == [50, 5, 0]
    with pytest.raises(DataError) as caught:
        cut(balanced_labels(50, 3), sizes, beta=0.1, fold=0, class_names=("cat", "dog", "emu"))
    for part in ("'emu'", "long_tail.gamma", "long_tail.n_max"):
        assert part in str(caught.value)


# Separate long tails


@pytest.mark.parametrize("gamma", [50, 100, 150])
def test_darps_protocol_has_1500_labeled_and_3000_unlabeled_of_the_largest_class(gamma):
    labels = balanced_labels(5000, 10)
    labeled = long_tail.class_sizes(1500, float(gamma), 10)
    unlabeled = long_tail.unlabeled_sizes(3000, float(gamma), 10, "same")
    parts = long_tail.split(labels, labeled, unlabeled, fold=0)
    assert np.bincount(labels[parts.labeled]).tolist() == exact_sizes(1500, gamma, 10)
    assert np.bincount(labels[parts.unlabeled]).tolist() == exact_sizes(3000, gamma, 10)
    assert not set(parts.labeled) & set(parts.unlabeled)


def test_an_unlabeled_set_may_be_reversed_or_uniform():
    reversed_sizes = long_tail.unlabeled_sizes(3000, 100.0, 10, "reversed")
    assert reversed_sizes.tolist() == exact_sizes(3000, 100, 10)[::-1]
    assert long_tail.unlabeled_sizes(3000, 1.0, 10, "reversed").tolist() == [3000] * 10
    labels = balanced_labels(5000, 10)
    labeled = long_tail.class_sizes(1500, 100.0, 10)
    parts = long_tail.split(labels, labeled, reversed_sizes, fold=1)
    assert np.bincount(labels[parts.unlabeled]).tolist() == reversed_sizes.tolist()
    assert np.bincount(labels[parts.labeled]).tolist() == labeled.tolist()


def test_another_order_is_refused():
    with pytest.raises(ValueError, match="'shuffled' is not one of same, reversed"):
        long_tail.unlabeled_sizes(3000, 100.0, 10, "shuffled")


def test_labeled_and_unlabeled_together_must_be_there():
    labels = np.repeat([0, 1], [50, 50])
    with pytest.raises(DataError, match=r"class '1' has 50 .* needs 51, 20 of them labeled"):
        long_tail.split(labels, np.array([20, 20]), np.array([30, 31]), fold=0)


# Held out


def test_the_rows_that_are_held_out_never_change():
    held_out = long_tail.hold_out(balanced_labels(100, 10), 0.2)
    assert held_out.sum() == 200
    digest = hashlib.sha256(np.packbits(held_out).tobytes()).hexdigest()
    assert digest == "3c1109ca14da1dfaaa5b8eca4bedc8e5ca1a5fd0dc11c6b12c2601e4c2ee87f7"


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_a_part_of_each_class_is_held_out(fraction):
    sizes = [100, 37, 8, 3, 2, 1]
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(6), sizes))
    held_out = long_tail.hold_out(labels, fraction)
    tested = np.bincount(labels[held_out], minlength=6)
    for count, size in zip(tested.tolist(), sizes, strict=True):
        if size == 1:
            assert count == 0, "the only one stays labeled"
        else:
            assert 1 <= count < size
            assert abs(count - fraction * size) <= max(1, 0.5)
    np.testing.assert_array_equal(held_out, long_tail.hold_out(labels, fraction))
    # Classes have permutations of their own, and not the first examples of each.
    rows = [np.flatnonzero(held_out[labels == label]).tolist() for label in (0, 1)]
    assert rows[0] != list(range(len(rows[0])))
