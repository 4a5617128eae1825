"""What may import TensorFlow, and what TensorFlow may see."""

import importlib
import os
import subprocess
import sys

import tensorflow as tf

import crest_jax.data

JAX_ONLY = (
    "algorithms", "augment", "config", "distributed", "evaluate", "models", "rebalancing",
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


def test_tensorflow_is_kept_off_the_accelerators(monkeypatch):
    hidden = []
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind))
    )
    importlib.reload(crest_jax.data)
    assert hidden == [([], "GPU"), ([], "TPU")]
