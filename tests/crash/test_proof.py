"""The questions of `make proof`, each at a size that fits into a minute (docs/reliability.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proof import collapse, damage, faults, fuzz, kills, poison, power, rebuild, soak

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("question", "sizes"),
    [
        pytest.param(kills, {"rounds": 5, "longest_s": 3.0}, id="kills"),
        pytest.param(power, {"rounds": 4, "frames": 60}, id="power"),
        pytest.param(damage, {"rounds": 60}, id="damage"),
        pytest.param(collapse, {}, id="collapse"),
        pytest.param(faults, {"minutes": 0.6}, id="faults"),
        pytest.param(poison, {}, id="poison"),
        pytest.param(fuzz, {"frames": 3000}, id="fuzz"),
        pytest.param(rebuild, {"frames": 80}, id="rebuild"),
        pytest.param(soak, {"minutes": 0.3, "times": 2.0, "instruments": 200}, id="soak"),
    ],
)
def test_nothing_is_lost_and_nothing_is_there_twice(
    question: ModuleType, sizes: dict[str, float], tmp_path: Path
) -> None:
    """Zero of both, and nothing else amiss."""
    answer = question.ask(tmp_path, **sizes)
    print(answer)
    assert answer.holds, answer
    assert answer.ran
