"""Power is lost at a random instant: what was not synced is dropped, names of files too.

A recorder runs under strace; then its system calls are done again on a disk that keeps only what was synced, and of the
rest what chance will have, page by page and name by name (`proof.disk`). From what a cut at a random call would leave, a
recorder is started. The run that is recorded is killed once in between, so that recovery is cut too.

The same with `PRAGMA synchronous = OFF` for the journal shows that the test sees what it is to see: frames that had been
promised are gone.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import oracle
import programs
from servers import influxd, strace, wait_until

from proof.calls import SYNCS, TRACED, effects
from proof.disk import Disk
from proof.rig import HURRIED, RETAIN, Answer, recording, seeded
from tickvault import survey

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from proof.calls import Call

QUESTION: Final = "power cut"
MARKET: Final = ("--instruments", "20", "--updates-per-second", "120")
NOWHERE: Final = "http://127.0.0.1:9"
NAMING: Final = ("rename", "unlink", "mkdir")
# How likely an unsynced page, and an unsynced name, is kept.
CHANCES: Final = tuple(itertools.product((0.0, 0.5, 1.0), repeat=2))[:-1]


def ask(place: Path, *, rounds: int = 50, frames: int = 100, seed: int | None = None) -> Answer:
    """Cut the power so many times in a run of so many frames, then a few times with the journal not synced."""
    rng, seed = seeded(seed)
    answer = Answer(ran=f"{rounds} cuts, seed {seed}")
    synced = _Cuts(place / "synced", "FULL", frames).made(rounds, rng)
    answer.lost, answer.twice, answer.wrong = synced.lost, synced.twice, synced.wrong
    answer.figures = {"frames promised": synced.promised, "cuts within recovery": synced.in_recovery}
    fewer = 10  # about every second one meets frames that are not synced
    loose = _Cuts(place / "loose", "OFF", frames).made(fewer, rng)
    answer.figures["cuts that cost promised frames with synchronous=OFF"] = f"{loose.costly} of {fewer}"
    if not loose.costly:
        answer.wrong.append("nothing was lost with synchronous=OFF: this test does not see what it is to see")
    return answer


@dataclass(slots=True)
class _Cuts:
    """Power cuts of one recorded run, and what was found after them.

    Attributes:
        promised: frames committed before a cut, over all cuts; `lost` those of them that were not there afterwards.
        costly: cuts with such a loss.
        in_recovery: cuts while the second process recovered what the killed one had left.
    """

    place: Path
    synchronous: str
    frames: int
    promised: int = 0
    lost: int = 0
    twice: int = 0
    costly: int = 0
    in_recovery: int = 0
    wrong: list[str] = field(default_factory=list)

    def made(self, rounds: int, rng: random.Random) -> _Cuts:
        self.place.mkdir()
        (self.place / "disk").mkdir()
        self._record()
        runs = [effects(self.place / f"calls.{number}") for number in (1, 2)]
        disk = Disk(self.place / "disk", listen_to=self.place / "marks")
        calls = [call for run in runs for call in run]
        chosen = _instants(calls, len(runs[0]), rounds, rng)
        for number, call in enumerate(calls):
            for one in range(chosen[number]):
                chances = rng.choice(CHANCES) if self.synchronous == "FULL" else (0.0, 1.0)
                self.in_recovery += number in _recovery(calls, len(runs[0]))
                self._cut(disk, f"{number}.{one}", chances, rng)
            if number == len(runs[0]):
                disk.restarted()
            disk.take(call)
        self._check_model(disk)
        return self

    def _record(self) -> None:
        """Record what a recorder does: one that is killed, and the next one."""
        data, log = self.place / "disk" / "data", self.place / "sent.log"
        promises = {"PROOF_MARKS": str(self.place / "marks"), "PROOF_SYNCHRONOUS": self.synchronous}
        with (
            influxd(self.place / "influx") as influx,
            programs.simulator(self.place, *MARKET, "--log", str(log)) as (url, sim),
        ):
            stores = {"INFLUX_URL": influx.url, "INFLUX_BUCKET": "market"}
            environ = programs.environ_for(url, data, **stores, **promises, **RETAIN)
            for number in (1, 2):
                upto = self.frames * number // 2
                with recording(self.place, environ, program=(*self._strace(number), *HURRIED)) as recorder:
                    wait_until(lambda upto=upto: journalled(data) >= upto, f"{upto} frames are journalled", 120)
                    if number == 1:
                        _signal_traced(recorder.process.pid, signal.SIGKILL)
                        recorder.process.wait(10)
                    else:
                        sim.stop()
                        _signal_traced(recorder.process.pid, signal.SIGTERM)
                        assert recorder.process.wait(60) == 0, recorder.said()

    def _strace(self, number: int) -> tuple[str, ...]:
        what = ("-f", "--seccomp-bpf", "-xx", "-s", str(2**24), "-e", f"trace={','.join(TRACED)}")
        return (*strace(), *what, "-o", str(self.place / f"calls.{number}"))

    def _cut(self, disk: Disk, name: str, chances: tuple[float, float], rng: random.Random) -> None:
        left = self.place / f"left-{name}"
        pages, names = chances
        disk.left(left, kept_data=lambda: rng.random() < pages, kept_names=lambda: rng.random() < names)
        committed, attempted = _promises(disk.said)
        found = f"cut before call {name}, pages {pages}, names {names}"
        data = left / "data"
        environ = programs.environ_for(NOWHERE, data, UPSTOX_INSTRUMENTS_URL="off", TICKVAULT_SINKS="parquet")
        ran = programs.call("run", "--duration", "0.2", environ=environ, folder=left)
        verified = programs.call("journal", "verify", environ=environ, folder=left)
        rows = {
            table: programs.globbed(data, table) if any(data.glob(f"parquet/{table}/*/*.parquet")) else []
            for table in ("ticks", "market_status")
        }
        there = {row["seq"] for of in rows.values() for row in of}
        missing = len(set(range(1, committed + 1)) - there)
        self.promised += committed
        self.lost += missing
        self.costly += missing > 0
        if self.synchronous != "FULL":  # anything may be amiss then
            return
        held = oracle.held(self.place / "sent.log", rows["ticks"], rows["market_status"])
        self.twice += held.twice + held.strange
        complaints = [
            f"`tickvault {' '.join(one.args[1:])}`: {one.stderr}" for one in (ran, verified) if one.returncode
        ]
        if missing or held.holes:
            complaints.append(f"{missing} of {committed} promised frames are gone, {held.holes} in mid-connection")
        if held.twice or held.strange:
            complaints.append(f"{held.twice} frames twice, {held.strange} never sent")
        if not ran.returncode and (last := journalled(data)) < attempted:
            complaints.append(f"seq {last + 1} would be used again: {attempted} had left the process")
        self.wrong += [f"{found}: {one}" for one in complaints]
        if not complaints:
            shutil.rmtree(left)

    def _check_model(self, disk: Disk) -> None:
        """With everything kept, what is left must be what is there: else the calls were not understood."""
        whole = self.place / "whole"
        disk.left(whole, kept_data=lambda: True, kept_names=lambda: True)
        # Shared memory is written to without a call, and holds nothing that a power cut should leave. A table under way
        # may or may not have what the kill met half written, and goes at the next start.
        ours, theirs = (
            {
                path.relative_to(root): path.read_bytes()
                for path in root.rglob("*")
                if path.is_file() and path.suffix not in {".db-shm", ".tmp"}
            }
            for root in (whole, self.place / "disk")
        )
        if ours != theirs:
            differing = [str(name) for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
            self.wrong.append(
                f"the recorded calls do not give the files that are there: {', '.join(sorted(differing))}"
            )


def journalled(data: Path) -> int:
    """Return the journal's last seq, 0 before there is one."""
    return survey.stats(data / "journal").last_seq if (data / "journal").is_dir() else 0


def _signal_traced(tracer: int, number: int) -> None:
    """Signal what strace runs; strace itself takes none, writes down the rest, and ends with it."""
    [child] = Path(f"/proc/{tracer}/task/{tracer}/children").read_text(encoding="ascii").split()
    os.kill(int(child), number)


def _instants(calls: Sequence[Call], second: int, rounds: int, rng: random.Random) -> Counter[int]:
    """Choose calls before which the power goes: of four one is in recovery, two are round a sync or a change of names."""
    naming = [n for n, call in enumerate(calls) if call.name in SYNCS or call.name.startswith(NAMING)]
    writing = [n for n, call in enumerate(calls) if call.name in {"write", "pwrite64", "ftruncate"}]
    recovering = [n for n in naming + writing if n in _recovery(calls, second)]
    chosen: Counter[int] = Counter()
    for number in range(rounds):
        among = (writing, naming, recovering, naming)[number % 4]
        chosen[rng.choice(among) + rng.randint(0, number % 2)] += 1
    return chosen


def _recovery(calls: Sequence[Call], second: int) -> range:
    """Return the calls in which the second process takes up what the first one left, up to its first promise."""
    promises = (n for n in range(second, len(calls)) if calls[n].texts and calls[n].texts[0].startswith(b"committed"))
    return range(second, next(promises))


def _promises(said: Sequence[str]) -> tuple[int, int]:
    """Return the last seq that was committed, and the last that may have left the process."""
    committed = [int(words[1]) for line in said if (words := line.split())[0] == "committed"]
    sent = [int(words[2]) for line in said if (words := line.split())[0] in {"attempted", "delivered"}]
    return max(committed, default=0), max(sent, default=0)
