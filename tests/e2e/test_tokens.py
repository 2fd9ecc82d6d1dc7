"""A recorder whose token dies goes on with another one, in the same process; nothing has to be restarted."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING

import pytest
from programs import call, environ_for, fed, recorder, simulator, stats
from servers import free_ports, wait_until
from webhooks import receiver

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NEW = "simulator-token-2"
# The broker takes every token back but a new one, and drops the connections.
ROLL_OVER = '[[steps]]\nat_s = 4\ndo = "rotate_token"\n\n[[steps]]\nat_s = 4.2\ndo = "reset"\n'


def gaps(environ: Mapping[str, str], folder: Path) -> str:
    return call("query", "SELECT * FROM gaps", "--format", "json", environ=environ, folder=folder).stdout


@pytest.mark.parametrize("place", ["token set", ".env", "file", "url"])
def test_recording_goes_on_with_a_new_token(tmp_path: Path, place: str) -> None:
    """However the new one is put in place: the same process records again, and says, tells and journals why it did not."""
    data, (port,) = tmp_path / "data", free_ports(1)
    (tmp_path / "script.toml").write_text(ROLL_OVER)
    (tmp_path / "secret").write_text("first\n")
    with simulator(tmp_path, "--script", "script.toml") as (url, _), receiver(port) as told:
        environ = environ_for(url, data, TICKVAULT_NOTIFY_URL=f"http://127.0.0.1:{port}/", TICKVAULT_HTTP="127.0.0.1:0")
        del environ["UPSTOX_ACCESS_TOKEN"]
        match place:
            case "token set":
                environ["UPSTOX_ACCESS_TOKEN"] = "first"
            case ".env":
                (tmp_path / ".env").write_text("UPSTOX_ACCESS_TOKEN=first\n")
            case "file":
                environ["UPSTOX_ACCESS_TOKEN_FILE"] = str(tmp_path / "secret")
            case _:
                environ["UPSTOX_TOKEN_URL"] = f"{url}/token"
        with recorder(tmp_path, environ) as recording:
            pid = recording.process.pid
            wait_until(lambda: stats(data)["last_seq"] > 0, "frames are journalled")
            if place != "url":
                wait_until(lambda: "token_rejected" in recording.said(), "the token is refused", 30)
                assert recording.alive
                before = stats(data)["last_seq"]
                if place == "token set":
                    done = fed(["token", "set"], f"{NEW}\n", environ, tmp_path)
                    assert done.returncode == 0, done.stderr
                    assert f"the recorder (pid {pid})" in done.stdout
                elif place == ".env":
                    (tmp_path / ".env").write_text(f"UPSTOX_ACCESS_TOKEN={NEW}\n")
                else:
                    (tmp_path / "secret").write_text(f"{NEW}\n")
                wait_until(lambda: stats(data)["last_seq"] > before, "it records again", 20)
                wait_until(lambda: bool(told.events("token.rejected")), "the webhook is told")
                shown = json.loads(call("status", "--json", environ=environ, folder=tmp_path).stdout)
                assert "not a JWT" in shown["feed"]["token"]
            else:
                wait_until(lambda: "conn=2" in recording.said() or '"conn": 2' in recording.said(), "it connects again")
                before = stats(data)["last_seq"]
                wait_until(lambda: stats(data)["last_seq"] > before, "it records again", 30)
            assert recording.process.pid == pid
            assert recording.alive
            assert recording.stop() == 0
        assert recording.said().count("token_rejected") == (0 if place == "url" else 1)
        if place != "url":
            assert "token_rejected" in gaps(environ, tmp_path)
        assert NEW not in recording.said()


def test_a_stored_token_is_enough(tmp_path: Path) -> None:
    """`run` needs no token in the settings when one is stored; without any it says what to do."""
    data = tmp_path / "data"
    with simulator(tmp_path) as (url, _):
        environ = environ_for(url, data)
        del environ["UPSTOX_ACCESS_TOKEN"]
        without = call("run", environ=environ, folder=tmp_path)
        assert without.returncode == 2
        assert "`tickvault token set`" in without.stderr
        assert fed(["token", "set"], "stored-token", environ, tmp_path).returncode == 0
        with recorder(tmp_path, environ) as recording:
            wait_until(lambda: stats(data)["last_seq"] > 0, "frames are journalled")
            assert recording.stop() == 0


def test_a_dead_token_ends_only_a_recorder_that_never_recorded(tmp_path: Path) -> None:
    """The very first authorize refuses the only token: exit 3 in a new folder; in one with data it waits for another."""
    (tmp_path / "script.toml").write_text('[[steps]]\nat_s = 0\ndo = "rotate_token"\n')
    with simulator(tmp_path, "--script", "script.toml") as (url, _):

        def rotated() -> bool:
            with urllib.request.urlopen(f"{url}/token", timeout=10) as answer:
                return NEW in answer.read().decode()

        wait_until(rotated, "the first token is taken back")
        data = tmp_path / "data"
        environ = environ_for(url, data)
        for _ in range(2):  # a folder that has a journal and no frame is still one that is being set up
            done = call("run", environ=environ, folder=tmp_path)
            assert done.returncode == 3
            assert "UDAPI100050" in done.stderr
        living = {**environ, "UPSTOX_ACCESS_TOKEN": NEW}
        with recorder(tmp_path, living) as recording:
            wait_until(lambda: stats(data)["last_seq"] > 0, "frames are journalled")
            assert recording.stop() == 0
        before = stats(data)["last_seq"]
        with recorder(tmp_path, environ) as recording:
            wait_until(lambda: "token_rejected" in recording.said(), "the token is refused", 30)
            assert fed(["token", "set"], f"{NEW}\n", environ, tmp_path).returncode == 0
            wait_until(lambda: stats(data)["last_seq"] > before, "it records again", 20)
            assert recording.alive
            assert recording.stop() == 0
        assert '"reason":"token_rejected"' in gaps(environ, tmp_path)
