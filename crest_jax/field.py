"""The declaration of a config field: its default, its valid values, and what it means."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Field(NamedTuple):
    """One field of a config, or one hyper-parameter of an algorithm."""

    # Its type is the type of the field's values. An empty tuple stands for one of numbers.
    default: Any
    help: str = ""  # a line that says what the field means, with its unit
    # The range of a number, as an interval such as "(0, 1]" or "[1, inf)". Empty for any value.
    within: str = ""
    # All possible values of a text, or of the entries of a tuple. Empty for any value.
    choices: Sequence[str] = ()
    source: str = ""  # where the default comes from: a section of the paper, or another one

    def expected(self, value: Any) -> str:
        """Return what a value of the right type must be, or an empty string if it is that."""
        if self.within and not is_within(value, self.within):
            return in_words(self.within)
        if self.choices and isinstance(value, str):
            return "" if value in self.choices else f"one of {', '.join(self.choices)}"
        if self.choices and not (value and set(value) <= set(self.choices)):
            return f"a non-empty selection of {', '.join(self.choices)}"
        return ""

    @property
    def valid(self) -> str:
        """The valid values in words."""
        if self.within:
            return in_words(self.within)
        match self.default:
            case bool():
                return "True or False"
            case tuple():
                return f"some of {', '.join(self.choices)}" if self.choices else "numbers"
            case str() if self.choices:
                return f"one of {', '.join(self.choices)}"
            case str():
                return "text"
        return "a whole number" if isinstance(self.default, int) else "a number"


def is_within(value: int | float, interval: str) -> bool:
    """Return whether a finite number is in an interval such as "[0, 1)"; NaN is in none."""
    low, high = _bounds(interval)
    above = value > float(low) if interval[0] == "(" else value >= float(low)
    below = value < float(high) if interval[-1] == ")" else value <= float(high)
    return math.isfinite(value) and above and below


def in_words(interval: str) -> str:
    """Return an interval in words, following "must be"."""
    low, high = _bounds(interval)
    if high == "inf":
        return f"{'above' if interval[0] == '(' else 'at least'} {low}"
    if interval[0] + interval[-1] == "[]":
        return f"between {low} and {high}"
    return f"in {interval}"


def _bounds(interval: str) -> tuple[str, str]:
    low, high = interval[1:-1].split(", ")
    return low, high
