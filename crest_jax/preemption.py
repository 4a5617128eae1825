"""SIGTERM: what machines send before they are taken away, and what closing a terminal counts as."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import jax
from jax.experimental import multihost_utils

from crest_jax.errors import Preempted

# All steps that this process has made, since those of a generation begin anew and JAX's must not.
_steps = itertools.count(1)


@contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises `Preempted` wherever the program is.

    So does the closing of its terminal (SIGHUP), unless that was to be ignored, as after `nohup`.
    Nothing is lost by that: what is not whole is made anew. Where it was, others may make another
    error of it.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone can handle signals
        yield
        return
    stopped: list[Preempted] = []

    def stop(signum, frame):
        stopped.append(Preempted("stopped by SIGTERM; run the same command again to continue"))
        raise stopped[0]

    with _handled_as_sigterm(signal.SIGHUP), ExitStack() as held:
        if not jax.distributed.is_initialized():  # or else JAX takes care of the signal
            held.enter_context(_handler(signal.SIGTERM, stop))
        try:
            yield
        except Exception as error:
            if stopped and not isinstance(error, Preempted):
                raise stopped[0] from error
            raise


@contextmanager
def deferred_sigterm() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM only makes the function that this yields return True.

    Several hosts all ask it after every step, and it says the same on all of them, whichever was
    told to stop. A SIGTERM that nobody asked about is raised again on leaving; with several hosts,
    it is heard after the next step.
    """
    if jax.distributed.is_initialized():  # JAX takes care of the signal
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_steps))
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received = False

    def note(signum, frame):
        nonlocal received
        received = True

    with _handler(signal.SIGTERM, note):
        yield lambda: received
    if received:
        signal.raise_signal(signal.SIGTERM)


def _handled_as_sigterm(number: signal.Signals) -> AbstractContextManager:
    if signal.getsignal(number) == signal.SIG_IGN:
        return nullcontext()
    return _handler(number, lambda signum, frame: signal.raise_signal(signal.SIGTERM))


@contextmanager
def _handler(number: signal.Signals, handler: Callable) -> Iterator[None]:
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
