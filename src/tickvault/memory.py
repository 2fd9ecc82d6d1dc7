"""How a long-lived process keeps its memory: set once, before threads are started."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from typing import Final

import pyarrow as pa

__all__ = ["settle"]

_M_ARENA_MAX: Final = -8  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_ARENAS: Final = 2
_ALONE_BYTES: Final = 128 * 1024


def settle() -> None:
    """Hold memory to what is used, and the event loop from standing still for the garbage collector.

    Decoding goes through several threads. With an arena of its own for each, and a pool of Arrow's beside them, every
    one keeps room for the largest batch that it ever had. What is large goes back as soon as it is free: left alone, glibc
    takes that for waste and keeps more and more of it.
    What is imported by now stays: a full collection would go through it each time, for 30 ms.
    """
    with suppress(OSError, AttributeError):  # other libraries than glibc have no arenas
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, _ARENAS)
        library.mallopt(_M_MMAP_THRESHOLD, _ALONE_BYTES)
    pa.set_memory_pool(pa.system_memory_pool())
    gc.freeze()
