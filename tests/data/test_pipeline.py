import itertools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from crest_jax.data import pipeline
from crest_jax.data.records import Encoded, Images
from crest_jax.data.views import View
from crest_jax.rebalancing import resampling


def numbered(examples, first=0):
    """A split whose every image says which row it is: its two bytes are the number."""
    numbers = np.arange(first, first + examples)
    images = np.stack([numbers // 256, numbers % 256], axis=-1).astype(np.uint8)
    return Images(
        [str(number) for number in numbers], images[:, None, None, :], numbers.astype(np.int32)
    )


def numbers_of(images):
    """Return the rows that images of `numbered` stand for."""
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]


def stream(labeled=10, unlabeled=23, **changes):
    """The batches of a small training; 4 labeled and 12 unlabeled images each."""
    options = {"batch_size": 4, "unlabeled_ratio": 3, "seed": 5, "generation": 0, "start": 0}
    return list(pipeline.batches(numbered(labeled), numbered(unlabeled), **{**options, **changes}))


def rows(batches, field="labeled"):
    """Return everything that a stream has yielded, in order."""
    return np.concatenate([numbers_of(getattr(batch, field)) for batch in batches])


def epochs(batches, examples, field="labeled"):
    """The complete epochs of a stream, a row each."""
    seen = rows(batches, field)
    return seen[: len(seen) // examples * examples].reshape(-1, examples)


def labeled_epochs(examples, count, **changes):
    """Epochs of the labeled stream, one of them a step."""
    return epochs(
        stream(examples, 1, batch_size=examples, unlabeled_ratio=1, stop=count, **changes),
        examples,
    )


def assert_same(ours, others):
    assert len(ours) == len(others) > 0
    for one, other in zip(ours, others, strict=True):
        for field, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, expected)


# What is in a batch


def test_images_arrive_as_they_are_with_their_labels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 5, 2), dtype=np.uint8)
    labeled = Images(list("abcdef"), images, np.array([3, 1, 4, 1, 5, 9], np.int32))
    batches = pipeline.batches(
        labeled, labeled, batch_size=6, unlabeled_ratio=2, seed=0, generation=0, start=0, stop=2
    )
    label_of = {image.tobytes(): label for image, label in zip(images, labeled.labels, strict=True)}
    assert len(label_of) == 6
    for batch in batches:
        assert batch.labeled.dtype == batch.unlabeled.dtype == np.uint8
        assert batch.labeled.shape == (6, 3, 5, 2)
        assert batch.unlabeled.shape == (12, 3, 5, 2)
        assert [label_of[image.tobytes()] for image in batch.labeled] == batch.labels.tolist()
        assert {image.tobytes() for image in batch.unlabeled} == label_of.keys()


def test_there_is_a_batch_for_each_step_from_start_to_before_stop():
    assert len(stream(start=0, stop=7)) == 7
    assert len(stream(start=5, stop=7)) == 2
    assert stream(start=7, stop=7) == []


@pytest.mark.parametrize(
    ("field", "examples", "stop"), [("labeled", 10, 25), ("unlabeled", 23, 23)]
)
def test_every_epoch_of_each_stream_is_a_permutation_of_all_examples(field, examples, stop):
    batches = stream(stop=stop)
    permutations = epochs(batches, examples, field)
    assert len(permutations) == stop * (4 if field == "labeled" else 12) // examples
    expected = np.broadcast_to(np.arange(examples), permutations.shape)
    np.testing.assert_array_equal(np.sort(permutations, axis=1), expected)


def test_a_set_smaller_than_a_batch_is_repeated_until_it_fills_one():
    (batch,) = stream(labeled=3, unlabeled=5, batch_size=8, unlabeled_ratio=2, stop=1)
    # 8 = 3 + 3 + 2 and 16 = 5 + 5 + 5 + 1: as evenly as can be.
    assert sorted(np.bincount(numbers_of(batch.labeled), minlength=3)) == [2, 3, 3]
    assert sorted(np.bincount(numbers_of(batch.unlabeled), minlength=5)) == [3, 3, 3, 3, 4]


def test_a_set_of_one_is_that_one_every_time():
    batches = stream(labeled=1, unlabeled=1, stop=3)
    assert not rows(batches).any()
    assert not rows(batches, "unlabeled").any()


# Orders


@pytest.mark.parametrize(("field", "examples"), [("labeled", 10), ("unlabeled", 23)])
def test_no_two_of_the_first_epochs_have_the_same_order(field, examples):
    permutations = epochs(stream(stop=50), examples, field)
    assert len(np.unique(permutations, axis=0)) == len(permutations) > 10


def test_labeled_and_unlabeled_streams_have_orders_of_their_own():
    batches = stream(labeled=20, unlabeled=20, batch_size=20, unlabeled_ratio=1, stop=5)
    for batch in batches:
        assert (numbers_of(batch.labeled) != numbers_of(batch.unlabeled)).any()


def test_each_seed_and_generation_and_stream_has_an_order_of_its_own():
    orders = {}
    for seed, generation in itertools.product(range(2), range(6)):
        (batch,) = stream(
            20, 20, batch_size=20, unlabeled_ratio=1, seed=seed, generation=generation, stop=1
        )
        orders[seed, generation, "labeled"] = tuple(numbers_of(batch.labeled))
        orders[seed, generation, "unlabeled"] = tuple(numbers_of(batch.unlabeled))
    assert len(set(orders.values())) == len(orders) == 24


def test_the_same_seed_gives_the_same_batches():
    assert_same(stream(stop=10), stream(stop=10))


# Starting anywhere


@pytest.mark.parametrize(("labeled", "unlabeled"), [(10, 23), (4, 12), (3, 5), (1, 1)], ids=str)
def test_starting_at_a_step_gives_the_batches_of_an_uninterrupted_run(labeled, unlabeled):
    whole = stream(labeled, unlabeled, stop=30)
    for start in (1, 13, 29):
        assert_same(stream(labeled, unlabeled, start=start, stop=30), whole[start:])


def test_starting_after_hundreds_of_epochs_gives_the_batches_of_an_uninterrupted_run():
    # Three labeled images, four to a batch: step 500 is in epoch 666.
    whole = stream(3, 7, stop=503)
    assert_same(stream(3, 7, start=500, stop=503), whole[500:])


def test_a_late_start_falls_into_the_middle_of_its_epoch():
    # Of 10 labeled images, 4 to a batch, 3 600 000 have been seen at step 900 000: an epoch
    # begins; and of 23 unlabeled ones, 12 to a batch, 10 800 000: 5 into epoch 469 565.
    before = stream(start=899_990, stop=900_010)
    batches = stream(start=900_000, stop=900_010)
    assert_same(batches, before[10:])
    assert sorted(rows(batches)[:10]) == list(range(10))
    unlabeled = rows(batches, "unlabeled")
    assert sorted(unlabeled[18 : 18 + 23]) == list(range(23))
    assert sorted(rows(before, "unlabeled")[120 - 5 : 120 + 18]) == list(range(23))


# Several hosts


@pytest.mark.parametrize("processes", [2, 4])
def test_the_parts_of_all_processes_are_the_batch_of_one(processes):
    whole = stream(stop=9)
    parts = [stream(stop=9, process=process, processes=processes) for process in range(processes)]
    assert len(parts[0][0].labeled) == 4 // processes
    joined = [
        pipeline.Batch(*map(np.concatenate, zip(*step, strict=True)))
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


# What the unlabeled part says of itself


def test_a_batch_knows_which_unlabeled_examples_it_holds():
    whole = stream(stop=9)
    for batch in whole:
        np.testing.assert_array_equal(batch.unlabeled_rows, numbers_of(batch.unlabeled))


def test_without_unlabeled_examples_the_labeled_ones_are_the_same():
    with_them = stream(stop=9)
    without = stream(stop=9, unlabeled_ratio=0)
    assert len(without) == 9
    for batch, other in zip(without, with_them, strict=True):
        np.testing.assert_array_equal(batch.labeled, other.labeled)
        assert batch.unlabeled.shape == (0, 1, 1, 2)
        assert batch.unlabeled_rows.shape == (0,)
    assert_same(stream(start=5, stop=9, unlabeled_ratio=0), without[5:])


# Resampling


SKEWED = np.array([0.05] * 8 + [0.3, 0.3])


def resampled(**changes):
    return stream(labeled_probabilities=SKEWED, **changes)


def test_classes_are_drawn_equally_often_over_100_000_draws():
    """This holds for each class, and for each example of a class."""
    sizes = [300, 120, 60, 15, 5]
    labels = np.repeat(np.arange(5), sizes)
    labeled = numbered(500)._replace(labels=labels.astype(np.int32))
    batches = pipeline.batches(
        labeled, numbered(1), batch_size=1000, unlabeled_ratio=0, seed=0, generation=0, start=0,
        stop=100,
        labeled_probabilities=resampling.sampling_probabilities(labels, tuple("abcde")),
    )  # fmt: skip
    drawn, classes = [], []
    for batch in batches:
        drawn.append(numbers_of(batch.labeled))
        classes.append(batch.labels)
    drawn, classes = np.concatenate(drawn), np.concatenate(classes)
    np.testing.assert_array_equal(classes, labels[drawn])
    assert len(drawn) == 100_000
    by_class = np.bincount(classes)
    assert scipy.stats.chisquare(by_class).pvalue > 0.001
    by_example = np.bincount(drawn, minlength=500)
    assert scipy.stats.chisquare(by_example, 20_000 / np.repeat(sizes, sizes)).pvalue > 0.001
    # The test would notice the plain stream.
    assert scipy.stats.chisquare(np.bincount(np.tile(labels, 200))).pvalue < 1e-9


def test_draws_follow_their_probabilities_and_those_of_0_never_happen():
    probabilities = np.array([0.5, 0.0, 0.25, 0.25, 0.0])
    batches = stream(5, 1, batch_size=500, unlabeled_ratio=1, stop=20,
                     labeled_probabilities=probabilities)  # fmt: skip
    counts = np.bincount(rows(batches), minlength=5)
    assert counts[1] == counts[4] == 0
    assert scipy.stats.chisquare(counts[[0, 2, 3]], [5000, 2500, 2500]).pvalue > 0.001


def test_resampled_batches_can_start_anywhere():
    whole = resampled(stop=30)
    assert_same(resampled(stop=30), whole)
    for start in (1, 13, 29):
        assert_same(resampled(start=start, stop=30), whole[start:])


def test_resampling_leaves_the_unlabeled_stream_alone():
    for batch, plain in zip(resampled(stop=5), stream(stop=5), strict=True):
        np.testing.assert_array_equal(batch.unlabeled, plain.unlabeled)


def test_draws_depend_on_seed_generation_and_step():
    orders = {
        tuple(rows(resampled(batch_size=20, seed=seed, generation=generation, start=s, stop=s + 1)))
        for seed, generation, s in itertools.product(range(2), repeat=3)
    }
    assert len(orders) == 8


def test_the_parts_of_all_processes_are_the_resampled_batch_of_one():
    parts = [resampled(stop=4, process=process, processes=2) for process in range(2)]
    for batch, first, second in zip(resampled(stop=4), *parts, strict=True):
        np.testing.assert_array_equal(
            batch.labeled, np.concatenate([first.labeled, second.labeled])
        )


# How random the shuffle is


def chi_square(permutations):
    """Return the p-value of a test whether every example is at every position equally often.

    Rows and columns of the table of counts add up to the number of permutations each, which
    leaves (n - 1)^2 degrees of freedom.
    """
    count, n = permutations.shape
    table = np.stack([np.bincount(column, minlength=n) for column in permutations.T])
    statistic = ((table - count / n) ** 2 / (count / n)).sum() * (n - 1) / n
    return scipy.stats.chi2.sf(statistic, (n - 1) ** 2)


def test_the_check_tells_a_shuffle_from_a_rotation_and_from_few_orders():
    rng = np.random.default_rng(0)
    fair = np.stack([rng.permutation(10) for _ in range(200)])
    assert 0.001 < chi_square(fair) < 0.999
    assert chi_square(np.tile(fair[:20], (10, 1))) < 1e-6
    rotated = (np.arange(10) + np.arange(200)[:, None]) % 10
    assert chi_square(rotated) > 0.999, "too regular to be random"


def test_each_example_is_at_each_position_equally_often():
    pvalues = [chi_square(labeled_epochs(10, 200, seed=seed)) for seed in range(5)]
    # p-values of a fair shuffle are uniform in [0, 1].
    assert scipy.stats.kstest(pvalues, "uniform").pvalue > 0.001


def test_the_first_epoch_of_seed_0_is_not_nearly_the_stored_order():
    # Every run with the default seed begins with it. A permutation leaves one example in its
    # place on average; a Poisson variable of mean 6 is above 20 once in a million times.
    in_place = sum(
        np.count_nonzero(labeled_epochs(50, 1, seed=0, generation=generation) == np.arange(50))
        for generation in range(6)
    )
    assert in_place < 20


def test_orders_of_a_thousand_epochs_are_fair_and_do_not_repeat():
    # Training takes 3371 epochs of CIFAR10-LT's labeled set in 2^16 steps.
    permutations = labeled_epochs(50, 1000)
    assert len(np.unique(permutations, axis=0)) == 1000
    assert chi_square(permutations) > 0.001


@pytest.mark.parametrize("distance", [256, 65536])
def test_seeds_far_apart_have_orders_of_their_own(distance):
    near, far = (labeled_epochs(50, 1, seed=seed) for seed in (1, 1 + distance))
    assert (near != far).any()


def test_batches_hold_as_varied_a_share_of_a_class_as_draws_would():
    examples = 12_406
    # Of a set whose first 40 % are one class.
    batch_size, steps = 64, 1000
    batches = pipeline.batches(
        numbered(examples), numbered(1), batch_size=batch_size, unlabeled_ratio=1,
        seed=0, generation=0, start=0, stop=steps,
    )  # fmt: skip
    majority = int(0.4 * examples)
    counts = [np.count_nonzero(batch.labels < majority) for batch in batches]
    expected = scipy.stats.hypergeom(examples, majority, batch_size).var()
    # The variance of n draws' sample variance is about 2 / n of it.
    assert np.var(counts) / expected == pytest.approx(1, abs=5 * np.sqrt(2 / steps))


# Random crops


def gradients(examples):
    """Encoded images in which red says where a pixel is, and blue which image it is of."""
    images = []
    for number in range(examples):
        pixels = np.full((40, 60, 3), number, np.uint8)
        pixels[..., 0] = 4 * np.arange(60)
        images.append(tf.io.encode_png(pixels).numpy())
    names = [str(number) for number in range(examples)]
    return Encoded(names, images, np.arange(examples, dtype=np.int32), View(8, "random"))


def crops(**changes):
    options = {"batch_size": 4, "unlabeled_ratio": 3, "seed": 5, "generation": 0, "start": 0}
    return list(pipeline.batches(gradients(6), gradients(9), **{**options, **changes}))


def test_every_look_at_an_image_is_another_crop_of_it():
    found = crops(stop=9)
    for field, examples in (("labeled", 6), ("unlabeled", 9)):
        images = np.concatenate([getattr(batch, field) for batch in found])
        assert images.shape[1:] == (8, 8, 3)
        columns = np.unique(images[:, 0, :, 0], axis=0)
        assert len(columns) > 0.9 * len(images), "few are of the same columns"
        numbers = images[: len(images) // examples * examples, 0, 0, 2].reshape(-1, examples)
        for epoch in numbers:
            assert sorted(epoch) == list(range(examples))
    labels = np.concatenate([batch.labels for batch in found])
    assert labels.tolist() == [image[0, 0, 2] for batch in found for image in batch.labeled]


def test_crops_of_grey_images_are_grey():
    grey = tf.io.encode_png(np.full((20, 30, 1), 9, np.uint8)).numpy()
    split = Encoded(["a"], [grey], np.zeros(1, np.int32), View(8, "random", channels=1))
    options = {"batch_size": 2, "unlabeled_ratio": 1, "seed": 5, "generation": 0}
    (batch,) = pipeline.batches(split, split, start=0, stop=1, **options)
    assert batch.labeled.shape == batch.unlabeled.shape == (2, 8, 8, 1)
    assert (batch.labeled == 9).all()


def test_crops_do_not_depend_on_where_a_stream_starts_or_how_many_hosts_share_it():
    whole = crops(stop=6)
    assert_same(crops(start=4, stop=6), whole[4:])
    hosts = [crops(stop=6, process=host, processes=2) for host in range(2)]
    shared = [
        pipeline.Batch(*map(np.concatenate, zip(*batches, strict=True)))
        for batches in zip(*hosts, strict=True)
    ]
    assert_same(shared, whole)
