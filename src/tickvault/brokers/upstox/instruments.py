"""What the exchanges' master list says of instruments.

The list (3 MB gzip, 54 MB JSON, 118,000 rows) is kept on disk as downloaded, so that a start without network
knows its symbols. It is read on a thread: 0.6 s.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import threading
import time
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
from yarl import URL

from tickvault.brokers.upstox.api import get
from tickvault.brokers.upstox.masterlist import DamagedListError, parse, rows, scan
from tickvault.brokers.upstox.shortfall import by_segment, lost_rows
from tickvault.durable import replace_file
from tickvault.errors import FeedUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    import aiohttp

    from tickvault.model import Definition

__all__ = ["COPY", "InstrumentList", "definitions", "read_copy"]

MAX_LIST_BYTES: Final = 128 * 1024 * 1024  # as received; 3.2 MB gzip or 55 MB plain today
DOWNLOAD_TIMEOUT_S: Final = 120.0
REFRESH_AFTER_S: Final = 1800.0  # the list changes about 06:00 IST and now and then during the day
RETRY_AFTER_S: Final = 300.0  # reconnects in a row must not each wait for a list that cannot be had

COPY: Final = "instruments.json.gz"  # in the data folder
KEPT: Final = "instruments.kept.json.gz"  # rows that it has lost (shortfall.py); only there while it has

_T = TypeVar("_T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def read_copy(cache_dir: Path, use: Callable[[Iterator[Definition]], _T]) -> _T | None:
    """Return what `use` makes of the copy on disk; None when there is none, or it is damaged. Blocks."""
    try:
        copy, kept = (cache_dir / COPY).read_bytes(), _read_kept(cache_dir)
        return use(chain(scan(copy), scan(kept) if kept else ()))
    except FileNotFoundError:
        return None
    except (DamagedListError, UnicodeDecodeError, OSError) as exc:
        log.warning("instruments.damaged", error=str(exc))
        return None


class InstrumentList:
    """The master list: a copy on disk, refreshed from its URL.

    Args:
        url: where the list is.
        cache_dir: the copy is `instruments.json.gz` in it, the server's ETag beside it.
        session: the program's HTTP session; not closed here.
        monotonic_s: monotonic clock in seconds.
        wall_ns: UTC wall clock in ns.

    Attributes:
        lost: segment → rows that the list has lost and that are kept beside it; of segments that have lost much, and
            known when it was compared.

    Guarantees:
        The copy is replaced in one step by one that was read to its end; a failed refresh leaves it.
    """

    def __init__(
        self,
        *,
        url: str,
        cache_dir: Path,
        session: aiohttp.ClientSession,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.lost: dict[str, int] = {}
        self._wall_ns = wall_ns
        self._url = URL(url)
        self._path = cache_dir / COPY
        self._etag_path = cache_dir / f"{COPY}.etag"
        self._session = session
        self._monotonic_s = monotonic_s
        self._refreshing = asyncio.Lock()
        self._refreshed_s: float | None = None
        self._tried_s: float | None = None
        # What is known of the copy with this stamp; None: the key is not in it. Spares each reconnect the reading.
        self._stamp: tuple[int, int] | None = None
        self._known: Mapping[str, Definition | None] = {}

    @property
    def fresh(self) -> bool:
        """Whether the copy was compared with its URL within the last half hour."""
        return self._refreshed_s is not None and self._monotonic_s() - self._refreshed_s < REFRESH_AFTER_S

    async def refresh(self, keys: Collection[str] = ()) -> bool:
        """Download the list if it changed; return whether it did. Takes as long as it takes, up to two minutes.

        Args:
            keys: what it says of these is remembered, since it is read to its end anyway.

        Raises:
            FeedUnavailable: it could not be had, is not a whole list, or cannot be kept on the disk.
        """
        async with self._refreshing:
            try:
                etag = await asyncio.to_thread(_read_etag, self._path, self._etag_path)
                headers = {"Accept-Encoding": "identity", **({"If-None-Match": etag} if etag else {})}
                answer = await get(
                    self._session,
                    self._url,
                    what="the instrument list",
                    headers=headers,
                    timeout_s=DOWNLOAD_TIMEOUT_S,
                    max_bytes=MAX_LIST_BYTES,
                )
                if answer.status not in (200, 304):
                    raise FeedUnavailable(f"the instrument list answers with HTTP {answer.status}")
                if answer.status == 200:
                    etag = answer.headers.get("ETag", "")
                    self._stamp, self._known = await asyncio.to_thread(
                        _keep, answer.body, etag, self._path.parent, self._wall_ns() / 1e6, keys
                    )
                lost = await asyncio.to_thread(_count_kept, self._path.parent)
            except (DamagedListError, UnicodeDecodeError) as exc:
                raise FeedUnavailable(f"the instrument list is not whole: {exc}") from exc
            except OSError as exc:
                raise FeedUnavailable(f"the instrument list cannot be kept: {exc.strerror}") from exc
            self._refreshed_s = self._monotonic_s()
            if lost != self.lost:
                self.lost = lost
                if lost:
                    log.warning("instruments.lost", rows=lost)
                else:
                    log.info("instruments.whole")
            return answer.status == 200

    async def version(self) -> object:
        """Return something that is equal as long as the copy on disk is the same; None without one."""
        try:
            return _stamp(await asyncio.to_thread(self._path.stat))
        except OSError:
            return None

    async def read(self, use: Callable[[Iterator[Definition]], _T]) -> _T | None:
        """Return what `use` makes of the copy on disk, on a thread; None when there is none, or it is damaged."""
        found = await asyncio.to_thread(read_copy, self._path.parent, use)
        if found is None and await self.version() is not None:
            await asyncio.to_thread(self._etag_path.unlink, missing_ok=True)
            self._refreshed_s = None
        return found

    async def lookup(self, keys: Collection[str]) -> dict[str, Definition]:
        """Return what the copy on disk says of the keys; empty without a copy, or when it is damaged."""
        halt = threading.Event()  # a thread cannot be cancelled, only asked to end
        try:
            return await asyncio.to_thread(self._lookup, tuple(keys), halt.is_set)
        except FileNotFoundError:
            return {}
        except (DamagedListError, UnicodeDecodeError, OSError) as exc:
            # Without its ETag the copy is downloaded again, whole.
            await asyncio.to_thread(self._etag_path.unlink, missing_ok=True)
            self._refreshed_s = None
            log.warning("instruments.damaged", error=str(exc))
            return {}
        finally:
            halt.set()

    def _lookup(self, keys: tuple[str, ...], halted: Callable[[], bool]) -> dict[str, Definition]:
        with self._path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            known = dict(self._known) if stamp == self._stamp else {}
            missing = [key for key in keys if key not in known]
            if missing:
                found = parse(file.read(), missing, halted=halted)
                if kept := _read_kept(self._path.parent):
                    found |= parse(kept, [key for key in missing if key not in found], halted=halted)
                known |= {key: found.get(key) for key in missing}
        if not halted():
            self._stamp, self._known = stamp, {key: known[key] for key in keys}
        return {key: definition for key in keys if (definition := known[key]) is not None}

    async def definitions(self, keys: Collection[str], *, timeout_s: float = 5.0) -> dict[str, Definition]:
        """Return the definitions to be had within timeout_s: of a refreshed list, else of the copy, else none.

        Never raises for a list that cannot be had: data without symbols is better than no data. When `fresh` is
        still false afterwards, call `refresh` and `lookup` again while recording.
        """
        started_s = self._monotonic_s()
        error = "not to be had a moment ago"
        try:
            if not self.fresh and (self._tried_s is None or started_s - self._tried_s >= RETRY_AFTER_S):
                self._tried_s = started_s
                # Half the time is for the reading: 0.6 s measured on a server core, several times that on a small one.
                async with asyncio.timeout(timeout_s / 2):
                    await self.refresh(keys)
        except TimeoutError:
            error = "the download takes longer"
        except FeedUnavailable as exc:
            error = str(exc)
        found: dict[str, Definition] = {}
        try:
            async with asyncio.timeout(max(0.0, timeout_s - (self._monotonic_s() - started_s))):
                found = await self.lookup(keys)
        except TimeoutError:
            error = "reading the copy takes longer"
        if not found and keys:
            log.warning("instruments.unavailable", error=error, keys=len(keys))
        elif not self.fresh:
            log.warning("instruments.from_copy", error=error, keys=len(keys), known=len(found))
        return found


async def definitions(
    keys: Collection[str], *, url: str, cache_dir: Path, session: aiohttp.ClientSession, timeout_s: float = 5.0
) -> dict[str, Definition]:
    """Return the definitions to be had within timeout_s, once; see InstrumentList.definitions."""
    listing = InstrumentList(url=url, cache_dir=cache_dir, session=session)
    return await listing.definitions(keys, timeout_s=timeout_s)


def _read_etag(path: Path, etag_path: Path) -> str | None:
    """Return the ETag of the copy, None when there is no copy to keep."""
    if not path.exists() or not etag_path.exists():
        return None
    etag = etag_path.read_text(encoding="utf-8", errors="replace").strip()
    return etag if re.fullmatch(r"[!-~]{1,256}", etag) else None


def _read_kept(folder: Path) -> bytes:
    try:
        return (folder / KEPT).read_bytes()
    except FileNotFoundError:
        return b""


def _count_kept(folder: Path) -> dict[str, int]:
    kept = _read_kept(folder)
    return by_segment(rows(kept)) if kept else {}


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_mtime_ns, stat.st_ino


def _keep(
    body: bytes, etag: str, folder: Path, now_ms: float, keys: Collection[str] = ()
) -> tuple[tuple[int, int], dict[str, Definition]]:
    """Keep a list that was read to its end; return its stamp, and what it says of some keys."""
    # A server may undo the compression on the way (Content-Encoding: gzip), or have the list uncompressed.
    gz = body if body.startswith(b"\x1f\x8b") else gzip.compress(body, compresslevel=3)
    listed: set[str] = set()
    found = parse(gz, keys, listed=listed)
    lost = _lost(folder, listed, now_ms)
    if lost is None:
        (folder / KEPT).unlink(missing_ok=True)
    else:
        replace_file(folder / KEPT, lost)
    # The list first: an old ETag beside a new list costs a download, a new one beside an old list would keep it for ever.
    replace_file(folder / COPY, gz)
    replace_file(folder / f"{COPY}.etag", etag.encode())
    return _stamp((folder / COPY).stat()), found


def _lost(folder: Path, listed: set[str], now_ms: float) -> bytes | None:
    try:
        copy, kept = (folder / COPY).read_bytes(), _read_kept(folder)
        return lost_rows(lambda: chain(rows(copy), rows(kept) if kept else ()), listed, now_ms)
    except (OSError, DamagedListError, UnicodeDecodeError):
        return None  # nothing to compare with
