"""SIGTERM: what machines send before they are taken away."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from crest_jax.errors import Preempted


@contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises `Preempted` wherever the program is.

    Nothing is lost by that: every file is written beside its place, then renamed.
    """

    def stop(signum, frame):
        raise Preempted("stopped by SIGTERM; run the same command again to continue")

    if jax.process_count() > 1:
        yield
        return
    with _handler(stop):
        yield


@contextmanager
def deferred_sigterm() -> Iterator[Callable[[int], bool]]:
    """Within, SIGTERM only makes the function that this yields return True.

    The function is asked after every step, with its number, and says the same on all hosts,
    whichever was told to stop. A SIGTERM that nobody asked about is raised again on leaving.
    """
    if jax.process_count() > 1:  # where JAX takes care of the signal
        yield multihost_utils.reached_preemption_sync_point
        return
    received = False

    def note(signum, frame):
        nonlocal received
        received = True

    with _handler(note):
        yield lambda step: received
    if received:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def _handler(handler: Callable) -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
