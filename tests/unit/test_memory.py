"""Where a process takes its memory."""

from __future__ import annotations

import subprocess
import sys


def test_arrow_takes_its_memory_where_python_does() -> None:
    """Settled before Arrow is loaded: afterwards its Parquet writer would go on with a pool of its own."""
    script = (
        "import sys; from tickvault.__main__ import arrange; assert 'pyarrow' not in sys.modules; arrange();"
        "import pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={})
    assert done.stdout.strip() == "system"


def test_what_a_start_has_made_is_spared_by_collections() -> None:
    """Once something was received."""
    script = (
        "import asyncio, gc; from tickvault import memory; memory._STARTED_S = 0.0;"
        "looks = iter([False, False, True]); made = [[] for _ in range(50_000)]; before = gc.get_freeze_count(); usual = gc.get_threshold();"
        "asyncio.run(memory.settle_started(lambda: next(looks)));"
        "print(gc.get_freeze_count() - before >= 50_000, *looks, gc.get_threshold() == usual)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={})
    assert done.stdout.strip() == "True True"
