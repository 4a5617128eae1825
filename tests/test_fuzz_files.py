"""Any file is read, or refused with an error of ours that names it."""

import hashlib
import io
import json
import struct
import zipfile
from functools import partial

import finished_run
import fuzz
import numpy as np
import pytest
import sixteen_bits
import tensorflow as tf
from conftest import load_experiment
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from crest_jax import (
    environment,
    files,
    predict,
    report,
    results,
    self_training,
    training,
    workdir,
)
from crest_jax.config import to_plain
from crest_jax.data import loading, pseudo_labels, records, sources, stream, writer
from crest_jax.data import pictures as pictures_lib
from crest_jax.data.manifest import read as read_manifest
from crest_jax.data.pseudo_labels import PseudoLabels
from crest_jax.data.sources import Example, Source
from crest_jax.data.views import AS_STORED, View
from crest_jax.errors import CrestError, DataError
from crest_jax.layout import FORMAT
from crest_jax.paper.comparison import value_of
from crest_jax.paper.progress import Progress
from crest_jax.paper.published import TABLES
from crest_jax.report import comparison, figures, text

CLASSES = ("cat", "dog", "emu")


def survives(read):
    """Read; an error of ours with a readable message is fine, too."""
    try:
        return read()
    except CrestError as error:
        fuzz.check_message(error)
        return None


def png(side, value=0, channels=3):
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, channels), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def jpeg(side):
    file = io.BytesIO()
    Image.fromarray(np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)).save(
        file, "JPEG"
    )
    return file.getvalue()


# Records

EXAMPLES = [Example(f"id-{row}", png(4, row), row % 3) for row in range(6)]


@pytest.fixture(scope="module")
def split(make_folder):
    folder = make_folder("records") / "labeled"
    writer.write(folder, EXAMPLES, class_names=CLASSES, shards=2)
    return folder


@pytest.fixture(scope="module")
def manifest(split):
    return read_manifest(split)


def loaded(folder, view):
    """Return arrays with the same number everywhere."""
    images = loading.load_images(folder, view)
    assert len(images.ids) == len(images.images) == len(images.labels)


def streamed(folder, view=AS_STORED):
    streaming = stream.Streaming(view=view, lanes=1, window=4)
    return list(
        stream.batches([folder], [folder], streaming, batch_size=2, unlabeled_ratio=1, seed=0,
                       generation=0, start=0, stop=4)
    )  # fmt: skip


WAYS = (
    lambda folder: list(records.read(folder)),
    lambda folder: list(records.read(folder, range(1, 3))),
    lambda folder: records.load_encoded([folder], View(4, "random")),
    partial(loaded, view=AS_STORED),
    partial(loaded, view=View(4, "central")),
    lambda folder: list(stream.StreamedChunks(folder, view=View(4, "none"), size=4)),
    lambda folder: list(stream.StreamedChunks(folder, view=AS_STORED, size=4)),
    streamed,
    partial(streamed, view=View(4, "random")),
)


@pytest.fixture(scope="module")
def damaged(split, make_folder):
    """Return another folder with the shards of the first."""
    folder = make_folder("damaged") / "labeled"
    folder.mkdir()
    for path in split.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@fuzz.settings(short=40)
@given(data=st.data(), way=st.sampled_from(WAYS))
def test_any_manifest_is_read_or_refused(data, way, damaged, manifest):
    content = data.draw(fuzz.json_bytes(manifest))
    (damaged / "manifest.json").write_bytes(content)
    survives(lambda: way(damaged))


@st.composite
def shard_contents(draw):
    """Files of records damaged outside, or within with checksums that are right."""
    parts = [writer._serialize(each) for each in EXAMPLES[:3]]
    if draw(st.booleans()):
        return draw(fuzz.damaged_bytes(b"".join(map(fuzz.framed, parts))))
    place = draw(st.integers(0, 2))
    match draw(st.sampled_from(["bytes", "image", "label", "id", "length", "none"])):
        case "bytes":
            parts[place] = draw(fuzz.damaged_bytes(parts[place]))
        case "image":
            image = draw(fuzz.damaged_bytes(draw(st.sampled_from([png(4), jpeg(4)]))))
            parts[place] = writer._serialize(EXAMPLES[place]._replace(image=image))
        case "label":
            label = draw(st.sampled_from([-1, 3, 2**63 - 1, -(2**63)]))
            parts[place] = writer._serialize(EXAMPLES[place]._replace(label=label))
        case "id":
            feature = tf.train.Example.FromString(parts[place])
            feature.features.feature["id"].bytes_list.value[0] = draw(st.binary(max_size=4))
            parts[place] = feature.SerializeToString(deterministic=True)
        case "length":
            length = draw(st.sampled_from([2**40, 2**63, 2**64 - 1, 2**64 - 16, 10**6]))
            return fuzz.framed(parts[0]) + fuzz.framed(parts[1], length)
        case "none":
            return b""
    return b"".join(map(fuzz.framed, parts))


def with_shard(folder, manifest, content):
    """Makes a file the folder's first shard, with a manifest that is right about it."""
    first, *others = manifest["shards"]
    (folder / first["file"]).write_bytes(content)
    entry = {**first, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "shards": [entry, *others]}))


@fuzz.settings(short=40)
@given(content=shard_contents(), way=st.sampled_from(WAYS))
def test_any_shard_is_read_or_refused_even_where_its_digest_is_right(
    content, way, damaged, manifest
):
    with_shard(damaged, manifest, content)
    survives(lambda: way(damaged))


def test_a_shard_that_is_shorter_than_its_manifest_says_does_not_stream_for_ever(
    tmp_path, split, manifest
):
    folder = tmp_path / "labeled"
    folder.mkdir()
    for entry in manifest["shards"]:
        (folder / entry["file"]).write_bytes(b"")
    shards = [{**entry, "bytes": 0} for entry in manifest["shards"]]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "shards": shards}))
    with pytest.raises(DataError, match="has changed since it was written"):
        streamed(folder)


# Pseudo-labels

PSEUDO_LABELS = PseudoLabels(
    np.array([b"a", b"b", b"c"]),
    np.array([0, 1, 2], np.int32),
    np.array([0.5, 0.6, 0.7], np.float32),
    np.array([True, False, True]),
    np.array([0, 1, 1], np.int32),
)


class Joker:
    """An object that writes a file if it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


ARRAYS = st.one_of(
    st.sampled_from(list(PSEUDO_LABELS)),
    st.sampled_from([
        np.zeros((3, 2), np.int32), np.zeros(3, np.float64), np.zeros(3, "U3"), np.zeros(0),
        np.array(3), np.zeros(3, [("a", "i4")]), np.array([-1, 7, 2**31 - 1], np.int32),
        np.array([2**62] * 3), np.array(["2020"] * 3, "M8[Y]"), np.array([1j] * 3),
        np.full(3, np.nan, np.float32), np.array([b"\xff"] * 3), np.zeros(3, "S70000"),
        np.zeros(3, "V3"), np.zeros(3, ">i4"), np.array([None] * 3, object),
    ]),
)  # fmt: skip
HEADERS = (
    "{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), 'x': 1}",
    "{'descr': '|S99999999999', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "__import__('os').system('true')",
    "(" * 5000,
    "",
    "{'descr': '<i4', 'fortran_order': True, 'shape': (-3,), }",
)


def npy(header, data=b"\0" * 12):
    text = header.encode().ljust(54)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@st.composite
def archives(draw):
    """Draw the content of an archive of pseudo-labels."""
    members = {}
    for name, array in PSEUDO_LABELS._asdict().items():
        file = io.BytesIO()
        if draw(st.integers(0, 3)) == 0:
            array = draw(ARRAYS)
        np.save(file, array, allow_pickle=True)
        members[name] = file.getvalue()
    name = draw(st.sampled_from(PseudoLabels._fields))
    match draw(st.sampled_from(["none", "missing", "header", "bytes"])):
        case "missing":
            del members[name]
        case "header":
            members[name] = npy(draw(st.sampled_from(HEADERS)))
        case "bytes":
            members[name] = draw(fuzz.damaged_bytes(members[name]))
    content = io.BytesIO()
    method = draw(st.sampled_from([zipfile.ZIP_DEFLATED] * 3 + [
        zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA
    ]))  # fmt: skip
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(f"{name}.npy", member)
    if draw(st.integers(0, 3)) == 0:
        return draw(fuzz.damaged_bytes(content.getvalue()))
    return content.getvalue()


def with_archive(folder, content, **changes):
    """A folder of pseudo-labels with a manifest that is right about its archive."""
    folder.mkdir(exist_ok=True)
    entry = {
        "file": "shard-00000-of-00001.npz", "examples": 3, "selected": 2,
        "sha256": hashlib.sha256(content).hexdigest(), **changes,
    }  # fmt: skip
    (folder / entry["file"]).write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "shards": [entry]}))


def read_pseudo_labels(folder):
    found = survives(lambda: pseudo_labels.read(folder))
    if found is not None:
        assert len({len(field) for field in found}) == 1
    survives(lambda: pseudo_labels.selected_count(folder))
    survives(lambda: pseudo_labels.selected(folder, range(1, 3)))
    survives(lambda: self_training.count_pseudo_labels(folder, 3))


@fuzz.settings(short=60)
@given(archives())
def test_any_archive_of_pseudo_labels_is_read_or_refused(scratch, content):
    with_archive(scratch / "archive", content)
    read_pseudo_labels(scratch / "archive")


@fuzz.settings(short=40)
@given(data=st.data())
def test_any_manifest_of_pseudo_labels_is_read_or_refused(data, scratch):
    folder = scratch / "pseudo_labels"
    pseudo_labels.write(folder, PSEUDO_LABELS)
    valid = files.read_json(folder / "manifest.json")
    (folder / "manifest.json").write_bytes(data.draw(fuzz.json_bytes(valid)))
    read_pseudo_labels(folder)


@pytest.fixture(scope="module")
def scratch(make_folder):
    return make_folder("scratch")


# Files of a run

CONFIG = to_plain(load_experiment("digits_lt")) | {"generations": 2}
GENERATION = finished_run.generation(
    3,
    pseudo_labels={"selected": [1, 2, 3]},
    unlabeled_distribution={
        **{name: [0.2, 0.3, 0.5] for name in ("estimate", "low", "high", "labeled")},
        "level": 0.9,
        "p_value": 0.0,
        "known_from": "labeled",
        "differs": [0, 2],
    },
)
RESULTS = finished_run.results([GENERATION, GENERATION], class_names=list(CLASSES))


@fuzz.settings(short=60)
@given(data=st.data())
def test_any_results_are_shown_or_refused(data, scratch):
    folder = scratch / "run"
    folder.mkdir(exist_ok=True)
    content = data.draw(fuzz.json_bytes(RESULTS))
    (folder / "results.json").write_bytes(content)
    owner = {"format": FORMAT, "config": CONFIG, "environment": {}}
    (folder / "config.json").write_text(json.dumps(owner))
    survives(lambda: report.write(folder / "report.html", [folder]))
    found = survives(lambda: results.read(folder))
    if found is not None:
        assert len(found["generations"]) > 0
        survives(lambda: comparison.comparison([found]))
        survives(lambda: figures.overview([found]))
        so_far = Progress(found, planned=2)
        for row, column in ((r, c) for t in TABLES.values() for r in t.rows for c in t.columns):
            survives(partial(value_of, so_far, row, column))
        text.results_table(
            [{"generation": 0, **each} for each in found["generations"]], found["class_names"]
        )


@fuzz.settings(short=60)
@given(data=st.data())
def test_any_result_of_a_generation_is_used_or_refused(data, scratch):
    path = scratch / "result.json"
    path.write_bytes(data.draw(fuzz.json_bytes({"generation": 0, **GENERATION})))
    result = survives(lambda: results.read_generation(path, 3))
    if result is not None:
        text.generation_table(result, CLASSES)


@fuzz.settings(short=60)
@given(data=st.data())
def test_any_config_of_a_run_is_used_or_refused(data, scratch):
    folder = scratch / "claimed"
    folder.mkdir(exist_ok=True)
    valid = {"format": FORMAT, "config": CONFIG, "environment": environment.current()}
    (folder / "config.json").write_bytes(data.draw(fuzz.json_bytes(valid)))
    (folder / "splits").mkdir(exist_ok=True)
    survives(lambda: workdir.read_config(folder))

    def claim():
        with workdir.claim(folder, load_experiment("digits_lt")):
            pass

    survives(claim)


WEIGHTS = {
    "accuracy": 50.0,
    "confusion_matrix": [[1, 0], [1, 1]],
    "confusion_matrix_logit_adjusted": [[1, 0], [1, 1]],
}
LINES = [
    {"step": step, "seconds": 1.0, "test": {"ema": WEIGHTS, "raw": WEIGHTS},
     "validation": {"ema": WEIGHTS, "raw": WEIGHTS}, "unlabeled_distribution": [0.5, 0.5]}
    for step in (6, 12)
]  # fmt: skip


@fuzz.settings(short=60)
@given(data=st.data())
def test_any_metrics_are_continued_or_refused(data, scratch):
    path = scratch / "metrics.jsonl"
    lines = [data.draw(fuzz.json_bytes(line)) for line in LINES]
    path.write_bytes(b"\n".join(lines) + data.draw(st.sampled_from([b"", b"\n", b"\n\n", b"\r"])))

    def summarized():
        kept = training.keep_metrics(path, up_to=12)
        for line in kept:
            results.check_classes(line, 2, path)
        return results.summarize_evaluations(kept) if kept else None

    summary = survives(summarized)
    if summary is not None:
        files.write_json(scratch / "summary.json", summary)
        assert survives(summarized) == summary, "what was kept is whole"


# Tables of classes

TABLE = "wnid\tsuperclass\tsuperclass_name\ncat\t0\tpet\ndog\t0\tpet\nemu\t1\tbird\n"


@fuzz.settings(short=60)
@given(fuzz.damaged_bytes(TABLE.encode()))
@example(TABLE.replace("\t1\tbird", "").encode())
def test_any_table_of_classes_groups_them_or_is_refused(scratch, content):
    path = scratch / "table.tsv"
    path.write_bytes(content)
    source = Source("pets", CLASSES, lambda _: np.arange(3), lambda _: iter(()))
    grouped = survives(lambda: sources.grouped(source, path))
    if grouped is not None:
        assert len(grouped.labels("train")) == 3
        assert all(isinstance(name, str) for name in grouped.class_names)


# Pictures


def pictures():
    made = []
    rng = np.random.default_rng(0)
    for kind in pictures_lib.FORMATS:
        for mode in ("RGB", "L", "P", "RGBA", "1", "CMYK", "I;16"):
            file = io.BytesIO()
            try:
                pixels = Image.fromarray(rng.integers(0, 255, (9, 7, 3), dtype=np.uint8))
                pixels.convert(mode).save(file, kind)
            except (OSError, ValueError, KeyError):
                continue
            made.append(file.getvalue())
    deep = rng.integers(0, 2**12, (9, 7, 3)).astype(np.uint16)
    return [*made, sixteen_bits.png(deep), sixteen_bits.tiff(deep)]


@fuzz.settings(short=100)
@given(st.sampled_from(pictures()).flatmap(fuzz.damaged_bytes))
def test_any_picture_is_read_or_refused(scratch, content):
    path = scratch / "picture"
    path.write_bytes(content)
    for shape, view in (((8, 8, 3), View(8, "central")), ((8, 8, 1), AS_STORED)):
        seen = survives(partial(predict.read_image, path, shape, view, max_pixels=10_000))
        assert seen is None or seen.pixels.shape == shape
