"""Handle SIGTERM, which is sent before a machine is taken away; closing a terminal counts as it."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FrameType
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from crest_jax.errors import Preempted

# Counts all steps of this process: the step numbers of each generation start again from the
# beginning, and those that JAX is given must not.
_steps = itertools.count(1)


@contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """Raise `Preempted` when SIGTERM arrives in the block, wherever the program is.

    The closing of the terminal (SIGHUP) does the same, unless that signal is ignored, as after
    `nohup`. Nothing is lost: whatever is incomplete is rebuilt. If the code that was interrupted
    turns `Preempted` into another error, `Preempted` is raised instead of that.
    """
    if threading.current_thread() is not threading.main_thread():  # only it can handle signals
        yield
        return
    stopped: list[Preempted] = []

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        stopped.append(Preempted("stopped by SIGTERM; run the same command again to continue"))
        raise stopped[0]

    with _handled_as_sigterm(signal.SIGHUP), ExitStack() as held:
        if not jax.distributed.is_initialized():  # otherwise JAX handles the signal
            held.enter_context(_handler(signal.SIGTERM, stop))
        try:
            yield
        except Exception as error:
            if stopped:
                raise stopped[0] from error
            raise


@contextmanager
def deferred_sigterm() -> Iterator[Callable[[], bool]]:
    """Defer SIGTERM in the block; yield a function that returns whether it has arrived.

    Several hosts must all call this function after every group of steps; it returns the same on all
    of them, whichever host received the signal. On leaving the block without an error, a SIGTERM
    that arrived in it is raised again; with several hosts, it is noticed after the next group of
    steps instead.
    """
    if jax.distributed.is_initialized():  # JAX handles the signal
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_steps))
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True

    with _handler(signal.SIGTERM, note):
        yield lambda: received
    if received:
        signal.raise_signal(signal.SIGTERM)


def _handled_as_sigterm(number: signal.Signals) -> AbstractContextManager[None]:
    if signal.getsignal(number) == signal.SIG_IGN:
        return nullcontext()
    return _handler(number, lambda signum, frame: signal.raise_signal(signal.SIGTERM))


@contextmanager
def _handler(
    number: signal.Signals, handler: Callable[[int, FrameType | None], Any]
) -> Iterator[None]:
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        # None where another program has set one that Python does not know.
        signal.signal(number, signal.SIG_DFL if previous is None else previous)
