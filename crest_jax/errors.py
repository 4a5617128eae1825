"""What can go wrong for a user, each with a message that says what to do.

A command prints these as one line and exits with `exit_status` (`crest_jax.command`); anything else
is a bug and keeps its traceback.
"""

import os

from crest_jax.schema import printable


class CrestError(Exception):
    """Base class of the errors that a user can cause, and mend."""

    exit_status = 1

    def __init__(self, what: str, way_out: str = ""):
        """Says what is wrong and, where that is known by itself, what to do about it."""
        super().__init__(f"{what}: {way_out}" if way_out else what)
        self.what = what

    def __str__(self):
        """The message, with nothing in it that a terminal would obey but the ends of its lines."""
        return "\n".join(map(printable, super().__str__().split("\n")))


class ConfigError(CrestError):
    """A config field or an experiment argument is not usable.

    No ValueError: those do not come through flag parsing as they are.
    """

    exit_status = os.EX_USAGE


class DataError(CrestError):
    """A data set is missing, damaged, or does not fit the config."""


class WorkdirError(CrestError):
    """The run folder cannot be used as it is."""


class UnavailableError(CrestError):
    """Something cannot be read at the moment, which says nothing of what is in it."""


class NonFiniteError(CrestError):
    """Training produced NaN or infinity."""


class DeviceError(CrestError):
    """JAX cannot use the devices here, or not in the way that the environment says."""


class HostError(CrestError):
    """Another host cannot be reached, or is not what this one takes it for."""


class Preempted(CrestError):
    """SIGTERM arrived; whatever is on disk is whole, and the same command continues."""

    exit_status = os.EX_TEMPFAIL
