"""Opening a data set by its name."""

from importlib.util import find_spec

from crest_jax import bundled, files, plugins
from crest_jax.data import digits, image_folder, tfds
from crest_jax.data.sources import ARRAYS, Folders, Source, grouped, held_out
from crest_jax.errors import CrestError, DataError


def load(
    name: str,
    *,
    data_dir: str = "",
    download: bool = False,
    test_split: str = "test",
    test_fraction: float = 0.0,
    class_table: str = "",
    folders: Folders | None = None,
) -> Source:
    """Open a data set by its name: bundled digits, a user's own images, or one of TFDS.

    Args:
      name: one of `digits.BUNDLED`, `image_folder`, `module:name` of a function that returns a
        `Source`, or a TFDS name such as `cifar10` or `imagenet_resized/64x64`.
      data_dir: the folder of TFDS's prepared data; empty for its default, ~/tensorflow_datasets.
      download: whether TFDS may download and prepare a data set that is missing.
      test_split: the TFDS split to test on; empty to test on a part of `train`.
      test_fraction: the fraction of each class in that part, in (0, 1).
      class_table: a file for `grouped`; empty leaves the classes as they are.
      folders: the locations of the images of `image_folder`; no other data set needs them.

    Raises:
      DataError: The data set is unknown, missing, or lacks `image`, `label` or a split; or the
        class table does not fit it.
    """
    if name in digits.BUNDLED:
        source = digits.BUNDLED[name]()
    elif _is_of_the_community(name):
        raise DataError(
            f"data.name={name!r} is a community data set of TFDS, which cannot be opened by a name "
            "with a namespace: if it is prepared in a folder, give its name without "
            f"{name.partition(':')[0]!r} and the folder as data.data_dir; or save its images as "
            "files for --config.data.name=image_folder"
        )
    elif plugins.is_plugin(name):
        source = _made(name)
        if source.test_is_held_out == bool(test_split):
            raise DataError(
                f"data.name={name} "
                + (
                    "holds its test images out of the labeled ones: set --config.data.test_split="
                    if test_split
                    else "has test images of its own: set --config.data.test_split=test"
                )
            )
    elif name.startswith(ARRAYS):
        raise DataError(
            f"data.name={name}: these images were given as arrays: give them to crest_jax.train "
            "again, as data=crest_jax.arrays(...)"
        )
    elif name == "image_folder":
        assert folders is not None
        source = image_folder.image_folder(folders)
    else:
        source = tfds.source(name, data_dir=data_dir, download=download, test_split=test_split)
    if class_table:
        source = grouped(source, bundled.find(files.given(class_table, "data.class_table")))
    if test_split or source.test_is_held_out:
        return source
    return held_out(source, test_fraction)


def _is_of_the_community(name: str) -> bool:
    """Return whether a name is that of a community data set of TFDS, such as `kubric:movi_a`.

    It looks like that of a user's own function, which takes precedence if there is such a module.
    """
    namespace, colon, _ = name.partition(":")
    return bool(colon) and namespace in tfds.NAMESPACES and find_spec(namespace) is None


def _made(name: str) -> Source:
    """Return the data set that a user's own function, named as `module:name`, returns."""
    maker = plugins.find(name, {}, field="data.name")
    try:
        source = maker()
    except CrestError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise DataError(f"data.name={name} fails: {plugins.in_a_line(error)}") from error
    if not isinstance(source, Source):
        raise DataError(
            f"data.name={name} returned a {type(source).__name__}: it must return a "
            "crest_jax.data.sources.Source, as crest_jax.arrays does"
        )
    return source
