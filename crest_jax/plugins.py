"""Objects that a config names: the project's own by a short name, a user's as `module:name`."""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from ml_collections import ConfigDict

from crest_jax.errors import ConfigError, CrestError, PluginError
from crest_jax.wording import meant, printable, shown

if TYPE_CHECKING:
    from crest_jax.data.sources import Source

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_LONGEST = 300  # characters of an error of a plug-in in a message
# It does not match a data set of TFDS with a version, such as `cifar10:3.0.2`.
_PLUGIN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


# The spec of each imported module, and the digest of the source that it was imported from.
_digests: dict[str, tuple[ModuleSpec | None, str | None]] = {}


class DataSet(Protocol):
    """A function that makes a data set, for `data.name`."""

    def __call__(self) -> "Source":
        """Return the data set, such as `crest_jax.arrays` makes."""


def is_plugin(name: str) -> bool:
    """Return whether a name is of the form `module:name`."""
    return bool(_PLUGIN.fullmatch(name))


def no_name(field: str, value: Any) -> str | None:
    """Return why an object that is given in place of its name is refused; None for other values.

    Args:
      field: the name of the config field, for the message.
      value: any.
    """
    if value is None or isinstance(value, str | int | float | list | tuple | Mapping):
        return None
    kind = "a class" if isinstance(value, type) else f"of type {type(value).__name__}"
    return f"{field} is {kind}, and must be a name: 'module:name' is that of an object of your own"


def find(name: str, known: Mapping[str, Any], *, field: str) -> Any:
    """Return the object of a name. That of a `module:name` may be of any type.

    Args:
      name: a key of `known`, or `module:name`, where the name may have dots. A module that is not
        installed is found in the folders of PYTHONPATH, and in the current one.
      known: the project's own objects.
      field: the name of the config field, for the message.

    Raises:
      ConfigError: There is no such object.
      PluginError: The module cannot be imported, or lacks the object.
    """
    said = f"{field}={shown(name)}"
    if not is_plugin(name):
        if name in known:
            return known[name]
        raise ConfigError(
            f"{said} must be one of {', '.join(known)}, or module:name of your own"
            f"{meant(name, known)}"
        )
    module_name, _, path = name.partition(":")
    if module_name == "__main__":
        raise PluginError(
            f"{said}: __main__ is another module in each process, so a run could not be loaded: "
            "move the object into a file, and give the name of that"
        )
    try:
        found: Any = _imported(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        raise PluginError(
            f"{said}: the module {printable(module_name)!r} cannot be imported "
            f"({in_a_line(error)}){_advice(module_name, error)}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise PluginError(f"{said}: {printable(module_name)} has no {printable(path)!r}")
        found = getattr(found, part)
    return found


def _advice(module: str, error: BaseException) -> str:
    """Return what to do about a module that cannot be imported, unless the error says it."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{module}.".startswith(f"{missing}."):  # or a package that it is in
        return ": install it, or add its folder to PYTHONPATH"
    return ""


def _imported(module: str) -> ModuleType:
    """Import a module, and remember the digest of the source that was imported.

    A module that is imported again, such as by `importlib.reload`, has another spec.
    """
    loaded = sys.modules.get(module)
    if loaded is None:
        before = _digest_on_disk(module)
        loaded = importlib.import_module(module)
        _digests[module] = loaded.__spec__, before
    elif module not in _digests or _digests[module][0] is not loaded.__spec__:
        # What was imported before is known to be another source only if a function differs.
        digest = _digest_on_disk(module) if _has_functions_of_its_file(loaded) else None
        _digests[module] = loaded.__spec__, digest
    return loaded


def _has_functions_of_its_file(module: ModuleType) -> bool:
    """Return whether the functions and methods of a module are those of its source file."""
    file = _source_file(module.__name__)
    if file is None:
        return True
    try:
        codes = set(_codes(compile(file.read_bytes(), str(file), "exec")))
    except (SyntaxError, ValueError):
        return False
    classes = [each for each in vars(module).values() if isinstance(each, type)]
    values = [value for owner in [module, *classes] for value in vars(owner).values()]
    found = [inspect.unwrap(value).__code__ for value in values if inspect.isfunction(value)]
    return all(code in codes for code in found if code.co_filename == module.__file__)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def guarded(function: Callable[_Arguments, _Result], name: str) -> Callable[_Arguments, _Result]:
    """Return a user's function, whose errors are then `PluginError`s of one line.

    Args:
      function: any.
      name: what it is, for the message.
    """

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except CrestError:
            raise
        except Exception as error:  # whatever a user's function raises
            raise PluginError(f"{name} fails ({in_a_line(error)})") from error

    return call


def in_a_line(error: BaseException) -> str:
    """Return an error's type, message and place on one line of bounded length.

    The place is the innermost one that is neither in this project nor in an installed package.
    """
    said = printable(" ".join(f"{type(error).__name__}: {error}".split()))
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in _not_of_a_user()):
            return f"{said}; {printable(path.name)}, line {frame.lineno}"
    return said


@functools.cache
def _not_of_a_user() -> list[str]:
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    return [*installed, str(Path(__file__).parent)]


def digests(config: ConfigDict) -> dict[str, str]:
    """Return the SHA-256 of the source file of each module that a config names as `module:name`.

    It is that of the file when the module was imported here. Modules without a source file are left
    out, and so are other files that a module imports, and sources that are no longer on disk.

    Args:
      config: a validated config.
    """
    found = {module: _digest(module) for module in sorted(_modules(config))}
    return {module: digest for module, digest in found.items() if digest is not None}


def stale(config: ConfigDict) -> list[str]:
    """Return the modules that a config names whose files have changed since they were imported."""
    return [
        module for module in sorted(_modules(config)) if _digest(module) != _digest_on_disk(module)
    ]


def _digest(module: str) -> str | None:
    loaded = sys.modules.get(module)
    if loaded is not None and module in _digests:
        spec, digest = _digests[module]
        if spec is loaded.__spec__:
            return digest
    return _digest_on_disk(module)


def _digest_on_disk(module: str) -> str | None:
    file = _source_file(module)
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def describe(module: str, config: ConfigDict) -> str:
    """Return the path of a module's source file, and the config fields that name the module."""
    fields = [f"{field}={name}" for field, name in _names(config) if module_of(name) == module]
    return f"{_source_file(module) or module} ({', '.join(fields)})"


def _names(config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield each `module:name` of a config, after the name of its field."""
    fields = {
        "method": [config.method],
        "rebalance": config.rebalance.split("+"),
        "model.name": [config.model.name],
        "data.name": [config.data.name],
    }
    for field, names in fields.items():
        for name in filter(is_plugin, names):
            yield field, name


def _modules(config: ConfigDict) -> set[str]:
    return {module_of(name) for _, name in _names(config)}


def module_of(name: str) -> str:
    """Return the module of a `module:name`."""
    return name.partition(":")[0]


def _source_file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # whatever a package raises that it is in
        return None
    path = Path((spec and spec.origin) or "")
    return path if path.suffix == ".py" and path.is_file() else None
