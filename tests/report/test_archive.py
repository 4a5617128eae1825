import json
import sys

import finished_run
import pytest
from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax import config, layout, results, workdir
from crest_jax.errors import WorkdirError
from crest_jax.paper import curves, progress
from crest_jax.paper.figures import FIGURES
from crest_jax.paper.runs import Setting
from crest_jax.report import archive, comparison


def leave(folder, settings, **figures):
    """Leaves what a finished run of one generation leaves."""
    folder.mkdir(parents=True)
    written = {"format": layout.FORMAT, "config": config.to_plain(settings)}
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    generation = finished_run.generation(10, **figures)
    content = finished_run.results([generation], fold=settings.fold)
    (folder / "results.json").write_text(json.dumps(content, indent=1))
    return Path(folder)


@pytest.fixture
def runs(tmp_path):
    settings = config.default_config(ConfigDict({"method": "fixmatch", "rebalance": "none"}))
    settings.data.data_dir = "/home/somebody/tfds"
    first = leave(tmp_path / "runs/first", settings, accuracy=100 * 2 / 3, seconds=1234567.25)
    settings.fold = 1
    return [first, leave(tmp_path / "runs/second", settings, accuracy=70.0)]


def test_what_is_kept_reads_as_the_run_itself(runs, tmp_path):
    first, second = archive.archive_all(runs, Path(tmp_path / "kept"))
    assert (first.name, second.name) == ("first", "second")
    read = results.read(first)
    assert read["accuracy"] == 66.6667
    assert read["generations"][0]["seconds"] == 1234570.0
    assert read["generations"][0]["per_class_recall"] == [50.0] * 10
    assert read["class_names"] == [str(label) for label in range(10)]
    tables = [comparison.comparison([*map(results.read, each)]) for each in (runs, (first, second))]
    assert tables[0] == tables[1]
    assert workdir.differences(*map(workdir.read_config, (runs[0], first))) == []
    for file in (*first.iterdir(), *second.iterdir()):
        content = file.read_text()
        assert "somebody" not in content
        assert len(content) < 6000


def test_the_papers_figures_are_drawn_from_what_is_kept(tmp_path):
    def the_run(folder):
        (run,) = curves.of_figure(FIGURES[7], Setting("smoke", 1, {}, folder))["MixMatch"]
        return run

    run = the_run(tmp_path / "runs")
    leave(run.workdir, run.config(), accuracy=81.25)
    archive.archive_all([run.workdir], Path(tmp_path / "kept/smoke"))
    found = progress.read(the_run(tmp_path / "kept"))
    assert found.is_finished
    assert found.results["accuracy"] == 81.25


def test_a_damaged_digit_is_found(runs, tmp_path):
    kept = archive.archive(runs[0], Path(tmp_path / "kept"))
    path = kept / "results.json"
    path.write_text(path.read_text().replace("66.6667", "67.6667"))
    with pytest.raises(WorkdirError, match="is damaged"):
        results.read(kept)


def test_nothing_that_was_kept_is_replaced(runs, tmp_path):
    output = Path(tmp_path / "kept")
    before = (archive.archive(runs[0], output) / "results.json").read_text()
    assert (archive.archive(runs[0], output) / "results.json").read_text() == before
    again = json.loads((runs[0] / "results.json").read_text())
    again["accuracy"] = 12.0
    (runs[0] / "results.json").write_text(json.dumps(again))
    with pytest.raises(WorkdirError, match=r"results\.json is of another run than"):
        archive.archive(runs[0], output)
    assert (output / "first/results.json").read_text() == before


def test_runs_of_one_name_are_refused_before_anything_is_written(runs, tmp_path):
    other = leave(tmp_path / "others/first", workdir.read_config(runs[0]), accuracy=1.0)
    with pytest.raises(WorkdirError, match="would have the same folder"):
        archive.archive_all([*runs, other], Path(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()


def test_the_command_says_what_it_has_kept(runs, tmp_path, monkeypatch, capsys):
    output = tmp_path / "kept"
    monkeypatch.setattr(sys, "argv", ["archive", f"--output={output}", *map(str, runs)])
    archive.main()
    size = sum(len(file.read_bytes()) for file in output.glob("*/*.json"))
    assert capsys.readouterr().out == f"{output}: 2 runs in {size / 1000:.0f} KB\n"
    monkeypatch.setattr(sys, "argv", ["archive", f"--output={output}", str(tmp_path)])
    with pytest.raises(SystemExit):
        archive.main()
    assert "is not a run: it has no config.json" in capsys.readouterr().err
