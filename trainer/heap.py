"""The C library's heap, which keeps what was freed, in pieces of which the next step may find none that is large enough."""

import ctypes
import sys
from collections.abc import Callable

_trim: Callable[[int], int] | None = (
    getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
)  # of glibc; others give back by themselves


def give_back_free_memory() -> None:
    """Give free memory to the system, which has to clear what is asked for next: not for every step."""
    if _trim:
        _trim(0)
