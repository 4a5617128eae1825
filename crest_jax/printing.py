"""What a run prints: the first host alone speaks, and not where it was asked to be quiet."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from crest_jax import hosts

# Whether nothing is printed in this context, which is that of a call in a thread.
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep `say` and progress bars from printing anything, within this context."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def speaks() -> bool:
    """Return whether this host prints what it does: the first host does, unless within `quiet`."""
    return hosts.is_first() and not _QUIET.get()


def say(text: str) -> None:
    """Print a line on the first host, unless within `quiet`."""
    if speaks():
        print(text, flush=True)
