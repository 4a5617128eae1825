import json
import subprocess
import sys

import jax.numpy as jnp
import pytest

from crest_jax import printing, results, training
from crest_jax.errors import NonFiniteError, WorkdirError


def test_the_terms_that_are_not_finite_first_are_named():
    """Steps 5 to 8, sent two at a time: one term is infinite at step 7, others follow."""
    two = [jnp.array([0.5, 0.25]), jnp.array([0.125, jnp.nan])]
    pending = [
        {"loss": two[0], "labeled_loss": two[0], "unlabeled_loss": two[0]},
        {"loss": two[1], "labeled_loss": two[0], "unlabeled_loss": jnp.array([jnp.inf, jnp.nan])},
    ]
    with pytest.raises(
        NonFiniteError, match=r"a run: unlabeled_loss is inf at step 7\. "
    ) as caught:
        training._average(pending, last_step=8, title="a run")
    assert "labeled_loss is 0" not in str(caught.value)
    whole = training._average(pending[:1] * 2, last_step=8, title="a run")
    assert whole == {"loss": 0.375, "labeled_loss": 0.375, "unlabeled_loss": 0.375}


def evaluation(step):
    """A line of metrics.jsonl, of two classes."""
    matrices = ("confusion_matrix", "confusion_matrix_logit_adjusted")
    of_weights = {"accuracy": 50.0, **{name: [[1, 0], [1, 0]] for name in matrices}}
    return {"step": step, "seconds": 1.0, "test": {"ema": of_weights, "raw": of_weights}}


def test_metrics_after_the_last_checkpoint_and_half_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(evaluation(step)) for step in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 40, "te')
    assert [line["step"] for line in training.keep_metrics(path, up_to=20)] == [10, 20]
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"[]", b'{"step": "6"}', b'{"step": NaN}', b"[" * 100_000, b'{"step": 6}'],
    ids=len,
)
def test_a_line_that_is_no_evaluation_is_dropped_with_those_after_it(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    first, last = (json.dumps(evaluation(step)).encode() + b"\n" for step in (6, 12))
    path.write_bytes(first + line + b"\n" + last)
    assert training.keep_metrics(path, up_to=20) == [evaluation(6)]
    assert path.read_bytes() == first


def test_evaluations_of_other_classes_are_refused(tmp_path):
    results.check_classes(evaluation(6), 2, tmp_path / "metrics.jsonl")
    with pytest.raises(WorkdirError, match="step 6 is of 2 classes, not 3"):
        results.check_classes(evaluation(6), 3, tmp_path / "metrics.jsonl")


def test_a_terminal_shows_a_bar_unless_the_run_is_quiet(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with training._progress("generation 1 of 2", 3, 10):
        pass
    assert "generation 1 of 2:  30%" in capsys.readouterr().err
    with printing.quiet(), training._progress("generation 1 of 2", 3, 10):
        pass
    assert capsys.readouterr().err == ""


def test_a_tensorboard_that_needs_its_keras_callback_is_imported_with_it():
    program = """
import sys, types
from crest_jax import training

class Fixed(types.ModuleType):
    def __setattr__(self, name, value):
        "Ignore what is set, as if TensorBoard took something else from the module."

training.ModuleType = Fixed
assert training._metric_writers().SummaryWriter
assert hasattr(sys.modules["tensorboard.plugins.hparams._keras"], "Callback")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
