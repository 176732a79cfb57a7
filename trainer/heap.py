"""The C library's heap, which keeps what was freed, in pieces of which the next step may find none that is large enough."""

import ctypes
import sys
from typing import Any

_library: Any = ctypes.CDLL(None) if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim") else None
"""glibc; others give back by themselves."""

_M_MMAP_THRESHOLD = -3  # as mallopt knows it
_LARGE = 6_000_000  # bytes: of less the system would clear more pages than pays, of more gaps are left (measured)


def map_large_blocks() -> None:
    """Have large blocks come from the system and go back to it one by one, from now on, so that they leave no gaps.

    RuntimeError where the library refuses.
    """
    if _library and not _library.mallopt(_M_MMAP_THRESHOLD, _LARGE):
        raise RuntimeError(f"mallopt refuses a threshold of {_LARGE:,} bytes")


def give_back_free_memory() -> None:
    """Give free memory to the system, which has to clear what is asked for next: not for every step."""
    if _library:
        _library.malloc_trim(0)
