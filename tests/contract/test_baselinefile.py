"""What is usual is kept from one start to the next, and its loss is no fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from tickvault.brokers.upstox.baselinefile import BaselineFile

if TYPE_CHECKING:
    from pathlib import Path


async def test_what_is_learned_is_there_at_the_next_start(tmp_path: Path) -> None:
    """Written when there is something new, readable by its owner only."""
    path = tmp_path / "baseline.json"
    file = BaselineFile(path)
    await file.write()
    file.baseline.learn("NSE_EQ", 10, 600, 7.0)
    await file.write()
    assert path.stat().st_mode & 0o777 == 0o600
    again = BaselineFile(path)
    assert again.baseline.usual("NSE_EQ", 10, 600) == 7.0
    path.unlink()
    await again.write()
    assert not path.exists(), "nothing new, nothing written"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"segments": {"A": 3}}', b"[" * 100_000])
def test_damaged_file_is_learned_anew(tmp_path: Path, content: bytes) -> None:
    """It is said, and no more."""
    path = tmp_path / "baseline.json"
    path.write_bytes(content)
    with capture_logs() as logs:
        assert BaselineFile(path).baseline.usual("NSE_EQ", 10, 600) is None
    assert [entry["event"] for entry in logs] == ["baseline.unreadable"]


async def test_folder_that_takes_nothing(tmp_path: Path) -> None:
    """It is said, and tried again the next time."""
    file = BaselineFile(tmp_path / "folder" / "baseline.json")
    (tmp_path / "folder").write_text("a file")
    file.baseline.learn("NSE_EQ", 10, 600, 7.0)
    with capture_logs() as logs:
        await file.write()
        await file.write()
    assert [entry["event"] for entry in logs] == ["baseline.unwritten"] * 2
