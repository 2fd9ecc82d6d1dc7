"""What all tests share."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest
import virtualtime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

virtualtime.clock.install()

pytest_plugins = ["servers"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Crash and end-to-end tests start processes and may take their time; unit tests may not."""
    for item in items:
        folder = item.path.relative_to(item.config.rootpath / "tests").parts[0]
        if folder in {"unit", "contract"} and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(30))


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Let those marked `virtual` run in virtual time."""
    if item.get_closest_marker("virtual"):
        return {"virtual": virtualtime.VirtualLoop}
    return {"real": asyncio.new_event_loop}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Say loudly what was skipped; in CI nothing may be."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_sep(
            "!", f"{len(skipped)} TESTS SKIPPED: what they prove is not proved by this run", red=True
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a CI run that skipped anything."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = 1


@pytest.fixture
def now_ms() -> int:
    """The wall clock in ms, for frames that have to be of today."""
    return time.time_ns() // 1_000_000
