"""The command `crest-jax`, which names the others.

crest-jax train --config=cifar10_lt:gamma=50       as python -m crest_jax.main
crest-jax report --workdir=DIR                     as python -m crest_jax.report
"""

import importlib
import sys

from crest_jax import command
from crest_jax.errors import ConfigError, DeviceError

COMMANDS = {
    "train": "main",
    "predict": "predict",
    "export": "export",
    "adjust": "adjust",
    "report": "report.__main__",
    "compare": "report.comparison",
    "figures": "report.figures",
    "archive": "report.archive",
    "paper": "paper.__main__",
}


@command.entry
def main() -> None:
    """Run the command that the first argument names, with the others as its own."""
    name, *rest = sys.argv[1:] or [""]
    if name not in COMMANDS:
        usage = f"usage: crest-jax {{{','.join(COMMANDS)}}} ..."
        if name in ("-h", "--help"):
            print(f"{usage}\n\ncrest-jax NAME --help has the flags of each.")
            return
        given = f"{name!r} is not a command" if name else "no command is given"
        raise ConfigError(f"{given}; {usage}")
    # As `python -m` does, so that a config may name modules of the folder that this runs in.
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(f"crest_jax.{COMMANDS[name]}")
    except ValueError as error:  # of JAX, which reads variables
        raise DeviceError(
            f"JAX cannot be started ({error}): correct or unset the variable"
        ) from error
    sys.argv = [f"crest-jax {name}", *rest]
    (module.console if name == "train" else module.main)()
