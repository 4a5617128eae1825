"""A dry run: it reports what a run would do and what it would need, without doing it.

`python -m crest_jax.main --config=... --dry_run` makes every check that the run makes before it
trains, reads the data, compiles the step and times a few steps. Nothing is written to the workdir.
Splits that do not exist yet are written to a temporary folder, which is removed. A data set that
the run would download is downloaded, and compiled programs are cached, where the run finds them.

Steps and predictions are timed on random images, so that streamed data need not be read. The run
takes longer if reading does not keep up.
"""

import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from jaxtyping import Int, PyTree
from ml_collections import ConfigDict

from crest_jax import (
    environment,
    files,
    hosts,
    initial_weights,
    printing,
    program,
    scoring,
    stages,
    workdir,
)
from crest_jax.data import loading, preparation
from crest_jax.data.loading import CHUNK
from crest_jax.data.splits import Sizes, Splits, written_sizes
from crest_jax.errors import ConfigError, DataError, WorkdirError
from crest_jax.layout import NAMES, RunFolder
from crest_jax.mesh import replicate, split
from crest_jax.program import Program
from crest_jax.train_state import TrainState
from crest_jax.train_step import Constants, DeviceBatch
from crest_jax.wording import printable

# After the first timed group of steps, further groups are timed for about this many seconds, within
# the bounds on their number.
_SECONDS = 3.0
_FEWEST, _MOST = 1, 50
# Estimated bytes on disk. Of an evaluation: for each count of its confusion matrices (mostly 0),
# for each share, and for everything else. Of a result: for each count, which has its own line. Of a
# pseudo-label, at most. And what Orbax writes in addition for each array of a checkpoint.
_COUNT, _SHARE, _EVALUATION = 3, 20, 1500
_COUNT_LINE = 8
_PSEUDO_LABEL = 64
_ARRAY = 900


class Disk(NamedTuple):
    """Bytes that a finished run has written."""

    splits: int
    labeled: int  # the labeled sets that the generations train on
    checkpoint: int  # a single one
    kept: int  # number of checkpoints that stay in each generation
    checkpoints: int  # all that stay, and one that is being written
    figures: int  # pseudo-labels, evaluations and results

    @property
    def total(self) -> int:
        """The bytes of all files together."""
        return self.splits + self.labeled + self.checkpoints + self.figures


class Pace(NamedTuple):
    """The measured time and memory of training and predictions."""

    compilation: float  # in seconds
    step: float  # in seconds
    batch: float  # seconds for a batch of predictions
    device_bytes: int  # memory that training takes on each device


def show(config: ConfigDict, folder: Path) -> None:
    """Check, measure and print what a run needs, on all hosts together.

    Before an error is raised, everything known until then is printed.

    Args:
      config: the validated config.
      folder: the run's folder.

    Raises:
      ConfigError: A step does not fit into a device's memory; or as for the run.
      DataError: The splits do not fit into memory; or as for the run.
      WorkdirError: The run does not fit on the disk; or as for the run.
      UnavailableError, DeviceError, HostError: As for the run.
    """
    available = _available_memory()
    there, finished, step = hosts.from_first(_look, config, folder)
    printing.say(_where(config, folder, there, finished, step))
    if finished == config.generations:
        return
    weights = hosts.on_first(initial_weights.named_in, config, RunFolder(folder))
    sizes, splits, source = _read(config, folder, available)
    printing.say(_data(config, sizes, source))
    hosts.on_first(_weights, weights, config, splits)
    built = program.build(config, splits)
    state = built.new_state(built.keys(0)[0])
    printing.say(_training(config, state))
    disk = disk_of(config, splits, sizes, state)
    printing.say(hosts.from_first(_check_disk, config, folder, disk))
    pace = measure(config, state, splits, built)
    printing.say(hosts.from_first(_check_memory, config, sizes, pace, available))
    printing.say(_time(config, sizes, pace, finished, step))


# The workdir and what it holds


def _look(config: ConfigDict, folder: Path) -> tuple[bool, int, int]:
    """Check that the run may use the folder; return whether it is there, and its `progress`.

    Raises:
      WorkdirError: The folder cannot be written, or belongs to another config.
    """
    return (workdir.check(folder, config), *progress(config, folder))


def _where(config: ConfigDict, folder: Path, is_there: bool, finished: int, step: int) -> str:
    if not is_there:
        there = "would become this run's"
    elif finished == config.generations:
        there = "holds this run, which is finished: nothing is left to do"
    else:
        there = (
            f"holds this run, which would continue with generation {finished + 1} of "
            f"{config.generations} at step {step} of {config.steps}"
        )
    if files.is_remote(folder):
        there += "; whether this account may write there shows only when it does"
    return (
        f"dry run: nothing is written to {folder}\n"
        f"workdir    {there}\n"
        f"run        {config.method}, rebalance={config.rebalance}, {config.data.name}, "
        f"fold {config.fold}"
    )


def progress(config: ConfigDict, folder: Path) -> tuple[int, int]:
    """Return the number of finished generations, and the latest checkpoint's step in the next.

    The step is 0 if the next generation has no checkpoint.
    """
    finished = 0
    run = RunFolder(folder)
    while finished < config.generations and stages.is_finished(run.generation(finished)):
        finished += 1
    saved = run.generation(finished).checkpoints
    names = [path.name for path in saved.iterdir()] if saved.is_dir() else []
    return finished, max((int(name) for name in names if name.isdigit()), default=0)


# Data


def _read(config: ConfigDict, folder: Path, available: int | None) -> tuple[Sizes, Splits, str]:
    """Read the splits, except for images to be streamed, and say where they were read from.

    Raises:
      DataError: The splits do not fit into memory; or as for the run.
    """
    of_run = RunFolder(folder).splits.path
    if hosts.from_first(preparation.are_whole, of_run):
        sizes = hosts.on_all(written_sizes, config.data, of_run)
        hosts.on_all(_check_splits_fit, config, sizes, available)
        hosts.on_first(preparation.warn_of_changes, config, of_run, RunFolder(folder).unreadable)
        return sizes, hosts.on_all(loading.load, config.data, of_run), f"in {of_run}"
    # The first host fetches missing data before the others read it.
    with tempfile.TemporaryDirectory(prefix="crest_jax_dry_run_") as temporary:
        # The listing is not in the temporary folder: it must stay, since messages name it.
        name = f"crest_jax_{os.getpid()}_{RunFolder(folder).unreadable.name}"
        listing = Path(tempfile.gettempdir()) / name
        first = hosts.on_first(preparation.expected_sizes, config, listing)
        sizes = hosts.on_all(lambda: first or preparation.expected_sizes(config, listing))
        hosts.on_all(_check_splits_fit, config, sizes, available)
        if config.data.stream:
            return sizes, sizes.without_images(), "labels and a few images read, the others not"
        return *hosts.on_all(_read_source, config, RunFolder(Path(temporary))), "read"


def _read_source(config: ConfigDict, folder: RunFolder) -> tuple[Sizes, Splits]:
    path = folder.splits.path
    preparation.prepare(config, path, folder.unreadable)
    return written_sizes(config.data, path), loading.load(config.data, path)


def host_bytes(config: ConfigDict, sizes: Sizes) -> int:
    """Return the bytes of images in a host's memory: all splits, or those in flight if streamed."""
    image = math.prod(sizes.image_shape)
    if config.data.stream:
        encoded = sum(sizes.bytes.values()) / max(sum(sizes.examples.values()), 1)
        return round(2 * (CHUNK * image + config.data.window * encoded))
    # All splits; labeled and unlabeled images joined; and the images that a generation trains on.
    training = sizes.examples["labeled"] + sizes.examples["unlabeled"]
    return image * (sum(sizes.examples.values()) + 2 * training)


def _check_splits_fit(config: ConfigDict, sizes: Sizes, available: int | None) -> None:
    needed = host_bytes(config, sizes)
    if available is not None and needed > available:
        raise DataError(
            f"the images take {_size(needed)} of memory, and {_size(available)} are left on "
            f"{platform.node()}: set --config.data.stream=True to read them as they are needed"
        )


def _data(config: ConfigDict, sizes: Sizes, source: str) -> str:
    height, width, channels = sizes.image_shape
    names = [name for name in NAMES if sizes.examples[name]]
    class_names = [*map(printable, sizes.class_names)]
    widest = max(len("class"), *map(len, class_names))
    lines = [
        f"data       {', '.join(f'{sizes.examples[name]:,} {name}' for name in names)}; images of "
        f"{height} x {width} x {channels}; {source}",
        "",
        f"{'class':<{widest}}" + "".join(f"  {name:>10}" for name in names),
    ]
    for label, class_name in enumerate(class_names):
        counts = "".join(f"  {_count(sizes.per_class[name], label):>10}" for name in names)
        lines.append(f"{class_name:<{widest}}{counts}")
    return "\n".join(lines) + "\n"


def _weights(weights: initial_weights.Weights | None, config: ConfigDict, splits: Splits) -> None:
    """Say how far the weights that generations would start from fit, if any have to be read."""
    if weights is not None:
        printing.say(f"weights    {initial_weights.fit(weights, config, splits)}")


def _count(per_class: Int[np.ndarray, " classes"] | None, label: int) -> str:
    """Return the number of a class' images in a split as text, or ? if it is not known."""
    return "?" if per_class is None else f"{per_class[label]:,}"


# Training, and the files that it writes


def _training(config: ConfigDict, state: TrainState) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    evaluations = program.schedule_of(config).evaluations_until(config.steps)
    unlabeled = config.batch_size * config.unlabeled_ratio
    computing = program.who_computes(config)
    by_whom = f"           {computing}\n" if computing else ""
    return (
        f"model      {config.model.name} of depth {config.model.depth}, width "
        f"{config.model.width}: {parameters:,} parameters in {config.dtype}\n"
        f"{by_whom}"
        f"training   {config.generations} x {config.steps:,} steps of {config.batch_size} labeled "
        f"and {unlabeled} unlabeled images, {evaluations} evaluations in each generation"
    )


def disk_of(config: ConfigDict, splits: Splits, sizes: Sizes, state: TrainState) -> Disk:
    """Estimate what a run writes to disk.

    Args:
      config: the run's config.
      splits: the run's splits.
      sizes: the sizes of these splits.
      state: the state that a checkpoint holds.
    """
    checkpoint = _bytes_of(state) + _ARRAY * len(jax.tree.leaves(state))
    schedule = program.schedule_of(config)
    kept = len(schedule.kept)
    unlabeled = sizes.examples["unlabeled"]
    labeled = config.generations * sizes.bytes["labeled"]
    if config.generations > 1:
        # Assume that predictions have the class distribution of the labels.
        rates = program.sampling_rates(config, splits)
        share = float(splits.labeled_distribution @ rates)
        labeled += round((config.generations - 1) * share * sizes.bytes["unlabeled"])
    held_out = 1 + (sizes.examples["validation"] > 0)
    cells = len(sizes.class_names) ** 2
    # A matrix for EMA and raw weights, each with and without logit adjustment; and the recall and
    # precision of each matrix.
    evaluation = held_out * (4 * cells * _COUNT + 8 * len(sizes.class_names) * _SHARE) + _EVALUATION
    result = 2 * cells * _COUNT_LINE  # in result.json, and in results.json again
    each = (
        schedule.evaluations_until(config.steps) * evaluation
        + result
        + (unlabeled + sizes.examples["test"]) * _PSEUDO_LABEL
    )
    return Disk(
        splits=sum(sizes.bytes.values()),
        labeled=labeled,
        checkpoint=checkpoint,
        kept=kept,
        checkpoints=(config.generations * kept + 1) * checkpoint,
        figures=config.generations * each,
    )


def _check_disk(config: ConfigDict, folder: Path, disk: Disk) -> str:
    """Describe what a run writes to disk.

    Raises:
      WorkdirError: The run writes more than is free on the disk.
    """
    free = files.free_bytes(folder)
    left = max(disk.total - files.folder_size(folder), 0)
    if free is not None and left > free:
        raise WorkdirError(
            f"the run writes {_size(left)} to {folder}, and {_size(free)} are free there: make "
            "room, choose another disk with --workdir, or evaluate less often with "
            "--config.eval_every"
        )
    room = "a bucket" if free is None else f"{_size(free)} free"
    return (
        f"disk       {_size(left)} to be written, {room}: splits {_size(disk.splits)}, "
        f"labeled sets {_size(disk.labeled)},\n           {config.generations} x {disk.kept} "
        f"checkpoints of {_size(disk.checkpoint)}, figures {_size(disk.figures)}"
    )


# Measurements


def measure(config: ConfigDict, state: TrainState, splits: Splits, built: Program) -> Pace:
    """Compile a generation's step and scoring pass, and time them on random images.

    Raises:
      ConfigError: The step does not fit into a device's memory.
    """
    rng = np.random.default_rng(0)
    classes = len(splits.class_names)
    labeled = config.batch_size // jax.process_count()
    unlabeled = labeled * config.unlabeled_ratio

    def images(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, *splits.image_shape), np.uint8)

    steps = built.at_once
    on_host = (
        images(steps, labeled),
        rng.integers(0, classes, (steps, labeled)).astype(np.int32),
        images(steps, unlabeled),
        np.zeros((steps, unlabeled), np.int32),
    )
    batches = DeviceBatch(*split(on_host, built.mesh, axis=1))
    constants = replicate(
        Constants(
            built.keys(0)[1],
            jnp.float32(1.0),
            jnp.asarray(built.target_distribution(None), jnp.float32),
            jnp.ones(classes, jnp.float32),
        ),
        built.mesh,
    )
    began = time.perf_counter()
    compiled = built.train_steps.lower(state, batches, constants).compile()
    compilation = time.perf_counter() - began
    device_bytes = _step_bytes(compiled.memory_analysis())
    # While a device works on a group of batches, its memory already holds the next group.
    device_bytes += _bytes_of(batches) // jax.device_count()
    limit = _device_limit()
    if limit is not None and device_bytes > limit:
        raise ConfigError(
            f"training takes {_size(device_bytes)} of the memory of a device, which has "
            f"{_size(limit)}: raise --config.accumulation, or lower --config.batch_size"
        )

    def train_on_them() -> None:
        nonlocal state
        state, metrics = compiled(state, batches, constants)
        jax.block_until_ready(metrics)

    some = images(config.eval_batch_size)
    predict = scoring.predictor(state.ema_weights, built, np.zeros(classes))
    predict(some)
    seconds_of_batch = min(_timed(lambda: predict(some)) for _ in range(2))
    train_on_them()
    # Every host uses the first host's time, so that all run the same number of steps.
    first = hosts.gather_json(_timed(train_on_them))[0]
    times = min(max(int(_SECONDS / first), _FEWEST), _MOST)

    def train_repeatedly() -> None:
        for _ in range(times):
            train_on_them()

    seconds = _timed(train_repeatedly)
    return Pace(compilation, seconds / (times * steps), seconds_of_batch, device_bytes)


def _timed(do: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _step_bytes(analysis: Any) -> int:
    """Return the device memory of a compiled program in bytes; inputs that it reuses count once."""
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
    )


def _check_memory(config: ConfigDict, sizes: Sizes, pace: Pace, available: int | None) -> str:
    """Describe the memory that a run takes on hosts and devices.

    Raises:
      DataError: On a CPU, images and training together take more memory than is available.
    """
    needed, limit = host_bytes(config, sizes), _device_limit()
    on_cpu = jax.devices()[0].platform == "cpu"
    if on_cpu:
        needed += jax.local_device_count() * pace.device_bytes
    if available is not None and needed > available:
        raise DataError(
            f"images and training take {_size(needed)} of memory, and {_size(available)} are left "
            f"on {platform.node()}: lower --config.batch_size, or raise --config.accumulation"
        )
    has = "not known" if limit is None else _size(limit)
    left = "not known" if available is None else _size(available)
    of_host = "images and training" if on_cpu else "images"
    return (
        f"memory     a host: {_size(needed)} of {left} available, for {of_host}; a device: "
        f"{_size(pace.device_bytes)} in training{'' if on_cpu else f' of {has}'}"
    )


def _time(config: ConfigDict, sizes: Sizes, pace: Pace, finished: int, step: int) -> str:
    """Describe how long a run, or what is left of it, takes on these devices."""
    evaluations, scoring = predicted_batches(config, sizes)
    evaluating = pace.batch * (evaluations + scoring)
    generation = config.steps * pace.step + evaluating
    whole = config.generations * generation
    left = whole - finished * generation - step / config.steps * generation
    device = jax.devices()[0]
    rate = config.eval_batch_size / pace.batch
    lines = (
        f"time       {_duration(generation)} for a generation, {_duration(evaluating)} of it to "
        f"evaluate and score; {_duration(whole)} for the run"
        f"{', where reading keeps up' if config.data.stream else ''}",
        f"           at {1 / pace.step:.3g} steps/s, {rate:,.0f} images/s in evaluations; compiled "
        f"in {pace.compilation:.0f} s",
        f"           measured on {platform.node()}: {jax.device_count()} x {device.device_kind}, "
        f"{environment.visible_cpus()} CPU cores, {jax.process_count()} host"
        f"{'s' if jax.process_count() > 1 else ''}",
    )
    remaining = f"\n           {_duration(left)} are left" if left < whole else ""
    return "\n".join(lines) + remaining


def predicted_batches(config: ConfigDict, sizes: Sizes) -> tuple[int, int]:
    """Return how many batches a host evaluates in a generation, and scores at its end."""

    def batches(*names: str) -> int:
        shares = (math.ceil(sizes.examples[name] / jax.process_count()) for name in names)
        return sum(math.ceil(share / config.eval_batch_size) for share in shares)

    known = "validation" if sizes.examples["validation"] else "labeled"
    # Once with the EMA weights and once with the raw weights.
    evaluation = 2 * batches("test", "validation")
    if config.unlabeled_distribution.source == "predicted":
        evaluation += batches("unlabeled", known)
    times = program.schedule_of(config).evaluations_until(config.steps)
    return times * evaluation, batches("unlabeled", known, "test")


def _bytes_of(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _available_memory() -> int | None:
    """Return the bytes of memory available to programs; None where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    for line in files.read_bytes(path).decode().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _device_limit() -> int | None:
    """Return the bytes of a device's memory that JAX may take; None where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def _size(number: int) -> str:
    """Format a number of bytes in the largest unit that leaves a digit before the point."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(max((len(str(number)) - 1) // 3, 0), len(units) - 1)
    return f"{number / 1000**power:.{min(power, 1)}f} {units[power]}"


def _duration(seconds: float) -> str:
    """Format a duration in seconds, in minutes, or in hours or days with the next smaller unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = round(minutes / 60) if minutes >= 6000 else minutes // 60
    return f"{hours // 24} d {hours % 24} h" if minutes >= 6000 else f"{hours} h {minutes % 60} min"
