"""Objects that a config names: the project's own by a short name, a user's as `module:name`."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

from crest_jax.errors import ConfigError, PluginError
from crest_jax.schema import meant, printable, shown

# A version of a TFDS data set, as in `cifar10:3.0.2`, is none.
_PLUGIN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_plugin(name: str) -> bool:
    """Return whether a name is of the form `module:name`."""
    return bool(_PLUGIN.fullmatch(name))


def find(name: str, known: Mapping[str, Any], *, field: str) -> Any:
    """Return the object of a name; a user's own may be of any type.

    Args:
      name: a key of `known`, or `module:name`, where the name may have dots. A module that is not
        installed is found in the folders of PYTHONPATH, and in the current one.
      known: the project's own objects.
      field: the config field, for the message.

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
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        reason = printable(f"{type(error).__name__}: {error}")
        raise PluginError(
            f"{said}: the module {printable(module_name)!r} cannot be imported ({reason}): install "
            "it, or add its folder to PYTHONPATH"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise PluginError(f"{said}: {printable(module_name)} has no {printable(path)!r}")
        found = getattr(found, part)
    return found
