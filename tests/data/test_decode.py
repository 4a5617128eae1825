import io
import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import load_experiment
from PIL import Image

from crest_jax.data import decode, pixels, views
from crest_jax.errors import ConfigError
from crest_jax.validation import validate


def encoded(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def smooth(height, width):
    """An image in which every pixel tells where it is, and a neighbour little else."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 0 * x + 90], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("height", "width"), [(64, 48), (48, 100), (40, 40)])
def test_the_central_square_is_that_of_pillow(kind, height, width):
    image = encoded(smooth(height, width), kind)
    side = round(0.875 * min(height, width))
    left, top = (width - side) // 2, (height - side) // 2
    stored = Image.open(io.BytesIO(image))
    expected = stored.crop((left, top, left + side, top + side)).resize(
        (20, 20), Image.Resampling.BILINEAR
    )
    # Pillow resizes with fixed-point weights; TensorFlow's way with a JPEG is the faster one.
    found = decode.central(image, 20).numpy()
    assert found.dtype == np.uint8
    np.testing.assert_allclose(
        found.astype(int), np.asarray(expected), atol=5 if kind == "JPEG" else 1
    )


def test_grey_images_are_in_colour_afterwards():
    grey = np.full((30, 30), 77, np.uint8)
    for kind in ("PNG", "JPEG"):
        assert (decode.central(encoded(grey, kind), 8).numpy() == 77).all()
        crop = decode.random_resized_crop(encoded(grey, kind), 8, tf.constant([1, 2], tf.int64))
        assert crop.shape == (8, 8, 3)
        assert (crop.numpy() == 77).all()


@pytest.fixture(scope="module")
def crops():
    """Return top, bottom, left and right of many crops of an image, as fractions of its sides."""
    image = encoded(smooth(200, 300), "PNG")
    crop = tf.function(lambda seed: decode.random_resized_crop(image, 16, seed))
    corners = []
    for number in range(300):
        pixels = crop(tf.constant([0, number], tf.int64)).numpy().astype(float) / 255
        rows, columns = pixels[:, 8, 0], pixels[8, :, 1]
        # The outermost pixels' middles are half a pixel inside.
        height, width = (16 / 15 * (line[-1] - line[0]) for line in (rows, columns))
        corners.append((rows.mean(), height, columns.mean(), width))
    return np.array(corners)


def test_crops_have_8_to_100_per_cent_of_the_area_and_are_nearly_square(crops):
    _, height, _, width = crops.T
    area, ratio = height * width, (300 * width) / (200 * height)
    assert 0.06 < area.min() < 0.15
    assert area.max() > 0.75
    assert 0.70 < ratio.min() < 0.85
    assert 1.2 < ratio.max() < 1.43
    # TensorFlow draws the height, not the area, and only what fits: smaller parts on the whole.
    assert 0.25 < area.mean() < 0.5


def test_crops_are_anywhere_in_the_image(crops):
    y, height, x, width = crops.T
    small = (height < 0.6) & (width < 0.6)
    for middle, side in ((y, height), (x, width)):
        # Uniform where there is room for it.
        place = ((middle - side / 2) / (1 - side))[small]
        assert place.min() < 0.1
        assert place.max() > 0.9
        assert 0.4 < place.mean() < 0.6


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_seed_is_one_crop(kind):
    image = encoded(smooth(90, 70), kind)

    def crop(number):
        return decode.random_resized_crop(image, 12, tf.constant([7, number], tf.int64)).numpy()

    np.testing.assert_array_equal(crop(1), crop(1))
    assert (crop(1) != crop(2)).any()


def test_a_jpeg_is_cropped_where_a_png_is():
    seed = tf.constant([3, 4], tf.int64)
    png, jpeg = (
        decode.random_resized_crop(encoded(smooth(120, 160), kind), 24, seed).numpy().astype(int)
        for kind in ("PNG", "JPEG")
    )
    np.testing.assert_allclose(png, jpeg, atol=6)


def test_grey_images_can_stay_grey():
    grey = np.full((30, 40), 77, np.uint8)
    seed = tf.constant([1, 2], tf.int64)
    for kind in ("PNG", "JPEG"):
        for crop in ("none", "central", "random"):
            view = views.View(8, crop, channels=1)
            image = encoded(grey, kind)
            for seen in (
                decode.decode_for_training(image, view, seed),
                decode.decode_for_evaluation(image, view),
            ):
                assert seen.shape == (8, 8, 1)
                assert (seen.numpy() == 77).all()


# Views


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("height", "width"), [(64, 48), (15, 100)])
def test_all_of_an_image_is_squeezed_as_by_pillow(kind, height, width):
    image = encoded(smooth(height, width), kind)
    expected = Image.open(io.BytesIO(image)).resize((20, 20), Image.Resampling.BILINEAR)
    found = decode.whole(image, (20, 20, 3)).numpy()
    np.testing.assert_allclose(
        found.astype(int), np.asarray(expected), atol=5 if kind == "JPEG" else 1
    )


def test_a_view_says_what_training_and_evaluation_see():
    image = encoded(smooth(60, 90), "PNG")
    seed = tf.constant([5, 6], tf.int64)
    whole, central = decode.whole(image, (16, 16, 3)), decode.central(image, 16)
    crop = decode.random_resized_crop(image, 16, seed)
    expected = {"none": (whole, whole), "central": (central, central), "random": (crop, central)}
    for name, (trained, evaluated) in expected.items():
        view = views.View(16, name)
        np.testing.assert_array_equal(decode.decode_for_training(image, view, seed), trained)
        np.testing.assert_array_equal(decode.decode_for_evaluation(image, view), evaluated)
    as_stored = views.View()
    for seen in (
        decode.decode_for_training(image, as_stored, seed),
        decode.decode_for_evaluation(image, as_stored),
    ):
        np.testing.assert_array_equal(seen, smooth(60, 90))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_most_pixels_are_decoded_and_one_row_more_is_not(kind, monkeypatch):
    for module in (decode, pixels):
        monkeypatch.setattr(module, "MOST_PIXELS", 20 * 30)
    seed = tf.constant([1, 2], tf.int64)
    views = (
        decode.stored,
        lambda image: decode.central(image, 8),
        lambda image: decode.whole(image, (8, 8, 3)),
        lambda image: decode.random_resized_crop(image, 8, seed),
    )
    for view in views:
        view(encoded(smooth(20, 30), kind))
        with pytest.raises(tf.errors.InvalidArgumentError, match="pixels"):
            view(encoded(smooth(21, 30), kind))
    pixels.check_pixels(20, 30)
    with pytest.raises(ValueError, match="21 x 30"):
        pixels.check_pixels(21, 30)


def test_a_square_of_the_largest_image_size_has_the_most_pixels():
    """The config bounds it without importing TensorFlow."""
    config = load_experiment("digits_lt")
    config.data.image_size = side = math.isqrt(decode.MOST_PIXELS)
    validate(config)
    config.data.image_size = side + 1
    with pytest.raises(ConfigError, match=f"data.image_size={side + 1} must be between 0 and"):
        validate(config)
