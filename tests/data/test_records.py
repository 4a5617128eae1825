import hashlib
import io
import resource
import shutil
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from fuzz import framed
from PIL import Image

from crest_jax import files
from crest_jax.data import loading, manifest, records, writer
from crest_jax.data.records import Images
from crest_jax.data.sources import UNKNOWN, Example
from crest_jax.data.views import View
from crest_jax.errors import DataError

CLASSES = ("cat", "dog", "emu")


@pytest.fixture(autouse=True)
def parsed_checked(parsed_unchecked, monkeypatch):
    """Check the annotations of all functions in this module."""
    for function in parsed_unchecked:
        monkeypatch.setattr(function, "__no_type_check__", False)


def encoded(array, format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format, **options)
    return file.getvalue()


def make_examples(count=11, side=5, seed=0):
    """Make images and examples of them, with ids and labels in no order."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    # Two of three classes occur. Half the files are stored uncompressed, as no encoder would by
    # default, so that re-encoding would show.
    files = [encoded(image, compress_level=9 * (row % 2)) for row, image in enumerate(images)]
    examples = [
        Example(f"image/{97 * row % 101:03d}é", file, row % 2) for row, file in enumerate(files)
    ]
    return images, examples


@pytest.fixture
def folder(tmp_path):
    """Eleven examples in three shards of 4, 4 and 3."""
    path = tmp_path / "run" / "splits" / "labeled"
    writer.write(path, make_examples()[1], class_names=CLASSES, shards=3)
    return path


def shard(folder, number=1):
    return sorted(folder.glob("*.tfrecord"))[number]


def boundaries(path):
    """Return the offsets at which a field of a TFRecord ends: length, CRC, data, CRC."""
    content = path.read_bytes()
    offset, ends = 0, []
    while offset < len(content):
        (length,) = struct.unpack_from("<Q", content, offset)
        offset += 8 + 4 + length + 4
        ends.append(offset)
    return ends


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    files.write_json(path, files.read_json(path) | changes)


def damage_of(folder):
    """Return the message of the error that loading a damaged folder raises."""
    with pytest.raises(DataError) as caught:
        loading.load_images(folder)
    return str(caught.value)


# Round trip


@pytest.mark.parametrize("shards", [1, 3, 11, 20])
def test_ids_labels_order_and_bytes_come_back_as_they_were(tmp_path, shards):
    _, examples = make_examples()
    writer.write(tmp_path / "test", iter(examples), class_names=CLASSES, shards=shards)
    assert list(records.read(tmp_path / "test")) == examples
    assert len(list((tmp_path / "test").glob("*.tfrecord"))) == shards


def test_loading_decodes_to_the_pixels(tmp_path):
    images, examples = make_examples()
    writer.write(tmp_path / "test", examples, class_names=CLASSES, shards=2)
    loaded = loading.load_images(tmp_path / "test")
    assert loaded.ids == [example.id for example in examples]
    assert loaded.images.dtype == np.uint8
    np.testing.assert_array_equal(loaded.images, images)
    np.testing.assert_array_equal(loaded.labels, [example.label for example in examples])


def test_grey_images_keep_their_one_channel(tmp_path):
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    example = Example("grey", encoded(image), 0)
    writer.write(tmp_path / "test", [example], class_names=CLASSES, shards=1)
    np.testing.assert_array_equal(
        loading.load_images(tmp_path / "test").images, image[None, ..., None]
    )


def test_jpegs_are_copied_too(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    example = Example("jpeg", encoded(image, "JPEG", quality=30), 2)
    writer.write(tmp_path / "test", [example], class_names=CLASSES, shards=1)
    assert next(records.read(tmp_path / "test")).image == example.image
    assert loading.load_images(tmp_path / "test").images.shape == (1, 8, 6, 3)


def test_manifest_describes_the_split(folder):
    described = manifest.read(folder)
    assert described["examples"] == 11
    assert described["examples_per_class"] == [6, 5, 0], "a class may be absent"
    assert described["class_names"] == list(CLASSES)
    assert described["image_shape"] == [5, 5, 3]
    assert [entry["examples"] for entry in described["shards"]] == [4, 4, 3]
    for entry in described["shards"]:
        content = (folder / entry["file"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_an_empty_split_is_possible(tmp_path):
    writer.write(tmp_path / "validation", [], class_names=CLASSES, shards=2)
    assert manifest.read(tmp_path / "validation")["examples_per_class"] == [0, 0, 0]
    loaded = loading.load_images(tmp_path / "validation")
    assert (loaded.ids, len(loaded.images), len(loaded.labels)) == ([], 0, 0)


def test_images_of_different_shapes_can_be_read_but_not_loaded_as_one_array(tmp_path):
    small, large = make_examples(2, side=4)[1], make_examples(3, side=6)[1]
    examples = small + [example._replace(id=f"large/{example.id}") for example in large]
    writer.write(tmp_path / "splits" / "test", examples, class_names=CLASSES, shards=2)
    assert list(records.read(tmp_path / "splits" / "test")) == examples
    assert manifest.read(tmp_path / "splits" / "test")["image_shape"] is None
    message = damage_of(tmp_path / "splits" / "test")
    assert "splits/test" in message
    assert "shape" in message


def test_parts_are_joined_in_order():
    def part(prefix, count):
        return Images(
            [f"{prefix}{row}" for row in range(count)],
            np.full((count, 2, 2, 1), ord(prefix), np.uint8),
            np.arange(count, dtype=np.int32),
        )

    nothing = Images([], np.zeros((0, 0, 0, 0), np.uint8), np.zeros(0, np.int32))
    both = records.joined([nothing, part("a", 2), nothing, part("b", 3)])
    assert both.ids == ["a0", "a1", "b0", "b1", "b2"]
    assert both.labels.tolist() == [0, 1, 0, 1, 2]
    assert both.images[:, 0, 0, 0].tolist() == [97, 97, 98, 98, 98]
    only = part("a", 2)
    assert records.joined([only, nothing]) is only, "it is not copied"
    assert records.joined([nothing]) is nothing


# Damage


def test_a_shard_cut_inside_a_record_is_found(folder):
    path = shard(folder)
    size = path.stat().length
    truncate(path, size // 2)
    message = damage_of(folder)
    assert f"splits/labeled/{path.name} is truncated at byte {size // 2} of {size}" in message
    assert f"delete {folder} and run again" in message


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_shard_cut_between_two_records_is_found(folder, number):
    path = shard(folder, number)
    *_, last_but_one, size = boundaries(path)
    truncate(path, last_but_one)
    assert f"{path.name} is truncated at byte {last_but_one} of {size}" in damage_of(folder)


def test_an_emptied_shard_is_found(folder):
    path = shard(folder)
    truncate(path, 0)
    assert f"{path.name} is truncated at byte 0 of " in damage_of(folder)


def test_a_removed_shard_is_found(folder):
    path = shard(folder)
    path.unlink()
    assert f"{path.name} is missing" in damage_of(folder)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.5, 0.7, 0.999])
def test_one_flipped_bit_is_found(folder, where):
    path = shard(folder, 2)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x10
    path.write_bytes(bytes(content))
    message = damage_of(folder)
    assert f"{path.name} has changed since it was written" in message
    assert f"delete {folder} and run again" in message


def test_a_repeated_record_is_found(folder):
    path = shard(folder)
    first = boundaries(path)[0]
    path.write_bytes(path.read_bytes() + path.read_bytes()[:first])
    assert f"{path.name} has changed since it was written" in damage_of(folder)


def test_two_shards_in_each_others_place_are_found(folder):
    one, other = shard(folder, 0), shard(folder, 1)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert one.name in damage_of(folder)


def test_a_damaged_shard_gives_none_of_its_examples(folder):
    path = shard(folder)
    truncate(path, boundaries(path)[-2])
    seen = []
    with pytest.raises(DataError):
        seen.extend(example.id for example in records.read(folder))
    assert len(seen) <= 4, "what comes before the damage, and nothing of the damaged shard"


def test_a_removed_manifest_is_found(folder):
    (folder / "manifest.json").unlink()
    message = damage_of(folder)
    assert f"{folder}/manifest.json is missing" in message
    assert f"delete {folder} and run again" in message


def test_a_folder_that_is_not_there_is_found(tmp_path):
    assert "manifest.json is missing" in damage_of(tmp_path / "labeled")


@pytest.mark.parametrize(
    "content", [b"", b'{"format": 2, "exam', b"[]", b"null", b"{}", b"\xff\xfe"]
)
def test_a_manifest_that_is_none_is_found(folder, content):
    (folder / "manifest.json").write_bytes(content)
    message = damage_of(folder)
    assert f"{folder}/manifest.json is not a readable manifest" in message


def test_a_manifest_that_is_not_whole_is_found(folder):
    (folder / "manifest.json").write_text('{"format": 2, "examples": 11}')
    assert "manifest" in damage_of(folder)


def test_a_manifest_of_another_format_says_so(folder):
    edit_manifest(folder, format=1)
    message = damage_of(folder)
    assert "has format 1" in message
    assert "reads 2" in message
    assert "delete" not in message, "nothing is damaged: another version wrote it"


def test_a_wrong_count_of_a_shard_is_found(folder):
    described = manifest.read(folder)
    described["shards"][1]["examples"] = 5
    edit_manifest(folder, shards=described["shards"])
    message = damage_of(folder)
    assert f"{shard(folder).name} holds 4 examples, but by its manifest 5" in message


def test_a_manifest_without_one_of_its_shards_is_found(folder):
    edit_manifest(folder, shards=manifest.read(folder)["shards"][:2])
    assert "examples is 11, but its records give 8" in damage_of(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"examples": 12},
        {"examples": 0},
        {"examples_per_class": [5, 6, 0]},
        {"image_shape": [7, 7, 3]},
        {"class_names": ["only", "two"]},
        {"shards": None},
    ],
    ids=str,
)
def test_a_manifest_that_disagrees_with_its_records_is_found(folder, changes):
    edit_manifest(folder, **changes)
    assert "manifest" in damage_of(folder)


def test_a_manifest_with_more_channels_than_the_images_is_found(tmp_path):
    example = Example("grey", encoded(np.zeros((8, 8), np.uint8)), 0)
    writer.write(tmp_path / "test", [example], class_names=CLASSES, shards=1)
    edit_manifest(tmp_path / "test", image_shape=[8, 8, 3])
    assert "manifest" in damage_of(tmp_path / "test")


# Writing is complete or absent


def test_examples_that_stop_with_an_error_leave_no_whole_folder(tmp_path):
    def failing():
        yield from make_examples(3)[1]
        raise ConnectionError("the source is gone")

    with pytest.raises(ConnectionError):
        writer.write(tmp_path / "labeled", failing(), class_names=CLASSES, shards=2)
    assert not files.is_whole(tmp_path / "labeled")


def test_a_crash_after_some_shards_leaves_no_whole_folder_and_the_next_attempt_is_whole(
    tmp_path, monkeypatch
):
    _, examples = make_examples()
    serialize = writer._serialize

    def crash_at_the_eighth(example):
        if example is examples[7]:
            raise KeyboardInterrupt
        return serialize(example)

    monkeypatch.setattr(writer, "_serialize", crash_at_the_eighth)
    with pytest.raises(KeyboardInterrupt):
        writer.write(tmp_path / "labeled", examples, class_names=CLASSES, shards=4)
    monkeypatch.undo()
    assert not files.is_whole(tmp_path / "labeled")
    begun = {path.name for path in (tmp_path / "labeled").iterdir()}
    assert "shard-00000-of-00004.tfrecord" in begun, "the crash came in the middle"
    assert "manifest.json" not in begun, "the manifest comes last"

    # With other shards, so that a file of the first attempt would stay behind.
    writer.write(tmp_path / "labeled", examples, class_names=CLASSES, shards=3)
    assert len(list((tmp_path / "labeled").iterdir())) == 3 + 1
    assert list(records.read(tmp_path / "labeled")) == examples


def test_a_file_that_is_no_image_is_named(tmp_path):
    examples = [*make_examples(2)[1], Example("notes.png", b"these are no pixels", 0)]
    with pytest.raises(DataError, match=r"notes\.png"):
        writer.write(tmp_path / "labeled", examples, class_names=CLASSES, shards=1)


def test_an_image_that_is_cut_short_is_named(tmp_path):
    (example,) = make_examples(1, side=32)[1]
    cut = example._replace(id="cut.png", image=example.image[: len(example.image) // 2])
    writer.write(tmp_path / "labeled", [cut], class_names=CLASSES, shards=1)
    assert "cut.png" in damage_of(tmp_path / "labeled")


@pytest.mark.parametrize("announced", [3, 5])
def test_more_or_fewer_examples_than_announced_are_refused(tmp_path, announced):
    folder = tmp_path / "labeled"

    def write_four():
        with writer.Writer(folder, examples=announced, class_names=CLASSES, shards=2) as new:
            for example in make_examples(4)[1]:
                new.add(example)

    with pytest.raises(DataError, match=f"(more examples than|not) {announced}"):
        write_four()
    assert not files.is_whole(folder)


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    _, examples = make_examples(4)
    examples[3] = examples[3]._replace(id=examples[0].id)
    with pytest.raises(DataError, match="same id"):
        writer.write(tmp_path / "labeled", examples, class_names=CLASSES, shards=1)
    assert not files.is_whole(tmp_path / "labeled")


@pytest.mark.parametrize("label", [-1, 3, 1000])
def test_a_label_that_is_no_class_is_refused(tmp_path, label):
    _, examples = make_examples(4)
    examples[2] = examples[2]._replace(label=label)
    with pytest.raises(DataError, match=r"label .*, which is not in 0\.\.2"):
        writer.write(tmp_path / "labeled", examples, class_names=CLASSES, shards=1)
    assert not files.is_whole(tmp_path / "labeled")


def test_a_folder_can_be_moved(folder, tmp_path):
    before = list(records.read(folder))
    shutil.move(folder, tmp_path / "elsewhere")
    assert list(records.read(tmp_path / "elsewhere")) == before


# Examples whose class is not known


@pytest.fixture
def unknown(tmp_path):
    """Five examples in two shards of a folder that says that it knows no classes."""
    folder = tmp_path / "run" / "splits" / "unlabeled"
    options = {"class_names": CLASSES, "shards": 2, "classes_known": False}
    with writer.Writer(folder, examples=5, **options) as new:
        for example in make_examples(5)[1]:
            new.add(example._replace(label=UNKNOWN))
    return folder


def test_a_folder_without_known_classes_counts_none(unknown):
    described = manifest.read(unknown)
    assert described["examples"] == 5
    assert described["examples_per_class"] is None
    loaded = loading.load_images(unknown)
    assert loaded.labels.tolist() == [UNKNOWN] * 5
    assert loaded.ids == [example.id for example in make_examples(5)[1]]


@pytest.mark.parametrize(("known", "label"), [(True, UNKNOWN), (False, 0), (True, 3), (False, -2)])
def test_a_label_is_one_of_those_that_were_declared(tmp_path, known, label):
    options = {"class_names": CLASSES, "shards": 1, "classes_known": known}
    new = writer.Writer(tmp_path / "a", examples=1, **options)
    new.begin()
    with pytest.raises(
        DataError, match=r"label .*, which is not in 0\.\.2" if known else r"-1\.\.-1"
    ):
        new.add(make_examples(1)[1][0]._replace(label=label))


def test_a_manifest_cannot_make_unknown_classes_known(unknown, folder):
    edit_manifest(unknown, examples_per_class=[0, 0, 5])
    assert "has label -1, but by the manifest a label is in 0..2" in damage_of(unknown)
    edit_manifest(folder, examples_per_class=None)
    assert "but by the manifest a label is in -1..-1" in damage_of(folder)


def test_encoded_images_are_those_of_the_folders_one_after_the_other(unknown, folder):
    view = View(4, "random")
    encoded = records.load_encoded([folder, unknown], view)
    examples = [*make_examples()[1], *make_examples(5)[1]]
    assert encoded.ids == [example.id for example in examples]
    assert encoded.images == [example.image for example in examples]
    assert encoded.labels.tolist() == [e.label for e in examples[:11]] + [UNKNOWN] * 5
    assert encoded.view == view


# Hostile records, with a manifest that is right about them


def made(tmp_path, *framed_records):
    """Make a folder of one shard with these records, and a manifest with its size and digest."""
    folder = tmp_path / "splits" / "labeled"
    writer.write(folder, make_examples(len(framed_records))[1], class_names=CLASSES, shards=1)
    content = b"".join(framed_records)
    shard(folder, 0).write_bytes(content)
    (entry,) = manifest.read(folder)["shards"]
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(folder, shards=[entry])
    return folder


def image_record(image):
    """Return a record with the id of the first of `make_examples`."""
    (example,) = make_examples(1)[1]
    return serialized(id=example.id.encode(), image=image, label=0)


def serialized(**features):
    kinds = {bytes: "bytes_list", int: "int64_list"}
    made = tf.train.Example()
    for name, value in features.items():
        getattr(made.features.feature[name], kinds[type(value)]).value.append(value)
    return made.SerializeToString(deterministic=True)


@pytest.mark.parametrize("length", [10**3, 2**40, 2**63, 2**64 - 1])
def test_a_record_that_is_said_to_be_longer_than_the_file_is_found(tmp_path, length):
    """TensorFlow would take as much memory, and end the process where there is none."""
    folder = made(tmp_path, framed(b"short", length))
    assert "a record whose header gives a length beyond the end of the file" in damage_of(folder)


@pytest.mark.parametrize(
    "record",
    [
        b"\x89 no protocol buffer",
        serialized(id=b"a", image=b""),
        serialized(id=b"\xff", image=b"", label=0),
        serialized(id=b"a", image=1, label=0),
    ],
)
def test_a_record_that_is_no_example_is_found(tmp_path, record):
    assert "record 0 is not an example" in damage_of(made(tmp_path, framed(record)))


@pytest.mark.parametrize("name", ["../test/shard.tfrecord", "/etc/passwd", "a/b", "..", "", "\0"])
def test_a_manifest_names_files_of_its_own_folder_only(folder, name):
    entries = manifest.read(folder)["shards"]
    edit_manifest(folder, shards=[{**entries[0], "file": name}, *entries[1:]])
    assert "must be the name of a file, in no other folder" in damage_of(folder)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"format": 2, "examples": NaN}', b"9" * 5000], ids=len
)
def test_json_that_python_would_choke_on_is_no_manifest(folder, content):
    (folder / "manifest.json").write_bytes(content)
    assert "is not a readable manifest" in damage_of(folder)


def test_memory_is_not_taken_for_images_that_are_not_there(folder):
    """The manifest claims images of three terabytes."""
    edit_manifest(folder, image_shape=[300_000, 300_000, 3])
    assert "has shape (5, 5, 3), but by the manifest it is (300000, 300000, 3)" in damage_of(folder)


def bomb(width, height):
    """Return a PNG of less than a kilobyte that claims to have so many pixels."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [13_378, 60_000])
def test_an_image_of_too_many_pixels_is_not_written(tmp_path, side):
    example = Example("large.png", bomb(side, side), 0)
    with pytest.raises(DataError, match=r"large\.png .*[0-9] pixels"):
        writer.write(tmp_path / "labeled", [example], class_names=CLASSES, shards=1)


@pytest.mark.parametrize("view", [View(), View(8, "none"), View(8, "central")])
def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path, view):
    folder = made(tmp_path, framed(image_record(bomb(20_000, 20_000))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"cannot be decoded .*no more than"):
        loading.load_images(folder, view)
    # It would be 1.2 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_neither_jpeg_nor_png_is_not_decoded(tmp_path):
    """A GIF has frames, each of which may claim any size."""
    file = io.BytesIO()
    Image.new("L", (5, 5)).save(file, "GIF")
    folder = made(tmp_path, framed(image_record(file.getvalue())))
    assert "cannot be decoded" in damage_of(folder)
    example = Example("a.gif", file.getvalue(), 0)
    with pytest.raises(DataError, match=r"a\.gif is not a JPEG or PNG"):
        writer.write(tmp_path / "test", [example], class_names=CLASSES, shards=1)
