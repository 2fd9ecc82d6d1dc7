"""What a recorder does for its store while nothing trades: closed days are compacted, in a process of their own.

Memory that sorting takes is gone with the process, the loop is not held up by it, and it can be killed at any time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from tickvault import compaction, survey
from tickvault.errors import TickvaultError
from tickvault.model import IST
from tickvault.sinks.parquet import scan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tickvault.settings import DiskReserve

__all__ = ["NightWork"]

_log: Final = structlog.get_logger(__name__)
_LOOK_S: Final = 10.0  # whether trading begins
_AGAIN_S: Final = 3600.0  # what was left is tried again
# What of our environment the process gets: it needs no secret.
_ENVIRONMENT: Final = frozenset(
    {"PATH", "LANG", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
)


class NightWork:
    """Has closed days compacted; one task.

    Args:
        data_dir: the recorder's folder.
        reserve: what is to stay free on the disk.
        quiet: whether nothing trades, at a time in ns of the UTC wall clock, or soon.
        wall_ns: UTC wall clock in ns.
    """

    def __init__(
        self, data_dir: Path, *, reserve: DiskReserve, quiet: Callable[[int], bool], wall_ns: Callable[[], int]
    ) -> None:
        self._data_dir = data_dir
        self._reserve = reserve
        self._quiet = quiet
        self._wall_ns = wall_ns
        self._told: set[str] = set()

    async def keep(self) -> None:
        """Run until cancelled; what is under way then is killed, which costs nothing but its work."""
        loop = asyncio.get_running_loop()
        again_s = loop.time()
        while True:
            if loop.time() >= again_s and self._quiet(self._wall_ns()):
                try:
                    if await asyncio.to_thread(self._is_due):
                        await self._compact()
                except (OSError, ValueError) as exc:  # no process to be had: recording does not end for it
                    self._warn(error=f"{type(exc).__name__}: {exc}")
                again_s = loop.time() + _AGAIN_S
            await asyncio.sleep(_LOOK_S)

    def _is_due(self) -> bool:
        """Tell whether there is anything to do; not while frames of a closed day are still to be stored."""
        today = dt.datetime.fromtimestamp(self._wall_ns() / 1e9, IST).date()
        midnight_ns = int(dt.datetime.combine(today, dt.time(), IST).timestamp()) * 1_000_000_000
        with suppress(TickvaultError):  # whoever reads the journal tells of it
            known = compaction.stored(self._data_dir)
            if known is None or known.seq < survey.last_seq_before(self._data_dir / "journal", midnight_ns):
                return False
            return bool(compaction.plan(scan(self._data_dir / "parquet"), known, before=today.isoformat()))
        return False

    async def _compact(self) -> None:
        reserve_bytes = self._reserve.of(shutil.disk_usage(self._data_dir).total)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tickvault.compaction",
            *(str(one) for one in (self._data_dir.absolute(), self._wall_ns(), reserve_bytes)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name in _ENVIRONMENT} | compaction.ENVIRONMENT,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            while True:
                try:
                    line = await asyncio.wait_for(process.stdout.readline(), _LOOK_S)
                except TimeoutError:
                    line = None
                if line:
                    self._tell(json.loads(line))
                elif line is not None:
                    break
                if not self._quiet(self._wall_ns()):
                    _log.info("parquet.compaction_ended", reason="trading begins")
                    return
            said = (await process.stderr.read()).decode(errors="replace").strip()
            if await process.wait():
                self._warn(error=said.rpartition("\n")[2] or f"exit {process.returncode}")
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    def _tell(self, one: dict[str, object]) -> None:
        if "reason" in one:
            self._warn(**one)
        else:
            _log.info("parquet.compacted", **one)

    def _warn(self, **said: object) -> None:
        """Tell what was not done, once."""
        if (text := str(said)) not in self._told:
            self._told.add(text)
            _log.warning("parquet.not_compacted", **said)
