import logging

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.datasets import load_digits

from crest_jax.data import catalog, digits, loading, preparation
from crest_jax.data.provenance import File
from crest_jax.errors import DataError

# Digits has at least 110 training images of each class.
DARP = {
    "n_max": 30,
    "gamma": 10.0,
    "unlabeled_n_max": 60,
    "unlabeled_gamma": 20.0,
    "unlabeled_order": "same",
    "split": "random",
}


@pytest.fixture
def prepared(tiny_config, tmp_path):
    """Writes and reads splits of the digits with another `long_tail`."""

    def prepare(long_tail, name="splits", **overrides):
        config = tiny_config("gamma=10,beta=0.2", **overrides)
        if long_tail:
            config.long_tail = ConfigDict(long_tail)
        preparation.prepare(config, tmp_path / name, tmp_path / "unreadable.csv")
        return loading.load(config.data, tmp_path / name)

    return prepare


def sizes(largest, gamma, classes=10):
    """Return N_1 gamma^(-(l-1)/(L-1)) for each class."""
    return [int(largest * gamma ** (-label / (classes - 1)) + 1e-9) for label in range(classes)]


def counts(split):
    found = np.bincount(split.images.labels, minlength=10).tolist()
    assert split.per_class.tolist() == found
    assert split.examples == len(split.images.ids)
    return found


def test_a_fraction_of_one_long_tail_is_labeled(prepared):
    data = prepared({"n_max": 100, "gamma": 10.0, "beta": 0.2, "split": "random"})
    both = np.add(counts(data.labeled), counts(data.unlabeled))
    assert both.tolist() == sizes(100, 10)
    np.testing.assert_allclose(counts(data.labeled), 0.2 * both, atol=1)
    np.testing.assert_allclose(
        data.labeled_distribution, data.labeled.per_class / data.labeled.examples
    )
    assert data.class_names == tuple("0123456789")


@pytest.mark.parametrize(("order", "step"), [("same", 1), ("reversed", -1)])
def test_labeled_and_unlabeled_sets_have_sizes_of_their_own(prepared, order, step):
    data = prepared({**DARP, "unlabeled_order": order})
    assert counts(data.labeled) == sizes(30, 10)
    assert counts(data.unlabeled) == sizes(60, 20)[::step]
    assert not set(data.labeled.images.ids) & set(data.unlabeled.images.ids)
    assert counts(data.test) == [50] * 10  # as it is


def test_an_unlabeled_set_may_be_uniform(prepared):
    data = prepared({**DARP, "unlabeled_gamma": 1.0})
    assert counts(data.unlabeled) == [60] * 10


def test_validation_is_cut_from_the_labels(prepared):
    plain = prepared(DARP)
    cut = prepared(DARP, "cut", **{"data.validation_fraction": 0.4})
    assert set(cut.labeled.images.ids) | set(cut.validation.images.ids) == set(
        plain.labeled.images.ids
    )
    assert not set(cut.labeled.images.ids) & set(cut.validation.images.ids)
    assert cut.unlabeled.images.ids == plain.unlabeled.images.ids


def test_more_than_there_is_of_a_class_is_refused(prepared):
    with pytest.raises(DataError, match=r"class '0' has \d+ training examples, .* unlabeled_n_max"):
        prepared({**DARP, "unlabeled_n_max": 200})


def test_a_tail_that_is_there_by_nature_is_only_labeled(prepared):
    """As for ImageNet127, all images of a class are kept, and a part of them is labeled."""
    data = prepared({"beta": 0.1, "split": "random"})
    both = np.add(counts(data.labeled), counts(data.unlabeled))
    train = np.bincount(load_digits().target) - 50
    assert both.tolist() == train.tolist()
    assert counts(data.labeled) == np.ceil(0.1 * train).astype(int).tolist()


RESIZED = {"data.image_size": 12}


@pytest.mark.parametrize("crop", ["none", "central", "random"])
def test_grey_images_are_resized_and_stay_grey(prepared, crop):
    data = prepared(DARP, **RESIZED, **{"data.crop": crop})
    streamed = prepared(DARP, **RESIZED, **{"data.crop": crop, "data.stream": True})
    assert data.image_shape == streamed.image_shape == (12, 12, 1)
    assert data.test.images.images.shape == (500, 12, 12, 1)
    np.testing.assert_array_equal(streamed.test.images.images, data.test.images.images)


def test_streamed_parts_are_what_would_be_in_memory(prepared, monkeypatch):
    whole = prepared(DARP, "whole")
    monkeypatch.setattr(loading, "CHUNK", 64)
    streamed = prepared(DARP, "streamed", **{"data.stream": True})
    assert [len(chunk.ids) for chunk in streamed.test.chunks] == [64] * 7 + [52]
    for name in ("labeled", "unlabeled", "test"):
        expected = getattr(whole, name)
        for _ in range(2):  # read anew each time
            found = getattr(streamed, name).images
            assert found.ids == expected.images.ids
            np.testing.assert_array_equal(found.images, expected.images.images)
            np.testing.assert_array_equal(found.labels, expected.images.labels)


def test_splits_begun_with_another_data_set_are_not_ended_with_this_one(
    prepared, tmp_path, monkeypatch
):
    """Else an image that is tested on could be labeled, too."""
    before = prepared(None)
    (tmp_path / "splits" / "labeled" / "manifest.json").unlink()
    digits = catalog.load("digits")

    def changed(*_, **__):  # an image more is tested on
        labels = {"train": digits.labels("train")[:-1], "test": digits.labels("test")}
        return digits._replace(labels=lambda split: labels[split])

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "load", changed)
        with pytest.raises(
            DataError, match=r"splits of other digits data than there is now: restore"
        ):
            prepared(None)
    assert prepared(None).labeled.images.ids == before.labeled.images.ids


def test_ones_own_files_are_part_of_what_splits_are_made_of(prepared, tmp_path, monkeypatch):
    prepared(None)
    (tmp_path / "splits" / "test" / "manifest.json").unlink()
    source = catalog.load("digits")
    monkeypatch.setattr(
        catalog,
        "load",
        lambda *_, **__: source._replace(files=[File("a.png", "0", 1, 2, "others")]),
    )
    with pytest.raises(DataError, match="splits of other digits data"):
        prepared(None)


def test_the_first_images_of_each_class_are_labeled_whatever_the_fold(prepared):
    first = prepared({**DARP, "split": "first"})
    again = prepared({**DARP, "split": "first"}, "again", fold=3)
    drawn = prepared(DARP, "drawn", fold=3)
    source = catalog.load("digits")
    in_order = [example.id for example in source.examples("train") if example.label == 0]
    zeros = {
        name: [i for i, label in zip(split.ids, split.labels, strict=True) if label == 0]
        for name, split in (("labeled", first.labeled.images), ("rest", first.unlabeled.images))
    }
    assert zeros == {"labeled": in_order[:30], "rest": in_order[30:90]}
    assert again.labeled.images.ids == first.labeled.images.ids
    assert drawn.labeled.images.ids != first.labeled.images.ids


def test_the_first_images_are_not_known_without_an_order(prepared, monkeypatch):
    unordered = digits.digits()._replace(order=None)
    monkeypatch.setitem(digits.BUNDLED, "digits", lambda: unordered)
    with pytest.raises(DataError, match=r"first images of digits .* --config.long_tail.split=rand"):
        prepared({**DARP, "split": "first"})


def test_classes_that_are_not_tested_are_said(prepared, monkeypatch, caplog):
    source = digits.digits()
    labels = {"train": source.labels("train"), "test": source.labels("test") % 8}

    def examples(split):
        for example in source.examples(split):
            yield example._replace(label=example.label % 8 if split == "test" else example.label)

    lacking = source._replace(labels=labels.get, examples=examples)
    monkeypatch.setitem(digits.BUNDLED, "digits", lambda: lacking)
    with caplog.at_level(logging.WARNING, "absl"):
        prepared(DARP)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "there is no test image of 8, 9: the accuracy is that of the other classes"
