"""Checking the class names of user-provided images, which are names of folders or CSV labels."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from absl import logging

from crest_jax import schema
from crest_jax.data import pictures
from crest_jax.data.listing import Listed
from crest_jax.data.sources import normal_name
from crest_jax.errors import DataError
from crest_jax.wording import some

# Names that people give to the parts of a data set, but hardly ever to classes. The parts that are
# trained on come first.
_PARTS = (
    "train", "training", "labeled", "labelled", "test", "testing", "eval", "holdout", "val",
    "valid", "validation", "dev", "unlabeled", "unlabelled",
)  # fmt: skip

# Words that people combine with these names, as in training_set or seg_train.
_OF_PARTS = (
    "set", "split", "data", "dataset", "images", "image", "img", "pictures", "photos", "seg",
)  # fmt: skip


def names_of(listed: Iterable[Listed]) -> tuple[str, ...]:
    """Return the names of the classes of some files, sorted."""
    return tuple(sorted({each.class_name for each in listed if each.class_name is not None}))


def _appearance(name: str) -> str:
    """Return a key that is the same for names that look alike.

    It does not depend on case, white space, leading zeros of a whole number, invisible characters,
    and the Unicode form of a letter.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    text = re.sub(r"(?<![\d.,])0+(?=\d)", "", text)
    return "".join(
        letter
        for letter in text
        if not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf")
    )


def check_labeled(where: str, labeled: Sequence[Listed], class_names: Sequence[str]) -> None:
    """Check the classes of the labeled images, and warn of those that may be a mistake.

    Args:
      where: the location of the labeled images, as the config gives it.
      labeled: the files of the labeled images.
      class_names: the names of their classes.

    Raises:
      DataError: There is only one class, the classes are parts of a data set, or a name is not
        valid text.
    """
    inner = _inner_folders(labeled)
    if len(class_names) < 2:
        raise DataError(
            f"data.labeled={where!r} has only the class {class_names[0]}: give two or more, each "
            f"as a folder, or as a label of the CSV file{_one_too_high('labeled', where, inner)}"
        )
    for name in class_names:
        if not schema.TEXT.fits(name):
            raise DataError(
                f"data.labeled={where!r}: the class {name!r} must have a name that is "
                f"{schema.TEXT.words}: rename it"
            )
    part_of = {name: part for name in class_names if (part := _part(name))}
    parts = sorted(part_of, key=lambda name: _PARTS.index(part_of[name]))
    if len(parts) > 1 and any(inner[name] and not _has_pictures(labeled, name) for name in parts):
        one, other = parts[:2]
        field = "unlabeled" if part_of[other].startswith("un") else "test"
        raise DataError(
            f"data.labeled={where!r} has the folders {some(parts)}, which are parts of a data set "
            f"and not classes: give labeled={_inside(where, one)},{field}={_inside(where, other)}, "
            "or rename them if they are classes"
        )
    if len(parts) > 1:
        logging.warning(
            "data.labeled=%r has the classes %s, which have names of parts of a data set; if they "
            "are such parts, give one of them as labeled, and another as test",
            where,
            some(parts),
        )
    _warn_of_shared_folders(where, inner)
    of_appearance = defaultdict(list)
    for name in class_names:
        of_appearance[_appearance(name)].append(repr(name))
    alike = [" and ".join(names) for names in of_appearance.values() if len(names) > 1]
    if alike:
        logging.warning(
            "data.labeled=%r has classes whose names look alike: %s; give them the same name if "
            "they are one class",
            where,
            some(alike, "; "),
        )


def _part(name: str) -> str | None:
    """Return which of `_PARTS` a folder's name means; None if the folder may be a class."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    parts = [word for word in words if word in _PARTS]
    if len(parts) != 1 or set(words) - {*parts, *_OF_PARTS}:
        return None
    return parts[0]


def check_tested(where: str, test: Sequence[Listed], class_names: Sequence[str]) -> None:
    """Check that the test images have no class that the labeled images lack.

    Raises:
      DataError: The test images have such a class.
    """
    strange = sorted(set(names_of(test)) - set(class_names))
    if not strange:
        return
    of_appearance = {_appearance(name): name for name in class_names}
    named = []
    for name in strange:
        alike = of_appearance.get(_appearance(name))
        named.append(f"{name!r} (is it {alike!r}?)" if alike else name)
    inner = {name: found & set(class_names) for name, found in _inner_folders(test).items()}
    raise DataError(
        f"data.test={where!r} has classes that the labeled images do not have: {some(named)}; "
        f"these have {', '.join(class_names)}{_one_too_high('test', where, inner)}"
    )


def _inner_folders(listed: Sequence[Listed]) -> dict[str, set[str]]:
    """Return the names of the folders inside each class's folder; none for a CSV file."""
    inner: dict[str, set[str]] = defaultdict(set)
    for each in listed:
        if each.class_name is not None and not each.by_list:
            _, _, *between, _ = each.id.split("/")
            inner[each.class_name].update(map(normal_name, between[:1]))
    return inner


def _has_pictures(listed: Sequence[Listed], class_name: str) -> bool:
    """Return whether the folder of a class holds pictures directly, not only in inner folders."""
    return any(
        each.class_name == class_name
        and each.id.count("/") == 2
        and pictures.kind_by_looks(each.path)
        for each in listed
    )


def _one_too_high(field: str, where: str, inner: Mapping[str, set[str]]) -> str:
    """Return advice for the case that the classes are the folders inside a supposed class."""
    for name, found in inner.items():
        if found:
            return (
                f". If {some(sorted(found))} in {name} are the classes, give "
                f"{field}={_inside(where, name)}"
            )
    return ""


def _warn_of_shared_folders(where: str, inner: Mapping[str, set[str]]) -> None:
    """Warn of inner folders that occur in several classes, and may themselves be the classes."""
    above = defaultdict(list)
    for name, found in inner.items():
        for folder in found:
            above[folder].append(name)
    shared = sorted(folder for folder, names in above.items() if len(names) > 1)
    if shared:
        names = sorted({name for folder in shared for name in above[folder]})
        logging.warning(
            "data.labeled=%r: the classes %s all have folders called %s; each class is an outer "
            "folder with everything below it. If the inner ones are the classes, give labeled=%s",
            where,
            some(names),
            some(shared),
            _inside(where, names[0]),
        )


def _inside(where: str, name: str) -> str:
    return f"{where.rstrip('/')}/{name}"
