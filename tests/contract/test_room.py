"""A disk that is full, or nearly: no corrupt file, nothing dropped that was not asked for, and it goes on by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fulldisk import on_small_disk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("what", "size"), [("every_write", "16m"), ("stop", "20m"), ("drop", "20m")])
def test_on_a_real_full_disk(tmp_path: Path, what: str, size: str) -> None:
    """tests/filling.py says what each does."""
    on_small_disk(tmp_path / "disk", size, "filling", what)
