"""An extension of griffe, for what the API reference takes from the sources beside docstrings."""

import re
import textwrap

import griffe

_EXAMPLE = re.compile(r"^Example:\n((?:  .*\n?|\n)+)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Describe fields by their comments, and show the lines of an `Example:` as code."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_) -> None:
        """Take the comment above a field, or behind it, for its docstring."""
        if attr.docstring is None and attr.lineno and (comment := _comment(attr)):
            text = re.sub(r"`[^`]*`|[\[<*]", _literal, comment)
            attr.docstring = griffe.Docstring(text, parent=attr, lineno=attr.lineno)

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Put the example of a docstring into a block of code."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_as_code, obj.docstring.value)


def _comment(attr: griffe.Attribute) -> str:
    lines = attr.lines_collection[attr.filepath]
    behind = lines[attr.endlineno - 1].partition("  # ")[2]
    if behind and not behind.startswith("noqa"):
        return behind
    above = []
    for line in reversed(lines[: attr.lineno - 1]):
        text = line.strip()
        if not text.startswith("# "):
            break
        above.insert(0, text.removeprefix("# "))
    return "\n".join(above)


def _literal(found: re.Match) -> str:
    """Escape a character that Markdown would understand; what is in backticks stays."""
    return found[0] if found[0].startswith("`") else f"\\{found[0]}"


def _as_code(example: re.Match) -> str:
    code = textwrap.dedent(example[1]).strip()
    return "Example:\n" + textwrap.indent(f"```python\n{code}\n```\n", "  ")
