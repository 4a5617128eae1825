"""Picture files of every kind, against the arrays that they were made from, and Pillow."""

import contextlib
import io
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from etils.epath import Path
from PIL import Image, ImageOps

from crest_jax.data import decode, pictures
from crest_jax.data.decode import View

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)
GREYS = RNG.integers(0, 256, (9, 14), dtype=np.uint8)
ORIENTATION = 0x0112


def file_of(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def normalised(content, **options):
    return pictures.normalised(content, **{"max_pixels": 10**6, **options})


def pixels_of(content):
    """As TensorFlow decodes what records hold; one channel is none."""
    pixels = tf.io.decode_image(content, expand_animations=False).numpy()
    assert pixels.dtype == np.uint8
    assert pixels.shape[-1] in (1, 3)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


# What is copied, and what is made anew


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (COLOURS, "PNG", {}),
        (GREYS, "PNG", {}),
        (COLOURS, "JPEG", {"quality": 70}),
        (GREYS, "JPEG", {}),
        (COLOURS, "JPEG", {"progressive": True}),
        (COLOURS, "JPEG", {"exif": turned(1)}),
        (COLOURS, "MPO", {"save_all": True, "append_images": [Image.fromarray(COLOURS)]}),
    ],
)
def test_an_upright_png_or_jpeg_of_8_bits_is_copied(image, kind, options):
    content = file_of(image, kind, **options)
    assert normalised(content) is content
    expected = np.asarray(Image.open(io.BytesIO(content)))
    # Decoders of JPEG differ in how they interpolate colours.
    np.testing.assert_allclose(
        pixels_of(content).astype(int), expected, atol=8 if kind != "PNG" else 0
    )


PALETTE = np.arange(126, dtype=np.uint8).reshape(9, 14)  # as many colours as pixels
ALPHA = RNG.integers(0, 256, (9, 14, 1), dtype=np.uint8)
CLEAR = np.concatenate([COLOURS, ALPHA], axis=-1)
ON_WHITE = np.round(COLOURS * (ALPHA / 255.0) + 255 * (1 - ALPHA / 255.0))
INK = Image.new("CMYK", (14, 9), (0, 127, 255, 0))
IN_COLOURS = Image.fromarray(PALETTE, "L").convert("P")
IN_COLOURS.putpalette([*range(255, 129, -1), *[7] * 642])


@pytest.mark.parametrize(
    ("image", "kind", "options", "expected"),
    [
        (COLOURS, "BMP", {}, COLOURS),
        (COLOURS, "TIFF", {"compression": "tiff_lzw"}, COLOURS),
        (COLOURS, "WEBP", {"lossless": True}, COLOURS),
        (COLOURS, "PPM", {}, COLOURS),
        (GREYS, "TIFF", {}, GREYS),
        (PALETTE, "GIF", {}, PALETTE),
        (Image.fromarray(GREYS > 127), "PNG", {}, 255 * (GREYS > 127)),
        (GREYS.astype(np.uint16) * 256 + GREYS[::-1], "PNG", {}, GREYS),
        (GREYS.astype(np.uint16) * 256 + GREYS[::-1], "TIFF", {}, GREYS),
        (CLEAR, "PNG", {}, ON_WHITE),
        (CLEAR, "WEBP", {"lossless": True, "exact": True}, ON_WHITE),
        (COLOURS, "PNG", {"transparency": tuple(COLOURS[0, 0].tolist())}, None),
        (IN_COLOURS, "PNG", {}, None),
        (INK, "JPEG", {}, np.full((9, 14, 3), (255, 128, 0))),
        (INK, "TIFF", {}, np.full((9, 14, 3), (255, 128, 0))),
    ],
)  # fmt: skip
def test_anything_else_becomes_a_png_of_the_same_picture(image, kind, options, expected):
    content = file_of(image, kind, **options)
    made = normalised(content)
    assert Image.open(io.BytesIO(made)).format == "PNG"
    if expected is None:
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        if "transparency" in options:
            expected = np.where((expected == COLOURS[0, 0]).all(-1, keepdims=True), 255, expected)
    found = pixels_of(made)
    if found.ndim != expected.ndim:  # grey, in a palette of colours
        expected = np.stack([expected] * 3, axis=-1)
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


def test_16_bits_in_colour_keep_their_upper_8():
    """Pillow writes no such PNG: signature, header, rows of big-endian samples, end."""
    samples = RNG.integers(0, 2**16, (9, 14, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 14, 9, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )
    made = normalised(content)
    assert made is not content
    np.testing.assert_array_equal(pixels_of(made), samples >> 8)


# What EXIF's orientations say of the first row and column, as turns and mirrors of an array.
UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_turned_upright(orientation, kind):
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    content = file_of(COLOURS, kind, exif=turned(orientation), **options)
    as_stored = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(pixels_of(normalised(content)), UPRIGHT[orientation](as_stored))


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF", turned(0), turned(9)])
def test_what_exif_cannot_mean_is_ignored(exif):
    content = file_of(COLOURS, "JPEG", exif=exif)
    assert normalised(content) is content
    cut = file_of(np.concatenate([COLOURS, ALPHA], axis=-1), "PNG", exif=exif)
    np.testing.assert_allclose(pixels_of(normalised(cut)), ON_WHITE, atol=1)


def test_grey_is_luma_where_it_is_asked_for():
    found = pixels_of(normalised(file_of(COLOURS), grey=True))
    np.testing.assert_allclose(found, COLOURS @ [0.299, 0.587, 0.114], atol=1)
    grey = file_of(GREYS)
    assert normalised(grey, grey=True) is grey


# What is refused


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(kind, monkeypatch):
    content = file_of(np.zeros((10, 11, 3), np.uint8), kind)
    normalised(content, max_pixels=110)

    def load(image):
        raise AssertionError("it must not be decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(ValueError, match=r"11 x 10 pixels are more than data.max_pixels=109"):
        normalised(content, max_pixels=109)


def test_a_bomb_of_a_few_bytes_is_refused():
    content = bytearray(file_of(GREYS))
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    with pytest.raises(ValueError, match="3600000000 pixels"):
        normalised(bytes(content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is none of BMP, GIF, JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is none of BMP, GIF, JPEG"),
        (file_of(Image.fromarray(GREYS.astype(np.float32)), "TIFF"), "32 bits (mode F)"),
        (file_of(COLOURS, "BMP")[:-40], "truncated"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(content, reason):
    with pytest.raises(ValueError, match=rf"\A.*{re.escape(reason)}.*\Z"):  # in a line
        normalised(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_was_cut_short_does_not_decode(kind):
    content = file_of(COLOURS, kind)
    pictures.check_decodes(content)
    with pytest.raises(ValueError, match="damaged, or cut short"):
        pictures.check_decodes(content[:-30])


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_in_a_file_the_error_is_one_of_ours(seed):
    """Bytes changed at random, in files of all kinds."""
    rng = np.random.default_rng(seed)
    for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"):
        content = np.frombuffer(file_of(COLOURS, kind), np.uint8).copy()
        for _ in range(20):
            damaged = content.copy()
            places = rng.integers(0, len(content), rng.integers(1, 9))
            damaged[places] = rng.integers(0, 256, len(places))
            with contextlib.suppress(ValueError):
                made = normalised(damaged.tobytes())
                pictures.check_decodes(made)
                pixels_of(made)


# What a model sees


def test_a_picture_is_seen_as_a_record_of_it_is():
    turned_jpeg = file_of(COLOURS, "JPEG", exif=turned(6))
    for content in (file_of(COLOURS), file_of(COLOURS, "WEBP"), turned_jpeg, file_of(GREYS)):
        for view in (View(6, "none"), View(6, "central"), View(6, "random")):
            found = pictures.seen(content, (6, 6, 3), view, max_pixels=10**6)
            record = normalised(content)
            np.testing.assert_array_equal(found, decode.evaluated(record, view).numpy())


def test_all_of_a_picture_is_squeezed_into_the_shape_of_those_as_stored():
    content = file_of(COLOURS, "JPEG", exif=turned(6), quality=95)
    found = pictures.seen(content, (5, 7, 3), View(), max_pixels=10**6)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    expected = upright.resize((7, 5), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found.astype(int), np.asarray(expected), atol=1)
    assert pictures.seen(content, (5, 7, 1), View(), max_pixels=10**6).shape == (5, 7, 1)
    same = pictures.seen(file_of(COLOURS), (9, 14, 3), View(), max_pixels=10**6)
    np.testing.assert_array_equal(same, COLOURS)


def test_names_that_are_no_text_can_be_written_down():
    assert pictures.utf8(Path("a") / "é.png") == "a/é.png"
    assert pictures.utf8(Path("a") / b"\xe9.png".decode(errors="surrogateescape")) == r"a/\xe9.png"
