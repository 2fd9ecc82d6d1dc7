"""Bits that flip, pages of zeros and files cut short, anywhere in a journal and its state: what is left is what was written.

A folder as a killed recorder leaves it, with pruned, sealed and open segments and a log, is damaged in one of its files, a
copy for each round; its state may be lost beside that, or be that of yesterday (tests/property/test_salvage.py has the
round). It is opened, read and gone on with: a frame that is served is byte for byte the one that was committed, one that is
missing is in the ledger, and no seq comes twice.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from structlog.testing import capture_logs

from proof.rig import Answer, properties, seeded

if TYPE_CHECKING:
    from pathlib import Path

QUESTION: Final = "damage"
_MOST: Final = 20  # failures that are told


def ask(place: Path, *, rounds: int = 5000, seed: int | None = None) -> Answer:  # noqa: ARG001 - copies are in memory
    """Damage so many copies."""
    rng, seed = seeded(seed)
    answer, told = Answer(), Counter[str]()
    salvage = properties("test_salvage")
    with salvage.folder_of_a_kill() as written, capture_logs() as said:
        for number in range(rounds):
            which = rng.choice([*salvage.FILES, "state"])
            breaks, state_is = rng.choice(salvage.BREAKS), rng.choice(salvage.STATES)
            chance = salvage.random.Random(rng.getrandbits(64))
            told[which] += 1
            said.clear()
            try:
                if which == "state":
                    told["files set aside"] += salvage.survives_in_the_state(written, chance)
                else:
                    lost, aside = salvage.survives(written, which, breaks, state_is, chance)
                    told["files set aside"] += aside
                    told["frames lost, and in the ledger"] += lost
            except Exception as exc:  # noqa: BLE001 - whatever it is, the promise was not kept
                answer.lost += 1
                if len(answer.wrong) < _MOST:
                    answer.wrong.append(f"round {number}: {which}, {breaks.__name__}, state {state_is}: {exc!r:.500}")
    answer.ran = f"{rounds} damaged files, seed {seed}"
    answer.figures = dict(sorted(told.items()))
    return answer
