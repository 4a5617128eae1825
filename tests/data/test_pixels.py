"""Pixels that are decoded without TensorFlow: they are those with it, bit for bit."""

import io
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from crest_jax.data import decode, loading, pixels, resize, sixteen_bits, writer
from crest_jax.data.records import ImageChunks, joined
from crest_jax.data.sources import Example
from crest_jax.data.views import AS_STORED, View
from crest_jax.errors import DataError

SIZES = [(1, 1), (2, 3), (3, 2), (5, 1), (16, 16), (17, 31), (40, 33), (75, 64)]


def noise(height, width, channels=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng([seed, height, width])
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)


def smooth(height, width, channels=3):
    """Noise enlarged: it has edges, and values of which a JPEG keeps most."""
    small = noise(height // 6 + 1, width // 6 + 1, channels)
    planes = [Image.fromarray(plane).resize((width, height)) for plane in small.transpose(2, 0, 1)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def encoded(image, kind, mode=None, **options):
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    file = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(file, kind, **options)
    return file.getvalue()


def by_tensorflow(image, channels):
    return tf.io.decode_image(image, channels=channels, expand_animations=False).numpy()


def test_resizing_is_that_of_tensorflow():
    rng = np.random.default_rng(0)
    for _ in range(100):
        (height, width), (new_height, new_width) = rng.integers(1, 120, (2, 2)).tolist()
        image = noise(height, width, int(rng.choice([1, 3])))
        expected = tf.image.resize(image, (new_height, new_width), antialias=True)
        expected = tf.cast(tf.round(tf.clip_by_value(expected, 0, 255)), tf.uint8)
        np.testing.assert_array_equal(resize.resized(image, new_height, new_width), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", ["none", "central", "random"])
def test_evaluations_see_the_same_either_way(size, channels, crop):
    view = View(12, crop, channels)
    for kind in ("PNG", "JPEG"):
        image = encoded(smooth(*size, channels), kind)
        np.testing.assert_array_equal(
            pixels.decode_for_evaluation(image, view),
            decode.decode_for_evaluation(image, view).numpy(),
        )


@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_a_jpeg_is_decoded_as_by_tensorflow(subsampling, progressive, channels):
    for quality in (30, 75, 95):
        for size in SIZES:
            options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
            image = encoded(smooth(*size), "JPEG", **options)
            np.testing.assert_array_equal(
                pixels.decoded(image, channels), by_tensorflow(image, channels)
            )


def with_tall_chroma(jpeg):
    """Return a JPEG of chroma that is half as wide as one of chroma that is half as high."""
    return jpeg.replace(b"\x01\x21\x00\x02\x11", b"\x01\x12\x00\x02\x11")


def test_a_jpeg_of_chroma_half_as_high_is_decoded_as_by_tensorflow():
    for side in (16, 32, 48):  # such that the blocks are as many either way
        image = with_tall_chroma(encoded(smooth(side, side), "JPEG", subsampling="4:2:2"))
        np.testing.assert_array_equal(pixels.decoded(image), by_tensorflow(image, 0))


@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"keep_rgb": True}),
        ("PNG", "1", {}),
        ("PNG", "L", {}),
        ("PNG", "L", {"transparency": 7}),
        ("PNG", "LA", {}),
        ("PNG", "P", {}),
        ("PNG", "P", {"transparency": 7}),
        ("PNG", "RGB", {}),
        ("PNG", "RGB", {"transparency": (1, 2, 3)}),
        ("PNG", "RGBA", {}),
    ],
)
def test_other_images_are_decoded_as_by_tensorflow(kind, mode, options, channels):
    for size in SIZES:
        image = encoded(smooth(*size), kind, mode, **options)
        np.testing.assert_array_equal(
            pixels.decoded(image, channels), by_tensorflow(image, channels)
        )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_16_bits_the_upper_8_are_kept_as_by_tensorflow(channels):
    image = tf.io.encode_png(noise(9, 7, channels, np.uint16)).numpy()
    np.testing.assert_array_equal(pixels.decoded(image, 3), by_tensorflow(image, 3))


def test_grey_of_a_colour_picture_is_pillows():
    image = smooth(9, 7)
    found = pixels.decoded(encoded(image, "PNG"), 1)
    np.testing.assert_array_equal(found[..., 0], np.asarray(Image.fromarray(image).convert("L")))


# 16-bit pictures


def deep_samples(png):
    with Image.open(io.BytesIO(png)) as image:
        return sixteen_bits._deep(image, png).samples


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_16_bits_of_a_png_are_read(channels):
    samples = noise(9, 7, channels, np.uint16)
    np.testing.assert_array_equal(deep_samples(tf.io.encode_png(samples).numpy()), samples)


@pytest.mark.parametrize(("channels", "kept"), [(1, (0, 3)), (3, (0, 1, 2, 3))])
def test_the_transparent_colour_of_16_bits_is_that_of_tensorflow(channels, kept):
    samples = noise(9, 7, channels, np.uint16)
    png = tf.io.encode_png(samples).numpy()
    key = samples[4, 3].astype(">u2").tobytes()
    chunk = b"tRNS" + key
    crc = zlib.crc32(chunk).to_bytes(4, "big")
    png = png[:33] + len(key).to_bytes(4, "big") + chunk + crc + png[33:]
    expected = tf.io.decode_png(png, channels=4, dtype=tf.uint16).numpy()[..., kept]
    assert (expected[..., -1] == 0).any()
    np.testing.assert_array_equal(deep_samples(png), expected)


# Records


@pytest.mark.parametrize("view", [AS_STORED, View(6, "none", 1), View(4, "central", 3)])
def test_parts_of_records_are_what_evaluations_load(tmp_path, view):
    examples = [
        Example(f"é{number}", encoded(noise(8, 9, 1, seed=number), "PNG"), number % 3)
        for number in range(10)
    ]
    writer.write(tmp_path / "test", examples, class_names=("a", "b", "c"), shards=3)
    loaded = loading.load_images(tmp_path / "test", view)
    parts = ImageChunks(tmp_path / "test", view=view, size=4)
    for _ in range(2):  # they can be read again
        assert [len(part.ids) for part in parts] == [4, 4, 2]
        whole = joined(list(parts))
        assert whole.ids == loaded.ids
        np.testing.assert_array_equal(whole.images, loaded.images)
        np.testing.assert_array_equal(whole.labels, loaded.labels)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (encoded(noise(4, 4), "PNG")[:-30], "image b cannot be decoded"),
        (encoded(noise(4, 5), "PNG"), r"differ in shape: \(4, 4, 3\) and \(4, 5, 3\)"),
    ],
)
def test_parts_of_records_that_cannot_be_used_say_why(tmp_path, second, said):
    examples = [Example("a", encoded(noise(4, 4), "PNG"), 0), Example("b", second, 0)]
    writer.write(tmp_path / "test", examples, class_names=("a",), shards=1)
    with pytest.raises(DataError, match=said):
        list(ImageChunks(tmp_path / "test", view=AS_STORED, size=2))
