"""Record a small data folder of this version, to be kept as test data: `python tools/record_folder.py`.

It becomes `tests/data/folders/<version>.tar.xz`, with everything that a folder can hold: a sealed segment and one whose
recorder was killed, a cursor that went back and one that never moved, a dead letter, waiting events, gaps, Parquet
files, the caches. `expected/` beside it has what this version answers to queries, which later ones have to answer too.

Run it when the version is released, and before that whenever the form of the files changes. Takes half a minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tickvault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDERS: Final = Path(__file__).resolve().parent.parent / "tests" / "data" / "folders"
PROGRAM: Final = str(Path(sys.executable).with_name("tickvault"))
QUERIES: Final = {
    "ticks": "SELECT * FROM ticks ORDER BY seq, instrument_key",
    "candles": "SELECT * FROM candles ORDER BY seq, instrument_key, interval, time",
    "market_status": "SELECT * FROM market_status ORDER BY seq, scope, segment",
    "instruments": "SELECT * FROM instruments ORDER BY valid_from_seq, instrument_key",
    # The last one lasts until the next start, whenever that is.
    "gaps": "SELECT * FROM gaps WHERE closed_at IS NOT NULL ORDER BY opened_at, scope, subject",
}
_NOBODY: Final = "http://127.0.0.1:9"  # the discard port, where nothing listens
_WITHIN_S: Final = 60


def main() -> None:
    """Record, ask, pack."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        environ = _settings(data)
        first = _run(folder, environ, "garbage", frames=60)
        _run(folder, environ, "close-1000", frames=first + 60)
        _call("rewind", "--sink", "parquet", "--to-seq", str(first), "--data-dir", str(data))
        _run(folder, environ, "steady", frames=first + 100, how=signal.SIGKILL)
        _call("token", "set", "--data-dir", str(data), given="not-a-token-of-anybody\n")
        _pack(data)


def _run(
    folder: Path, environ: dict[str, str], script: str, *, frames: int, how: signal.Signals = signal.SIGTERM
) -> int:
    """Record until the journal has so many frames, end it, and return how many it has."""
    data = folder / "data"
    with _simulator(folder, script) as url, _recorder({**environ, **_of_broker(url)}, folder) as process:
        _wait(lambda: _stats(data)["last_seq"] >= frames, f"{frames} frames")
        process.send_signal(how)
        process.wait(_WITHIN_S)
    return int(_stats(data)["last_seq"])


def _pack(data: Path) -> None:
    # Asked of a copy: a reader of a killed recorder's folder rolls back what that left half done.
    with tempfile.TemporaryDirectory() as name:
        copy, expected = Path(name) / "data", Path(name) / "expected"
        shutil.copytree(data, copy)
        expected.mkdir()
        for table, sql in QUERIES.items():
            (expected / f"{table}.csv").write_text(
                _call("query", sql, "--format", "csv", "--data-dir", str(copy)), encoding="utf-8"
            )
        counts = {key: value for key, value in _stats(copy).items() if key in {"recorder_id", "frames", "last_seq"}}
        (expected / "stats.json").write_text(json.dumps(counts), encoding="utf-8")
        FOLDERS.mkdir(parents=True, exist_ok=True)
        target = FOLDERS / f"{tickvault.__version__}.tar.xz"
        with tarfile.open(target, "w:xz", preset=9) as archive:
            archive.add(data, "data", filter=_anonymous)
            archive.add(expected, "expected", filter=_anonymous)
    print(f"{target}: {target.stat().st_size // 1024} kB, {counts['frames']} frames")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out who recorded it, and the shared memory of SQLite, which is made anew."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return None if member.name.endswith("-shm") else member


def _settings(data: Path) -> dict[str, str]:
    return {
        "UPSTOX_ACCESS_TOKEN": "recorded",
        "TICKVAULT_DATA_DIR": str(data),
        "TICKVAULT_HTTP": "off",
        "TICKVAULT_SINKS": "parquet,influx",
        "TICKVAULT_SHUTDOWN_S": "2",
        "INFLUX_URL": _NOBODY,
        "INFLUX_BUCKET": "ticks",
        "TICKVAULT_NOTIFY_URL": _NOBODY,
        "TICKVAULT_NOTIFY_INTERVAL_S": "0",
    }


def _of_broker(url: str) -> dict[str, str]:
    return {
        "UPSTOX_API_URL": url,
        "UPSTOX_INSTRUMENTS_URL": f"{url}/market-quote/instruments/exchange/complete.json.gz",
        "TICKVAULT_INSTRUMENTS_URL": f"{url}/instruments",
    }


@contextlib.contextmanager
def _simulator(folder: Path, script: str) -> Iterator[str]:
    words = ["simulate", "--port", "0", "--instruments", "6", "--updates-per-second", "40", "--script", script]
    log = folder / f"{script}.out"
    with _started(words, {}, log):
        _wait(lambda: "listening on" in log.read_text(), "the simulator")
        yield re.findall(r"listening on (http://\S+)", log.read_text())[0]


@contextlib.contextmanager
def _recorder(environ: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with _started(["run"], environ, folder / "recorder.out") as process:
        yield process


@contextlib.contextmanager
def _started(words: list[str], environ: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        process = subprocess.Popen(
            [PROGRAM, *words], env={**_clean(), **environ}, cwd=log.parent, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(_WITHIN_S)


def _call(*words: str, given: str | None = None) -> str:
    done = subprocess.run(
        [PROGRAM, *words, "--env-file", "/dev/null"], env=_clean(), input=given, capture_output=True, text=True,
        timeout=_WITHIN_S, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"tickvault {words[0]}: {done.stderr}")
    return done.stdout


def _stats(data: Path) -> dict[str, Any]:
    if not any((data / "journal").glob("*.db")):
        return {"last_seq": 0}
    stats: dict[str, Any] = json.loads(_call("journal", "stats", "--json", "--data-dir", str(data)))
    return stats


def _clean() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


def _wait(probe: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + _WITHIN_S
    while not probe():
        if time.monotonic() > deadline_s:
            sys.exit(f"{what}: not within {_WITHIN_S} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
