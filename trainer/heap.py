"""The C library's heap, which keeps what was freed, in pieces of which the next step may find none that is large enough."""

import ctypes
import sys
from typing import Any

_library: Any = ctypes.CDLL(None) if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim") else None
"""glibc; others give back by themselves."""

_M_MMAP_THRESHOLD = -3  # as mallopt knows it
_MOST = 32 * 2**20  # bytes; a higher threshold the library refuses
LARGE = 4 * 2**20
"""Bytes of a block: gaps of smaller ones do no harm, and small models have no time to clear pages."""


def map_large_blocks(size: int) -> None:
    """Have blocks of about `size` bytes and more come from the system and go back to it one by one, so that they leave no gaps.

    RuntimeError where the library refuses.
    """
    threshold = min(size, _MOST)
    if _library and not _library.mallopt(_M_MMAP_THRESHOLD, threshold):
        raise RuntimeError(f"mallopt refuses a threshold of {threshold:,} bytes")


def give_back_free_memory() -> None:
    """Give free memory to the system, which has to clear what is asked for next: so when little is free, or much is needed."""
    if _library:
        _library.malloc_trim(0)
