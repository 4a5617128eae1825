import hashlib
import io
import json
import os
import re
import tracemalloc
import zipfile

import numpy as np
import pytest

from crest_jax import files
from crest_jax.data import pseudo_labels
from crest_jax.data.pseudo_labels import PseudoLabels
from crest_jax.errors import DataError

EXAMPLES = PseudoLabels(
    np.array([b"a", b"b", b"c"]),
    np.array([0, 1, 2], np.int32),
    np.array([0.5, 0.75, 1.0], np.float32),
    np.array([True, False, True]),
    np.array([0, 1, 1], np.int32),
)


@pytest.fixture
def folder(tmp_path):
    pseudo_labels.write(tmp_path / "pseudo_labels", EXAMPLES)
    return tmp_path / "pseudo_labels"


def refused(folder, content=None, **changes):
    """Return the error of reading a folder with this archive and a manifest that matches it."""
    path = folder / "manifest.json"
    manifest = files.read_json(path)
    if content is not None:
        (folder / manifest["shards"][0]["file"]).write_bytes(content)
        manifest["shards"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    manifest["shards"][0] |= changes
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError) as caught:
        pseudo_labels.read(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def archive(method=zipfile.ZIP_DEFLATED, **arrays):
    """Return an archive as NumPy writes it, with some fields replaced by arrays or by bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, field in (EXAMPLES._asdict() | arrays).items():
            member = io.BytesIO()
            if isinstance(field, bytes):
                member.write(field)
            else:
                np.save(member, field, allow_pickle=True)
            made.writestr(f"{name}.npy", member.getvalue())
    return file.getvalue()


def test_what_is_written_is_read_back(folder):
    for ours, theirs in zip(pseudo_labels.read(folder), EXAMPLES, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Joker:
    """An object that makes a folder if it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_nothing_is_unpickled(folder, tmp_path):
    traps = np.array([Joker(tmp_path / "sprung")] * 3, object)
    assert "ids is object" in refused(folder, archive(ids=traps))
    assert not (tmp_path / "sprung").exists()
    file = io.BytesIO()
    np.save(file, traps, allow_pickle=True)
    assert "cannot be read" in refused(folder, file.getvalue())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros((3, 2), np.int32)}, "labels is int32 of shape \\(3, 2\\)"),
        ({"labels": np.zeros(3)}, "labels is float64"),
        ({"labels": np.zeros(2, np.int32)}, "labels is int32 of shape \\(2,\\), not 3"),
        ({"confidence": np.zeros(3, "U4")}, "confidence is <U4"),
        ({"selected": np.zeros(3, np.uint8)}, "selected is uint8"),
        ({"truth": b""}, "cannot be read"),
        ({"truth": b"\x93NUMPY\x02\x00"}, "truth has format \\(2, 0\\)"),
        ({"method": zipfile.ZIP_BZIP2}, "ids is not compressed with DEFLATE"),
        ({"selected": np.ones(3, bool)}, "holds other pseudo-labels than its manifest says"),
    ],
)
def test_an_archive_of_something_else_is_refused(folder, changes, message):
    assert re.search(message, refused(folder, archive(**changes)))


def test_an_archive_is_not_taken_at_its_word_about_its_size(folder):
    count = 10**10
    header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({count},), }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    ids = member.replace(b"<i4", b"|S9")
    tracemalloc.start()
    try:
        message = refused(folder, archive(ids=ids, labels=member), examples=count)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert f"ids cannot have {9 * count} bytes" in message
    assert peak < 10 << 20


@pytest.mark.parametrize("name", ["../shard.npz", "/etc/passwd", "a/b.npz", "..", "", "a\0b"])
def test_a_manifest_names_files_of_its_own_folder_only(folder, name):
    assert "must be the name of a file, in no other folder" in refused(folder, file=name)
