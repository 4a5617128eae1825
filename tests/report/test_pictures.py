import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from crest_jax.data import pseudo_labels, writer
from crest_jax.data.pseudo_labels import PseudoLabels
from crest_jax.data.sources import Example
from crest_jax.report import pictures

NAMES = ["cat", "dog"]
EACH = 20  # images of a split, of either class


def png(level, size=4):
    """Return a grey square of one level, by which it is recognised."""
    content = io.BytesIO()
    Image.new("L", (size, size), level).save(content, "PNG")
    return content.getvalue()


def level_of(thumbnail):
    with Image.open(io.BytesIO(thumbnail)) as picture:
        return int(np.asarray(picture.convert("L"))[0, 0])


def write(folder, labels, confidence, selected, truth):
    ids = np.array([f"image {row}".encode() for row in range(len(labels))])
    pseudo_labels.write(
        folder,
        PseudoLabels(
            ids, np.array(labels), np.array(confidence, np.float32), np.array(selected, bool),
            np.array(truth),
        ),
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run of two generations; the pixels of an image have its row for their level.

    Unlabeled images are said to be cats in even rows and dogs in odd ones, the surer the higher the
    row; 5 cats and no dog are selected. They are what they are said to be, but for row 38.
    """
    rows = np.arange(2 * EACH)
    truth = rows % 2
    for split in ("unlabeled", "test"):
        examples = [Example(f"image {row}", png(int(row)), int(truth[row])) for row in rows]
        writer.write(tmp_path / "splits" / split, examples, class_names=NAMES, shards=2)
    selected = (rows >= 30) & (rows % 2 == 0)
    real = np.where(rows == 38, 1, truth)
    for generation, chosen in enumerate((selected, np.zeros_like(selected))):
        folder = tmp_path / f"generation_{generation:02d}"
        write(folder / "pseudo_labels", truth, (1 + rows) / 50, chosen, real)
    # Rows below 6 become right, and rows 10 and 11 wrong.
    was = np.where(rows < 6, 1 - truth, truth)
    now = np.where((rows == 10) | (rows == 11), 1 - truth, truth)
    for generation, said in enumerate((was, now)):
        folder = tmp_path / f"generation_{generation:02d}"
        write(folder / "test_predictions", said, (1 + rows) / (50 + generation), rows < 0, truth)
    return tmp_path


def test_pseudo_labels_around_the_cut_are_the_most_confident_on_either_side(run):
    found, _ = pictures.of_run(run, generations=2, classes=2)
    assert found.generation == 0
    cats, dogs = found.by_class
    assert [level_of(each.thumbnail) for each in cats.selected] == [38, 36, 34, 32, 30]
    assert [level_of(each.thumbnail) for each in cats.below] == [*range(28, 12, -2)]
    assert not dogs.selected
    assert [level_of(each.thumbnail) for each in dogs.below] == [*range(39, 23, -2)]
    assert [each.truth for each in cats.selected] == [1, 0, 0, 0, 0]
    assert {each.prediction.label for each in cats.selected} == {0}
    assert cats.selected[0].prediction.confidence == pytest.approx(39 / 50)


def test_test_images_that_changed_are_counted_and_shown(run):
    _, moved = pictures.of_run(run, generations=2, classes=2)
    assert (moved.tested, moved.became_right, moved.became_wrong) == (40, 6, 2)
    # In the order of their classes, and the surest first.
    assert [level_of(each.thumbnail) for each in moved.right] == [4, 2, 0, 5, 3, 1]
    assert [level_of(each.thumbnail) for each in moved.wrong] == [10, 11]
    surest = moved.right[0]
    assert (surest.truth, surest.earlier.label, surest.prediction.label) == (0, 1, 0)
    assert surest.earlier.confidence == pytest.approx(5 / 50)
    assert surest.prediction.confidence == pytest.approx(5 / 51)


def test_rare_classes_are_among_the_images_that_changed(tmp_path):
    """There are 100 images of one class and 3 of another, and 40 of them are shown."""
    truth = np.array([0] * 100 + [1] * 3)
    predictions = PseudoLabels(
        np.array([b""] * 103), truth, np.linspace(1, 0, 103, dtype=np.float32), truth > 9, truth
    )
    rows = pictures._of_many_classes(predictions, truth >= 0, classes=2, most=40)
    assert np.bincount(truth[rows]).tolist() == [37, 3]


def test_a_page_of_many_classes_or_runs_has_fewer_of_each(run):
    found, moved = pictures.of_run(run, generations=2, classes=2, runs=40)
    assert max(len(each.below) for each in found.by_class) == 600 // (2 * 2 * 40)
    assert len(moved.right) == 150 // (2 * 40)


def test_a_run_of_one_generation_has_none(run):
    write(run / "generation_00" / "pseudo_labels_of_the_last", [0], [0.5], [False], [0])
    (run / "generation_00" / "pseudo_labels").rename(run / "moved")
    (run / "generation_00" / "pseudo_labels_of_the_last").rename(
        run / "generation_00" / "pseudo_labels"
    )
    assert pictures.of_run(run, generations=1, classes=2) == pictures.Pictures(None, None)


def test_a_run_that_kept_no_predictions_of_test_images_has_the_rest(run):
    (run / "generation_01" / "test_predictions" / "manifest.json").unlink()
    found, moved = pictures.of_run(run, generations=2, classes=2)
    assert found is not None
    assert moved is None


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_large_images_become_small_whatever_their_mode(mode, kind):
    if mode == "I;16":
        picture = Image.fromarray(np.full((300, 200), 200 << 8, np.uint16))
    else:
        picture = Image.new("RGB", (200, 300), (200, 200, 200)).convert(mode)
    content = io.BytesIO()
    try:
        picture.save(content, kind)
    except OSError:
        pytest.skip("the format has no such mode")
    thumbnail = pictures._thumbnail(content.getvalue())
    with Image.open(io.BytesIO(thumbnail)) as small:
        assert small.size == (32, 48)
        expected = 200 if mode != "1" else np.asarray(picture.convert("L")).mean()
        assert np.asarray(small.convert("L"), float).mean() == pytest.approx(expected, abs=8)
    assert len(thumbnail) < 2500


def test_a_page_shows_them(run, page_of):
    page = page_of(run)
    assert "Pseudo-labels around the cut" in page
    assert "6 of 40 test images went from wrong to right, and 2 from right to wrong" in page
    shown = re.findall(r'src="data:image/png;base64,([^"]*)"><figcaption>([^<]*)', page)
    captions = {level_of(base64.b64decode(image)): said for image, said in shown}
    assert captions[38] == "78 %, is dog &lt;tag&gt;"
    assert captions[36] == "74 %"
    assert captions[10] == "cat (22 %) → dog &lt;tag&gt; (21.6 %)"


@pytest.fixture
def page_of():
    """Gives the page of a run's pictures."""
    from crest_jax.report import contents, html

    macros = html.TEMPLATES.get_template("pictures.html.j2").module

    def page(workdir):
        names = ["cat", "dog <tag>"]
        found, moved = pictures.of_run(workdir, generations=2, classes=2)
        shown = contents.pseudo_labels(found, names), contents.changed(moved, names)
        return macros.pseudo_labels(shown[0]) + macros.changed(shown[1])

    return page


def test_no_share_below_one_is_said_to_be_all():
    from crest_jax.report import contents

    assert contents.per_cent(0.99999) == "99.9 %"
    assert contents.per_cent(0.1234) == "12.3 %"
    assert contents.per_cent(1.0) == "100 %"
