"""All config fields with what they mean: on the terminal, and as a page of the documentation.

python -m crest_jax.config_help > docs/config.md     writes the page
"""

import textwrap
from collections.abc import Mapping

from ml_collections import ConfigDict

from crest_jax import command
from crest_jax.algorithms import ALGORITHMS
from crest_jax.config import by_name, common_fields, fields_of
from crest_jax.field import Field

_WIDTH = 100  # characters of a line on the terminal


def text(config: ConfigDict | None = None) -> str:
    """Return a paragraph for each field: its value, the valid ones, what it means, and its source.

    Args:
      config: of an experiment, whose fields and values are shown; None for all fields with their
        defaults.
    """
    fields = fields_of(config and config.get("method"), config and config.get("rebalance"))
    if config is None:
        values = {name: field.default for name, field in fields.items()}
    else:
        values = by_name(config)
    return "\n".join(
        _paragraph(name, values[name], field) for name, field in fields.items() if name in values
    )


def _paragraph(name: str, value: object, field: Field) -> str:
    source = f" Source: {field.source}." if field.source else ""
    meaning = f"{field.help} Must be {field.valid}.{source}"
    indent = "    "
    return "\n".join(
        [
            textwrap.fill(f"--config.{name}={value}", _WIDTH, subsequent_indent="        "),
            textwrap.fill(meaning, _WIDTH, initial_indent=indent, subsequent_indent=indent),
        ]
    )


def markdown() -> str:
    """Return the page of the documentation, with a table for each group of fields."""
    groups: dict[str, dict[str, Field]] = {}
    for name, field in common_fields().items():
        groups.setdefault(name.rpartition(".")[0], {})[name] = field
    tables = [
        f"## Fields of `{group}`\n\n{_table(fields)}" if group else _table(fields)
        for group, fields in groups.items()
    ]
    methods = [
        f"## Fields of `method={name}`\n\n{_table(algorithm.hyper_parameters)}"
        for name, algorithm in ALGORITHMS.items()
        if algorithm.hyper_parameters
    ]
    return "\n".join(
        [
            "# The config",
            "",
            "Every experiment is a `ConfigDict` of these fields. The defaults are those of the",
            "paper's FixMatch on CIFAR-10-LT; an experiment's file changes some of them, and",
            "`--config.FIELD=VALUE` any. `python -m crest_jax.main --config=FILE.py --help_config`",
            "prints them with the values that an experiment gives them.",
            "",
            "This page is written by `python -m crest_jax.config_help`, from the declarations in",
            "`crest_jax/config.py`, `crest_jax/algorithms/__init__.py` and the files of",
            "`crest_jax/rebalancing/`.",
            "",
            *tables,
            *methods,
        ]
    ).rstrip()


def _table(fields: Mapping[str, Field]) -> str:
    rows = ["| field | default | valid | meaning | source |", "|---|---|---|---|---|"]
    for name, field in fields.items():
        cells = (f"`{name}`", _default(field), field.valid, field.help, field.source)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _default(field: Field) -> str:
    is_all = bool(field.choices) and tuple(field.choices) == field.default
    return "all" if is_all else f"`{field.default!r}`"


@command.entry
def main() -> None:
    """Print the page."""
    print(markdown())


if __name__ == "__main__":
    main()
