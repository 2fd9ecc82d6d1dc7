"""Whatever the umask, what a recorder and the commands beside it make is its owner's alone."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from programs import PROGRAM, Running, environ_for, fed, simulator, stats
from servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def under(umask: str) -> tuple[str, ...]:
    """Return how to start the program under an umask."""
    return ("/bin/sh", "-c", f'umask {umask}; exec "$@"', "sh", str(PROGRAM))


def call(umask: str, *words: str, environ: Mapping[str, str], folder: Path, given: str = "") -> None:
    done = fed([*words], given, environ, folder, program=under(umask))
    assert done.returncode in {0, 1}, done.stderr
    assert "bug" not in done.stderr


@pytest.mark.parametrize("umask", ["000", "777"])
def test_files_are_private(tmp_path: Path, umask: str) -> None:
    """Journal, logs of SQLite, state, Parquet, caches, log file, token, what was damaged: 0600 in folders of 0700."""
    data, made = tmp_path / "a" / "data", tmp_path / "a"
    with simulator(tmp_path, "--instruments", "5") as (url, _):
        environ = environ_for(url, data, TICKVAULT_LOG_FILE=str(made / "logs" / "run.log"), TICKVAULT_SINKS="parquet")
        before = 0
        for round_ in ("first", "killed", "damaged"):
            running = Running(["run"], environ, tmp_path, f"recorder-{round_}", program=under(umask))
            try:
                wait_until(
                    lambda before=before, running=running: (  # type: ignore[misc]
                        ("recorder.started" in running.said() and stats(data)["last_seq"] > before) or not running.alive
                    ),
                    "it records",
                )
                assert running.alive, running.said()
                # While it runs there are logs and shared memory beside the segment.
                assert private(made) > 8
                if round_ == "killed":
                    running.kill()
                else:
                    assert running.stop() == 0, running.said()
            finally:
                if running.alive:
                    running.kill()
            before = stats(data)["last_seq"]
            if round_ == "killed":
                (data / "state.db").write_bytes(b"garbage" * 3000)  # is set aside by the next start
        call(umask, "token", "set", environ=environ, folder=tmp_path, given="a-token\n")
        for words in (["query", "SELECT 1"], ["status"], ["check"], ["journal", "verify"], ["day"]):
            call(umask, *words, environ=environ, folder=tmp_path)
        call(umask, "instruments", "search", "A", environ=environ, folder=tmp_path)
    names = {path.name for path in data.rglob("*")}
    assert {"token", "lock", "state.db", "calendar.json", "instruments.json.gz", "baseline.json"} <= names
    assert any(name.startswith("state.db.damaged") for name in names)
    assert any(name.endswith(".parquet") for name in names)
    assert private(made) > 20


def private(folder: Path) -> int:
    """Check every mode below a folder and return how many there were."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue  # a temporary file that has its name by now
        found[path] = (stat.S_IMODE(mode), 0o700 if stat.S_ISDIR(mode) else 0o600)
    assert {str(path): oct(is_) for path, (is_, wanted) in found.items() if is_ != wanted} == {}
    return len(found)
