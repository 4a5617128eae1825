"""Schemas of values that come from outside: the fields of a config, or a JSON file.

A schema is nested like the value: a `Kind` describes a single value, `Each` the elements of a list,
a mapping the members of an object by name, and `Members` those of an object with any names.
"""

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from crest_jax.wording import printable, shown


class Kind(NamedTuple):
    """The schema of a single value."""

    words: str  # a description of such values, which follows "must be" in messages
    fits: Callable[[Any], bool]


class Each(NamedTuple):
    """The schema of a list or tuple of `length` values of one schema; None allows any length."""

    schema: "Schema"
    length: int | None = None


class Maybe(NamedTuple):
    """The schema of an optional member of an object."""

    schema: "Schema"


class Members(NamedTuple):
    """The schema of an object whose members have any names and are all of one schema."""

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
    """Check a confusion matrix by rows, since it may have millions of cells."""
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


# The largest number of pixels of an image. The array of a larger one would exceed 2^29 bytes, which
# TensorFlow does not decode.
MOST_PIXELS = 2**29 // 3
_LARGEST_COUNT = np.iinfo(np.int64).max
_LARGEST_WHOLE = int(np.iinfo(np.int32).max)
_LARGEST_NUMBER = float(np.finfo(np.float32).max)
_LARGEST_FIGURE = float(np.finfo(np.float64).max)
_HEXADECIMAL = set("0123456789abcdef")

TRUTH = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = Kind("text without control characters", _is_text)
# Values that JAX computes with. NUMBER allows infinities and NaN, which are left to the checks that
# know the range of a value.
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
# Values in files.
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
# A manifest must not refer to files outside its folder.
FILE_NAME = Kind("the name of a file, in no other folder", _is_file_name)
CONFUSION_MATRIX = Kind("a square table of whole numbers of at least 0", _is_confusion_matrix)


def mismatches(
    value: Any, schema: Schema, name: str = "", *, closed: bool = False
) -> Iterator[str]:
    """Yield a message for every part of a value that does not fit a schema.

    An example is `shards[2].bytes=-1 must be a whole number of at least 0`.

    Args:
      value: Any value.
      schema: the schema that the value must fit.
      name: the name of the value in messages; empty for a whole file.
      closed: whether members of an object that are not in the schema are errors.
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
            for key, member in schema.items():
                if key in value:
                    inner = member.schema if isinstance(member, Maybe) else member
                    yield from mismatches(value[key], inner, f"{prefix}{key}", closed=closed)
                elif not isinstance(member, Maybe):
                    yield f"{prefix}{key} is missing"
            if closed:
                for key in value:
                    if key not in schema:
                        stranger = f"{prefix}{printable(str(key))}"
                        yield f"{stranger} is not a field: {', '.join(schema)} are"


def or_null(schema: Schema, words: str) -> Kind:
    """Return the kind of null and of values of a schema, which `words` describe in messages."""
    return Kind(
        f"{words}, or null", lambda value: value is None or not any(mismatches(value, schema))
    )
