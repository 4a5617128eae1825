"""The differences between two plain configs, or other nested objects of JSON."""

from collections.abc import Mapping
from typing import Any

from crest_jax.wording import shown


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two plain objects differ, by their dotted names.

    Each value is a pair of the old and the new value; None stands for a missing field.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the fields in which two plain objects differ, as `field: old -> new`."""
    return describe(changes(old, new))


def describe(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """List the result of `changes` as `field: old -> new`."""
    return [
        f"{name}: {shown(before)} -> {shown(after)}" for name, (before, after) in changed.items()
    ]
