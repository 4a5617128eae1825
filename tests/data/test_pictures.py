"""Picture files of every kind, against the arrays that they were made from, and Pillow."""

import contextlib
import io
import os
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
import sixteen_bits
import tensorflow as tf
from etils.epath import Path
from PIL import Image, ImageOps

from crest_jax.data import decode, pictures
from crest_jax.data.views import View

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
    """Return a record's image as TensorFlow decodes it, without the axis of a single channel."""
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
        (COLOURS, "JPEG2000", {}, COLOURS),
        (GREYS, "JPEG2000", {}, GREYS),
        (GREYS.astype(np.uint16) * 256 + GREYS[::-1], "JPEG2000", {}, GREYS),
        (GREYS, "TIFF", {}, GREYS),
        (PALETTE, "GIF", {}, PALETTE),
        (Image.fromarray(GREYS > 127), "PNG", {}, 255 * (GREYS > 127)),
        (GREYS.astype(np.uint16) * 256 + GREYS[::-1], "PNG", {}, GREYS),
        (GREYS.astype(np.uint16) * 256 + GREYS[::-1], "TIFF", {}, GREYS),
        (CLEAR, "PNG", {}, ON_WHITE),
        (CLEAR[..., 2:], "PNG", {}, ON_WHITE[..., 2]),
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


@pytest.mark.skipif("AVIF" not in pictures.FORMATS, reason="this Pillow reads no AVIF")
def test_avif_is_read():
    smooth = np.linspace(0, 255, 14 * 9 * 3).reshape(9, 14, 3).astype(np.uint8)
    content = file_of(smooth, "AVIF", quality=100, subsampling="4:4:4")
    np.testing.assert_allclose(pixels_of(normalised(content)).astype(int), smooth, atol=3)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_tiff_whose_white_is_0_is_no_negative(photometric, bits):
    if bits == 1:
        content = file_of(Image.fromarray(GREYS > 127), "TIFF", compression="group4")
        stored = int(Image.open(io.BytesIO(content)).tag_v2[262])
        # Fax is white on 0; the tag is what a reader goes by.
        place = content.index(struct.pack("<HHI", 262, 3, 1)) + 8
        content = content[:place] + struct.pack("<H", photometric) + content[place + 2 :]
        expected = 255 * ((GREYS > 127) ^ (photometric != stored))
    else:
        values = RNG.integers(0, 2**bits, (9, 14, 1)).astype(f"u{bits // 8}")
        values[0, 0] = 2**bits - 1
        content = sixteen_bits.tiff(values, tags={262: photometric})
        expected = (values[..., 0] if photometric else 2**bits - 1 - values[..., 0]) >> (bits - 8)
    np.testing.assert_array_equal(pixels_of(normalised(content)), expected)


# 16 bits a channel


def of_bits(bits, channels=1):
    """Return samples that need all of so many bits."""
    samples = RNG.integers(0, 2**bits, (9, 14, channels)).astype(np.uint16)
    samples[0, 0] = 2**bits - 1
    return samples


WRITTEN = {
    "PNG": sixteen_bits.png,
    "TIFF": sixteen_bits.tiff,
    "big-endian TIFF": lambda samples: sixteen_bits.tiff(samples, order=">"),
    "compressed TIFF": lambda samples: sixteen_bits.tiff(samples, compressed=True),
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("largest", "bits"), [(8, 8), (9, 10), (12, 12), (13, 14), (16, 16)])
def test_of_16_bits_the_fewest_count_that_hold_the_largest_value(kind, channels, largest, bits):
    samples = of_bits(largest, channels)
    made, note = pictures.read(WRITTEN[kind](samples), max_pixels=10**6)
    assert note.guessed_bits == bits
    expected = samples // 2 ** (bits - 8)
    np.testing.assert_array_equal(pixels_of(made), expected[..., 0] if channels == 1 else expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_may_say_how_many_bits_count(channels):
    """sBIT has their number; the values show whether they are the lower bits or scaled to 16."""
    dark = of_bits(9, channels)
    dark[..., channels - (channels % 2 == 0) :] = 2**12 - 1  # alpha
    said = [(b"sBIT", bytes([12] * channels))]
    for samples, bits in ((dark, 12), (dark * 16, 16)):
        content = sixteen_bits.png(samples, chunks=said)
        made, note = pictures.read(content, max_pixels=10**6)
        assert note.guessed_bits is None
        expected = samples[..., : 3 if channels > 2 else 1] >> (bits - 8)
        np.testing.assert_array_equal(
            pixels_of(made), expected[..., 0] if channels < 3 else expected
        )


@pytest.mark.parametrize(
    ("tags", "bits", "guessed"),
    [
        ({341: 4095}, 12, None),
        ({281: 3000}, 12, None),
        ({281: 65535}, 16, None),
        ({281: 255}, 10, 10),  # the values are larger than it says
        ({281: 0}, 10, 10),
    ],
)
def test_a_tiff_may_say_how_large_its_values_are(tags, bits, guessed):
    samples = of_bits(9)
    made, note = pictures.read(sixteen_bits.tiff(samples, tags=tags), max_pixels=10**6)
    assert note.guessed_bits == guessed
    np.testing.assert_array_equal(pixels_of(made), samples[..., 0] >> (bits - 8))


def test_a_pgm_says_how_large_its_values_are():
    samples = of_bits(9)
    content = b"P5 14 9 4095\n" + samples.astype(">u2").tobytes()
    made, note = pictures.read(content, max_pixels=10**6)
    assert note.guessed_bits is None
    np.testing.assert_allclose(pixels_of(made).astype(int), samples[..., 0] / 4095 * 255, atol=1)


def test_16_bits_are_put_on_white_where_they_are_transparent():
    samples = of_bits(16, 4)
    alpha = samples[..., 3:] / 65535
    expected = 255 * (samples[..., :3] / 65535 * alpha + 1 - alpha)
    multiplied = samples.copy()
    multiplied[..., :3] = samples[..., :3] * alpha
    for content in (
        sixteen_bits.png(samples),
        sixteen_bits.tiff(samples, tags={338: 2}),
        sixteen_bits.tiff(multiplied, tags={338: 1}),
    ):
        np.testing.assert_allclose(pixels_of(normalised(content)).astype(int), expected, atol=3)
    # One value of grey, or one colour, that stands for nothing.
    grey, colour = of_bits(12), of_bits(12, 3)
    for samples in (grey, colour):
        samples[2:4] = samples[5, 6]
        clear = (b"tRNS", samples[5, 6].astype(">u2").tobytes())
        found = pixels_of(normalised(sixteen_bits.png(samples, chunks=[clear])))
        is_clear = (samples == samples[5, 6]).all(axis=-1, keepdims=True)
        expected = np.where(is_clear, 255, samples >> 4)
        np.testing.assert_array_equal(found, expected.squeeze())


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_turned_upright(channels):
    samples = of_bits(16, channels)
    exif = turned(6).tobytes().removeprefix(b"Exif\0\0")
    expected = np.rot90(samples >> 8, -1).squeeze()
    for content in (
        sixteen_bits.png(samples, chunks=[(b"eXIf", exif)]),
        sixteen_bits.tiff(samples, tags={ORIENTATION: 6}),
    ):
        np.testing.assert_array_equal(pixels_of(normalised(content)), expected)


def test_what_was_guessed_and_what_was_not_looked_at_is_said_once():
    notes = {
        "a.png": pictures.Note(guessed_bits=12),
        "b.png": pictures.Note(),
        "c.png": pictures.Note(guessed_bits=16),
        "d.gif": pictures.Note(first_of_several=True),
    }
    deep, several = pictures.remarks(notes)
    assert "2 pictures have 16 bits" in deep
    assert "fewest of 8, 10, 12, 14, 16 that hold its largest value (1 have 12, 1 have 16)" in deep
    assert deep.endswith(": a.png, c.png")
    assert several.startswith("1 files contain more than one picture")
    assert several.endswith(": d.gif")
    del notes["a.png"], notes["d.gif"]
    assert not list(pictures.remarks(notes)), "16 of 16 bits are nothing to speak of"


@pytest.mark.parametrize(
    ("kind", "several"), [("GIF", True), ("TIFF", True), ("PNG", True), ("MPO", False)]
)
def test_files_of_several_pictures_are_noted(kind, several):
    """Pictures of telephones are not noted, since their second picture is a preview."""
    more = {"save_all": True, "append_images": [Image.fromarray(GREYS[::-1])]}
    for options, expected in (({}, False), (more, several)):
        content = file_of(GREYS, kind, **options)
        assert pictures.read(content, max_pixels=10**6)[1].first_of_several == expected


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


@pytest.mark.parametrize("kind", pictures.FORMATS)
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
        (b"", "BMP, GIF, JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "BMP, GIF, JPEG"),
        (b"BMW and P5: notes", "it is none of"),
        (b"\0\0\0\x18ftypheic" + bytes(64), "it is HEIC, which is not read: convert it to JPEG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic" + bytes(64), "it is HEIC, which is not read"),
        (b"\xff\x0a" + bytes(64), "it is JPEG XL, which is not read"),
        (bytes(128) + b"DICM", "it is DICOM, which is not read"),
        (b"\x89PNG\r\n\x1a\n and no more", "it is damaged, or a PNG of a kind that is not read"),
        (file_of(Image.fromarray(GREYS.astype(np.float32)), "TIFF"), "or signed (mode F)"),
        (file_of(Image.fromarray(GREYS.astype(np.int32)), "TIFF"), "or signed (mode I)"),
        (sixteen_bits.tiff(of_bits(16, 3), planes=True), "16-bit colours are in planes"),
        (sixteen_bits.tiff(of_bits(8), tags={254: 1}), "it is a camera's raw file: convert it"),
        (file_of(COLOURS, "BMP")[:-40], "truncated"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(content, reason):
    with pytest.raises(ValueError, match=rf"\A.*{re.escape(reason)}.*\Z"):  # in a line
        normalised(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_was_cut_short_does_not_decode(kind):
    content = file_of(COLOURS, kind)
    decode.check(content)
    with pytest.raises(ValueError, match="damaged, or cut short"):
        decode.check(content[:-30])


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_in_a_file_the_error_is_one_of_ours(seed):
    """The bytes of files of all kinds are changed at random."""
    rng = np.random.default_rng(seed)
    for kind in pictures.FORMATS:
        content = np.frombuffer(file_of(COLOURS, kind), np.uint8).copy()
        for _ in range(20):
            damaged = content.copy()
            places = rng.integers(0, len(content), rng.integers(1, 9))
            damaged[places] = rng.integers(0, 256, len(places))
            with contextlib.suppress(ValueError):
                made = normalised(damaged.tobytes())
                decode.check(made)
                pixels_of(made)


def test_a_small_header_is_no_way_to_a_large_picture():
    """JPEG 2000 has the size twice: in the box that is looked at, and where pixels are decoded."""
    content = bytearray(file_of(COLOURS, "JPEG2000"))
    place = content.index(b"\xff\x4f\xff\x51") + 8
    assert content[place : place + 8] == struct.pack(">II", 14, 9)
    content[place : place + 8] = struct.pack(">II", 60000, 60000)
    with pytest.raises(ValueError, match="broken data stream"):
        normalised(bytes(content))


# Which files are pictures


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.PNG", b"damaged", "PNG"),
        ("IMG_1.HEIC", b"", ".heic"),
        ("IMG_1.heic", file_of(GREYS, "JPEG"), "JPEG"),
        ("raw.NEF", b"", ".nef"),
        ("a.psd", b"8BPS", "PSD"),
        ("a.jpg_large", file_of(GREYS, "JPEG"), "JPEG"),
        ("no ending", file_of(GREYS, "WEBP")[:20], "WEBP"),
        ("photo", b"\0\0\0\x18ftypheic", "HEIC"),
        ("notes.txt", b"Python, P1 and BMW", None),
        ("film.mp4", b"\0\0\0\x18ftypisom", None),
        ("paper.pdf", b"%PDF-1.7", None),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0", None),
        ("empty", b"", None),
    ],
)
def test_pictures_are_known_by_their_ending_or_how_they_begin(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert pictures.kind_by_looks(Path(tmp_path / name)) == expected


def test_what_is_no_picture_is_read_no_further_than_to_see_that(tmp_path):
    film = pathlib.Path(tmp_path / "film")
    with film.open("wb") as file:
        file.truncate(1 << 40)
    assert len(pictures.content_of(Path(film))) < 1000
    picture = file_of(COLOURS, "BMP")
    film.write_bytes(picture)
    assert pictures.content_of(Path(film)) == picture


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe that nobody writes to could be waited for, for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    pathlib.Path(tmp_path / "link.png").symlink_to("nowhere")
    for name in ("pipe.png", "link.png"):
        with pytest.raises(ValueError, match="a broken link, or not a file"):
            pictures.content_of(Path(tmp_path / name))


# What a model sees


def test_a_picture_is_seen_as_a_record_of_it_is():
    turned_jpeg = file_of(COLOURS, "JPEG", exif=turned(6))
    for content in (file_of(COLOURS), file_of(COLOURS, "WEBP"), turned_jpeg, file_of(GREYS)):
        for view in (View(6, "none"), View(6, "central"), View(6, "random")):
            found = pictures.seen(content, (6, 6, 3), view, max_pixels=10**6).pixels
            record = normalised(content)
            np.testing.assert_array_equal(found, decode.decode_for_evaluation(record, view).numpy())


def test_all_of_a_picture_is_squeezed_into_the_shape_of_those_as_stored():
    content = file_of(COLOURS, "JPEG", exif=turned(6), quality=95)
    found = pictures.seen(content, (5, 7, 3), View(), max_pixels=10**6).pixels
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    expected = upright.resize((7, 5), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found.astype(int), np.asarray(expected), atol=1)
    assert pictures.seen(content, (5, 7, 1), View(), max_pixels=10**6).pixels.shape == (5, 7, 1)
    same = pictures.seen(file_of(COLOURS), (9, 14, 3), View(), max_pixels=10**6).pixels
    np.testing.assert_array_equal(same, COLOURS)


def test_names_that_are_no_text_can_be_written_down():
    assert pictures.utf8(Path("a") / "é.png") == "a/é.png"
    assert pictures.utf8(Path("a") / b"\xe9.png".decode(errors="surrogateescape")) == r"a/\xe9.png"
