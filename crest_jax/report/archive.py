"""Archive the results of finished runs, a few KB each, for a repository or a supplement.

python -m crest_jax.report.archive --output=FOLDER WORKDIR [WORKDIR ...]

Each run gets a folder with its name, config.json and results.json. Tables and figures can be made
from this folder as from the run itself.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils.epath import Path

from crest_jax import command, files, results, workdir
from crest_jax.config import to_plain
from crest_jax.errors import WorkdirError
from crest_jax.layout import FORMAT, RunFolder

# Significant digits: far finer than the differences between folds, far shorter than a double.
_DIGITS = 6


def archive(run: Path, output: Path) -> Path:
    """Archive one run, and return its folder in `output`.

    Numbers are rounded to six significant digits. Config fields that results do not depend on, such
    as the folder where TFDS keeps its data, are left out.

    Raises:
      WorkdirError: The run has no finished generation or is damaged, or its folder in `output`
        holds the files of another run.
    """
    config = to_plain(workdir.read_config(run))
    for field in workdir.INCIDENTAL:
        *above, name = field.split(".")
        part = config
        for each in above:
            part = part[each]
        del part[name]
    kept = {
        RunFolder(run).config.name: {"format": FORMAT, "config": config},
        RunFolder(run).results.name: round_floats(results.read(run)),
    }
    folder = output / files.absolute(run).name
    for name, content in kept.items():
        path = folder / name
        if path.exists() and files.read_json(path) != content:
            raise WorkdirError(
                f"{path} is of another run than {run}: delete it, or choose another --output"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in kept.items():
        files.write_text(folder / name, text(content))
    return folder


def round_floats(value: Any) -> Any:
    """Return the value with every float rounded to six significant digits."""
    if isinstance(value, Mapping):
        return {key: round_floats(each) for key, each in value.items()}
    if isinstance(value, list):
        return [round_floats(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def text(content: Mapping[str, Any]) -> str:
    """Return JSON with one line per top-level key, so that versions can be compared by line."""
    lines = (
        f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'), ensure_ascii=False)}"
        for key, value in files.sealed(content).items()
    )
    return "{" + ",\n".join(lines) + "}\n"


def archive_all(runs: Sequence[Path], output: Path) -> list[Path]:
    """Archive several runs, and return their folders.

    Raises:
      WorkdirError: As for `archive`; or two runs have the same name, in which case nothing is
        written.
    """
    names: dict[str, Path] = {}
    for run in runs:
        first = names.setdefault(files.absolute(run).name, run)
        if first != run:
            raise WorkdirError(
                f"{first} and {run} would have the same folder: give them in two calls, "
                "with another --output"
            )
    return [archive(run, output) for run in names.values()]


@command.entry
def main() -> None:
    """Archive the runs, and print how much space they take."""
    parser = command.parser(__doc__)
    parser.add_argument("--output", type=files.given, required=True, help="a folder")
    parser.add_argument("workdir", type=files.given, nargs="+", help="folders of finished runs")
    arguments = parser.parse_args()
    folders = archive_all(arguments.workdir, arguments.output)
    size = sum(file.stat().length for folder in folders for file in folder.iterdir())
    print(f"{arguments.output}: {len(folders)} runs in {size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
