"""The run folder: which config it belongs to, and which process may work in it."""

import errno
import fcntl
import os
import socket
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import datetime
from typing import Any

from absl import logging
from etils.epath import Path
from ml_collections import ConfigDict

from crest_jax import config as config_lib
from crest_jax import environment, files, plugins, versions
from crest_jax.differences import changes, describe
from crest_jax.errors import ConfigError, PluginError, WorkdirError
from crest_jax.layout import FORMAT, RunFolder
from crest_jax.wording import some

_PROBE = ".writable-"
# Fields that may change within a run: where TFDS keeps data and whether it may download it, since a
# run has its own splits; how long hosts wait for each other; and how long devices work before the
# host notices SIGTERM.
INCIDENTAL = ("data.data_dir", "data.download", "heartbeat_timeout", "steps_at_once")
# Fields that may change from one path to another, since user-provided images and weights may be
# moved, of which the run keeps its own. Giving a path where there was none, or removing one, makes
# it another experiment.
_MOVABLE = ("data.labeled", "data.unlabeled", "data.test", "model.init_from")
# A field whose value may be raised within a run; the new value is then written to config.json.
RESEED = "reseed"


def read_config(workdir: Path) -> ConfigDict:
    """Return the config of a run, with defaults for the fields that did not exist when it began.

    Raises:
      WorkdirError: The folder is not a run, or its config was not written by this program or has
        another format.
      PluginError: The config names a plug-in, `module:name`, that cannot be found.
      UnavailableError: The config cannot be read at the moment.
    """
    path = RunFolder(workdir).config
    if not path.exists():
        raise WorkdirError(f"{workdir} is not a run: it has no {path.name}")
    return _completed(path, files.read_json(path))


def _completed(path: Path, content: Any) -> ConfigDict:
    content = content if isinstance(content, dict) else {}
    found = content.get("format", 1)
    if "config" in content and found != FORMAT:
        raise versions.of_another_format(path.parent, found)
    try:
        return config_lib.completed(content.get("config"))
    except PluginError:
        raise
    except ConfigError as error:
        raise WorkdirError(
            f"{path} was not written by this program ({error}): restore it, or choose another "
            "folder with --workdir"
        ) from error


def differences(theirs: ConfigDict, ours: ConfigDict) -> list[str]:
    """List the fields in which a run's config differs from ours, except those that may change."""
    return describe(_changes(theirs, ours))


def _changes(theirs: ConfigDict, ours: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which a run's config differs from ours, with both values.

    Fields that may change within a run are left out.
    """
    changed = changes(config_lib.to_plain(theirs), config_lib.to_plain(ours))
    return {
        name: values
        for name, values in changed.items()
        if name not in INCIDENTAL and not (name in _MOVABLE and all(values))
    }


def claim(workdir: Path, config: ConfigDict) -> AbstractContextManager[Any]:
    """Make `workdir` the folder of this config, or check that it already is.

    Returns:
      A context manager that keeps other processes out of the folder until it is left, or until this
      process ends, however it ends. In a bucket it has no effect.

    Raises:
      ConfigError: The folder's name is not UTF-8.
      WorkdirError: The folder cannot be written, belongs to another config, is not a run, or is in
        use by another process.
      UnavailableError: Its config cannot be read at the moment.
    """
    _make_folder(workdir)
    _check_foreign(workdir)
    with ExitStack() as held:
        held.enter_context(_lock(workdir))
        owner = _changed_owner(workdir, config)
        if owner is not None:
            files.write_json(RunFolder(workdir).config, owner)
        _keep_plugins(workdir, config)
        return held.pop_all()


def _make_folder(workdir: Path) -> None:
    _check_name(workdir)
    if files.is_remote(workdir):
        files.check_bucket(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f"{_PROBE}{os.getpid()}"  # unique to this process
        probe.touch()
        probe.unlink()
    except files.failures() as error:
        raise _not_writable(workdir, files.reason(error)) from error


def check(workdir: Path, config: ConfigDict) -> bool:
    """Check whether `claim` could succeed, as far as possible without writing anything.

    It does not check whether another process is using the folder.

    Returns:
      Whether the folder already belongs to this run.

    Raises:
      ConfigError, WorkdirError, UnavailableError: As for `claim`.
    """
    _check_name(workdir)
    if files.is_remote(workdir):
        files.check_bucket(workdir)
    else:
        nearest = files.nearest(workdir)
        if not nearest.is_dir():
            reason = errno.EEXIST if nearest == workdir else errno.ENOTDIR
            raise _not_writable(workdir, os.strerror(reason))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise _not_writable(workdir, os.strerror(errno.EACCES))
    _check_foreign(workdir)
    _changed_owner(workdir, config)
    _warn_of_stale_plugins(config)
    _warn_of_changed_plugins(workdir, config)
    return RunFolder(workdir).config.exists()


def _check_name(workdir: Path) -> None:
    """Check that the libraries that write to a folder can handle its name.

    Raises:
      ConfigError: The name is not UTF-8.
      WorkdirError: Libraries would misread the name, and no link with a plain name can be made.
    """
    files.check_name(workdir, "--workdir")
    with files.plainly_named(workdir):
        pass


def _not_writable(workdir: Path, reason: str) -> WorkdirError:
    return WorkdirError(
        f"workdir {workdir} cannot be written ({reason}): choose another with --workdir"
    )


def _check_foreign(workdir: Path) -> None:
    """Check that the content of a folder, if there is any, is that of a run."""
    ours = RunFolder(workdir)
    if ours.config.exists() or not workdir.exists():
        return
    allowed = {ours.config.name + ".partial", ours.lock.name}
    names = {path.name for path in workdir.iterdir() if not path.name.startswith(_PROBE)}
    foreign = sorted(names - allowed)
    if foreign:
        raise WorkdirError(
            f"workdir {workdir} holds {some(foreign)} but no {ours.config.name}, so it is "
            "not a run: choose another with --workdir"
        )


def _lock(workdir: Path) -> AbstractContextManager[Any]:
    """Lock a file that names the process that locks it; the system unlocks it when that ends."""
    if files.is_remote(workdir):
        return nullcontext()
    path = RunFolder(workdir).lock
    with ExitStack() as held:
        with files.writing(path):
            file = held.enter_context(path.open("a", encoding="utf-8"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = files.read_bytes(path).decode(errors="replace").strip() or "another process"
            raise WorkdirError(
                f"workdir {workdir} is in use by {owner}",
                "wait until that ends, or choose another with --workdir",
            ) from error
        except OSError as error:
            logging.warning("%s cannot be locked (%s)", path, files.reason(error))
        with files.writing(path):
            file.truncate(0)
            file.write(
                f"process {os.getpid()} on {socket.gethostname()}, since "
                f"{datetime.now().astimezone().isoformat(' ', 'seconds')}\n"
            )
            file.flush()
        return held.pop_all()


def _changed_owner(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Return what to write to config.json so that the folder is this config's; None if it is.

    Raises:
      WorkdirError: The folder belongs to another config, or its config.json is not readable.
    """
    path = RunFolder(workdir).config
    ours: dict[str, Any] = {
        "format": FORMAT,
        "config": config_lib.to_plain(config),
        "environment": environment.current(),
    }
    if not path.exists():
        return ours
    # If nothing was made with the old config yet, a mistake in it can still be corrected.
    untouched = not RunFolder(workdir).splits.path.exists()
    try:
        theirs = files.read_json(path)
    except WorkdirError as error:
        raise WorkdirError(
            f"{path} is damaged, and says whose run this is: restore it, or start over with "
            "another --workdir"
        ) from error
    found = _completed(path, theirs)
    if theirs.keys() != ours.keys() or not isinstance(theirs["environment"], dict):
        raise WorkdirError(
            f"{path} was not written by this program: choose another folder with --workdir"
        )
    if untouched and config_lib.to_plain(found) != config_lib.to_plain(config):
        return ours
    changed = _changes(found, config)
    reseeded = config[RESEED] > found[RESEED]
    if reseeded:
        del changed[RESEED]
    if changed:
        raise WorkdirError(
            f"workdir {workdir} belongs to another config:\n  "
            + "\n  ".join(describe(changed))
            + "\nchange these back to continue it, or choose another with --workdir"
        )
    moved = describe(changes(theirs["environment"], ours["environment"]))
    if moved:
        logging.warning(
            "this run began elsewhere, and its last digits may now differ:\n  %s",
            "\n  ".join(moved),
        )
    if reseeded:
        return {**theirs, "config": {**theirs["config"], RESEED: config[RESEED]}}
    return None


def _keep_plugins(workdir: Path, config: ConfigDict) -> None:
    """Keep the digests of the source files that the config names, or warn of those that changed."""
    path = RunFolder(workdir).plugins
    _warn_of_stale_plugins(config)
    # If nothing was made with the old files yet, the new ones are the run's.
    if path.exists() and RunFolder(workdir).splits.path.exists():
        _warn_of_changed_plugins(workdir, config)
    elif path.exists() or plugins.digests(config):
        files.write_json(path, {"sha256": plugins.digests(config)})


def _warn_of_stale_plugins(config: ConfigDict) -> None:
    for module in plugins.stale(config):
        logging.warning(
            "%s has changed since it was imported here, and is used as it was then: restart Python "
            "(or the notebook's kernel) to use the file as it is now",
            plugins.describe(module, config),
        )


def _warn_of_changed_plugins(workdir: Path, config: ConfigDict) -> None:
    """Warn of source files that are no longer those that the run began with.

    It is no error: a change of a comment must not end a run.
    """
    if RunFolder(workdir).generation(0).result.exists():
        kept = "what the run has finished is kept, and only the rest"
    else:
        kept = "no generation is finished; splits and checkpoints are kept, and only the rest"
    for module in changed_plugins(workdir, config):
        logging.warning(
            "%s has changed since %s began: %s is made with the file as it is now. Restore the "
            "file, or choose another folder, so that all results come from one version of it",
            plugins.describe(module, config),
            workdir,
            kept,
        )


def changed_plugins(workdir: Path, config: ConfigDict) -> list[str]:
    """Return the modules that a run's config names and that are no longer what it began with.

    A file of digests that is damaged is a warning, and then none is known to have changed.

    Args:
      workdir: the run's folder.
      config: of the run.
    """
    path = RunFolder(workdir).plugins
    if not path.exists() or not RunFolder(workdir).splits.path.exists():
        return []
    try:
        began_with = dict(files.read_json(path)["sha256"])
    except (WorkdirError, KeyError, TypeError, ValueError):
        logging.warning("%s is damaged: whether files of yours have changed is not known", path)
        return []
    found = plugins.digests(config)
    return [name for name, digest in found.items() if digest != began_with.get(name, digest)]
