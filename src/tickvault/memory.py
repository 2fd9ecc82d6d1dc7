"""How a long-lived process keeps its memory: set once, before threads are started."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["keep_room", "settle", "settle_started"]

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
_ALONE_BYTES: Final = 128 * 1024
_STARTED_ALONE_BYTES: Final = 4 * 1024 * 1024  # what a batch for InfluxDB takes in one piece
_SPARE_BYTES: Final = 8 * 1024 * 1024  # what is beyond goes back in one go: 32 MB held the event loop for 10 ms
_RARELY: Final = 1000  # a full collection to so many of the next smaller kind; ten is usual
_STARTED_S: Final = 10.0  # by then definitions, books and what readers know of 5,000 instruments are made


def settle() -> None:
    """Hold memory to what is used, and the event loop from standing still for the garbage collector.

    Decoding goes through several threads. With an arena of its own for each, and a pool of Arrow's beside them, every
    one keeps room for the largest batch that it ever had. What is large goes back as soon as it is free: left alone, glibc
    takes that for waste and keeps more and more of it.
    What is imported by now stays: a full collection would go through it each time, for 30 ms.
    """
    _allocate({_M_ARENA_MAX: _ARENAS, _M_MMAP_THRESHOLD: _ALONE_BYTES})
    pa.set_memory_pool(pa.system_memory_pool())
    gc.freeze()


async def settle_started(receives: Callable[[], bool]) -> None:
    """Spare what a start has made, too, once it is over: a task of its own, which ends by itself.

    Definitions and books of 5,000 instruments are 40,000 objects that stay. A full collection goes through them for 10 ms,
    in whichever thread it begins, and no other one runs Python meanwhile. While they are being made there is hardly one.
    """
    usual = gc.get_threshold()
    gc.set_threshold(*usual[:2], _RARELY)
    try:
        started = False
        while not started:
            started = receives()
            await asyncio.sleep(_STARTED_S)
        gc.freeze()  # with what little is garbage now: to look for it would be such a collection
    finally:
        gc.set_threshold(*usual)
    await asyncio.to_thread(_call, "malloc_trim", 0)  # what the start took goes back
    keep_room()


def keep_room() -> None:
    """Keep the memory of a batch for the next one, as far as it is not much.

    Memory that comes anew from the system each time is made zeros and mapped page by page, for a third of what encoding
    rows takes. What a start takes once is not kept: this comes after it.
    """
    _allocate({_M_MMAP_THRESHOLD: _STARTED_ALONE_BYTES, _M_TRIM_THRESHOLD: _SPARE_BYTES})


def _allocate(settings: Mapping[int, int]) -> None:
    for name, value in settings.items():
        _call("mallopt", name, value)


def _call(name: str, *given: int) -> None:
    with suppress(OSError, AttributeError):  # other libraries than glibc have no such functions
        getattr(ctypes.CDLL(None), name)(*given)
