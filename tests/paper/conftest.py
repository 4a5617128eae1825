"""The command, the cells of tables, and runs that are finished without having run."""

import json

import finished_run
import pytest

from crest_jax.config import to_plain
from crest_jax.layout import FORMAT
from crest_jax.paper import __main__ as paper
from crest_jax.paper import cells
from crest_jax.paper.published import TABLES
from crest_jax.paper.runs import Setting


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line, and gives its exit status and what it printed."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["paper", *arguments])
        try:
            paper.main()
        except SystemExit as stopped:
            return stopped.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return run


@pytest.fixture
def settings(tmp_path):
    """Makes settings whose runs are in the test's own folder."""
    return lambda scale="full", folds=2: Setting(scale, folds, {}, tmp_path)


@pytest.fixture
def cells_of(settings):
    """Makes the cells of a table, by its number."""
    return lambda number, *setting, **changes: cells.of_table(
        TABLES[number], settings(*setting, **changes)
    )


@pytest.fixture
def finish():
    """Leaves what a run with these generations' results leaves."""

    def leave(run, *generations, **changes):
        run.workdir.mkdir(parents=True, exist_ok=True)
        config = to_plain(run.config()) | changes
        (run.workdir / "config.json").write_text(json.dumps({"format": FORMAT, "config": config}))
        results = [finished_run.generation(10, **each) for each in generations]
        (run.workdir / "results.json").write_text(json.dumps(finished_run.results(results)))

    return leave
