"""What may import TensorFlow and the paper's tables and figures, and what TensorFlow may see."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import tensorflow as tf

import crest_jax.data

REPOSITORY = Path(__file__).parent.parent

JAX_ONLY = (
    "algorithms", "augment", "config", "evaluate", "hosts", "mesh", "models", "rebalancing",
    "train_state", "train_step",
)  # fmt: skip


def test_models_algorithms_and_step_work_without_tensorflow():
    program = "import sys\nsys.modules['tensorflow'] = None\n" + "\n".join(
        f"import crest_jax.{name}" for name in JAX_ONLY
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr


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
        "import crest_jax.data, tensorflow_datasets"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=str(tmp_path))
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())


def imported(file):
    """The modules that a file imports anywhere, and what it imports from them, by dotted names."""
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
    importlib.reload(crest_jax.data)
    assert hidden == [([], "GPU"), ([], "TPU")]
