"""Folders and lists of one's own images."""

import csv
import io
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from fake_gcs import FakeGcs
from PIL import Image

from crest_jax.data import catalog, class_names, pictures, sources
from crest_jax.data.sources import UNKNOWN, Folders
from crest_jax.errors import DataError


def picture(number, kind="PNG", size=(6, 5)):
    """A file of a picture that tells its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def lay_down(folder, files):
    """Writes files by name: bytes, or a number that stands for a picture."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(content) if isinstance(content, int) else content)


def numbered(first, **counts):
    """Return names of so many pictures in each folder, with numbers from `first` on."""
    names = [f"{name}/{n}.png" for name, count in counts.items() for n in range(count)]
    return {name: number for number, name in enumerate(names, first)}


def opened(tmp_path, labeled="labeled", unlabeled="", test="", **options):
    def where(name):
        return str(tmp_path / name) if name else ""

    folders = Folders(
        **{
            "labeled": where(labeled),
            "unlabeled": where(unlabeled),
            "test": where(test),
            "test_fraction": 0.25,
            "max_pixels": 1000,
            "unreadable": 0.0,
            "listing": tmp_path / "unreadable.csv",
            **options,
        }
    )
    return catalog.load("image_folder", folders=folders)


def examples(source, split):
    found = list(source.examples(split))
    assert [example.label for example in found] == source.labels(split).tolist()
    return found


def by_id(source, split):
    """Return the class names by id, with None for unknown classes."""
    return {
        example.id: None if example.label == UNKNOWN else source.class_names[example.label]
        for example in examples(source, split)
    }


@pytest.fixture
def folder(tmp_path):
    """Two classes labeled, three pictures whose class is not known, two to test on."""
    lay_down(tmp_path / "labeled", numbered(0, cat=4, bee=3))
    lay_down(tmp_path / "unlabeled", {"0.png": 20, "deep/er/1.png": 21, "cat/2.png": 22})
    lay_down(tmp_path / "test", numbered(40, bee=1, cat=1))
    return tmp_path


# Folders


def test_classes_are_the_folders_in_the_order_of_their_names(folder):
    source = opened(folder, unlabeled="unlabeled", test="test")
    assert (source.name, source.class_names, source.divided) == (
        "image_folder",
        ("bee", "cat"),
        True,
    )
    assert by_id(source, "train") == {
        **{f"labeled/bee/{n}.png": "bee" for n in range(3)},
        **{f"labeled/cat/{n}.png": "cat" for n in range(4)},
    }
    assert by_id(source, "test") == {"test/bee/0.png": "bee", "test/cat/0.png": "cat"}
    # A folder's name says nothing of what is not labeled.
    assert by_id(source, "unlabeled") == dict.fromkeys(
        ["unlabeled/0.png", "unlabeled/cat/2.png", "unlabeled/deep/er/1.png"]
    )


def test_files_are_copied_or_turned_into_png(folder):
    bitmap = picture(7, "BMP")
    lay_down(folder, {"labeled/cat/a.bmp": bitmap, "labeled/cat/b.JPG": picture(8, "JPEG")})
    content = {
        example.id: example.image for example in opened(folder, test="test").examples("train")
    }
    assert content["labeled/cat/0.png"] == picture(0)
    assert content["labeled/cat/b.JPG"] == picture(8, "JPEG")
    made = Image.open(io.BytesIO(content["labeled/cat/a.bmp"]))
    assert made.format == "PNG"
    np.testing.assert_array_equal(np.asarray(made), Image.open(io.BytesIO(bitmap)))


def test_hidden_files_links_endings_and_names_that_are_no_text(folder):
    lay_down(folder, {
        "labeled/cat/.hidden.png": 50, "labeled/.cache/1.png": 51, "labeled/cat/.git/1.png": 52,
        "labeled/cat/notes.txt": b"notes", "labeled/cat/UPPER.PNG": 53,
        "labeled/cat/deep/1.png": 54, "elsewhere/5.png": 55, "elsewhere/more/6.png": 56,
    })  # fmt: skip
    links = {"labeled/cat/link.png": "elsewhere/5.png", "labeled/dog": "elsewhere",
             "elsewhere/round": "elsewhere"}  # fmt: skip
    for link, target in links.items():
        pathlib.Path(folder / link).symlink_to(folder / target)
    with open(os.fsencode(folder / "labeled" / "bee") + b"/\xe9.png", "wb") as file:  # noqa: PTH123
        file.write(picture(57))
    classes = by_id(opened(folder, test="test"), "train")
    added = set(classes) - {f"labeled/{name}" for name in numbered(0, cat=4, bee=3)}
    assert added == {
        "labeled/cat/UPPER.PNG", "labeled/cat/deep/1.png", "labeled/cat/link.png",
        "labeled/dog/5.png", "labeled/dog/more/6.png", "labeled/bee/\\xe9.png",
    }  # fmt: skip
    assert classes["labeled/dog/more/6.png"] == "dog"


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {"labeled": "nowhere"}, r"data\.labeled='.*nowhere' is neither a folder nor a CSV"),
        ({}, {"unlabeled": "no.csv"}, r"data\.unlabeled='.*no\.csv' is neither a folder nor"),
        ({"labeled/1.png": 1}, {}, r"holds 1\.png beside its folders: move each image into"),
        ({"labeled/eel/.hidden.png": 1}, {}, r"there is none in eel: remove the folder"),
        ({"labeled/eel/readme.txt": b""}, {}, r"no image of eel can be read; see"),
        ({"labeled/no ending": 1}, {}, r"holds no ending beside its folders: move each image"),
        ({"labeled/1.HEIC": b""}, {}, r"holds 1\.HEIC beside its folders: move each image"),
        (
            {"high/all/ant/1.png": 1, "high/all/bee/1.png": 2},
            {"labeled": "high"},
            r"only the class all: .*If ant, bee in all are the classes, give labeled=.*high/all$",
        ),
        (
            {"high/val/cat/1.png": 1, "high/val/bee/1.png": 2},
            {"test": "high"},
            r"not have: val; these have bee, cat\. If bee, cat in val are .* give test=.*high/val$",
        ),
        ({"test/Bee/1.png": 1}, {"test": "test"}, r"not have: 'Bee' \(is it 'bee'\?\); these have"),
        ({"one/cat/1.png": 1}, {"labeled": "one"}, r"has only the class cat: give two or more"),
        ({"none/cat.txt": b""}, {"labeled": "none"}, r"must have a folder for each .* is none$"),
        ({"none/.cat.png": 1}, {"unlabeled": "none"}, r"data\.unlabeled=.* holds no file"),
        ({"none/cat.txt": b""}, {"unlabeled": "none"}, r"data\.unlabeled=.* has no image that can"),
        ({"test/eel/1.png": 1}, {"test": "test"}, r"classes that .* not have: eel; these have bee"),
        ({"one/a/1.png": 1, "one/b/1.png": 2}, {"labeled": "one"}, r"each class has a single one"),
        (
            {"test/bee/0.png": b"", "test/cat/0.png": b""},
            {"test": "test", "unreadable": 2.0},
            r"no image to test on, since none of data\.test can be read",
        ),
        (
            {"bad/1.png": b""},
            {"unlabeled": "bad", "unreadable": 1.0},
            r"data\.unlabeled='.*bad' has no image that can be read; see .*unreadable\.csv",
        ),
        (
            {"labeled/eel/1.png": b"no picture"},
            {"unreadable": 5.0},
            r"no image of eel can be read; see .*unreadable\.csv",
        ),
    ],
)  # fmt: skip
def test_folders_that_do_not_fit_are_errors_that_say_how(folder, files, options, message):
    lay_down(folder, files)
    with pytest.raises(DataError, match=message):
        opened(folder, **options)


def warnings_of(caplog, *arguments, **options):
    """Return the warnings that are logged when images are opened."""
    with caplog.at_level(logging.WARNING, "absl"):
        opened(*arguments, **options)
    return [record.getMessage() for record in caplog.records]


# Names of classes


def test_a_name_is_one_class_however_its_accents_were_typed(folder, caplog):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    lay_down(folder, {
        f"labeled/{composed}/0.png": 50, f"labeled/{decomposed}/1.png": 51,
        f"test/{decomposed}/0.png": 52,
    })  # fmt: skip
    with caplog.at_level(logging.WARNING, "absl"):
        source = opened(folder, test="test")
    assert source.class_names == ("bee", composed, "cat")
    train = by_id(source, "train")
    assert train[f"labeled/{composed}/0.png"] == train[f"labeled/{decomposed}/1.png"] == composed
    assert by_id(source, "test")[f"test/{decomposed}/0.png"] == composed
    assert not caplog.records
    table = f"wnid\tsuperclass\tsuperclass_name\nbee\t1\tfood\ncat\t1\tfood\n{decomposed}\t2\tpl\n"
    (folder / "table.tsv").write_text(table)
    assert sources.grouped(source, folder / "table.tsv").class_names == ("food", "pl")
    lines = [f"labeled/cat/{n}.png,{(composed, decomposed, 'tea', 'tea')[n]}" for n in range(4)]
    lines += [f"labeled/{decomposed}/0.png,{composed}"]  # a file that is in the other folder
    (folder / "list.csv").write_text("path,label\n" + "\n".join(lines))
    source = opened(folder, "list.csv")
    assert source.class_names == (composed, "tea")
    assert len(source.labels("train")) + len(source.labels("test")) == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("polar bear", "polar  bear"),
        (" cat", "cat"),
        ("01", "1"),
        ("class 007", "class 7"),
        ("cat\u200b", "cat"),
        ("ﬁsh", "fish"),
        ("Straße", "STRASSE"),
    ],
)
def test_classes_that_look_alike_are_named(tmp_path, one, other, caplog):
    lay_down(tmp_path / "labeled", {f"{name}/{n}.png": n for n, name in enumerate((one, other))})
    lay_down(tmp_path / "labeled", numbered(10, ant=2))
    (said, *_) = warnings_of(caplog, tmp_path)
    assert "has classes whose names look alike: " in said
    assert repr(one) in said
    assert repr(other) in said
    assert "'ant'" not in said


@pytest.mark.parametrize(
    "names", [("1", "10", "100", "0"), ("1.05", "1.5"), ("-1", "1"), ("e", "é"), ("a b", "a-b")]
)
def test_classes_that_are_told_apart_are_not_named(names):
    assert len({class_names._appearance(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "parts",
    [
        ("train", "val"),
        ("Training", "Testing"),
        ("labeled", "unlabeled"),
        ("test", "dev"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("train-images", "2_val"),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path, parts, caplog):
    one, other = parts
    lay_down(tmp_path / "root", numbered(0, **{f"{one}/cat": 2, f"{one}/bee": 2}))
    lay_down(tmp_path / "root", {f"{other}/cat/0.png": 9, f"{one}/readme.txt": b"", "x.csv": b""})
    field = "unlabeled" if other == "unlabeled" else "test"
    advice = rf"which are parts of .* give labeled=\S*root/{one},{field}=\S*root/{other}, or rename"
    with pytest.raises(DataError, match=advice):
        opened(tmp_path, "root")
    # Without folders in them they may be classes, after all.
    lay_down(tmp_path / "flat", numbered(20, **{one: 2, other: 2}))
    (said,) = warnings_of(caplog, tmp_path, "flat")
    assert "which have names of parts of a data set" in said


def test_folders_that_several_classes_have_may_be_the_classes(tmp_path, caplog):
    nested = {"spring/cat": 2, "spring/bee": 2, "autumn/cat": 2, "autumn/owl": 1}
    lay_down(tmp_path / "labeled", numbered(0, **nested))
    (said,) = warnings_of(caplog, tmp_path)
    assert "the classes autumn, spring all have folders called cat; each class is an outer" in said
    assert said.endswith("labeled/autumn")
    caplog.clear()
    lay_down(tmp_path / "other", numbered(10, **{"ant": 1, "ant/1": 1, "bee/2": 2}))
    assert not warnings_of(caplog, tmp_path, "other")


# Held out


def test_a_part_of_each_class_is_held_out_where_there_is_nothing_to_test_on(tmp_path):
    lay_down(tmp_path / "labeled", numbered(0, ant=40, bee=10, cat=2, dog=1))
    source = opened(tmp_path, test_fraction=0.3)
    train, test = by_id(source, "train"), by_id(source, "test")
    assert set(train) | set(test) == {
        f"labeled/{name}" for name in numbered(0, ant=40, bee=10, cat=2, dog=1)
    }
    assert not set(train) & set(test)
    assert source.test_is_held_out
    classes = list(test.values())
    # The only one of a class stays labeled, and of two one does.
    assert {name: classes.count(name) for name in source.class_names} == {
        "ant": 12, "bee": 3, "cat": 1, "dog": 0,
    }  # fmt: skip
    assert by_id(opened(tmp_path, test_fraction=0.3), "test") == test
    ants = sorted(int(name.split("/")[-1].split(".")[0]) for name in test if "/ant/" in name)
    assert ants != list(range(12)), "not the first ones"


def test_a_list_may_name_files_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    lay_down(tmp_path, numbered(0, **{"home/cats": 2, "home/dogs": 2}))
    rows = [f"~/{kind}/{n}.png,{kind}" for kind in ("cats", "dogs") for n in range(2)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    source = opened(tmp_path, "list.csv", test="list.csv")
    assert source.labels("test").tolist() == [0, 0, 1, 1]
    assert not source.test_is_held_out


def test_images_that_are_twice_there_are_said(folder, caplog):
    lay_down(folder, {"labeled/eel/0.png": 60, "test/cat/again.png": 1, "unlabeled/too.png": 40})
    with caplog.at_level(logging.WARNING, "absl"):
        opened(folder, unlabeled="unlabeled", test="test")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "1 test images are also labeled, so that the accuracy is too good: test/cat/again.png",
        "1 test images are also unlabeled: test/bee/0.png",
    ]


def test_a_picture_in_two_classes_is_said_with_both(folder, caplog):
    lay_down(folder, {
        "labeled/bee/cat0.png": 0, "labeled/cat/again.png": 3, "test/bee/cat1.png": 1,
        "unlabeled/0 again.png": 20,
    })  # fmt: skip
    pathlib.Path(folder / "labeled/cat/link.png").symlink_to(folder / "labeled/cat/2.png")
    torn, labeled, unlabeled, tested = warnings_of(
        caplog, folder, unlabeled="unlabeled", test="test"
    )
    assert torn.startswith("2 images belong to two or more classes, of which at most one is right:")
    for names in (
        "labeled/bee/cat0.png (bee) = labeled/cat/0.png (cat)",
        "labeled/cat/1.png (cat) = test/bee/cat1.png (bee)",
    ):
        assert names in torn
    assert labeled == (
        "2 labeled images are copies of others: labeled/cat/link.png = labeled/cat/2.png, "
        "labeled/cat/again.png = labeled/cat/3.png"
    )
    assert unlabeled == "1 unlabeled images are copies of others: unlabeled/0.png = " + (
        "unlabeled/0 again.png"
    )
    assert tested.startswith("1 test images are also labeled")


def test_a_folder_that_two_classes_link_to_is_in_both(folder, caplog):
    lay_down(folder, {"elsewhere/5.png": 55})
    for name in ("bee", "cat"):
        pathlib.Path(folder / f"labeled/{name}/more").symlink_to(folder / "elsewhere")
    said = warnings_of(caplog, folder, test="test")
    assert any("labeled/bee/more/5.png (bee) = labeled/cat/more/5.png (cat)" in s for s in said)


# What cannot be read


def test_what_a_file_is_its_content_says(folder, caplog):
    lay_down(folder, {
        "labeled/cat/IMG_0001": picture(50), "labeled/cat/x.jpg_large": picture(51, "JPEG"),
        "labeled/cat/x.jp2": picture(52, "JPEG2000"), "labeled/cat/wrong.txt": picture(53),
        "labeled/bee/wrong.gif": picture(54, "TIFF"), "labeled/bee/photo.mpo": picture(55, "MPO"),
    })  # fmt: skip
    found = by_id(opened(folder, test="test"), "train")
    assert len(found) == 7 + 6


def test_what_is_no_picture_is_listed_and_stops_nothing(folder, caplog):
    lay_down(folder, {
        "labeled/cat/notes.txt": b"notes", "labeled/labels.csv": b"a,b", "labeled/Thumbs.db": b"",
        "unlabeled/film.mp4": b"\0\0\0\x18ftypisom" + bytes(999), "test/bee/0.json": b"{}",
    })  # fmt: skip
    pathlib.Path(folder / "labeled/.cache").mkdir()
    hidden, others = warnings_of(caplog, folder, unlabeled="unlabeled", test="test")
    assert hidden.endswith("hidden folders are not taken for classes: .cache")
    assert others.startswith("5 files are left out, 0 of which seem to be pictures of kinds that ")
    assert f": {folder}/labeled/Thumbs.db (it is none of " in others
    assert others.endswith(" lists all")
    with (folder / "unreadable.csv").open() as file:
        names = {pathlib.Path(row["file"]).name for row in csv.DictReader(file)}
    assert names == {"notes.txt", "labels.csv", "Thumbs.db", "film.mp4", "0.json"}


def test_pictures_of_kinds_that_are_not_read_are_counted_and_named_before_what_is_none(
    folder, caplog
):
    heic = b"\0\0\0\x18ftypheic" + bytes(64)
    lay_down(folder, {"labeled/cat/IMG_1.HEIC": heic, "labeled/cat/IMG_0.txt": b"notes"})
    (said,) = warnings_of(caplog, folder, test="test")
    assert said.startswith("2 files are left out, 1 of which seem to be pictures of kinds that are")
    heic = said.index("IMG_1.HEIC (it is HEIC, which is not read: convert it to JPEG or PNG)")
    assert heic < said.index("IMG_0.txt (it is none of ")


def test_pictures_that_are_damaged_count_and_what_is_in_a_list_is_one(folder):
    lay_down(folder, {"labeled/cat/1.JPG": b"damaged", "labeled/cat/notes.txt": b"notes"})
    said = r"1 of 10 pictures .*1\.JPG \(it is none of"
    with pytest.raises(DataError, match=said):
        opened(folder, test="test", unreadable=0.1 - 1e-6)
    opened(folder, test="test", unreadable=0.1)
    (folder / "list.csv").write_text(
        "path,label\nlabeled/cat/0.png,cat\nlabeled/bee/0.png,bee\nlabeled/cat/notes.txt,cat\n"
    )
    with pytest.raises(DataError, match=r"1 of 5 pictures .*notes\.txt \(it is none of"):
        opened(folder, "list.csv", test="test")


def test_links_that_lead_nowhere_are_said(folder):
    pathlib.Path(folder / "labeled/cat/lost.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError, match=r"lost\.png \(it is a broken link"):
        opened(folder, test="test")
    pathlib.Path(folder / "labeled/eel").symlink_to(folder / "nowhere")
    with pytest.raises(DataError, match="holds eel beside its folders"):
        opened(folder, test="test")


def test_16_bits_that_say_nothing_of_their_range_are_said_once(folder, caplog):
    for number in range(5):
        values = np.full((4, 4), 2**12 - 1 - number, np.uint16)
        Image.fromarray(values).save(pathlib.Path(folder / f"labeled/cat/deep{number}.png"))
    (said,) = warnings_of(caplog, folder, test="test")
    assert said.startswith("5 pictures have 16 bits a channel and do not state")
    assert said.endswith("(5 have 12): labeled/cat/deep0.png, labeled/cat/deep1.png, "
                         "labeled/cat/deep2.png and 2 more")  # fmt: skip


@pytest.fixture
def damaged(folder):
    """Ten pictures, of which three cannot be read."""
    lay_down(folder, {
        "labeled/cat/0.png": picture(0)[:-20], "labeled/bee/0.png": b"",
        "unlabeled/0.png": picture(20, size=(40, 30)),
    })  # fmt: skip
    return folder


@pytest.mark.parametrize("limit", [0.3, 3.0])
def test_files_that_cannot_be_read_are_listed_and_left_out(damaged, limit, caplog):
    with caplog.at_level(logging.WARNING, "absl"):
        source = opened(damaged, unlabeled="unlabeled", test_fraction=0.5, unreadable=limit)
    ids = [
        example.id
        for split in ("train", "test", "unlabeled")
        for example in examples(source, split)
    ]
    assert len(ids) == 7
    with (damaged / "unreadable.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["file"]: row["reason"] for row in rows} == {
        f"{damaged}/labeled/cat/0.png": "it is damaged, or cut short",
        f"{damaged}/labeled/bee/0.png": f"it is none of {', '.join(pictures.FORMATS)}",
        f"{damaged}/unlabeled/0.png": "its 30 x 40 pixels are more than data.max_pixels=1000",
    }
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("3 of 10 pictures cannot be read: ")
    assert said.endswith("unreadable.csv lists all; they are left out")


@pytest.mark.parametrize("limit", [0.29, 2.0, 0.0])
def test_more_of_them_than_are_allowed_for_are_an_error(damaged, limit):
    with pytest.raises(DataError, match=r"3 of 10 pictures .*bee/0\.png \(it is none of") as caught:
        opened(damaged, unlabeled="unlabeled", unreadable=limit)
    assert f"raise data.unreadable={limit:g}, which is the " in str(caught.value)
    assert (damaged / "unreadable.csv").exists()
    lay_down(damaged, {"labeled/cat/0.png": 100, "labeled/bee/0.png": 101, "unlabeled/0.png": 102})
    opened(damaged, unlabeled="unlabeled")
    assert not (damaged / "unreadable.csv").exists(), "nothing is wrong any more"


def test_a_file_that_changes_meanwhile_is_an_error(folder):
    source = opened(folder, test="test")
    (folder / "labeled/cat/2.png").write_bytes(picture(99))
    with pytest.raises(DataError, match=r"cat/2\.png has changed since it was read"):
        list(source.examples("train"))
    (folder / "labeled/cat/2.png").unlink()
    with pytest.raises(DataError, match=r"cat/2\.png can no longer be read"):
        list(source.examples("train"))


# Lists of files


def test_a_list_names_files_beside_it_or_anywhere(folder):
    lay_down(folder, {
        "lists/labeled.csv": f"\ufeffpath,label\n../labeled/cat/0.png,cat\n\n"
        f'"a, b.png",  bee\n{folder}/labeled/bee/1.png,bee\n../labeled/cat/1.png,cat\n'.encode(),
        "lists/a, b.png": 70,
        "unlabeled.CSV": b"label,path\n?,unlabeled/0.png\n,unlabeled/cat/2.png\n",
        "test.csv": b"path,label\ntest/bee/0.png,cat\n",
    })  # fmt: skip
    source = opened(folder, "lists/labeled.csv", "unlabeled.CSV", "test.csv")
    assert source.class_names == ("bee", "cat")
    assert by_id(source, "train") == {
        "labeled/../labeled/cat/0.png": "cat",
        "labeled/../labeled/cat/1.png": "cat",
        f"labeled/{folder}/labeled/bee/1.png": "bee",
        "labeled/a, b.png": "bee",
    }
    assert by_id(source, "test") == {"test/test/bee/0.png": "cat"}
    assert by_id(source, "unlabeled") == dict.fromkeys(
        ["unlabeled/unlabeled/0.png", "unlabeled/unlabeled/cat/2.png"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: the columns are none, and must be path,label"),
        ("file,label\na.png,cat\n", r"line 1: the columns are file,label, and must be path,label"),
        ("path,label,size\n", r"line 1: the columns are path,label,size, and must be"),
        ("path\n0.png\n", r"line 1: the columns are path, and must be path,label"),
        ("path,label\n", r"names no file"),
        ("path,label\n0.png,cat\nmissing.png,cat\n", r"line 3 names missing\.png, which does not"),
        ("path,label\n0.png,\n1.png, \n", r"line 2 has no label; line 3 has no label"),
        ("path,label\n0.png\n", r"line 2 has no label"),
        ("path,label\n,cat\n", r"line 2 has no path"),
        ("path,label\n0.png,cat,7\n", r"line 2 has more cells than the first"),
        ("path,label\n0.png,cat\n\n./0.png,dog\n", r"line 4 names \./0\.png again, as line 2"),
        ("path,label\n0.png,cat\na/../0.png,dog\n", r"line 3 names a/\.\./0\.png again, as line 2"),
        ("path,label\n" + "x.png,cat\n" * 7, r"line 4 names .* and 4 more"),
        ('path,label\n"0.png,cat\n', r"line 2: unexpected end of data"),
        (b"path,label\n\xff.png,cat\n", r"is not UTF-8 text at byte 11"),
    ],
)  # fmt: skip
def test_a_list_with_a_mistake_is_an_error_that_names_the_line(tmp_path, text, message):
    content = text if isinstance(text, bytes) else text.encode()
    lay_down(tmp_path, {"0.png": 0, "1.png": 1, "list.csv": content})
    with pytest.raises(DataError, match=rf"list\.csv.*{message}"):
        opened(tmp_path, "list.csv")


# Elsewhere


def test_unknown_classes_stay_unknown_where_classes_are_grouped(folder):
    table = "wnid\tsuperclass\tsuperclass_name\nbee\tn1\tanimal\ncat\tn1\tanimal\n"
    (folder / "table.tsv").write_text(table)
    fine = opened(folder, unlabeled="unlabeled", test="test")
    coarse = sources.grouped(fine, folder / "table.tsv")
    assert coarse.divided
    assert set(by_id(coarse, "train").values()) == {"animal"}
    assert set(by_id(coarse, "unlabeled").values()) == {None}


def test_folders_may_be_in_a_bucket(folder):
    program = """
import sys
from etils.epath import Path
from crest_jax.data import catalog, sources
folders = sources.Folders(*sys.argv[1:4], 0.2, 10**6, 0.0, Path(sys.argv[4]))
source = catalog.load("image_folder", folders=folders)
for split in ("train", "unlabeled", "test"):
    for each in source.examples(split):
        print(each.id, each.label, len(each.image))
"""
    lay_down(folder, {"test.csv": b"path,label\ntest/bee/0.png,bee\n"})
    expected = opened(folder, unlabeled="unlabeled", test="test.csv")
    with FakeGcs("bucket") as gcs:
        for path in pathlib.Path(folder).rglob("*"):
            if path.is_file():
                gcs.put("bucket", f"own/{path.relative_to(folder)}", path.read_bytes())
        where = [f"gs://bucket/own/{name}" for name in ("labeled", "unlabeled", "test.csv")]
        ran = subprocess.run(
            [sys.executable, "-c", program, *where, folder / "unreadable.csv"],
            capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | gcs.environment,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        f"{each.id} {each.label} {len(each.image)}"
        for split in ("train", "unlabeled", "test")
        for each in expected.examples(split)
    ]
