"""The declaration of a config field: its default, its valid values, and what it means."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from crest_jax.errors import ConfigError
from crest_jax.wording import shown


class Field(NamedTuple):
    """One field of a config, or one hyper-parameter of an algorithm or a rebalancing.

    Attributes:
      default: the default, whose type is that of the field's values. An empty tuple stands for one
        of numbers.
      help: a line that says what the field means, with its unit.
      within: the range of a number, as an interval such as "(0, 1]" or "[1, inf)". Empty for any
        value.
      choices: all possible values of a text, or of the entries of a tuple. Empty for any value.
      words: the valid values in words, for the help, where they are checked elsewhere.
      source: where the default comes from: a section of the paper, or another one.
    """

    default: Any
    help: str = ""
    within: str = ""
    choices: Sequence[str] = ()
    words: str = ""
    source: str = ""

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
        if self.words:
            return self.words
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


def wrong_declarations(fields: Any, *, dotted: bool) -> Iterator[str]:
    """Yield what is wrong with the hyper-parameters that an algorithm or a rebalancing declares.

    Args:
      fields: what should be a mapping from names to `Field`s.
      dotted: whether names may have dots.
    """
    if not isinstance(fields, Mapping):
        yield f"hyper_parameters={shown(fields)} must be a mapping from names to Fields"
        return
    for name, field in fields.items():
        words = name.split(".") if dotted and isinstance(name, str) else [name]
        if not all(isinstance(word, str) and word.isidentifier() for word in words):
            yield f"hyper_parameters has {shown(name)}, which must be the name of an argument"
        elif not isinstance(field, Field):
            yield f"hyper_parameters has {name}={shown(field)}, which must be a Field"
        else:
            yield from (f"the hyper-parameter {name} has {wrong}" for wrong in _wrong(field))


def _wrong(field: Field) -> Iterator[str]:
    default = field.default
    if not isinstance(default, bool | int | float | str | tuple):
        yield f"the default {shown(default)}, which must be a truth value, number, text or tuple"
        return
    try:
        expected = field.expected(default)
    except Exception:  # whatever comes of comparing texts, or of reading an interval
        yield f"within={shown(field.within)}, which must be an interval of numbers: '[0, 1)'"
        return
    if expected and not (isinstance(default, tuple) and not default):
        yield f"the default {shown(default)}, which must be {expected}"


def of_each_class(
    name: str, values: Sequence[int | float], class_names: Sequence[str]
) -> Float[np.ndarray, " classes"]:
    """Return what a config field gives for each class, whose number is known only with the data.

    Raises:
      ConfigError: It is not a value for each class.
    """
    if len(values) != len(class_names):
        raise ConfigError(
            f"{name} has {len(values)} entries for {len(class_names)} classes: give one for each "
            f"of {', '.join(class_names)}"
        )
    return np.asarray(values, np.float64)


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
