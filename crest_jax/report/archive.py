"""Keeps what finished runs have come to, a few KB each, for a repository or a supplement.

python -m crest_jax.report.archive --output=FOLDER WORKDIR [WORKDIR ...]

Each run gets a folder of its own name with its config.json and results.json, from which tables and
figures are drawn as from the run itself.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils.epath import Path

from crest_jax import command, files, results, workdir
from crest_jax.config import FORMAT, to_plain
from crest_jax.errors import WorkdirError
from crest_jax.layout import RunFolder

# Far more than folds differ by, and far less than the text of a double.
_DIGITS = 6


def archive(run: Path, output: Path) -> Path:
    """Keeps one run, and returns the folder in `output` that has it.

    Figures have six significant digits. Fields that results do not depend on, such as the folder
    where TFDS keeps its data, are left out.

    Raises:
      WorkdirError: the run has no finished generation or is damaged; or the folder has another's
        results.
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
        RunFolder(run).results.name: rounded(results.read(run)),
    }
    folder = output / run.resolve().name
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


def rounded(value: Any) -> Any:
    """The same with every fraction at six significant digits."""
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def text(content: Mapping[str, Any]) -> str:
    """JSON with a line for each key, so that two versions can be told apart line by line."""
    lines = (
        f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'), ensure_ascii=False)}"
        for key, value in files.sealed(content).items()
    )
    return "{" + ",\n".join(lines) + "}\n"


def archived(runs: Sequence[Path], output: Path) -> list[Path]:
    """Keeps several runs, and returns their folders.

    Raises:
      WorkdirError: as `archive`; and where two runs have the same name, before anything is written.
    """
    names: dict[str, Path] = {}
    for run in runs:
        first = names.setdefault(run.resolve().name, run)
        if first != run:
            raise WorkdirError(
                f"{first} and {run} would have the same folder: give them in two calls, "
                "with another --output"
            )
    return [archive(run, output) for run in names.values()]


@command.entry
def main() -> None:
    """Keeps the runs, and says how much space they take."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=files.given, required=True, help="a folder")
    parser.add_argument("workdir", type=files.given, nargs="+", help="folders of finished runs")
    arguments = parser.parse_args()
    folders = archived(arguments.workdir, arguments.output)
    size = sum(file.stat().length for folder in folders for file in folder.iterdir())
    print(f"{arguments.output}: {len(folders)} runs in {size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
