import logging
import os
import pathlib
import shutil

import pytest
from ml_collections import ConfigDict
from PIL import Image

from crest_jax.data import preparation, provenance
from crest_jax.data.provenance import File
from crest_jax.errors import DataError


def file(name, class_name="cat", size=10, modified=5, sha256="a"):
    return File(name, class_name, size, modified, sha256)


def test_a_table_is_read_as_it_was_written(tmp_path):
    seen = [
        file("labeled/a,b.png"),
        file('labeled/"quoted"\nline\r.png', "Häher", 2**40, 2**62, ""),
    ]
    provenance.write(tmp_path / "files.csv", seen)
    assert provenance.read(tmp_path / "files.csv") == {each.id: each for each in seen}


HEADER = b"id,class_name,size,modified,sha256\n"


@pytest.mark.parametrize("content", [None, b"", b"id,size\n", b"\xff", HEADER + b"a,b,c\n"])
def test_a_table_that_is_damaged_or_missing_is_named(tmp_path, content):
    table = tmp_path / "files.csv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(DataError, match=r"files\.csv is not a table of files"):
        provenance.read(table)


def test_changes_are_counted_by_kind_and_contents_compared_where_the_time_differs():
    then = {each.id: each for each in map(file, "abcdefg")}
    now = [
        file("a", sha256=""),
        file("b", size=11, sha256=""),  # another size
        file("c", modified=6, sha256=""),  # touched: the same content
        file("d", modified=6, sha256=""),  # another content of the same size
        file("e", class_name="dog", sha256=""),
        file("h", sha256=""),
    ]
    digests = {"c": "a", "d": "b"}
    asked = []

    def digest(each):
        asked.append(each.id)
        return digests[each.id]

    assert provenance.changes(then, now, digest) == [
        "1 are new (h)",
        "2 are gone (f, g)",
        "2 have other content (b, d)",
        "1 have another class (e)",
    ]
    assert asked == ["c", "d"]
    unread = [each._replace(sha256="") for each in then.values()]
    assert provenance.changes(then, unread, digest) == []


@pytest.fixture
def photos(tmp_path):
    folder = pathlib.Path(tmp_path / "photos")
    for name, count in (("ant", 5), ("bee", 4)):
        for number in range(count):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, count, 9)).save(path)
    (folder / "ant" / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def said(tiny_config, photos, tmp_path, caplog):
    """Log messages of preparing splits that exist already."""
    config = tiny_config(**{"data.name": "image_folder", "data.labeled": str(photos)})
    config.long_tail = ConfigDict({"beta": 0.5, "split": "random"})
    (tmp_path / "run").mkdir()
    preparation.prepare(config, tmp_path / "run" / "splits", tmp_path / "unreadable.csv")

    def again(**moved):
        config.data.update(moved)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            preparation.prepare(config, tmp_path / "run" / "splits", tmp_path / "unreadable.csv")
        return [record.getMessage() for record in caplog.records]

    return again


def test_nothing_is_said_where_nothing_has_changed_but_times_and_places(said, photos, tmp_path):
    assert said() == []
    for path in photos.rglob("*"):
        os.utime(path)
    assert said() == []
    shutil.move(photos, tmp_path / "elsewhere")
    assert said(labeled=str(tmp_path / "elsewhere")) == []


def test_new_exchanged_and_removed_images_are_said(said, photos):
    shutil.copy(photos / "ant" / "0.png", photos / "bee" / "new.png")
    Image.new("RGB", (8, 8), (200, 100, 0)).save(photos / "ant" / "1.png")
    (photos / "ant" / "2.png").unlink()
    (photos / "ant" / "notes.txt").write_text("other notes")
    (message,) = said()
    assert message.startswith(
        "the images are no longer those that this run has read: 1 are new (labeled/bee/new.png); "
        "1 are gone (labeled/ant/2.png); "
        "2 have other content (labeled/ant/1.png, labeled/ant/notes.txt). The run and its results"
    )


def test_images_that_are_not_there_any_more_are_said(said):
    (message,) = said(labeled="/nowhere")
    assert "data.labeled='/nowhere' is neither a folder nor a CSV file" in message
    assert message.startswith(
        "it is not known whether the images are still those that this run has read"
    )
