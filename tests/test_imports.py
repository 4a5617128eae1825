"""Which modules import TensorFlow, JAX and the paper's tables; and TensorFlow's devices."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import crest_jax.data.tensorflow
from crest_jax import job

REPOSITORY = Path(__file__).parent.parent
PACKAGE = Path(crest_jax.__file__).parent
TENSORFLOW = ("tensorflow", "tensorflow_datasets", "tensorboard", "clu")
WITHOUT_TENSORFLOW = (
    "adjust", "algorithms", "augment", "config", "evaluate", "export", "hosts", "mesh",
    "models", "predict", "rebalancing", "report", "saved_run", "train_state", "train_step",
    "trained", "validation",
)  # fmt: skip
WITHOUT_JAX = (
    "accuracy",
    "data.long_tail",
    "data.pseudo_labels",
    "data.records",
    "results",
    "saved_run",
)


def run_without(modules, program, *arguments):
    """Run a program in a process that has none of these modules."""
    absent = f"import sys\nsys.modules.update(dict.fromkeys({list(modules)}))\n"
    done = subprocess.run(
        [sys.executable, "-c", absent + program, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_by(path):
    """Return the top-level packages that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return {name.split(".")[0] for name in names}


def test_only_one_module_imports_tensorflow_and_one_its_data_sets():
    importers = {
        library: [
            str(path.relative_to(PACKAGE))
            for path in PACKAGE.rglob("*.py")
            if library in imported_by(path)
        ]
        for library in ("tensorflow", "tensorflow_datasets")
    }
    assert importers == {
        "tensorflow": ["data/tensorflow.py"],
        "tensorflow_datasets": ["data/tfds.py"],
    }


def test_what_does_not_prepare_data_works_without_tensorflow():
    program = "\n".join(f"import crest_jax.{name}" for name in WITHOUT_TENSORFLOW)
    run_without(TENSORFLOW, program)


def test_what_computes_little_works_without_jax_too():
    program = "\n".join(f"import crest_jax.{name}" for name in WITHOUT_JAX)
    run_without((*TENSORFLOW, "jax", "flax", "optax"), program)


def test_results_are_read_without_jax():
    """Neither it nor TensorFlow is needed for the figures of a run that was archived."""
    program = """
import crest_jax
run = crest_jax.load(sys.argv[1])
assert len(run.rows()) == 10 * run.generations == 10 * len(run.results["generations"])
assert "accuracy" in repr(run)
"""
    archived = REPOSITORY / "docs/results/cifar10/cifar10_lt-rebalance=crest-fold=0"
    run_without((*TENSORFLOW, "jax", "flax", "optax"), program, archived)


@pytest.fixture(scope="module")
def finished(tiny_config, make_folder):
    """A run whose images are resized, so that predictions resize theirs, too."""
    folder = make_folder("finished") / "run"
    job.run(tiny_config("rebalance=crest", **{"data.image_size": 10}), folder)
    return folder


def test_a_finished_run_is_used_without_tensorflow(finished, tmp_path):
    program = """
import numpy as np
import crest_jax
from crest_jax import adjust, export, predict
from crest_jax.report import __main__ as report

workdir, folder = sys.argv[1:]
run = crest_jax.load(workdir)
assert run.results["accuracy"] >= 0
assert len(run.rows()) == 10 * run.generations
assert len(run.pseudo_labels(1).ids)
assert run.model().predict([np.zeros((20, 12, 1), np.uint8)]).labels.shape == (1,)
for module, *arguments in (
    (predict, f"--images={folder}/pictures", f"--output={folder}/predictions.csv"),
    (export, f"--output={folder}/exported"),
    (adjust, f"--output={folder}/adjusted.json"),
    (report, f"--output={folder}/report.html"),
):
    sys.argv = [module.__name__, f"--workdir={workdir}", *arguments]
    module.main()
assert sys.modules["tensorflow"] is None
"""
    (tmp_path / "pictures").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg", "c.bmp"):
        Image.fromarray(image).save(Path(tmp_path / "pictures" / name))
    run_without(TENSORFLOW, program, finished, tmp_path)
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 4
    for name in ("exported/model.json", "adjusted.json", "report.html"):
        assert (tmp_path / name).is_file()


def test_the_package_alone_imports_nothing_large_and_shows_what_it_has():
    program = (
        "import sys, crest_jax\n"
        "assert not {'jax', 'numpy', 'tensorflow'} & set(sys.modules)\n"
        "assert {'load', 'train', 'experiment', 'ConfigError'} <= set(dir(crest_jax))\n"
        "assert issubclass(crest_jax.ConfigError, crest_jax.CrestError)\n"
        "assert all(getattr(crest_jax, name) for name in crest_jax.__all__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_editors_see_what_is_imported_only_when_asked_for():
    tree = ast.parse(inspect.getsource(crest_jax))
    (block,) = [each for each in tree.body if isinstance(each, ast.If) and "TYPE" in ast.dump(each)]
    seen = {(alias.asname, each.module) for each in block.body for alias in each.names}
    assert seen == {(name, f"crest_jax.{module}") for name, module in crest_jax._FACE.items()}


def test_without_a_home_no_folder_is_made_in_its_place(tmp_path):
    program = (
        "import pwd\n"
        "def nobody(key): raise KeyError(key)\n"
        "pwd.getpwuid = nobody\n"
        "import crest_jax.data.tensorflow, tensorflow_datasets"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=str(tmp_path))
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())


def imported(file):
    """Return the modules that a file imports anywhere, and the names from them, with dots."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_neither_the_library_nor_its_reports_import_the_papers_tables_and_figures():
    """`crest_jax.commands` names their command, which it imports when it is asked for."""
    paper = REPOSITORY / "crest_jax" / "paper"
    assert "crest_jax.paper.cells" in imported(paper / "__main__.py")
    others = [
        file
        for folder in ("crest_jax", "experiments", "benchmarks")
        for file in (REPOSITORY / folder).rglob("*.py")
        if paper not in file.parents
    ]
    assert others
    for file in others:
        found = {name for name in imported(file) if f"{name}.".startswith("crest_jax.paper.")}
        assert not found, f"{file} imports {found}"


def test_tensorflow_is_kept_off_the_accelerators(monkeypatch):
    hidden = []
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind))
    )
    importlib.reload(crest_jax.data.tensorflow)
    assert hidden == [([], "GPU"), ([], "TPU")]
