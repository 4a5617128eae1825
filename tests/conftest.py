"""Fixtures and settings that all tests share."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile

import pytest
from etils.epath import Path
from jaxlib.version import __version__ as jaxlib_version
from ml_collections import ConfigDict
from whole_run import finish

# Compiles in a third of the time what runs for a moment: without optimization, and with XLA's older
# generators of code, which JAX 0.12 has no more. Most runs in processes of their own, as a user
# starts them, are without.
QUICKLY = "--xla_backend_optimization_level=0"
if tuple(map(int, jaxlib_version.split(".")[:2])) <= (0, 10):
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"

# Before JAX starts. Eight CPU devices, so that the mapped step can be tested on 1, 4 and 8; and
# one compilation cache for all processes of this test session, which its first makes.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICKLY}"
os.environ["JAX_PLATFORMS"] = "cpu"
# One step at a time: eight devices on two cores share few threads, and those of one step could wait
# for those of the next, until XLA ends the process.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="crest_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

REPOSITORY = Path(__file__).parent.parent

# Of C++, with its arguments; `false` is none.
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
needs_compiler = pytest.mark.skipif(
    COMPILER == ["false"] or shutil.which(COMPILER[0]) is None, reason="there is no C++ compiler"
)

# Processes that tests start find the plug-ins beside this file.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# The digits experiment, small enough to run within a test.
TINY = {
    "model.name": "tiny_net:TinyNet",
    "generations": 2,
    "steps": 12,
    "eval_every": 6,
    "checkpoint_every": 4,
    "batch_size": 8,
    "unlabeled_ratio": 2,
    "eval_batch_size": 200,
    "data.shards": 2,
    "model.batch_norm_momentum": 0.8,
    "ema_decay": 0.8,
    "augment.operations": ("Brightness", "Rotate"),
}


# Files whose tests take longest begin first, so that no process is left alone with one at the end.
LONGEST = (
    "test_hosts.py", "test_faults.py", "test_convolution.py", "test_methods.py", "test_buckets.py",
    "test_train_step.py", "test_main.py", "test_trained.py", "test_generations.py",
    "test_quickstart.py", "test_imagenet127.py", "test_whole_runs.py", "test_benchmarks.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Orders tests by their files; those of a file stay in order."""
    items.sort(
        key=lambda item: (
            LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)
        )
    )


@pytest.fixture(scope="session", autouse=True)
def parsed_unchecked():
    """Do not check the annotations of functions that parse records byte by byte.

    They are called hundreds of times for each image of each run. Their own tests check them.
    """
    # Not at the top: the package is imported with the checks that are set up after this file.
    from crest_jax.data import records

    parts = records._only, records._members, records._varint
    for function in parts:
        function.__no_type_check__ = True
    return parts


# What the package takes for paths, on a disk or in a bucket.


@pytest.fixture
def tmp_path(tmp_path):
    """An empty folder of the test's own."""
    return Path(tmp_path)


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """Makes an empty folder for files that several tests share."""
    return lambda name: Path(tmp_path_factory.mktemp(name))


def load_experiment(name: str, arguments: str | None = None, **overrides) -> ConfigDict:
    """The config of an experiment file, with fields named as on the command line replaced."""
    namespace: dict = {}
    exec((REPOSITORY / "experiments" / f"{name}.py").read_text(), namespace)
    config = namespace["get_config"](arguments)
    config.update_from_flattened_dict(overrides)
    return config


def flat(config, prefix: str = ""):
    """Yields the fields of a config, or of a part of it, by their dotted names."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.fixture(scope="session")
def tiny_config():
    """Gives the tiny digits config for experiment arguments and overrides."""

    def load(arguments: str | None = None, **overrides) -> ConfigDict:
        return load_experiment("digits_lt", arguments, **{**TINY, **overrides})

    return load


@pytest.fixture(scope="session")
def command_line():
    """Starts `python -m crest_jax.main` as a user would, on one device."""

    def start(*arguments: str) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        return subprocess.Popen(
            [sys.executable, "-m", "crest_jax.main", *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def tiny_flags():
    """The command line of the tiny digits run."""
    return [
        "--config=experiments/digits_lt.py",
        *(f"--config.{field}={value}" for field, value in TINY.items()),
    ]


@pytest.fixture(scope="session")
def untouched(command_line, tiny_flags, make_folder):
    """The workdir and the output of a tiny run that nothing happens to."""
    workdir = make_folder("untouched") / "run"
    output = finish(command_line(*tiny_flags, f"--workdir={workdir}"))
    return workdir, output
