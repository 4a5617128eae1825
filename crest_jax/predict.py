"""Predict the classes of user-provided images with a trained model.

python -m crest_jax.predict --workdir=DIR --images=FOLDER --output=predictions.csv
    [--generation=N] [--logit-adjust [--tau=TAU]]

The output has a line for every image below the folder: its path relative to the folder, its class,
and the model's confidence in that class; with --logit-adjust also the class and confidence after
logit adjustment (Menon et al., 2021) by the class distribution that the generation was trained on.
Images are converted to grey or RGB and resized, like those that the model was trained on;
transparent parts become white. All files except hidden ones are read, whatever their names. Files
that cannot be read as an image are left out, and standard error gives the reason for each.
"""

import csv
import io
import sys
from collections.abc import Sequence

import numpy as np
from etils.epath import Path
from jaxtyping import Float

from crest_jax import backend, command, files, trained
from crest_jax.data import pictures
from crest_jax.data.views import View
from crest_jax.errors import DataError
from crest_jax.trained import Trained

COLUMNS = ("file", "class", "confidence")
ADJUSTED_COLUMNS = ("adjusted_class", "adjusted_confidence")


def image_files(folder: Path) -> list[Path]:
    """Return all files below a folder except hidden ones, of whatever kind, sorted.

    Raises:
      DataError: The folder does not exist, or has no such file.
    """
    if not folder.is_dir():
        raise DataError(f"--images={folder} is not a folder")
    found = sorted(files.below(folder))
    if not found:
        raise DataError(f"--images={folder} holds no file")
    return found


def read_image(
    path: Path, shape: tuple[int, int, int], view: View, *, max_pixels: int
) -> pictures.Seen:
    """Read an image of any size and kind, as evaluations see the images of a data set.

    Args:
      path: path of the file.
      shape: height, width and channels of the data set's images.
      view: view of the data set's images.
      max_pixels: an image of more pixels is not decoded.

    Raises:
      DataError: The file cannot be read as an image.
    """
    try:
        content = pictures.content_of(path)
        return pictures.seen(content, shape, view, max_pixels=max_pixels)
    except files.failures(ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({files.reason(error)})") from error


def logits_of(
    model: Trained, paths: Sequence[Path]
) -> tuple[dict[Path, pictures.Note], Float[np.ndarray, "readable classes"], list[DataError]]:
    """Run the model on image files, with one batch in memory at a time.

    Returns:
      The files that could be read, in their order, each with a note on how it was read; their
      logits; and the errors of the other files.
    """
    # No larger than needed, so that a handful of images is not padded to a thousand.
    size = min(model.eval_batch_size, len(paths))
    readable: dict[Path, pictures.Note] = {}
    wrong: list[DataError] = []
    parts = [np.zeros((0, len(model.class_names)), np.float32)]
    for start in range(0, len(paths), size):
        images = []
        for path in paths[start : start + size]:
            try:
                seen = read_image(path, model.image_shape, model.view, max_pixels=model.max_pixels)
                images.append(seen.pixels)
                readable[path] = seen.note
            except DataError as error:
                wrong.append(error)
        if images:
            parts.append(model.logits(np.stack(images), batch_size=size))
    return readable, np.concatenate(parts), wrong


def table(
    model: Trained,
    names: Sequence[str],
    logits: Float[np.ndarray, "files classes"],
    tau: float | None,
) -> str:
    """Return the predictions as CSV.

    Args:
      model: the model that computed the logits.
      names: names of the images.
      logits: logits of the images.
      tau: strength of logit adjustment; None leaves out its columns.
    """
    views = [model.predictions(logits)]
    if tau is not None:
        views.append(model.predictions(logits, tau))
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*COLUMNS, *(ADJUSTED_COLUMNS if tau is not None else ())])
    for row, name in enumerate(names):
        cells = [name]
        for view in views:
            cells += [model.class_names[view.labels[row]], f"{view.confidence[row]:.6f}"]
        writer.writerow(cells)
    return lines.getvalue()


@command.entry
def main() -> None:
    """Predict the images that the command line names, and write the CSV."""
    parser = command.parser(__doc__)
    parser.add_argument("--workdir", type=files.given, required=True, help="a run's folder")
    parser.add_argument("--images", type=files.given, required=True, help="a folder of images")
    parser.add_argument("--output", type=files.given, required=True, help="the CSV file to write")
    parser.add_argument("--generation", type=int, help="from 1; the last by default")
    parser.add_argument("--logit-adjust", action="store_true", help="also after logit adjustment")
    parser.add_argument("--tau", type=float, default=1.0, help="of logit adjustment")
    arguments = parser.parse_args()
    trained.check_tau(arguments.tau, "--tau")
    files.check_writable(arguments.output)
    found = image_files(arguments.images)
    backend.start()
    model = trained.load(arguments.workdir, generation=arguments.generation)
    readable, logits, wrong = logits_of(model, found)
    for error in wrong:
        print(f"left out: {error}", file=sys.stderr)
    if wrong:
        print(f"{len(wrong)} of {len(found)} files are left out", file=sys.stderr)
    if not readable:
        raise DataError(f"--images={arguments.images} holds no image that can be read")
    names = [pictures.utf8(path.relative_to(arguments.images)) for path in readable]
    for said in pictures.remarks(dict(zip(names, readable.values(), strict=True))):
        print(said, file=sys.stderr)
    tau = arguments.tau if arguments.logit_adjust else None
    files.write_text(arguments.output, table(model, names, logits, tau))
    by = "" if tau is None else ", adjusted by the class distribution that it was trained on"
    print(f"{arguments.output}: {len(readable)} images, generation {model.generation}{by}")


if __name__ == "__main__":
    main()
