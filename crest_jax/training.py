"""The training of one generation: the step loop with its evaluations, checkpoints and metrics."""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from jaxtyping import Array, Bool, PyTree
from tqdm import TqdmWarning

import crest_jax.data.tensorflow  # noqa: F401, keeps the metric writer's TensorFlow off the accelerators
from crest_jax import checkpoints, files, hosts, preemption, printing, results, schema
from crest_jax.errors import NonFiniteError, Preempted, WorkdirError
from crest_jax.layout import GenerationFolder
from crest_jax.schedule import Schedule
from crest_jax.train_state import TrainState
from crest_jax.train_step import Constants, DeviceBatch, Metrics, TrainStep

with warnings.catch_warnings():
    # In a notebook without ipywidgets there is no bar; tqdm would ask for the package.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

# In seconds. If a group of steps sent together takes longer, the host waits for it.
_SLOW = 1.0


def train(
    state: TrainState,
    train_steps: TrainStep,
    batches: Callable[[int], Iterator[DeviceBatch]],
    constants: Callable[[Mapping[str, Any] | None], Constants],
    evaluate: Callable[[TrainState], Mapping[str, Any]],
    *,
    folder: GenerationFolder,
    schedule: Schedule,
    title: str,
) -> TrainState:
    """Train to the last step, from the latest checkpoint if there is one.

    It writes checkpoints, metrics and TensorBoard events. An evaluation's line is on disk before
    the checkpoint of its step, so that no checkpoint lacks its evaluation. The `train` part of a
    line is averaged over the steps since the previous evaluation, or since the run was continued.

    Args:
      state: a fresh state, replicated over the devices.
      train_steps: the result of `train_step.in_a_row`.
      batches: returns the batches from a step on, in groups. No group extends beyond an evaluation
        or a checkpoint.
      constants: returns the step's other inputs until the next evaluation, given the latest
        evaluation, or None before the first.
      evaluate: returns a JSON-ready summary of a state; called every `eval_every` steps and
        after the last one.
      folder: the generation's folder.
      schedule: when to stop, evaluate and save.
      title: name of the generation on the terminal.

    Raises:
      Preempted: SIGTERM arrived; a checkpoint of the current step was saved first.
      NonFiniteError: A loss or a weight is NaN or infinite; such a state was not saved.
      WorkdirError: No checkpoint can be used, since it or an evaluation before it is damaged; or a
        file cannot be written.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    steps, reported = schedule.steps, schedule.reported
    with (
        checkpoints.open_checkpoints(folder.checkpoints, lasting=reported) as manager,
        preemption.deferred_sigterm() as preempted,
    ):
        state = checkpoints.restore_latest(
            manager, state, check=partial(_check_metrics, folder.metrics, schedule)
        )
        start = int(state.step)
        hosts.check_agreement({"step": start})
        # Evaluations after the checkpoint are dropped, since they will be made again.
        history = hosts.from_first(keep_metrics, folder.metrics, up_to=start)
        if start == steps:
            return state
        if start:
            printing.say(f"{title} continues at step {start} of {steps}")
        inputs = constants(history[-1] if history else None)
        before = history[-1]["seconds"] if history else 0.0
        began, untimed = 0.0, start
        stopping = False
        pending: list[Metrics] = []
        done = start
        with _writer(folder.path) as write, _progress(title, start, steps) as progress:
            for several in batches(start):
                state, metrics = train_steps(state, several, inputs)
                pending.append(metrics)
                together = len(several.labels)
                done += together
                if untimed == start:
                    # Compilation is not training: the clock starts when the first steps are done.
                    jax.block_until_ready(metrics)
                    began, untimed = time.perf_counter(), done
                # While the devices work on the group just sent, the host prepares the next one, but
                # does not run further ahead. If groups are slow it waits for each of them, since
                # SIGTERM is only acted on when the steps already sent are done.
                slow = (time.perf_counter() - began) * together > _SLOW * max(done - untimed, 1)
                if len(pending) > 1 or slow:
                    jax.block_until_ready(pending[-1 if slow else -2])
                stopping = preempted()
                evaluating = done % schedule.eval_every == 0 or done == steps
                saving = done % schedule.checkpoint_every == 0 or done in reported or stopping
                if evaluating or saving:
                    averages = _average(pending, last_step=done, title=title)
                    _check_state(state, step=done, title=title)
                if evaluating:
                    summary = evaluate(state)
                    seconds = before + time.perf_counter() - began
                    line = {"step": done, "seconds": seconds, "train": averages, **summary}
                    if hosts.is_first():
                        text = json.dumps(files.sealed(line), allow_nan=False) + "\n"
                        files.append_text(folder.metrics, text)
                    inputs = constants(line)
                    rate = (done - untimed) / max(time.perf_counter() - began, 1e-9)
                    write(done, {**_scalars(line), "steps_per_second": rate})
                    progress.set_postfix_str(f"accuracy {summary['test']['ema']['accuracy']:.1f} %")
                    pending = []
                if saving:
                    checkpoints.save(manager, state)
                progress.update(together)
                if stopping:
                    break
        if stopping:
            raise Preempted(
                f"stopped by SIGTERM: {title} is saved at step {int(state.step)} of {steps}; "
                "run the same command again to continue"
            )
        return state


def keep_metrics(path: Path, *, up_to: int) -> list[dict[str, Any]]:
    """Read the evaluations up to a step, and remove later ones from the file.

    A killed run may have evaluated after its last checkpoint, or left half a line.
    """
    kept = [(line, record) for line, record in _intact_lines(path) if record["step"] <= up_to]
    cleaned = b"".join(line for line, _ in kept)
    if path.exists() and files.read_bytes(path) != cleaned:
        files.write_bytes(path, cleaned)
    return [record for _, record in kept]


def _intact_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines of a file before the first damaged one, each with its parsed record."""
    if not path.exists():
        return
    for line in files.read_bytes(path).splitlines(keepends=True):
        try:
            record = files.parse_json(line)
        except ValueError:
            return
        misfits = schema.mismatches(record, results.EVALUATION)
        if not line.endswith(b"\n") or any(misfits):
            return
        yield line, record


def _check_metrics(path: Path, schedule: Schedule, step: int) -> None:
    """Check that all evaluations before a step's checkpoint are there.

    Raises:
      WorkdirError: Some are missing or damaged.
    """
    lines = len(files.read_bytes(path).splitlines()) if path.exists() else 0
    found = sum(record["step"] <= step for _, record in _intact_lines(path))
    expected = schedule.evaluations_until(step)
    if found < min(lines, expected):
        raise WorkdirError(f"{path} is damaged at line {found + 1}")
    if found < expected:
        raise WorkdirError(f"{path} has {found} of the {expected} evaluations until step {step}")


def _average(pending: list[Metrics], *, last_step: int, title: str) -> dict[str, float]:
    """Fetch the metrics since the last evaluation, and average them if all are finite.

    Raises:
      NonFiniteError: A metric is not finite. The message names all such metrics of the first step
        that has one.
    """
    fetched = jax.device_get(pending)
    values = {
        name: np.concatenate([metrics[name] for metrics in fetched]).astype(np.float64)
        for name in fetched[0]
    }
    finite = np.all([np.isfinite(each) for each in values.values()], axis=0)
    if not finite.all():
        first = int(np.argmin(finite))
        wrong = [
            f"{name} is {each[first]}"
            for name, each in values.items()
            if not np.isfinite(each[first])
        ]
        raise _non_finite(title, ", ".join(wrong), last_step - len(finite) + 1 + first)
    return {name: float(each.mean()) for name, each in values.items()}


@jax.jit
def _finite(state: TrainState) -> PyTree[Bool[Array, ""]]:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), state)


def _check_state(state: TrainState, *, step: int, title: str) -> None:
    """Check the state after the step; the step's loss only reflects the weights before it.

    Raises:
      NonFiniteError: A value in the state is not finite.
    """
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(_finite(state)))
    wrong = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, ok in leaves if not ok
    ]
    if wrong:
        others = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise _non_finite(title, f"{wrong[0]}{others} of the state is NaN or infinite", step)


def _non_finite(title: str, what: str, step: int) -> NonFiniteError:
    return NonFiniteError(
        f"{title}: {what} at step {step}. The last checkpoint is kept, and nothing after it",
        "run again with --config.reseed raised by 1 to continue from there with other random "
        "numbers, or start over with a lower --config.optimizer.learning_rate in another --workdir",
    )


@contextmanager
def _writer(folder: Path) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Yield a function that writes the scalars of a step as TensorBoard events.

    Where there is no progress bar, it also writes them as log lines. The writers are imported when
    there is something to write, and the first step should not wait for that.
    """
    opened: list[Any] = []

    def write(step: int, scalars: Mapping[str, float]) -> None:
        if not hosts.is_first():
            return
        if not opened:
            metric_writers = _metric_writers()
            writers = [metric_writers.SummaryWriter(str(folder))]
            if not sys.stderr.isatty():
                writers.append(metric_writers.LoggingWriter())
            opened.append(metric_writers.AsyncMultiWriter(writers))
        opened[0].write_scalars(step, scalars)

    try:
        yield write
    finally:
        for writer in opened:
            writer.close()


def _metric_writers() -> ModuleType:
    """Import clu's writers without Keras, which takes longer than all else that they import.

    TensorBoard has a callback for Keras among what clu takes from it, and makes it as soon as it is
    imported. An empty module takes its place, and is forgotten before anything else asks for it. A
    version of TensorBoard that cannot do with the empty module is imported as it is.
    """
    folder = "tensorboard.plugins.hparams"
    callback, taken = f"{folder}._keras", f"{folder}.api"
    if not {"keras", callback, taken} & set(sys.modules):
        sys.modules[callback] = empty = ModuleType(callback)
        empty.Callback = None  # type: ignore[attr-defined]  # a module may have any attribute
        try:
            from clu import metric_writers as without_keras
        except (AttributeError, ImportError):
            pass
        else:
            return without_keras
        finally:
            sys.modules.pop(callback, None)
            if sys.modules.pop(taken, None):
                vars(sys.modules[folder]).pop("api", None)
    from clu import metric_writers

    return metric_writers


def _progress(title: str, start: int, steps: int) -> AbstractContextManager[Any]:
    return tqdm(
        desc=title, initial=start, total=steps, unit="step", leave=False,
        disable=None if printing.speaks() else True,
        dynamic_ncols=True, smoothing=0.05,
    )  # fmt: skip


def _scalars(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten the numbers of a nested summary to names such as `test/ema/accuracy`."""
    scalars: dict[str, float] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            scalars |= _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("step", "seconds"):
            scalars[f"{prefix}{name}"] = value
    return scalars
