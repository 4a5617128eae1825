"""Reading and writing files that are complete or absent, on a disk or in a bucket (`gs://`).

On a disk a file is written under a temporary name, then renamed; a bucket shows an object only when
all of it is there. A bucket cannot rename a folder in one operation, so a folder of several files
is complete when it has the manifest that describes the others, which is written last.
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

from crest_jax import wording
from crest_jax.errors import ConfigError, UnavailableError, WorkdirError

MANIFEST = "manifest.json"
# The member of a JSON object that holds the SHA-256 of its other members.
_DIGEST = "digest"
# Characters that make libraries take a path for a pattern; they read a backslash as a slash.
_PATTERN = re.compile(r"[*?\[\]\\]")
# Libraries also take the part before a colon for the name of a file system, and cannot be passed
# bytes that are not text.
_UNUSUAL = re.compile(_PATTERN.pattern + "|:(/|$)|[\udc80-\udcff]")


def given(given: str | os.PathLike[str], name: str = "") -> Path:
    """Return the path that a user gives on a command line, in a config or to a function.

    As in a shell, a leading `~` is the user's home, and `~name` that of another user; a file whose
    name begins with `~` is given as `./~`.

    Args:
      given: the path as the user gave it.
      name: the name of the flag, config field or argument, for the error message.

    Raises:
      ConfigError: It is not a path, or is neither on a disk nor in a bucket, or there is no such
        home.
    """
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ConfigError(
            f"{name or 'path'}={wording.shown(given)} must be a path, as text or Path"
        )
    shown = f"{name}={text}" if name else text
    if not is_supported(text):
        raise ConfigError(
            f"{shown} is neither on a disk nor in a bucket: give a path, or one that begins with gs://"
        )
    if not text.startswith("~"):
        path = Path(text)
        # `Path` has turned `./~` into `~`, which libraries would expand.
        return absolute(path) if str(path).startswith("~") else path
    first, _, rest = text.partition("/")
    user = first[1:]
    folder = home(user)
    if folder is None:
        why = f"there is no user {user}" if user else "this user has no home (HOME is not set)"
        raise ConfigError(
            f"{shown}: {why}; give the whole path, or ./{text} if the file has this name"
        )
    return folder / rest


def home(user: str = "") -> Path | None:
    """Return a user's home folder; None if there is no such user or no home.

    Args:
      user: the user's name; by default the user of this process, whose HOME takes precedence.
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
    """Return this package's folder in the user's cache, and create it if needed.

    The cache is the folder that XDG_CACHE_HOME names, or else `.cache` in the user's home.

    Returns:
      The folder; None if it cannot be made or written, belongs to another user, or is writable by
      all users.
    """
    above = os.environ.get("XDG_CACHE_HOME")
    base = Path(above) if above else (own := home()) and own / ".cache"
    if base is None or not base.is_absolute():
        return None
    folder = base / "crest_jax"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if is_ours(folder) and os.access(folder, os.W_OK) else None
    except OSError:
        return None


def is_ours(path: os.PathLike[str]) -> bool:
    """Return whether a path is owned by this user, and not writable by all users."""
    status = os.stat(path)  # noqa: PTH116
    return status.st_uid == os.getuid() and not status.st_mode & stat.S_IWOTH


def is_remote(path: Path) -> bool:
    """Return whether a path is in a bucket."""
    return "://" in str(path)


def is_supported(path: str) -> bool:
    """Return whether a path is on a disk or in a bucket; `Path` raises an error for others."""
    return "://" not in path or path.startswith("gs://")


def absolute(path: Path) -> Path:
    """Return a path as an absolute one, relative to the current folder of the process."""
    return Path(os.getcwd()) / path  # noqa: PTH109


@contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """Yield a path to a folder that libraries take literally: its own, or that of a link to it.

    Orbax and the libraries that it uses take `[1]` and `*` anywhere in a path for a pattern, and a
    backslash for a slash.

    Raises:
      WorkdirError: A path in a bucket has a pattern character, or no usable link can be made.
    """
    path = absolute(folder)
    if is_remote(folder):
        found = _PATTERN.search(str(folder))
        if found:
            raise WorkdirError(
                f"{folder} contains {found[0]}, which makes it a pattern in a bucket: choose a "
                "path without it"
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
            raise _unusual(folder, f"would be {link}, which has such a part too")
        yield link


def _unusual(folder: Path, link: str) -> WorkdirError:
    return WorkdirError(
        f"{folder} can only be used through a link, since libraries would take a part of its path "
        f"for a pattern; but a link in the temporary folder {link}: set TMPDIR to another folder, "
        "or choose another path"
    )


def nearest(path: Path) -> Path:
    """Return the path itself if it exists, or else its innermost parent folder that exists."""
    return next(found for found in (path, *absolute(path).parents) if found.exists())


def failures(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Return the exceptions of reading and writing, and the given ones, for an `except` clause.

    TensorFlow raises its own exceptions for buckets.
    """
    tensorflow = sys.modules.get("tensorflow")
    of_buckets = () if tensorflow is None else (tensorflow.errors.OpError,)
    return (*others, OSError, *of_buckets)


def reason(error: Exception) -> str:
    """Return a description of an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Re-raise I/O errors in the block as WorkdirError naming `path`.

    Raises:
      WorkdirError: The path cannot be written.
    """
    try:
        yield
    except failures() as error:
        raise WorkdirError(f"{path} cannot be written ({reason(error)})") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Re-raise I/O errors in the block as UnavailableError naming `path`.

    Raises:
      FileNotFoundError: The path does not exist; this error is passed on as it is.
      UnavailableError: The path cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except failures() as error:
        raise UnavailableError(
            f"{path} cannot be read ({reason(error)})", "run again when it can be read"
        ) from error


def check_name(path: Path, flag: str) -> None:
    """Check that a path is valid UTF-8, since TensorFlow and Orbax cannot write to any other.

    Raises:
      ConfigError: The path, or a folder that it is in, has a name that is not UTF-8.
    """
    try:
        str(absolute(path)).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{flag}={path} contains a name that is not UTF-8: choose another, or set "
            "LC_ALL=C.UTF-8 if the locale is not UTF-8"
        ) from error


def check_bucket(path: Path) -> None:
    """Check that the bucket of a path exists.

    Without this check, TensorFlow would try for minutes to write to a bucket that does not exist.

    Raises:
      WorkdirError: The path names no bucket, or the bucket does not exist or cannot be reached.
    """
    _, scheme, *names = path.parts
    if not names:
        raise WorkdirError(f"{path} names no bucket: give {scheme}://BUCKET/FOLDER")
    bucket = Path(f"{scheme}://{names[0]}")
    try:
        found = bucket.exists()
    except failures() as error:
        raise WorkdirError(
            f"bucket {bucket} cannot be accessed ({reason(error)}): give this account a role with "
            "storage.buckets.get, such as roles/storage.legacyBucketReader"
        ) from error
    if not found:
        raise WorkdirError(
            f"there is no bucket {bucket}, or this account may not see it: create it first"
        )


def check_writable(output: Path) -> None:
    """Check before any work that an output file can be written.

    Raises:
      WorkdirError: The path is a folder, device or pipe; or its folder or bucket does not exist or
        cannot be used.
    """
    if output.is_dir():
        raise WorkdirError(f"--output={output} is a folder: name a file")
    if not is_remote(output) and output.exists() and not os.path.isfile(output):  # noqa: PTH113
        raise WorkdirError(f"--output={output} is a device or a pipe: name a file")
    if is_remote(output):  # a bucket has no folders, and only writing shows whether it is writable
        check_bucket(output)
        return
    if not output.parent.is_dir():
        raise WorkdirError(f"--output={output} is in a folder that does not exist: create it first")
    if not os.access(output.parent, os.W_OK):
        raise WorkdirError(
            f"--output={output} is in a folder that cannot be written: name a file in another"
        )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written; replace one that exists.

    Raises:
      WorkdirError: The file cannot be written.
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
    """Write `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON with a digest of itself (`sealed`), as `write_text` does."""
    write_text(path, json.dumps(sealed(value), indent=1, allow_nan=False))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with a digest of itself, by which `parse_json` detects damage.

    A flipped bit may well leave valid JSON with another number in it.
    """
    return {**value, _DIGEST: _digest(value)}


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; check and remove the digest of an object that was sealed.

    Raises:
      ValueError: The text is not JSON, is nested too deep, or does not match its digest.
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
    """Reject NaN and infinities, which Python would accept in JSON."""
    raise ValueError(f"{constant} is not JSON")


def _digest(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # as it is read back, where keys for example are text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def append_text(path: Path, text: str) -> None:
    """Append `text` to a file.

    A process that is killed while it writes may leave a part of the text.

    Raises:
      WorkdirError: The file cannot be written.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        if not is_remote(path):
            file.flush()
            os.fsync(file.fileno())


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
      FileNotFoundError: The file does not exist.
      UnavailableError: The file cannot be read at the moment.
    """
    with reading(path):
        return path.read_bytes()


def read_json(path: Path) -> Any:
    """Read a file that `write_json` wrote.

    Raises:
      WorkdirError: The file does not exist or is damaged.
      UnavailableError: The file cannot be read.
    """
    try:
        return parse_json(read_bytes(path))
    except FileNotFoundError as error:
        raise WorkdirError(f"{path} is missing: run again to recreate it") from error
    except ValueError as error:
        raise WorkdirError(
            f"{path} is damaged ({reason(error)}): delete it and run again"
        ) from error


def size(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises:
      FileNotFoundError: The file does not exist.
      UnavailableError: The size of the file cannot be read.
    """
    with reading(path):
        # On a disk, `Path.stat` also looks up the name of the file's owner, who may have none.
        return path.stat().length if is_remote(path) else os.stat(path).st_size  # noqa: PTH116


def folder_size(folder: Path) -> int:
    """Return the size of all files below a folder in bytes; 0 if the folder does not exist."""
    if not folder.is_dir():
        return 0
    return sum(folder_size(path) if path.is_dir() else size(path) for path in folder.iterdir())


def free_bytes(path: Path) -> int | None:
    """Return the free space in bytes for a path that may not exist yet.

    None is returned for a bucket, which has no limit.
    """
    return None if is_remote(path) else shutil.disk_usage(nearest(path)).free


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, without holding all of it in memory.

    Raises:
      FileNotFoundError: The file does not exist.
      UnavailableError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, except hidden files and those in hidden folders.

    Links are followed; a folder that is reached by several paths is listed once.

    Raises:
      UnavailableError: A folder cannot be listed.
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
    """Create an empty folder, and delete what an earlier attempt has left in its place.

    The folder is not complete (`is_whole`) until its manifest is written.

    Raises:
      WorkdirError: The folder cannot be written.
    """
    with writing(folder):
        folder.rmtree(missing_ok=True)
        folder.mkdir(parents=True)


def is_whole(folder: Path) -> bool:
    """Return whether a folder is complete, which is when it has the manifest, written last."""
    return (folder / MANIFEST).exists()
