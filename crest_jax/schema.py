"""What a value that comes from outside must look like: a config's field, or a file of JSON.

A schema is nested as the value is: a `Kind` says what a single value may be, `Each` what a list is
made of, and a mapping what the members of an object are.
"""

import difflib
import math
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np


class Kind(NamedTuple):
    """What a single value may be."""

    words: str  # that follow "must be"
    fits: Callable[[Any], bool]


class Each(NamedTuple):
    """A list, or a tuple, of so many values of a schema; of any number where none is given."""

    schema: "Schema"
    length: int | None = None


class Maybe(NamedTuple):
    """A member of an object that may be missing."""

    schema: "Schema"


class Members(NamedTuple):
    """An object whose members, whatever they are called, are all of a schema."""

    schema: "Schema"


Schema: TypeAlias = Kind | Each | Members | Mapping[str, "Schema | Maybe"]


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high  # True is an int too


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any(
        unicodedata.category(letter) in ("Cc", "Cs") for letter in value
    )


def _is_file_name(value: Any) -> bool:
    return _is_text(value) and value not in ("", ".", "..") and not {"/", "\\"} & set(value)


def _is_confusion_matrix(value: Any) -> bool:
    """There may be millions of cells: these are looked at a row at a time."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(row, list)
            and len(row) == len(value)
            and set(map(type, row)) == {int}
            and min(row) >= 0
            and max(row) <= _LARGEST_COUNT
            for row in value
        )
    )


_LARGEST_COUNT = np.iinfo(np.int64).max
_LARGEST_WHOLE = int(np.iinfo(np.int32).max)
_LARGEST_NUMBER = float(np.finfo(np.float32).max)
_LARGEST_FIGURE = float(np.finfo(np.float64).max)
_HEXADECIMAL = set("0123456789abcdef")

TRUTH = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = Kind("text without control characters", _is_text)
# What JAX computes with. Of numbers, infinities and NaN are left to those who know the range.
WHOLE = Kind(
    f"a whole number between -{_LARGEST_WHOLE} and {_LARGEST_WHOLE}, which 32 bits hold",
    lambda value: _is_whole(value, -_LARGEST_WHOLE, _LARGEST_WHOLE),
)
NUMBER = Kind(
    "a number that 32 bits hold",
    lambda value: (
        _is_number(value)
        and not (abs(value) > _LARGEST_NUMBER and (isinstance(value, int) or math.isfinite(value)))
    ),
)
# What files say.
COUNT = Kind("a whole number of at least 0", lambda value: _is_whole(value, 0, int(_LARGEST_COUNT)))
FIGURE = Kind(
    "a finite number",
    lambda value: _is_number(value) and abs(value) <= _LARGEST_FIGURE,
)
FIGURE_OR_NONE = Kind("a finite number or null", lambda value: value is None or FIGURE.fits(value))
SETTING = Kind(
    "text, a finite number or null", lambda value: TEXT.fits(value) or FIGURE_OR_NONE.fits(value)
)
SHA256 = Kind(
    "a SHA-256 in hexadecimal",
    lambda value: isinstance(value, str) and len(value) == 64 and set(value) <= _HEXADECIMAL,
)
# A manifest is no way out of its folder.
FILE_NAME = Kind("the name of a file, in no other folder", _is_file_name)
CONFUSION_MATRIX = Kind("a square table of whole numbers of at least 0", _is_confusion_matrix)


def mismatches(
    value: Any, schema: Schema, name: str = "", *, closed: bool = False
) -> Iterator[str]:
    """Says in what a value does not fit a schema, as `shards[2].bytes=-1 must be a ...`.

    Args:
      value: anything.
      schema: what it must be.
      name: of the value; empty for a whole file.
      closed: whether an object may have no members but the schema's.
    """
    match schema:
        case Kind(words, fits):
            if not fits(value):
                yield f"{name}={shown(value)} must be {words}"
        case Each(of, length):
            if not isinstance(value, list | tuple):
                yield f"{name}={shown(value)} must be a list"
            elif length is not None and len(value) != length:
                yield f"{name} has {len(value)} entries, and must have {length}"
            else:
                for place, each in enumerate(value):
                    yield from mismatches(each, of, f"{name}[{place}]", closed=closed)
        case Members(of):
            if not isinstance(value, Mapping):
                yield f"{name}={shown(value)} must be an object"
                return
            for key, each in value.items():
                yield from mismatches(each, of, f"{name}.{printable(key)}", closed=closed)
        case _:
            if not isinstance(value, Mapping):
                yield f"{name or 'it'}={shown(value)} must have the fields {', '.join(schema)}"
                return
            prefix = f"{name}." if name else ""
            for key, of in schema.items():
                required = not isinstance(of, Maybe)
                if key in value:
                    inner = of if required else of.schema
                    yield from mismatches(value[key], inner, f"{prefix}{key}", closed=closed)
                elif required:
                    yield f"{prefix}{key} is missing"
            if closed:
                for key in value:
                    if key not in schema:
                        yield f"{prefix}{printable(str(key))} is no field: {', '.join(schema)} are"


def or_null(schema: Schema, words: str) -> Kind:
    """A value of a schema, or null; `words` say what that is."""
    return Kind(
        f"{words}, or null", lambda value: value is None or not any(mismatches(value, schema))
    )


_shortened = reprlib.Repr()
_shortened.maxlist = _shortened.maxtuple = 50
_shortened.maxstring = _shortened.maxother = 200


def shown(value: Any) -> str:
    """A value in a line of bounded length, whatever it is."""
    try:
        return _shortened.repr(value).replace("\n", " ")
    except ValueError:  # Python writes no number of thousands of digits
        return f"a {type(value).__name__} of {value.bit_length()} bits"


def printable(text: str) -> str:
    """Text with what a terminal would obey, or UTF-8 cannot have, in escapes instead."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def meant(given: str, names: Iterable[str]) -> str:
    """The end of a message, which asks for the most similar of the names if one is similar."""
    found = difflib.get_close_matches(given, names, n=1)
    return f"; did you mean {found[0]}?" if found else ""
