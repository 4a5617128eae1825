import importlib.util
import sys
from collections import Counter

import pytest
from etils.epath import Path

FOLDER = Path(__file__).parents[2] / "third_party" / "imagenet127"
# A class of ILSVRC-2012 has 732 to 1300 training images (arXiv:1409.0575, table 2).
MAX_IMAGES = 1300

spec = importlib.util.spec_from_file_location("imagenet127_derive", FOLDER / "derive.py")
derive = importlib.util.module_from_spec(spec)
spec.loader.exec_module(derive)


# The committed table.


@pytest.fixture(scope="module")
def rows():
    header, *lines = (FOLDER / "classes.tsv").read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines]


@pytest.fixture(scope="module")
def sizes(rows):
    return Counter(row["superclass_name"] for row in rows)


def test_row_i_is_label_i_of_tfds_imagenet2012(rows):
    import tensorflow_datasets as tfds

    labels = tfds.builder("imagenet2012").info.features["label"].names
    assert len(labels) == 1000
    assert [row["wnid"] for row in rows] == labels


def test_there_are_127_superclasses_and_each_name_is_one_of_them(rows):
    superclasses = {(row["superclass"], row["superclass_name"]) for row in rows}
    assert len(superclasses) == 127
    assert len({name for _, name in superclasses}) == 127
    assert dict(superclasses) == derive.SUPERCLASSES


def test_mammal_has_218_classes_and_can_alone_be_the_largest(sizes):
    """Section 4.2 of the paper: 218 original classes and 277 601 training images."""
    (largest, classes), (_, second) = sizes.most_common(2)
    assert (largest, classes) == ("mammal", 218)
    assert second * MAX_IMAGES < 277_601


def test_65_superclasses_are_single_classes(sizes):
    """969 images, as the smallest has by section 4.2, are one class: two have at least 1464."""
    assert list(sizes.values()).count(1) == 65


def test_the_papers_butterfly_is_a_fish_and_butterflies_are_arthropods(rows):
    members = [row["name"] for row in rows if row["superclass_name"] == "butterfly fish"]
    assert members == ["rock beauty"]
    butterflies = {"ringlet", "monarch", "cabbage butterfly", "sulphur butterfly", "lycaenid"}
    homes = {row["name"]: row["superclass_name"] for row in rows if row["name"] in butterflies}
    assert homes == dict.fromkeys(butterflies, "arthropod")


@pytest.mark.parametrize(
    ("name", "superclass_name"),
    [
        ("aircraft carrier", "military vehicle"),
        ("submarine", "military vehicle"),
        ("computer keyboard", "electronic equipment"),
        ("bulletproof vest", "covering"),
        ("thimble", "covering"),
        ("chain saw", "device"),
        ("swing", "device"),
        ("tank", "container"),
        ("golf ball", "game equipment"),
    ],
)
def test_nine_classes_are_where_the_published_grouping_has_them(rows, name, superclass_name):
    (row,) = [row for row in rows if row["name"] == name]
    assert row["superclass_name"] == superclass_name
    assert derive.EXCEPTIONS[row["wnid"]] == row["superclass"]
    assert len(derive.EXCEPTIONS) == 9


@pytest.mark.skipif(not derive.WORDNET.exists(), reason="WordNet 3.0 (wordnet-base) is not here")
def test_derived_anew_the_table_is_the_committed_one_and_each_exception_is_one():
    assert derive.derive(derive.WORDNET) == (FOLDER / "classes.tsv").read_text(encoding="utf-8")
    synsets = derive.read_synsets(derive.WORDNET)
    for wnid, superclass in derive.EXCEPTIONS.items():
        assert derive.nearest(wnid, synsets, derive.SUPERCLASSES) != superclass


# How it is derived, on a WordNet of ten nouns.

NAMES = (
    "entity", "city", "covering", "garment", "vehicle", "craft", "ship",
    "warship", "armor", "Paris",
)  # fmt: skip
WNIDS = {name: f"n{number:08}" for number, name in enumerate(NAMES, start=1)}


def line(name, *hypernyms, symbol="@"):
    """A line of data.noun, with a pointer down before those up, as WordNet has them too."""
    pointers = [("~", WNIDS[name]), *((symbol, WNIDS[hypernym]) for hypernym in hypernyms)]
    written = " ".join(f"{sign} {wnid[1:]} n 0000" for sign, wnid in pointers)
    return f"{WNIDS[name][1:]} 06 n 01 {name} 0 {len(pointers):03} {written} | a gloss; @ 1 | 2  "


TINY = "\n".join(
    [
        "  1 This software and database is being provided to you, the LICENSEE, by  ",
        line("entity"),
        line("city", "entity"),
        line("covering", "entity"),
        line("garment", "covering"),
        line("vehicle", "entity"),
        line("craft", "vehicle"),
        line("ship", "craft"),
        # The one way leads to vehicle in three steps, the other to covering in two.
        line("warship", "ship", "armor"),
        line("armor", "covering", "vehicle"),
        line("Paris", "city", symbol="@i"),
    ]
)


@pytest.fixture
def synsets(tmp_path):
    (tmp_path / "data.noun").write_text(TINY + "\n")
    return derive.read_synsets(tmp_path / "data.noun")


def nearest(name, synsets, *wanted):
    found = derive.nearest(WNIDS[name], synsets, {WNIDS[each] for each in wanted})
    return found and synsets[found].name


def test_nearest_goes_up_breadth_first(synsets):
    assert nearest("warship", synsets, "vehicle", "covering", "entity") == "covering"
    assert nearest("warship", synsets, "vehicle", "craft", "entity") == "craft"
    assert nearest("warship", synsets, "entity") == "entity"


def test_of_two_as_near_the_first_hypernym_wins(synsets):
    assert nearest("armor", synsets, "vehicle", "covering") == "covering"
    assert nearest("warship", synsets, "armor", "ship") == "ship"


def test_an_instance_is_no_kind_and_other_pointers_lead_nowhere(synsets):
    assert nearest("Paris", synsets, "city", "entity") is None
    assert nearest("craft", synsets, "ship") is None


def test_exceptions_come_before_the_nearest(synsets):
    classes = [WNIDS["warship"], WNIDS["garment"]]
    superclasses = {WNIDS["covering"], WNIDS["vehicle"]}
    exceptions = {WNIDS["warship"]: WNIDS["vehicle"]}
    assert derive.group(classes, synsets, superclasses, exceptions) == {
        WNIDS["warship"]: WNIDS["vehicle"],
        WNIDS["garment"]: WNIDS["covering"],
    }


def test_a_class_without_a_superclass_is_named(synsets):
    with pytest.raises(derive.DeriveError, match=rf"{WNIDS['garment']} \(garment\) .* 1 superc"):
        derive.group([WNIDS["garment"]], synsets, {WNIDS["vehicle"]}, {})


def test_a_class_that_wordnet_does_not_have_is_named(synsets):
    with pytest.raises(derive.DeriveError, match="n99999999"):
        derive.group(["n99999999"], synsets, {WNIDS["vehicle"]}, {})


def test_a_table_is_sorted_by_wnid(synsets):
    groups = {WNIDS["ship"]: WNIDS["vehicle"], WNIDS["garment"]: WNIDS["covering"]}
    assert derive.table(groups, synsets) == (
        "wnid\tname\tsuperclass\tsuperclass_name\n"
        "n00000004\tgarment\tn00000003\tcovering\n"
        "n00000007\tship\tn00000005\tvehicle\n"
    )


def test_words_are_counted_in_hexadecimal_and_underscores_are_spaces():
    words = "motor_bus autobus coach charabanc double-decker jitney motorbus motorcoach omnibus bus"
    counted = " ".join(f"{word} 0" for word in words.split())
    wnid, synset = derive.parse_synset(
        f"02924116 06 n 0a {counted} 002 @ 04019101 n 0000 %p 02924554 n 0000 | a vehicle"
    )
    assert (wnid, synset.hypernyms) == ("n02924116", ("n04019101",))
    assert (synset.name, synset.words[-1], len(synset.words)) == ("motor bus", "bus", 10)


def test_a_line_cut_short_is_named(tmp_path):
    (tmp_path / "data.noun").write_text(f"{line('entity')}\n{line('city', 'entity')[:45]}")
    with pytest.raises(derive.DeriveError, match=r"data\.noun:2 .* 11 fields.* promise 15"):
        derive.read_synsets(tmp_path / "data.noun")


def test_another_version_of_wordnet_is_refused(synsets):
    derive.check_version(synsets, {WNIDS["ship"]: "ship"})
    with pytest.raises(derive.DeriveError, match=r"'boat' and is 'ship'.*3\.0"):
        derive.check_version(synsets, {WNIDS["ship"]: "boat"})
    with pytest.raises(derive.DeriveError, match=r"n99999999 .* is 'nothing'"):
        derive.check_version(synsets, {"n99999999": "boat"})


def test_the_command_says_where_wordnet_is_to_be_had(tmp_path, monkeypatch):
    output = tmp_path / "classes.tsv"
    missing = tmp_path / "data.noun"
    monkeypatch.setattr(sys, "argv", ["derive.py", f"--wordnet={missing}", f"--output={output}"])
    with pytest.raises(SystemExit, match=rf"{missing} is missing: .*wordnet-base"):
        derive.main()
    assert not output.exists()


def test_without_tfds_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(derive.DeriveError, match=r"pip install .*tensorflow-datasets"):
        derive.ilsvrc2012_wnids()
