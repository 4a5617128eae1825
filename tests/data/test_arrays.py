import io

import numpy as np
import pytest
from PIL import Image

import crest_jax
from crest_jax.config import default_config, parse_arguments
from crest_jax.data import catalog, sources
from crest_jax.data.arrays import arrays, with_arrays
from crest_jax.errors import DataError
from crest_jax.validation import validate


def images_of(count, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 5, channels)).astype(np.uint8)


LABELS = np.array([0, 1, 2, 1, 0, 2, 1, 2, 0, 1])


def decoded(example):
    pixels = np.array(Image.open(io.BytesIO(example.image)))
    return pixels if pixels.ndim == 3 else pixels[..., None]


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_a_data_set_with_every_pixel(channels):
    images, test = images_of(10, channels), images_of(4, channels, seed=1)
    more = images_of(6, channels, seed=2)
    source = arrays(images, LABELS, unlabeled=more, test=(test, [2, 0, 1, 1]), class_names="abc")
    assert source.class_names == ("a", "b", "c")
    assert (source.channels, source.divided) == (channels, True)
    for split, expected in (("train", images), ("test", test), ("unlabeled", more)):
        found = list(source.examples(split))
        np.testing.assert_array_equal([decoded(each) for each in found], expected)
        assert [each.label for each in found] == source.labels(split).tolist()
    assert set(source.labels("unlabeled")) == {sources.UNKNOWN}
    assert len({each.id for split in ("train", "test") for each in source.examples(split)}) == 14


def test_grey_images_may_lack_the_axis_of_channels():
    grey = images_of(10, 1)
    assert arrays(grey[..., 0], LABELS).name == arrays(grey, LABELS).name


def test_without_a_test_set_a_part_of_each_class_is_held_out():
    labels = np.arange(40) % 4
    images = images_of(40)
    source = arrays(images, labels, unlabeled=images_of(3, seed=2), test_fraction=0.3)
    assert np.bincount(source.labels("test")).tolist() == [3] * 4
    assert np.bincount(source.labels("train")).tolist() == [7] * 4
    found = [decoded(each).tobytes() for split in ("train", "test") for each in
             source.examples(split)]  # fmt: skip
    assert sorted(found) == sorted(image.tobytes() for image in images)
    assert len(list(source.examples("unlabeled"))) == 3
    assert source.test_is_held_out


def test_other_arrays_have_another_name():
    images = images_of(10)
    changed = images.copy()
    changed[3, 1, 1, 1] ^= 1
    names = {
        arrays(images, LABELS).name,
        arrays(changed, LABELS).name,
        arrays(images, LABELS[::-1]).name,
        arrays(images, LABELS, unlabeled=images).name,
        arrays(images, LABELS, class_names="abc").name,
        arrays(images, LABELS, test_fraction=0.4).name,
    }
    assert len(names) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": images_of(10).astype(float)}, "images of type float64 and shape"),
        ({"images": images_of(10, 2)}, r"shape \[10, 4, 5, 2\] must be uint8"),
        ({"images": [images_of(1)[0], images_of(1)[0, :2]]}, "images cannot be put into one array"),
        ({"images": images_of(9)}, "labels of .* one for each of the 9 images"),
        ({"labels": LABELS.astype(float)}, "labels of type float64"),
        ({"labels": LABELS - 1}, "whole numbers of at least 0"),
        ({"labels": LABELS * 2}, "an image of every class from 0 on; class 1 has none"),
        ({"labels": np.zeros(0, int), "images": images_of(0)}, "an image of every class"),
        ({"unlabeled": images_of(3, 1)}, "must all be grey, or all RGB"),
        ({"test": (images_of(2), [0, 3])}, "test labels go up to 3, but"),
        ({"class_names": ["a", "b"]}, r"class_names=\['a', 'b'\] must be 3 different names"),
        ({"class_names": ["a", "b", "a"]}, "must be 3 different names"),
        ({"labels": LABELS * 10**13}, "labels go up to 20000000000000, but there are 10 images"),
        ({"labels": np.arange(10)}, "no class has more than one image, so none can be held"),
        ({"class_names": ["a", "b", "c\x1b"]}, "without control characters"),
        ({"unlabeled": images_of(0)}, "unlabeled has no images"),
        ({"test": (images_of(0), np.zeros(0, int))}, "test has no images"),
        ({"test_fraction": 1.0}, r"test_fraction=1\.0 must be a number in \(0, 1\)"),
        ({"test_fraction": "a"}, r"test_fraction='a' must be a number in \(0, 1\)"),
        ({"test": 5}, "test=5 must be a pair of images and labels"),
        ({"test": images_of(2)}, "test=array.* must be a pair of images and labels"),
        ({"class_names": 5}, "class_names=5 must be 3 different names"),
        ({"images": "a.png"}, r"images of type <U5 and shape \[\] must be uint8"),
    ],
)
def test_what_is_no_data_set_is_refused(monkeypatch, changes, message):
    monkeypatch.setattr(arrays, "__no_type_check__", True, raising=False)
    given = {"images": images_of(10), "labels": LABELS} | changes
    with pytest.raises(DataError, match=message):
        arrays(**given)


def test_a_config_takes_its_data_from_arrays():
    config = default_config(parse_arguments("rebalance=crest"))
    labeled = arrays(images_of(10), LABELS)
    changed = with_arrays(config, labeled)
    assert (changed.data.name, changed.data.test_split) == (labeled.name, "")
    assert changed.long_tail == config.long_tail
    divided = with_arrays(
        config, arrays(images_of(10), LABELS, unlabeled=images_of(3), test=(images_of(1), [0]))
    )
    assert divided.data.test_split == "test"
    assert divided.long_tail.to_dict() == {"beta": 1.0, "split": "random"}
    for each in (changed, divided):
        validate(each)
    assert config.data.name == "cifar10"  # which is as it was


def test_arrays_are_asked_for_again():
    with pytest.raises(DataError, match="were given as arrays: give them to crest_jax"):
        catalog.load("arrays-0123456789abcdef")


def test_a_run_of_arrays_continues_with_these_alone(tiny_config, tmp_path):
    labels = np.arange(60) % 4
    images = images_of(60)[..., :1]
    config = tiny_config("rebalance=crest")
    data = {"unlabeled": images_of(40, 1, seed=3), "test": (images[:8], labels[:8])}
    run = crest_jax.train(config, tmp_path / "run", data=arrays(images, labels, **data))
    assert run.results["splits"]["unlabeled"] == {"images": 40, "per_class": None}
    assert run.results["generations"][0]["labeled_per_class"] == [15] * 4
    again = crest_jax.train(config, tmp_path / "run", data=arrays(images, labels, **data))
    assert again.results == run.results
    with pytest.raises(crest_jax.WorkdirError, match=r"another config:\n  data\.name"):
        crest_jax.train(config, tmp_path / "run", data=arrays(images ^ 1, labels, **data))
