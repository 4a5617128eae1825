"""SIGTERM: what machines send before they are taken away."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crest_jax.errors import Preempted


@contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises `Preempted` wherever the program is.

    Nothing is lost by that: every file is written beside its place, then renamed.
    """

    def stop(signum, frame):
        raise Preempted("stopped by SIGTERM; run the same command again to continue")

    with _handler(stop):
        yield


@contextmanager
def deferred_sigterm() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM only makes the function that this yields return True.

    One that nobody asked about is raised again on leaving.
    """
    received = False

    def note(signum, frame):
        nonlocal received
        received = True

    with _handler(note):
        yield lambda: received
    if received:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def _handler(handler: Callable) -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
