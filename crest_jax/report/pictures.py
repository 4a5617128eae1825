"""Pictures for a run's page: pseudo-labels around the cut, and test images that changed.

They are chosen from the run's files: `pseudo_labels` and `test_predictions` of its generations, and
the records in `splits`.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import chain, islice, zip_longest
from typing import NamedTuple

import numpy as np
from etils.epath import Path
from jaxtyping import Int
from PIL import Image

from crest_jax import files
from crest_jax.data import pseudo_labels, records
from crest_jax.data.pseudo_labels import PseudoLabels
from crest_jax.layout import RunFolder

# Limits for a page, whatever the number of classes and runs; so many take less than 3 MB.
_MOST_PSEUDO_LABELS = 600
_MOST_MOVED = 150
# Limits for a class on each side of the cut, and for test images that moved in one direction.
_MOST_OF_A_CLASS = 8
_MOST_OF_A_DIRECTION = 40
_LARGEST_SIDE = 48  # of a thumbnail, in pixels


class Prediction(NamedTuple):
    """A model's prediction for an image."""

    label: int
    confidence: float


class Picture(NamedTuple):
    """An image, and the predictions for it."""

    thumbnail: bytes  # PNG or JPEG
    truth: int  # true label, or `sources.UNKNOWN`
    prediction: Prediction


class MovedPicture(NamedTuple):
    """A test image, and the predictions of the last and the first generation for it."""

    thumbnail: bytes  # PNG or JPEG
    truth: int  # true label
    prediction: Prediction
    earlier: Prediction  # by the first generation


class AroundCut(NamedTuple):
    """Pseudo-labels of a class on both sides of the selection cut."""

    selected: Sequence[Picture]  # the most confident ones, in descending order
    below: Sequence[Picture]  # the most confident ones that were not selected


class PseudoLabeled(NamedTuple):
    """Pseudo-labels of a generation, by class."""

    generation: int  # counted from 0, as in the names of folders
    by_class: Sequence[AroundCut]


class Moved(NamedTuple):
    """Test images that were wrong in the first generation and right in the last, or vice versa."""

    tested: int  # number of test images
    became_right: int
    became_wrong: int
    right: Sequence[MovedPicture]  # some that became right, of as many classes as possible
    wrong: Sequence[MovedPicture]  # likewise, some that became wrong


class Pictures(NamedTuple):
    """The pictures that a page shows of a run; None where the run has none."""

    pseudo_labels: PseudoLabeled | None
    moved: Moved | None


def of_run(workdir: Path, generations: int, classes: int, *, runs: int = 1) -> Pictures:
    """Choose the pictures of a run.

    Args:
      workdir: the folder of the run.
      generations: the number of finished generations.
      classes: the number of classes.
      runs: the number of runs that share the page.

    Raises:
      DataError: A file of the run is damaged.
    """
    of_a_class = min(_MOST_OF_A_CLASS, _MOST_PSEUDO_LABELS // (2 * classes * runs))
    of_a_direction = min(_MOST_OF_A_DIRECTION, _MOST_MOVED // (2 * runs))
    return Pictures(
        _pseudo_labeled(workdir, generations, classes, of_a_class),
        _moved(workdir, generations, classes, of_a_direction),
    )


def _pseudo_labeled(
    workdir: Path, generations: int, classes: int, most: int
) -> PseudoLabeled | None:
    """Return pseudo-labels of the last generation that selected some; None if none did.

    The last generation of a run selects none.
    """
    for generation in reversed(range(generations)):
        folder = RunFolder(workdir).generation(generation).pseudo_labels
        if pseudo_labels.selected_count(folder):
            break
    else:
        return None
    scored = pseudo_labels.read(folder)
    rows = [
        tuple(
            _most_confident(scored, (scored.labels == label) & (scored.selected == selected), most)
            for selected in (True, False)
        )
        for label in range(classes)
    ]
    thumbnails = _thumbnails(
        RunFolder(workdir).splits.unlabeled,
        scored,
        np.concatenate([*chain(*rows)]),
    )

    def pictures(chosen: Int[np.ndarray, " chosen"]) -> list[Picture]:
        return [
            Picture(thumbnails[row], int(scored.truth[row]), _prediction(scored, row))
            for row in chosen.tolist()
        ]

    return PseudoLabeled(generation, [AroundCut(*map(pictures, of_class)) for of_class in rows])


def _moved(workdir: Path, generations: int, classes: int, most: int) -> Moved | None:
    """Return test images that changed between the first and the last generation.

    None if there is only one generation, or the run's version kept no predictions of test images.
    """
    folders = [
        RunFolder(workdir).generation(generation).test_predictions
        for generation in (0, generations - 1)
    ]
    if generations == 1 or not all(map(files.is_whole, folders)):
        return None
    first, last = map(pseudo_labels.read, folders)
    was_right, is_right = (each.labels == each.truth for each in (first, last))
    directions = ~was_right & is_right, was_right & ~is_right
    rows = [_of_many_classes(last, moved, classes, most) for moved in directions]
    tested = RunFolder(workdir).splits.test
    thumbnails = _thumbnails(tested, last, np.concatenate(rows))

    def pictures(chosen: Int[np.ndarray, " chosen"]) -> list[MovedPicture]:
        return [
            MovedPicture(
                thumbnails[row],
                int(last.truth[row]),
                _prediction(last, row),
                earlier=_prediction(first, row),
            )
            for row in chosen.tolist()
        ]

    became_right, became_wrong = (int(moved.sum()) for moved in directions)
    right, wrong = map(pictures, rows)
    return Moved(len(last.ids), became_right, became_wrong, right, wrong)


def _most_confident(
    scored: PseudoLabels, among: np.ndarray, most: int
) -> Int[np.ndarray, " chosen"]:
    rows = np.flatnonzero(among)
    return rows[np.argsort(-scored.confidence[rows], kind="stable")][:most]


def _of_many_classes(
    predictions: PseudoLabels, among: np.ndarray, classes: int, most: int
) -> Int[np.ndarray, " chosen"]:
    """Return rows of the most confident images, taken from each true class in turn.

    They are ordered by true class, and by falling confidence within a class.
    """
    by_class = [
        _most_confident(predictions, among & (predictions.truth == label), most)
        for label in range(classes)
    ]
    by_turns = (row for turn in zip_longest(*by_class) for row in turn if row is not None)
    chosen = np.array([*islice(by_turns, most)], np.int64)
    return chosen[np.lexsort((-predictions.confidence[chosen], predictions.truth[chosen]))]


def _prediction(predictions: PseudoLabels, row: int) -> Prediction:
    return Prediction(int(predictions.labels[row]), float(predictions.confidence[row]))


def _thumbnails(
    folder: Path, predictions: PseudoLabels, rows: Int[np.ndarray, " chosen"]
) -> Mapping[int, bytes]:
    """Return thumbnails of some of a split's images, by row."""
    wanted = {predictions.ids[row].decode(): row for row in rows.tolist()}
    return {
        wanted[example.id]: _thumbnail(example.image)
        for example in records.read(folder)
        if example.id in wanted
    }


def _thumbnail(image: bytes) -> bytes:
    """Return a small image as it is, and a larger one scaled down."""
    with Image.open(io.BytesIO(image)) as opened:
        if max(opened.size) <= _LARGEST_SIDE:
            return image
        opened.draft(None, (_LARGEST_SIDE, _LARGEST_SIDE))  # decodes a JPEG at a reduced size
        picture: Image.Image = opened
        if picture.mode.startswith("I"):  # 16 bits per pixel
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
        picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=80)
        return content.getvalue()
