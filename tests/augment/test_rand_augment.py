import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_digits, load_sample_images

from crest_jax import augment
from crest_jax.augment.rand_augment import draw_layer

MAGNITUDES = np.float32([0.0, 0.07, 0.23, 0.61, 0.93, 1.0])
SIGNS = np.float32([1, -1])

# One compilation per image size serves every operation.
apply_operations = jax.jit(augment.apply_operations)
rand_augment = jax.jit(
    augment.rand_augment, static_argnames=("operations", "layers", "probability")
)


def photos_32():
    """Ten 32x32 colour images: both photographs shrunk, and crops of them at two scales."""
    images = []
    for photo in load_sample_images().images:
        half = np.asarray(Image.fromarray(photo).resize((320, 213)))
        images += [np.asarray(Image.fromarray(photo).resize((32, 32)))]
        images += [half[y : y + 32, x : x + 32] for y, x in [(20, 40), (100, 200)]]
        images += [photo[y : y + 32, x : x + 32] for y, x in [(60, 60), (300, 500)]]
    return np.stack(images)


def photos_64x48():
    """Six colour images, 64 high and 48 wide."""
    images = []
    for photo in load_sample_images().images:
        half = np.asarray(Image.fromarray(photo).resize((320, 213)))
        images += [np.asarray(Image.fromarray(photo).resize((48, 64)))]
        images += [half[y : y + 64, x : x + 48] for y, x in [(20, 40), (100, 200)]]
    return np.stack(images)


def digits_8():
    """Ten 8x8 handwritten digits in one channel."""
    return (load_digits().images[:10, ..., None] * 15.9).astype(np.uint8)


def digits_32():
    """Six digits enlarged to 32x32: enough pixels for Equalize to act."""
    return np.stack(
        [
            np.asarray(Image.fromarray(digit[..., 0]).resize((32, 32), Image.Resampling.BICUBIC))
            for digit in digits_8()[:6]
        ]
    )[..., None]


@pytest.fixture(scope="module", params=[photos_32, photos_64x48, digits_8, digits_32])
def images(request):
    return request.param()


def every_combination(images):
    """Each image with each magnitude and sign: images, magnitudes and signs of equal length."""
    index, magnitude, sign = (
        grid.ravel() for grid in np.meshgrid(np.arange(len(images)), MAGNITUDES, SIGNS)
    )
    return images[index.astype(int)], magnitude.astype(np.float32), sign.astype(np.float32)


def apply(name, images, magnitude, sign):
    operation = np.full(len(images), augment.OPERATIONS.index(name), np.int32)
    return np.asarray(apply_operations(images, operation, magnitude, sign))


def by_pillow(name, pixels, magnitude, sign):
    """Apply the operation with Pillow, its argument computed in float32."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    factor = float(np.float32(1.8) * magnitude + np.float32(0.1))
    add = int(np.float32(110) * magnitude)
    bits = max(int(np.float32(4) * magnitude), 1)
    shear = float(sign * np.float32(0.3) * magnitude)

    def affine(*coefficients):
        return image.transform(
            image.size, Image.Transform.AFFINE, coefficients, fillcolor=(128,) * pixels.shape[-1]
        )

    def translation(side):
        return float(sign * np.float32(10 if side == 32 else 0.3 * side) * magnitude)

    operations = {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "Color": lambda: ImageEnhance.Color(image).enhance(factor),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "Equalize": lambda: ImageOps.equalize(image),
        "Identity": lambda: image,
        "Invert": lambda: ImageOps.invert(image),
        "Posterize": lambda: ImageOps.posterize(image, bits),
        "Rotate": lambda: image.rotate(
            float(sign * np.float32(30) * magnitude), fillcolor=(128,) * pixels.shape[-1]
        ),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "ShearX": lambda: affine(1, shear, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, shear, 1, 0),
        "Solarize": lambda: ImageOps.solarize(image, int(np.float32(256) * magnitude)),
        "SolarizeAdd": lambda: image.point(
            [min(level + add, 255) if level < 128 else level for level in range(256)]
            * pixels.shape[-1]
        ),
        "TranslateX": lambda: affine(1, 0, translation(image.width), 0, 1, 0),
        "TranslateY": lambda: affine(1, 0, 0, 0, 1, translation(image.height)),
    }
    assert sorted(operations) == sorted(augment.OPERATIONS)
    return np.asarray(operations[name]()).reshape(pixels.shape)


def both(name, images):
    """Our result and Pillow's for every combination."""
    inputs, magnitudes, signs = every_combination(images)
    ours = apply(name, inputs, magnitudes, signs)
    pillow = np.stack(
        [by_pillow(name, *each) for each in zip(inputs, magnitudes, signs, strict=True)]
    )
    return inputs, ours, pillow


def test_there_are_the_sixteen_operations_of_fixmatch():
    assert len(augment.OPERATIONS) == len(set(augment.OPERATIONS)) == 16


@pytest.mark.parametrize("name", [name for name in augment.OPERATIONS if name != "AutoContrast"])
def test_an_operation_gives_pillows_pixels_exactly(name, images):
    inputs, ours, pillow = both(name, images)
    assert np.array_equal(ours, pillow)
    assert ours.dtype == np.uint8
    without_effect = (
        name == "Identity"
        or (name == "Color" and images.shape[-1] == 1)
        or (name == "Equalize" and images.shape[1] == 8)  # needs 255 pixels
    )
    assert (ours != inputs).any() != without_effect


def test_autocontrast_is_exact_and_within_a_rounding_error_of_pillow(images):
    inputs, ours, pillow = both("AutoContrast", images)
    low = inputs.min(axis=(1, 2), keepdims=True).astype(int)
    high = inputs.max(axis=(1, 2), keepdims=True).astype(int)
    assert (low < high).all()
    assert np.array_equal(ours, (inputs - low) * 255 // (high - low))
    # Where the quotient is a whole number (at the lightest level, mostly), Pillow's product with a
    # rounded 255 / (high - low) may fall just short of it.
    short = ours.astype(int) - pillow
    assert short.min() >= 0
    assert short.max() <= 1
    assert (short > 0).mean() < 0.005
    assert (ours != inputs).any()


def test_flat_images_have_no_contrast_to_stretch_or_equalize():
    flat = np.full((len(photos_32()), 32, 32, 3), 77, np.uint8)
    inputs, magnitudes, signs = every_combination(flat)
    for name in ("AutoContrast", "Equalize", "Sharpness", "Color", "Contrast"):
        assert np.array_equal(apply(name, inputs, magnitudes, signs), inputs)


def test_each_image_of_a_mixed_batch_gets_its_own_operation():
    inputs, magnitudes, signs = every_combination(photos_32())
    rng = np.random.default_rng(0)
    operation = rng.integers(0, len(augment.OPERATIONS), len(inputs), dtype=np.int32)
    mixed = np.asarray(apply_operations(inputs, operation, magnitudes, signs))
    for index, name in enumerate(augment.OPERATIONS):
        drawn = operation == index
        assert drawn.any()
        alone = apply(name, inputs, magnitudes, signs)
        assert np.array_equal(mixed[drawn], alone[drawn])


@pytest.fixture(scope="module")
def draws():
    """20 000 draws: operations, magnitudes and signs."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda key: draw_layer(key, augment.OPERATIONS, 0.5)))
    return [np.asarray(part) for part in draw(keys)]


def test_half_of_the_images_are_left_alone_and_operations_are_equally_likely(draws):
    counts = np.bincount(draws[0], minlength=16)
    assert counts.sum() == 20_000
    expected = np.full(16, 20_000 / 32)
    expected[augment.OPERATIONS.index("Identity")] += 10_000
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 37.7  # exceeded by one seed in a thousand, at 15 degrees of freedom


def test_magnitudes_are_uniform_signs_fair_and_all_independent(draws):
    operation, magnitude, sign = draws
    assert set(sign) == {-1, 1}
    assert abs(sign.mean()) < 0.025
    counts = np.histogram(magnitude, bins=20, range=(0, 1))[0]
    assert counts.sum() == 20_000
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # as above, 19 degrees of freedom
    correlations = np.corrcoef([operation, magnitude, sign])[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.025  # 3.5 deviations


@pytest.fixture(scope="module")
def small():
    """4096 different 8x8 images in one channel, and their keys."""
    images = np.random.default_rng(0).integers(0, 256, (4096, 8, 8, 1), dtype=np.uint8)
    return images, jax.random.split(jax.random.key(1), 4096)


def inverted(images, result):
    """Return which images came out inverted; the others must be as they were."""
    changed = np.array([np.array_equal(a, 255 - b) for a, b in zip(result, images, strict=True)])
    assert np.array_equal(result[~changed], images[~changed])
    return changed


def test_a_layer_is_applied_with_the_given_probability(small):
    images, keys = small
    result = rand_augment(images, keys, operations=("Invert",), layers=1, probability=0.8)
    # The deviation of the share among 4096 is 0.006.
    assert inverted(images, np.asarray(result)).mean() == pytest.approx(0.8, abs=0.022)


def test_layers_draw_independently_and_follow_each_other(small):
    images, keys = small
    once_or_thrice = rand_augment(images, keys, operations=("Invert",), layers=3, probability=0.8)
    # An odd number of three inversions: 3 * 0.8 * 0.2^2 + 0.8^3.
    share = inverted(images, np.asarray(once_or_thrice)).mean()
    assert share == pytest.approx(0.608, abs=0.03)
    always = {"operations": ("Invert",), "probability": 1.0}
    assert inverted(images, np.asarray(rand_augment(images, keys, layers=2, **always))).sum() == 0


def test_only_the_given_operations_are_drawn_at_all_magnitudes(small):
    images, keys = small
    result = np.asarray(
        rand_augment(images, keys, operations=("TranslateX",), layers=1, probability=1.0)
    )
    shifts = []
    for before, after in zip(images[..., 0], result[..., 0], strict=True):
        padded = np.pad(before, ((0, 0), (2, 2)), constant_values=128)
        shifts += [s for s in range(-2, 3) if np.array_equal(padded[:, 2 + s : 10 + s], after)]
    assert len(shifts) == len(images)
    # Up to 0.3 * 8 = 2.4 pixels either way, to the nearest: 0 up to 0.5, 1 up to 1.5, 2 above.
    expected = np.array([0.9, 1, 1, 1, 0.9]) / 4.8
    observed = np.bincount(np.array(shifts) + 2) / len(shifts)
    np.testing.assert_allclose(observed, expected, atol=0.03)


def test_a_result_depends_on_its_own_key_and_pixels_only():
    images = every_combination(photos_32())[0]
    keys = jax.random.split(jax.random.key(2), len(images))
    result = np.asarray(rand_augment(images, keys))
    assert result.dtype == np.uint8
    assert result.shape == images.shape
    order = np.random.default_rng(1).permutation(len(images))
    assert np.array_equal(rand_augment(images[order], keys[order]), result[order])
    # The first ten again, among others.
    others = jax.random.split(jax.random.key(3), len(images)).at[:10].set(keys[:10])
    among_others = rand_augment(np.concatenate([images[:10], 255 - images[10:]]), others)
    assert np.array_equal(among_others[:10], result[:10])


def test_an_operation_that_does_not_exist_is_named_with_those_that_do(small):
    images, keys = small
    with pytest.raises(ValueError, match=r"'Blur'.*AutoContrast, .*TranslateY"):
        rand_augment(images, keys, operations=("Invert", "Blur"))


def test_no_operations_and_impossible_probabilities_are_refused(small):
    images, keys = small
    with pytest.raises(ValueError, match="operations is empty, expected some of AutoContrast"):
        rand_augment(images, keys, operations=())
    with pytest.raises(ValueError, match=r"probability is 1\.5"):
        rand_augment(images, keys, probability=1.5)


@pytest.mark.parametrize("name", ["Color", "Contrast"])
def test_two_channels_have_no_brightness_but_other_operations_work(small, name):
    images, keys = small
    two_channels = jnp.concatenate([images, images], axis=-1)
    with pytest.raises(ValueError, match="2 channels"):
        rand_augment(two_channels, keys, operations=(name,))
    shape = jax.eval_shape(lambda: augment.rand_augment(two_channels, keys, operations=("Rotate",)))
    assert shape.shape == two_channels.shape
