"""How names and values of users appear in messages."""

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

_NAMED = 3  # the number of names that a message lists before it counts the rest


class _Shortened(reprlib.Repr):
    """Short texts of values, in which arrays are described by their type and shape."""

    def repr1(self, value: Any, level: int) -> str:
        """Return the text of a value, which may be an element of another one."""
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if isinstance(shape, tuple) and shape and dtype is not None:
            return f"array of {dtype} {tuple(shape)}"
        return super().repr1(value, level)


_shortened = _Shortened()
_shortened.maxlist = _shortened.maxtuple = 50
_shortened.maxstring = _shortened.maxother = 200


def shown(value: Any) -> str:
    """Return any value as text on one line of bounded length; of an array, its type and shape."""
    try:
        return _shortened.repr(value).replace("\n", " ")
    except ValueError:  # Python refuses to write numbers of thousands of digits
        return f"a {type(value).__name__} of {value.bit_length()} bits"


def printable(text: str) -> str:
    """Escape control characters and lone surrogates, so that the text is safe to print."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def some(names: Sequence[str], between: str = ", ") -> str:
    """Return the first few names, escaped for a terminal, and the number of the others."""
    more = len(names) - _NAMED
    first = between.join(map(printable, names[:_NAMED]))
    return f"{first} and {more} more" if more > 0 else first


def meant(given: str, names: Iterable[str]) -> str:
    """Return the end of a message that suggests a similar name; empty if there is none."""
    found = difflib.get_close_matches(given, names, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def as_argument(name: str, value: str) -> str:
    """Return how an argument of an experiment is given, on the command line and in Python."""
    return f"--config=FILE.py:{name}={value} or crest_jax.experiment(..., {name}={value!r})"
