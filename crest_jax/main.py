"""The training command: it runs all generations of one experiment.

python -m crest_jax.main --config=experiments/cifar10_lt.py[:key=value,...] [--workdir=DIR]
    [--config.field=value ...] [--dry_run] [--help_config]

Exit status: 0 if the run is finished; 1 for an error in the data, the workdir or training; 64 for
an error in a flag or the config; 75 if stopped by SIGTERM, and 130 if interrupted: in both cases
the same command continues the run.
"""

import hashlib
import logging as logging_levels
import re
import sys

from absl import app, flags, logging
from etils.epath import Path
from ml_collections import ConfigDict, config_flags

from crest_jax import command, config_help, experiments, files, validation
from crest_jax.errors import ConfigError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "An experiment's file, with its arguments after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; by default runs/<experiment and its arguments>."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Address and port of the first of several hosts, where they are not found."
)
_HOSTS = flags.DEFINE_integer("hosts", None, "How many hosts there are.")
_HOST = flags.DEFINE_integer("host", None, "Which of them this is, from 0.")
_FIND_HOSTS = flags.DEFINE_boolean(
    "find_hosts", False, "Let JAX find the three above, as it can on Cloud TPU, Slurm, Open MPI."
)
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds within which all hosts must have been started.", lower_bound=1
)
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "Check everything, print a plan with the time to expect, and do nothing else."
)
_HELP_CONFIG = flags.DEFINE_boolean(
    "help_config", False, "Print all fields of the config, with what they mean, and end."
)
_PICTURES = flags.DEFINE_boolean(
    "pictures", True, "Show some of the images on the run's page, unless they are streamed."
)
# Arguments that can be part of a folder's name and be read back from it unambiguously.
_NAMEABLE = re.compile(r"\w+=[\w.+-]*(,\w+=[\w.+-]*)*", re.ASCII)
_LONGEST_NAME = 255  # bytes


def default_workdir(config_argument: str) -> Path:
    """Return the default folder of a run, which differs for different arguments.

    `experiments/cifar10_lt.py:gamma=50` runs in `runs/cifar10_lt-gamma=50`. A name that would be
    too long, or that other arguments could also have (as with paths), ends in a digest of the
    arguments.
    """
    path, _, arguments = config_argument.partition(":")
    name = "-".join(filter(None, [Path(path).stem, arguments.replace(",", "-")]))
    is_nameable = not arguments or _NAMEABLE.fullmatch(arguments)
    if not is_nameable or len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
        digest = hashlib.sha256(arguments.encode(errors="surrogateescape")).hexdigest()
        readable = re.sub(r"[^\w.=+-]", "_", name, flags=re.ASCII)
        name = f"{readable[:100]}-{digest[:12]}"
    return Path("runs") / name


def main(argv: list[str]) -> None:
    """Run the experiment that the flags name."""
    if len(argv) > 1:
        raise ConfigError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _HELP_CONFIG.value:
        print(config_help.text(_CONFIG.value))
        return
    if not flags.FLAGS["config"].present:
        raise experiments.missing()
    _log_plainly()
    given = _WORKDIR.value
    workdir = files.given(given, "--workdir") if given else default_workdir(_config_argument())
    join(_CONFIG.value)
    from crest_jax import job

    if _DRY_RUN.value:
        job.dry_run(_CONFIG.value, workdir)
    else:
        job.run(_CONFIG.value, workdir, pictures=_PICTURES.value)


def join(config: ConfigDict) -> None:
    """Join the other hosts that the flags or the environment name, if there are any."""
    validation.validate(config)
    # Imported late, like `job` in `main`, so that a wrong flag is reported without this delay.
    from crest_jax import backend, hosts

    backend.settle()
    hosts.initialize(
        _COORDINATOR.value,
        _HOSTS.value,
        _HOST.value,
        find=_FIND_HOSTS.value,
        join_timeout=_JOIN_TIMEOUT.value,
        heartbeat_timeout=config.heartbeat_timeout,
    )
    backend.check_devices()


@command.entry
def console() -> None:
    """Read the flags and run the experiment."""
    _be_the_main_module()
    app.run(main, flags_parser=_parse_flags)


def _be_the_main_module() -> None:
    """Let `--help` show this module's words and flags, also where another module is the main one.

    absl takes the words from `__main__`, and the flags from a module named as the program is.
    """
    if __name__ == "__main__":
        return
    sys.modules["__main__"].__doc__ = __doc__
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _parse_flags(argv: list[str]) -> list[str]:
    argv = experiments.with_paths(argv)
    try:
        words = flags.FLAGS(argv)
        experiments.finish_loading(_CONFIG.value)
        return words
    except Exception as error:  # from flags, unknown fields, or the experiment's file
        raise experiments.explain(error, argv) from error


def _log_plainly() -> None:
    """Log evaluations where there is no progress bar, without INFO messages of libraries."""
    if not sys.stderr.isatty():
        logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_wanted)


def _is_wanted(record: logging_levels.LogRecord) -> bool:
    """Return whether a record is shown, and leave out the traceback of a library's error."""
    path = Path(record.pathname)
    # Libraries may be in a folder of this package's name too, such as `crest_jax/.venv`.
    if path.is_relative_to(Path(__file__).parent) or path.match("clu/metric_writers/*"):
        return True
    # A library's error is also raised, and then reported in one line without a traceback.
    record.exc_info = None
    return record.levelno > logging_levels.INFO


def _config_argument() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"])


if __name__ == "__main__":
    console()
