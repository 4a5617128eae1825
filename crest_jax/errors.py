"""Errors that a user may meet, and the stop by SIGTERM, with messages that say what to do.

A command prints these as one line and exits with `exit_status` (`crest_jax.command`); any other
exception is a bug and keeps its traceback.
"""

import os

from crest_jax.wording import printable


class CrestError(Exception):
    """Base class of the errors that a user can cause and fix.

    Attributes:
      exit_status: the status with which a command ends on this error.
      what: the message without the advice on what to do.
    """

    exit_status = 1

    def __init__(self, what: str, way_out: str = ""):
        """Make the message from what is wrong and, if given separately, what to do about it."""
        super().__init__(f"{what}: {way_out}" if way_out else what)
        self.what = what

    def __str__(self) -> str:
        """Return the message, with all control characters but line ends escaped."""
        return "\n".join(map(printable, super().__str__().split("\n")))


class ConfigError(CrestError):
    """A config field or an experiment argument is not usable.

    It is not a ValueError, because flag parsing does not pass those on unchanged.
    """

    exit_status = os.EX_USAGE


class PluginError(ConfigError):
    """An object that a config names as `module:name` cannot be found or used."""


class DataError(CrestError):
    """A data set is missing, damaged, or does not fit the config."""


class WorkdirError(CrestError):
    """A run's folder cannot be used as it is."""


class UnavailableError(CrestError):
    """Something cannot be read at the moment, which says nothing about its content."""


class NonFiniteError(CrestError):
    """Training produced NaN or infinity."""


class DeviceError(CrestError):
    """JAX cannot use the devices here, or not in the way that environment variables ask for."""


class HostError(CrestError):
    """Another host cannot be reached, disagrees with this one, or has failed."""


class Preempted(BaseException):
    """SIGTERM arrived; files on disk are complete, and the same command continues the run.

    It may be raised anywhere. Like KeyboardInterrupt, it is therefore not an Exception, so that no
    code takes it for a failure of its own.
    """

    exit_status = os.EX_TEMPFAIL
