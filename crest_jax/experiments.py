"""Experiments: finding the file that a name or a command line means, and loading its config.

`--config=FILE.py[:key=value,...] --config.field=value ...` is read by ml_collections. Errors that
it, absl or the file raise are converted here to one line that names the flag and its valid values.
"""

import os
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from etils.epath import Path
from ml_collections import ConfigDict, config_flags

from crest_jax import bundled, files, plugins, wording
from crest_jax.algorithms import ALGORITHMS
from crest_jax.config import kind_of
from crest_jax.errors import ConfigError

# The folder of the project's own experiments.
FOLDER = bundled.FOLDER / "experiments"


def experiment(name: str | os.PathLike[str], **arguments: Any) -> ConfigDict:
    """Return the config of an experiment, whose fields can then be changed.

    Args:
      name: name of one of the project's experiments, such as `cifar10_lt`, or path of a
        user-provided file that defines a function `get_config`.
      **arguments: arguments of the experiment, as after the colon of `--config`: `gamma=50`.

    Raises:
      ConfigError: There is no such file, it fails, or an argument is not valid for it.

    Example:
      config = crest_jax.experiment("cifar10_lt", gamma=50, rebalance="crest_plus")
      config.model.width = 4
    """
    path = files.given(name, "experiment")
    for key in ("method", "rebalance"):
        wrong = plugins.no_name(key, arguments.get(key))
        if wrong:
            raise ConfigError(wrong)
    given = ",".join(f"{key}={value}" for key, value in arguments.items() if value is not None)
    if given and ":" in str(path).removeprefix("gs://"):
        raise ConfigError(f"{name} has arguments after a colon: give all of them by name instead")
    config = read(with_paths(["", f"--config={path}:{given}" if given else f"--config={path}"]))
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{name}: get_config must return a ConfigDict, not {wording.shown(config)}"
        )
    return config


def read(argv: Sequence[str]) -> Any:
    """Return the result of a command line's `get_config`, which should be a ConfigDict.

    Args:
      argv: the command line; its first word is the program.

    Raises:
      ConfigError: A flag or the experiment's file cannot be used.
    """
    try:
        return _read(argv)
    except Exception as error:  # from flags, unknown fields, or the experiment's file
        raise explain(error, argv) from error


def _read(argv: Sequence[str]) -> Any:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return finish_loading(values["config"].value)


def finish_loading(config: Any) -> Any:
    """Return the config, or raise the error that its file raised when it was read.

    ml_collections defers that error to the first access to an attribute of the config.
    """
    getattr(config, "to_dict", None)
    return config


def folder() -> Path:
    """Return the shortest path to the project's experiments that works from this folder."""
    return Path(FOLDER.name) if files.absolute(Path(FOLDER.name)) == FOLDER else FOLDER


def with_paths(argv: Sequence[str]) -> list[str]:
    """Return the command line with the value of `--config` replaced by the path of a file.

    `~` is replaced by the home folder. `cifar10_lt` and `experiments/cifar10_lt.py` mean the
    project's experiment, unless the current folder has such a file itself.

    Raises:
      ConfigError: The home folder does not exist.
    """
    words = list(argv)
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag not in ("-config", "--config"):
            continue
        if equals:
            words[at] = f"{flag}={_with_path(value)}"
        elif at + 1 < len(words):
            words[at + 1] = _with_path(words[at + 1])
    return words


def _with_path(value: str) -> str:
    given, colon, arguments = value.partition(":")
    if not given:
        return value
    path = files.given(given, "--config") if given[:1] == "~" else Path(given)
    if not os.path.isfile(path):  # noqa: PTH113
        own = folder() / path.name if path.suffix else folder() / f"{path.name}.py"
        if path.parent in (Path(), Path(FOLDER.name)) and own.is_file():
            path = own
        elif given[:1] != "~":
            return value
    return f"{path}{colon}{arguments}"


def missing() -> ConfigError:
    """Return the error for a command line that names no experiment."""
    return ConfigError(f"--config is missing; {_advice('digits_lt.py')}")


def explain(error: Exception, argv: Sequence[str]) -> ConfigError:
    """Return an error that says in one line what failed in the flags or the experiment's file.

    Args:
      error: the exception that was raised.
      argv: the command line, which names the file.
    """
    if isinstance(error, ConfigError):
        return error
    given = re.findall(r"^--?config[\n=](.*)$", "\n".join(argv), re.MULTILINE)
    if not given:
        overrides = any(re.match(r"--?(no)?config\.", word) for word in argv)
        return missing() if overrides else ConfigError(_in_a_line(str(error)))
    path = given[-1].partition(":")[0]
    if not os.path.isfile(path):  # noqa: PTH113
        return ConfigError(_no_file(path))
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    # Look at the original error first, from which the others were raised. A SyntaxError in
    # "<unknown>" comes from a flag's value, and the error of that flag, used below, says more.
    for cause in reversed(chain):
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(cause.__traceback__)
            if frame.filename.endswith(path)
        ]
        if lines or (isinstance(cause, SyntaxError) and cause.filename != "<unknown>"):
            where = f" at line {lines[-1]}" if lines else ""
            said = _in_a_line(str(cause))
            return ConfigError(f"--config={path} fails{where}: {type(cause).__name__}: {said}")
    for wrong in _wrong_fields(given[-1], argv):
        return ConfigError(wrong)
    said = str(error).strip()
    if "Traceback" in said:  # get_config could not even be called
        return ConfigError(f"--config={path}: {_in_a_line(said.splitlines()[-1])}")
    # Errors of absl already name the flag.
    return ConfigError(
        ("" if isinstance(error, flags.Error) else f"--config={path}: ") + _in_a_line(said)
    )


def _in_a_line(text: str) -> str:
    return wording.printable(" ".join(text.split()))


def _no_file(path: str) -> str:
    """Return a message that a path is not an experiment's file, and which files there are."""
    if not path:
        wrong = "--config= names no file"
    elif os.path.isdir(path):  # noqa: PTH112
        wrong = f"--config={path} is a folder, and must be an experiment's file"
    else:
        where = "" if Path(path).is_absolute() else f" in {os.getcwd()}"  # noqa: PTH109
        wrong = f"--config={path} is not a file{where}"
    return f"{wrong}; {_advice(Path(path).name)}"


def _advice(name: str) -> str:
    """Return advice on which file to name instead of `name`."""
    names = sorted(path.name for path in FOLDER.glob("*.py"))
    for found in (name, f"{name}.py"):
        if found in names:
            return f"try --config={folder() / found}"
    return f"{folder()} has {', '.join(names)}{wording.meant(name, names)}"


def _wrong_fields(experiment: str, argv: Sequence[str]) -> Iterator[str]:
    """Yield a message for each `--config.field=value` that the experiment's config rejects."""
    try:
        config = _read(["", f"--config={experiment}"])
    except Exception:  # then the fields are not the cause
        return
    if not isinstance(config, ConfigDict):
        return
    for word in argv:
        given = re.fullmatch(r"--?(?:no)?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if given:
            field, value = given.groups()
            wrong = _wrong_field(config, field, value)
            if wrong:
                yield f"{wording.printable(word)}: {wrong}"


def _wrong_field(config: ConfigDict, field: str, value: str | None) -> str:
    """Return why a field of a config cannot have a value, or an empty string if it can."""
    found, within = config, ""
    for key in field.split("."):
        if not isinstance(found, ConfigDict):
            return f"{within} is {wording.shown(found)}, and has no fields{_meant(config, field)}"
        if key not in found:
            whose = [name for name, each in ALGORITHMS.items() if field in each.hyper_parameters]
            if whose:
                return (
                    f"{field} is of method={' or '.join(whose)} only; choose it as an argument of "
                    f"the experiment, {wording.as_argument('method', whose[0])}"
                )
            has = f"{within or 'the config'} has {', '.join(found)}"
            return f"there is no such field; {has}{_meant(config, field)}"
        found, within = found[key], f"{within}.{key}".removeprefix(".")
    if isinstance(found, ConfigDict):
        if value is None or value.strip()[:1] != "{":
            return f"{field} is no single value: set one of its fields, {', '.join(found)}"
        return ""
    try:
        if isinstance(found, bool):
            flags.BooleanParser().parse(value or "True")
        elif isinstance(found, int | float):
            type(found)(value or "")
    except ValueError:
        return f"it must be {kind_of(found).words}"
    return ""


def _meant(config: ConfigDict, field: str) -> str:
    """Return a question that suggests fields, anywhere in the config, for one that is wrong."""
    fields = list(_names(config))
    last = field.rpartition(".")[2]
    named = [name for name in fields if name.rpartition(".")[2] == last]
    if named:
        return f"; did you mean {' or '.join(named)}?"
    return wording.meant(field, fields)


def _names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
