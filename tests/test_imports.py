"""What may import TensorFlow, and what TensorFlow may see."""

import importlib
import os
import subprocess
import sys

import tensorflow as tf

import crest_jax.data.tensorflow

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


def test_tensorflow_is_kept_off_the_accelerators(monkeypatch):
    hidden = []
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind))
    )
    importlib.reload(crest_jax.data.tensorflow)
    assert hidden == [([], "GPU"), ([], "TPU")]
