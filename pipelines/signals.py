"""SIGTERM, which Terminate in the Kubeflow UI and a drained node send, as an exception, so that work is cleaned up."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM ended, as shells give it."""


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Raises SystemExit in the block on the first SIGTERM, and ignores any other while the block is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python has signals in the main thread alone
        return

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def defer_sigterm() -> Iterator[None]:
    """Defers SIGTERM until the block has ended; programs that the block starts do not get it from us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if received and before is not signal.SIG_IGN:
        raise SystemExit(TERMINATED)
