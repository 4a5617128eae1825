"""Files that are complete or absent, on a disk or in a bucket (`gs://`).

On a disk a file is written beside its place, then renamed; a bucket shows an object when all of it
is there. A folder cannot be given its name at once in a bucket, so one of several files is whole
when the file that describes the others is there: it is written last.
"""

import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from etils.epath import Path

from crest_jax.errors import ConfigError, UnavailableError, WorkdirError

MANIFEST = "manifest.json"
# In a JSON object, the SHA-256 of the rest of it.
_DIGEST = "digest"
# What libraries take for a pattern in a path, or for a slash; or for the name of a file system; and
# bytes that are no text, which they cannot be told.
_PATTERN = re.compile(r"[*?\[\]\\]")
_UNUSUAL = re.compile(_PATTERN.pattern + "|:(/|$)|[\udc80-\udcff]")


def given(text: str, name: str = "") -> Path:
    """Returns the path that a user names, on a command line or in a config.

    As in a shell, `~` at its beginning is the user's home, and `~name` that of another; a file that
    is called so is `./~`.

    Args:
      text: as it was given.
      name: of the flag or field, for the message.

    Raises:
      ConfigError: it is neither on a disk nor in a bucket, or there is no such home.
    """
    what = f"{name}={text}" if name else text
    if not is_supported(text):
        raise ConfigError(f"{what} is neither on a disk nor in a bucket (gs://)")
    if not text.startswith("~"):
        path = Path(text)
        # `./~` has become `~`, which libraries would expand.
        return absolute(path) if str(path).startswith("~") else path
    first, _, rest = text.partition("/")
    user = first[1:]
    folder = home(user)
    if folder is None:
        whose = f"there is no user {user}" if user else "this user has no home (HOME is not set)"
        raise ConfigError(f"{what}: {whose}; give the whole path, or ./{text} for one called so")
    return folder / rest


def home(user: str = "") -> Path | None:
    """Returns a user's home; None where there is no such user, or no home.

    Args:
      user: by name; the one whose process this is by default, whose HOME counts.
    """
    try:
        if user:
            found = pwd.getpwnam(user).pw_dir
        else:
            found = os.environ.get("HOME", "") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    folder = Path(found)
    return folder if folder.is_absolute() else None


def user_cache() -> Path | None:
    """Returns our folder in the user's cache; None where only others can have, or can change, one.

    That is where XDG_CACHE_HOME says, or else in the home.
    """
    above = os.environ.get("XDG_CACHE_HOME")
    base = Path(above) if above else home() and home() / ".cache"
    if base is None or not base.is_absolute():
        return None
    folder = base / "crest_jax"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if is_ours(folder) and os.access(folder, os.W_OK) else None
    except OSError:
        return None


def is_ours(path: os.PathLike) -> bool:
    """Whether nobody but this user, and perhaps their group, can have put it there."""
    status = os.stat(path)  # noqa: PTH116
    return status.st_uid == os.getuid() and not status.st_mode & stat.S_IWOTH


def is_remote(path: Path) -> bool:
    """Whether a path names something in a bucket."""
    return "://" in str(path)


def is_supported(path: str) -> bool:
    """Whether a path is on a disk or in a bucket; of others `Path` makes an error."""
    return "://" not in path or path.startswith("gs://")


def absolute(path: Path) -> Path:
    """The same place, wherever the program runs."""
    return Path(os.getcwd()) / path  # noqa: PTH109


@contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """Yields a path to a folder that libraries take as it is: its own, or that of a link to it.

    Orbax and what it is made of take `[1]` and `*` anywhere in a path for a pattern, and a
    backslash for a slash.

    Raises:
      WorkdirError: there can be no such link.
    """
    path = absolute(folder)
    if is_remote(folder):
        found = _PATTERN.search(str(folder))
        if found:
            raise WorkdirError(
                f"{folder} has {found[0]} in its name, which makes it a pattern in a bucket: "
                "choose a name without it"
            )
        yield path
        return
    if not _UNUSUAL.search(str(path)):
        yield path
        return
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="crest_jax_"))
            link = Path(temporary) / "folder"
            os.symlink(path, link)  # noqa: PTH211
        except OSError as error:
            raise _unusual(folder, f"cannot be made ({reason(error)})") from error
        if _UNUSUAL.search(str(link)):
            raise _unusual(folder, f"would be {link}, which is no better")
        yield link


def _unusual(folder: Path, link: str) -> WorkdirError:
    return WorkdirError(
        f"{folder} can only be used through a link, since libraries take a part of its path for a "
        f"pattern; and a link in the temporary folder {link}: set TMPDIR to another folder, or "
        "choose another path"
    )


def nearest(path: Path) -> Path:
    """The path itself, or the innermost of the folders it is to be in that is there."""
    return next(found for found in (path, *absolute(path).parents) if found.exists())


def failures() -> tuple[type[Exception], ...]:
    """What reading and writing may raise: TensorFlow, which reaches buckets, its own."""
    tensorflow = sys.modules.get("tensorflow")
    return (OSError,) if tensorflow is None else (OSError, tensorflow.errors.OpError)


def reason(error: Exception) -> str:
    """What went wrong, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, what goes wrong is said of `path`.

    Raises:
      WorkdirError: it cannot be written.
    """
    try:
        yield
    except failures() as error:
        raise WorkdirError(f"{path} cannot be written ({reason(error)})") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within, what goes wrong is said of `path`, but for its not being there.

    Raises:
      UnavailableError: it cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except failures() as error:
        raise UnavailableError(
            f"{path} cannot be read ({reason(error)})", "run again when it can"
        ) from error


def check_name(path: Path, flag: str) -> None:
    """Makes sure that a path is text: TensorFlow and Orbax write to no other.

    Raises:
      ConfigError: it, or a folder that it is in, has a name that is not UTF-8.
    """
    try:
        str(absolute(path)).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{flag}={path} has a name, or is in a folder with one, that is not UTF-8, or not "
            "where the locale is not (LC_ALL=C.UTF-8 is): choose another"
        ) from error


def check_bucket(path: Path) -> None:
    """Finds out whether a path's bucket is there; TensorFlow writes to one that is not for minutes.

    Raises:
      WorkdirError: it is not, or cannot be reached.
    """
    _, scheme, *names = path.parts
    if not names:
        raise WorkdirError(f"{path} names no bucket: give {scheme}://BUCKET/FOLDER")
    bucket = Path(f"{scheme}://{names[0]}")
    try:
        found = bucket.exists()
    except failures() as error:
        raise WorkdirError(
            f"bucket {bucket} cannot be looked at ({reason(error)}): does this account have a role "
            "with storage.buckets.get, such as roles/storage.legacyBucketReader?"
        ) from error
    if not found:
        raise WorkdirError(
            f"there is no bucket {bucket}, or none that this account may see: make it first"
        )


def check_writable(output: Path) -> None:
    """Finds out before any work whether a file or folder can be made.

    Raises:
      WorkdirError: it is a folder itself, or its folder is not there or cannot be written.
    """
    if output.is_dir():
        raise WorkdirError(f"--output={output} is a folder: name a file")
    if not is_remote(output) and output.exists() and not os.path.isfile(output):  # noqa: PTH113
        raise WorkdirError(f"--output={output} is a device or pipe, and no file: name a file")
    if is_remote(output):  # no folders there; and whether it may be written, only writing shows
        check_bucket(output)
        return
    if not output.parent.is_dir():
        raise WorkdirError(f"--output={output} is in no folder that exists: make it first")
    if not os.access(output.parent, os.W_OK):
        raise WorkdirError(f"--output={output} is in a folder that cannot be written")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that is never seen half-written, in place of one that may be there.

    Raises:
      WorkdirError: it cannot be written.
    """
    with writing(path):
        if is_remote(path):
            path.write_bytes(content)
            return
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object, sealed, as `write_text` does."""
    write_text(path, json.dumps(sealed(value), indent=1, allow_nan=False))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object with a digest of itself, by which `parse_json` knows it from a damaged one.

    A flipped bit may well leave JSON that is as good as before, with another figure in it.
    """
    return {**value, _DIGEST: _digest(value)}


def parse_json(text: str | bytes) -> Any:
    """Parses JSON; of an object that was sealed, without its digest.

    Raises:
      ValueError: it is no JSON, or not what was sealed.
    """
    try:
        value = json.loads(text, parse_constant=_refused)
        if isinstance(value, dict) and _DIGEST in value:
            digest = value.pop(_DIGEST)
            if digest != _digest(value):
                raise ValueError("it is not what was written")
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return value


def _refused(constant: str) -> None:
    """NaN and infinities, which Python would read in JSON."""
    raise ValueError(f"{constant} is no JSON")


def _digest(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # keys, for one, are text there
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def append_text(path: Path, text: str) -> None:
    """Adds `text` at the end of a file. A process that is killed meanwhile may leave a part of it.

    Raises:
      WorkdirError: it cannot be written.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        if not is_remote(path):
            file.flush()
            os.fsync(file.fileno())


def read_bytes(path: Path) -> bytes:
    """Reads a whole file.

    Raises:
      FileNotFoundError: it is not there.
      UnavailableError: it cannot be read at the moment.
    """
    with reading(path):
        return path.read_bytes()


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote.

    Raises:
      WorkdirError: the file is not there, or damaged.
      UnavailableError: it cannot be read.
    """
    try:
        return parse_json(read_bytes(path))
    except FileNotFoundError as error:
        raise WorkdirError(f"{path} is missing: run again to make it anew") from error
    except ValueError as error:
        raise WorkdirError(
            f"{path} is damaged ({reason(error)}): delete it and run again"
        ) from error


def size(path: Path) -> int:
    """Bytes of a file.

    Raises:
      FileNotFoundError: it is not there.
      UnavailableError: it cannot be looked at.
    """
    with reading(path):
        # Of a file on a disk `Path.stat` wants to know its owner's name, which may have none.
        return path.stat().length if is_remote(path) else os.stat(path).st_size  # noqa: PTH116


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where it is not there."""
    if not folder.is_dir():
        return 0
    return sum(folder_size(path) if path.is_dir() else size(path) for path in folder.iterdir())


def free_bytes(path: Path) -> int | None:
    """What can still be written where a path is or is to be; None in a bucket, which has no end."""
    return None if is_remote(path) else shutil.disk_usage(nearest(path)).free


def sha256(path: Path) -> str:
    """Digest of a file's content, which is not held in memory.

    Raises:
      FileNotFoundError: it is not there.
      UnavailableError: it cannot be read.
    """
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def below(folder: Path) -> Iterator[Path]:
    """All files below a folder, but for hidden ones and what is in hidden folders.

    Links are followed; a folder that several lead to is looked into once.

    Raises:
      UnavailableError: a folder cannot be looked into.
    """
    with reading(folder):
        if is_remote(folder):
            for above, _, names in folder.walk():
                hidden = any(part.startswith(".") for part in above.relative_to(folder).parts)
                yield from (above / name for name in names if not hidden and name[0] != ".")
            return
        seen = set()
        for above, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
            status = os.stat(above)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if name[0] != ".")
            yield from (Path(above) / name for name in names if name[0] != ".")


def _raise(error: OSError) -> None:
    raise error


def begin_folder(folder: Path) -> None:
    """Makes a folder that is not whole yet, without what an earlier attempt has left in it.

    Raises:
      WorkdirError: it cannot be written.
    """
    with writing(folder):
        folder.rmtree(missing_ok=True)
        folder.mkdir(parents=True)


def is_whole(folder: Path) -> bool:
    """Whether a folder has the file that is written last."""
    return (folder / MANIFEST).exists()
