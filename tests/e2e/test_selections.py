"""Selections in processes of their own: `run` with a chain, a restart within the session, and the commands offline."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from programs import call, environ_for, globbed, recorder, simulator, stats
from servers import wait_until

if TYPE_CHECKING:
    from pathlib import Path

MARKET = ("--instruments", "600", "--updates-per-second", "600")
CHAIN = "chain:NIFTY:weekly:atm+-2"


def typed(url: str, data: Path, instruments: str) -> dict[str, str]:
    environ = environ_for(url, data, TICKVAULT_INSTRUMENTS=instruments)
    del environ["TICKVAULT_INSTRUMENTS_URL"]
    return environ


def subscribed(data: Path) -> list[set[str]]:
    """Return the keys of each subscribe that the journal has."""
    from tickvault import survey

    if not (data / "journal").is_dir():
        return []
    return [set(event.body["keys"]) for event in survey.events(data / "journal", ("sub",))]  # type: ignore[call-overload]


def resolved(environ: dict[str, str], folder: Path, *words: str) -> dict[str, Any]:
    done = call("instruments", "resolve", "--json", *words, environ=environ, folder=folder)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_chain_is_recorded_round_the_price_and_kept_over_a_restart(tmp_path: Path) -> None:
    """Spot, future, India VIX and ten options, a file's symbol and no more; a wrong line of the file costs nothing."""
    data = tmp_path / "data"
    (tmp_path / "keys.txt").write_text("NSE_EQ:RELIANCE\nNSE_EQ:NOBODY\n")
    with simulator(tmp_path, *MARKET) as (url, _):
        environ = typed(url, data, f"{CHAIN},@keys.txt@ltpc")
        for round_ in (1, 2):
            with recorder(tmp_path, environ) as recording:
                wait_until(lambda: len(set().union(*subscribed(data))) == 3 + 10 + 1, "the window is subscribed to")
                before = stats(data)["last_seq"]
                wait_until(lambda seq=before: stats(data)["last_seq"] > seq + 5, "frames are journalled")
                assert recording.stop() == 0, recording.said()
            assert "NSE_EQ lists no 'NOBODY'" in recording.said()
            if round_ == 1:
                first = subscribed(data)
        assert first[0].isdisjoint(first[-1])
        again = subscribed(data)[len(first) :]
        # What was subscribed to is wanted at once, without waiting for a price.
        assert set().union(*first) == set().union(*again[:2])
        expected = resolved(environ, tmp_path, CHAIN, "--price", "NIFTY=24500")
        assert (expected["sockets"], expected["messages"], expected["problems"]) == (1, 1, [])
    rows = globbed(data, "ticks")
    symbols = {row["symbol"] for row in rows}
    assert {"NIFTY", "INDIA VIX", "RELIANCE"} < symbols
    assert {row["mode"] for row in rows if row["symbol"] == "RELIANCE"} == {"ltpc"}
    assert len({row["symbol"] for row in rows if " CE " in row["symbol"] or " PE " in row["symbol"]}) >= 10
    query = "SELECT count(*) FROM instruments WHERE underlying_symbol = 'NIFTY' AND strike > 0"
    counted = call("query", query, "--format", "csv", environ=environ, folder=tmp_path).stdout.splitlines()
    assert int(counted[1]) >= 10


def test_search_and_resolve_work_from_the_copy(tmp_path: Path) -> None:
    """With the server gone, from the copy that the first call made; without any copy it says what to do."""
    data = tmp_path / "data"
    with simulator(tmp_path, *MARKET) as (url, _):
        environ = typed(url, data, "future:NIFTY:1")
        assert call("instruments", "search", "reliance", environ=environ, folder=tmp_path).returncode == 0
    found = json.loads(
        call(
            *("instruments", "search", "nifty", "--type", "ce", "--segment", "nse_fo", "--limit", "3", "--json"),
            environ=environ,
            folder=tmp_path,
        ).stdout
    )
    assert found["found"] > len(found["instruments"]) == 3
    assert {one["option_type"] for one in found["instruments"]} == {"CE"}
    assert found["instruments"] == sorted(found["instruments"], key=lambda one: (one["expiry"], one["strike"]))
    table = call("instruments", "search", "NIFTY", "--limit", "1", environ=environ, folder=tmp_path).stdout
    assert "NSE_INDEX|Nifty 50" in table
    assert call("instruments", "search", "no such thing", environ=environ, folder=tmp_path).returncode == 1

    [key] = resolved(environ, tmp_path)["keys"]
    assert key["symbol"].startswith("NIFTY FUT")
    whole = resolved(environ, tmp_path, "chain:NIFTY:2", "NSE_EQ:RELIANSE")
    assert len(whole["keys"]) > 20
    assert whole["problems"] == ["NSE_EQ:RELIANSE: NSE_EQ lists no 'RELIANSE'; did you mean RELIANCE?"]
    assert resolved(environ, tmp_path, CHAIN)["unpriced"] == ["NSE_INDEX|Nifty 50"]
    wrong = call("instruments", "resolve", "chian:NIFTY:1", environ=environ, folder=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("did you mean chain?")) == (2, 1)
    nowhere = {**environ, "TICKVAULT_DATA_DIR": str(tmp_path / "other")}
    none = call("instruments", "search", "x", environ=nowhere, folder=tmp_path)
    assert (none.returncode, "UPSTOX_INSTRUMENTS_URL" in none.stderr) == (1, True)


def test_typed_mistakes_end_the_start(tmp_path: Path) -> None:
    """Exit code 2 with the nearest name, or with the arithmetic; nothing is journalled."""
    data = tmp_path / "data"
    with simulator(tmp_path, *MARKET) as (url, _):
        for instruments, said in (
            ("NSE_EQ:RELIANSE", "did you mean RELIANCE?"),
            (",".join(f"NSE_FO|{number}" for number in range(4_412)), "412 of 4,412 keys do not fit on the 2 sockets"),
            ("NSE_EQ|INE002A01018@full_d30", "UPSTOX_PLUS=true"),
            ("@none.txt", "@none.txt cannot be read"),
        ):
            done = call("run", "--duration", "1", environ=typed(url, data, instruments), folder=tmp_path)
            assert (done.returncode, said in done.stderr) == (2, True), done.stderr
            assert "Traceback" not in done.stderr
    assert not (data / "journal").exists()
