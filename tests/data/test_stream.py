import io
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.python.autograph.impl import api

from crest_jax import files
from crest_jax.data import loading, manifest, stream, writer
from crest_jax.data.sources import Example
from crest_jax.data.stream import StreamedChunks, Streaming
from crest_jax.data.views import AS_STORED, View
from crest_jax.errors import DataError

SHARDS = 8
INTERLEAVED = 1
STREAMING = Streaming(View(), lanes=4, window=16)


def example(number):
    """Its two channels' bytes are its number, and so is its id."""
    pixels = np.zeros((1, 2, 3), np.uint8)
    pixels[0, 0] = number // 256
    pixels[0, 1] = number % 256
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Example(str(number), file.getvalue(), number % 7)


def read_shard(path):
    for record in tf.data.TFRecordDataset(str(path)):
        name, image, label = stream.parse(record)
        yield Example(name.numpy().decode(), image.numpy(), int(label))


def numbers_of(images):
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]


@pytest.fixture(scope="module")
def folders(make_folder):
    """A labeled set of 50 examples and an unlabeled one of 203, numbered from 0."""
    folder = make_folder("run")
    for name, numbers in (("labeled", range(50)), ("unlabeled", range(50, 253))):
        writer.write(
            folder / name,
            [example(number) for number in numbers],
            class_names=list("abcdefg"),
            shards=SHARDS,
        )
    return folder / "labeled", folder / "unlabeled"


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """Interleave few of the 2 to 4 shards of a lane, so that an epoch has several groups."""
    monkeypatch.setattr(stream, "INTERLEAVED", INTERLEAVED)


def batches(folders, streaming=STREAMING, **changes):
    labeled, unlabeled = folders
    options = {"batch_size": 8, "unlabeled_ratio": 2, "seed": 5, "generation": 0, "start": 0}
    return list(
        stream.batches([labeled], [labeled, unlabeled], streaming, **{**options, **changes})
    )


def assert_same(ours, others):
    assert len(ours) == len(others) > 0
    for one, other in zip(ours, others, strict=True):
        for field, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, expected)


def lane_streams(found, field, lanes=4):
    """Return what each lane has yielded, in order."""
    parts = [np.split(numbers_of(getattr(batch, field)), lanes) for batch in found]
    return [np.concatenate(of_lane) for of_lane in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def long(folders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "INTERLEAVED", INTERLEAVED)
        return batches(folders, stop=60)


# What is in a batch


def test_a_batch_has_the_shapes_and_labels_of_its_images(long):
    for batch in long:
        assert batch.labeled.shape == (8, 1, 2, 3)
        assert batch.labels.tolist() == (numbers_of(batch.labeled) % 7).tolist()
        assert batch.labels.dtype == batch.unlabeled_rows.dtype == np.int32
        assert batch.unlabeled.shape == (16, 1, 2, 3)
        assert (numbers_of(batch.labeled) < 50).all()


@pytest.mark.parametrize(("field", "total"), [("labeled", 50), ("unlabeled", 253)])
def test_every_lane_has_each_of_its_examples_once_an_epoch(long, field, total):
    seen = set()
    for numbers in lane_streams(long, field):
        mine = set(numbers.tolist())
        assert not seen & mine, "lanes have examples of their own"
        seen |= mine
        assert len(numbers) >= 3 * len(mine)
        for epoch in range(len(numbers) // len(mine)):
            of_epoch = numbers[epoch * len(mine) : (epoch + 1) * len(mine)]
            assert set(of_epoch.tolist()) == mine
    assert seen == set(range(total))


def test_epochs_are_shuffled_and_differ(long):
    (numbers, *_) = lane_streams(long, "unlabeled")
    epoch = len(set(numbers.tolist()))
    first, second = numbers[:epoch], numbers[epoch : 2 * epoch]
    assert first.tolist() != second.tolist()
    # Neighbours on disk are not neighbours in the stream.
    assert (np.diff(first) == 1).mean() < 0.3


@pytest.mark.parametrize("change", [{"seed": 6}, {"generation": 1}])
def test_seeds_and_generations_have_orders_of_their_own(folders, long, change):
    others = batches(folders, stop=10, **change)
    for field in ("labeled", "unlabeled"):
        ours = [numbers_of(getattr(batch, field)).tolist() for batch in long[:10]]
        theirs = [numbers_of(getattr(batch, field)).tolist() for batch in others]
        assert ours != theirs


def test_autograph_has_nothing_to_convert(folders, monkeypatch):
    """It would write files, and warn where it finds no source code."""
    converted = []
    convert = api._convert_actual

    def spy(function, context):
        converted.append(function)
        return convert(function, context)

    monkeypatch.setattr(api, "_convert_actual", spy)
    batches(folders, stop=1)
    batches(folders, STREAMING._replace(view=View(4, "random")), stop=1)
    list(StreamedChunks(folders[0], view=View(4, "central"), size=50))
    loading.load_images(folders[0], View(4, "none"))
    assert not converted


def test_there_may_be_nothing_unlabeled(folders, long):
    found = batches(folders, stop=3, unlabeled_ratio=0)
    for batch, other in zip(found, long, strict=False):
        np.testing.assert_array_equal(batch.labeled, other.labeled)
        assert batch.unlabeled.shape == (0, 1, 2, 3)
        assert batch.unlabeled_rows.shape == (0,)


# Starting anywhere, on any number of hosts


@pytest.mark.parametrize("start", [1, 6, 16, 31, 59])
def test_a_stream_that_starts_later_is_the_rest_of_one_that_started_before(folders, long, start):
    assert_same(batches(folders, start=start, stop=60), long[start:])


def test_a_start_far_away_opens_no_shard_that_it_passes_over(folders, long, tmp_path):
    """The shards that a lane reads first in its epoch keep their size, but have no content."""
    (numbers, *_) = lane_streams(long, "labeled")
    shard_of = {
        int(example.id): shard.path.name
        for shard in manifest.shards(folders[0])
        for example in read_shard(shard.path)
    }
    epoch = len(set(numbers.tolist()))
    order = list(dict.fromkeys(shard_of[number] for number in numbers[:epoch].tolist()))
    assert len(order) == 2, "a lane of this set has two shards, here one after the other"
    passed_over, needed = order
    copy = copied(folders[0], tmp_path)
    size = (copy / passed_over).stat().length
    (copy / passed_over).write_bytes(bytes(size))
    # Where the second shard begins, in steps of two of this lane.
    place = next(at for at, number in enumerate(numbers) if shard_of[int(number)] == needed)
    start = -(-place // 2)
    (batch,) = batches((copy, folders[1]), start=start, stop=start + 1, unlabeled_ratio=0)
    np.testing.assert_array_equal(batch.labeled, long[start].labeled)
    with pytest.raises(DataError, match="has changed since it was written"):
        batches((copy, folders[1]), start=0, stop=1, unlabeled_ratio=0)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batches_of_one(folders, long, hosts):
    of_hosts = [
        batches(folders, start=3, stop=9, process=host, processes=hosts) for host in range(hosts)
    ]
    for parts, whole in zip(zip(*of_hosts, strict=True), long[3:9], strict=True):
        for field in ("labeled", "labels", "unlabeled"):
            together = np.concatenate([getattr(part, field) for part in parts])
            np.testing.assert_array_equal(together, getattr(whole, field))


def test_a_host_opens_only_its_own_shards(folders, tmp_path):
    """The shards of the other lanes keep their size, but have no content."""
    mine = tmp_path / "labeled"
    mine.mkdir()
    for number, file in enumerate(sorted(folders[0].glob("*.tfrecord"))):
        content = file.read_bytes()
        (mine / file.name).write_bytes(content if number % 4 < 2 else bytes(len(content)))
    (mine / "manifest.json").write_text((folders[0] / "manifest.json").read_text())
    options = {"stop": 20, "unlabeled_ratio": 0}
    found = batches((mine, folders[1]), process=0, processes=2, **options)
    assert_same(found, batches(folders, process=0, processes=2, **options))
    with pytest.raises(DataError, match="has changed since it was written"):
        batches((mine, folders[1]), process=1, processes=2, **options)


@pytest.mark.parametrize("interleaved", [2, 16])
def test_shards_that_are_interleaved_can_be_started_in_too(folders, monkeypatch, interleaved):
    monkeypatch.setattr(stream, "INTERLEAVED", interleaved)
    whole = batches(folders, stop=20)
    assert_same(batches(folders, start=8, stop=20), whole[8:])


# What is wrong is said


def copied(folder, tmp_path):
    copy = tmp_path / folder.name
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_shard_that_is_cut_or_gone_is_found_before_the_first_batch(folders, tmp_path):
    labeled = copied(folders[0], tmp_path)
    shard = labeled / "shard-00003-of-00008.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"shard-00003-of-00008.tfrecord is truncated at byte"):
        batches((labeled, folders[1]), stop=1)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00003-of-00008.tfrecord is missing"):
        batches((labeled, folders[1]), stop=1)


def test_a_flipped_byte_is_found_when_it_is_read(folders, tmp_path):
    labeled = copied(folders[0], tmp_path)
    shard = labeled / "shard-00003-of-00008.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{shard.name} has changed .*: delete {labeled} "):
        batches((labeled, folders[1]), stop=20)
    with pytest.raises(DataError, match=rf"{shard.name} has changed .*: delete {labeled} "):
        list(StreamedChunks(labeled, view=View(), size=10))


def test_more_lanes_than_shards_with_examples_are_refused(folders, tmp_path):
    writer.write(tmp_path / "few", [example(0)], class_names=list("abcdefg"), shards=SHARDS)
    for host in (0, 1):  # whichever host the lane is of
        with pytest.raises(DataError, match=r"data\.lanes=4 is more than .*few"):
            batches((tmp_path / "few", folders[1]), stop=1, process=host, processes=2)


# Images of different sizes


def test_large_images_are_cropped_at_random_and_the_same_way_each_time(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for number in range(12):
        file = io.BytesIO()
        shape = (30 + number, 50 - number, 3)
        pixels = np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((25, 25, 1)))[
            : shape[0], : shape[1]
        ]
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG" if number % 2 else "PNG")
        made.append(Example(str(number), file.getvalue(), number % 7))
    writer.write(tmp_path / "all", made, class_names=list("abcdefg"), shards=4)
    streaming = Streaming(View(16, "random"), lanes=2, window=8)
    folders = (tmp_path / "all", tmp_path / "all")
    found = batches(folders, streaming, batch_size=6, unlabeled_ratio=1, stop=8)
    assert_same(batches(folders, streaming, batch_size=6, unlabeled_ratio=1, stop=8), found)
    assert found[0].labeled.shape == found[0].unlabeled.shape == (6, 16, 16, 3)
    images = np.concatenate([batch.labeled for batch in found]).reshape(48, -1)
    assert len(np.unique(images, axis=0)) > 30, "another crop every time"
    (part,) = StreamedChunks(tmp_path / "all", view=View(16, "central"), size=50)
    assert part.images.shape == (12, 16, 16, 3)
    assert part.ids == [str(number) for number in range(12)]
    grey = Streaming(View(16, "random", channels=1), lanes=2, window=8)
    for ratio in (0, 1):
        (first,) = batches(folders, grey, batch_size=6, unlabeled_ratio=ratio, stop=1)
        assert first.labeled.shape == (6, 16, 16, 1)
        assert first.unlabeled.shape == (6 * ratio, 16, 16, 1)


# Manifests that are not to be trusted


def with_shards(folders, tmp_path, change):
    """Return a copy of the labeled set with other shards and a changed manifest."""
    folder = tmp_path / "labeled"
    shutil.copytree(folders[0], folder)
    manifest = files.read_json(folder / "manifest.json")
    for entry in manifest["shards"]:
        change(folder, entry)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_shards_without_the_records_that_they_should_have_are_not_read_for_ever(folders, tmp_path):
    def emptied(folder, entry):
        (folder / entry["file"]).write_bytes(b"")
        entry["bytes"] = 0

    folder = with_shards(folders, tmp_path, emptied)
    with pytest.raises(DataError, match="has changed since it was written"):
        batches((folder, folders[1]), stop=1)
    with pytest.raises(DataError, match="has changed since it was written"):
        list(StreamedChunks(folder, view=AS_STORED, size=8))


def test_a_manifest_whose_shards_do_not_add_up_is_found(folders, tmp_path):
    folder = with_shards(folders, tmp_path, lambda _, entry: entry.update(examples=2**62))
    with pytest.raises(DataError, match="examples is 50, but its shards have"):
        batches((folder, folders[1]), stop=1)


def test_a_label_of_no_class_is_found(folders, tmp_path):
    folder = tmp_path / "labeled"
    shutil.copytree(folders[0], folder)
    manifest = files.read_json(folder / "manifest.json")
    manifest |= {"class_names": list("abc"), "examples_per_class": [20, 20, 10]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"has label [3-6], which is not in 0\.\.2"):
        batches((folder, folders[1]), stop=4)
    with pytest.raises(DataError, match=r"has label [3-6], which is not in 0\.\.2"):
        list(StreamedChunks(folder, view=AS_STORED, size=8))
