"""Every place a token may stand in: which one is tried, and that a changed one is seen while the program runs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tickvault.brokers.upstox import token_files
from tickvault.brokers.upstox import tokens as module
from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.token_files import Found, Origin, cleaned, store_token, stored_token
from tickvault.brokers.upstox.tokens import StaticToken, Tokens, TokenUrl, is_static, wait_changed
from tickvault.errors import FeedUnavailable, Refused, TokenRefused
from tickvault.simulator import Simulator, SimulatorSettings
from tickvault.simulator.script import RotateToken

if TYPE_CHECKING:
    from pathlib import Path

NS = 1_000_000_000


def jwt(**claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.sig"


class Scripted:
    """A token service that gives these answers, the last one again and again; None: it is down."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def token(self) -> str:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise FeedUnavailable("down")
        return answer


def aged(path: Path, age_s: float) -> None:
    at_ns = time.time_ns() - int(age_s * NS)
    os.utime(path, ns=(at_ns, at_ns))


async def test_stored_token_is_private_and_whole(tmp_path: Path) -> None:
    """0600 in a folder of 0700, nothing left beside it, readable again."""
    folder = tmp_path / "data"
    path = store_token(folder, "one")
    store_token(folder, "two")
    assert stored_token(folder) == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [one.name for one in folder.iterdir()] == ["token"]


async def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    """The message has the next step and no token."""
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="TICKVAULT_DATA_DIR") as caught:
        store_token(tmp_path / "file", "very-secret")
    assert "very-secret" not in str(caught.value)


async def test_replacing_leaves_the_old_token_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs the new token, not the old one."""
    store_token(tmp_path, "old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(token_files.os, "write", full)
        with pytest.raises(Refused, match="No space left"):
            store_token(tmp_path, "new")
    assert stored_token(tmp_path) == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["token"]


async def test_nothing_anywhere(tmp_path: Path) -> None:
    """The message names the commands that help."""
    with pytest.raises(FeedUnavailable, match="tickvault login"):
        await Tokens(data_dir=tmp_path / "not-there").token()


async def test_token_of_the_settings(tmp_path: Path) -> None:
    """Alone it is what StaticToken is: its refusal at the start is the user's to mend."""
    tokens = Tokens(access_token=" abc\n", data_dir=tmp_path)
    assert await tokens.token() == "abc"
    assert is_static(tokens)
    assert is_static(StaticToken("abc"))


async def test_token_of_the_settings_that_no_header_can_carry(tmp_path: Path) -> None:
    """As with StaticToken."""
    with pytest.raises(TokenRefused):
        await Tokens(access_token="two words", data_dir=tmp_path).token()


async def test_stored_token_that_is_older_than_the_start_is_second(tmp_path: Path) -> None:
    """The settings' token, of unknown age, counts as put there at the start; refused, it makes room for the other."""
    aged(store_token(tmp_path, "stored"), 3600)
    tokens = Tokens(access_token="settings", data_dir=tmp_path)
    assert await tokens.token() == "settings"
    assert not is_static(tokens)
    await tokens.wait_changed("settings", 60)
    assert await tokens.token() == "stored"
    assert tokens.given is not None
    assert tokens.given.origin is Origin.STORED


async def test_stored_token_that_is_newer_than_the_settings_token_wins(tmp_path: Path) -> None:
    """A token that says when it was made does not become younger by a restart."""
    old = jwt(iat=time.time() - 86_400, exp=time.time() + 86_400)
    aged(store_token(tmp_path, "stored"), 3600)
    tokens = Tokens(access_token=old, data_dir=tmp_path)
    assert await tokens.token() == "stored"
    assert not is_static(tokens)


async def test_token_set_while_running_wins(tmp_path: Path) -> None:
    """Whatever the settings have."""
    tokens = Tokens(access_token="settings", data_dir=tmp_path)
    assert await tokens.token() == "settings"
    store_token(tmp_path, "set-by-command")
    assert await tokens.token() == "set-by-command"


async def test_expired_token_is_passed_over(tmp_path: Path) -> None:
    """What has expired by its own word is tried only when there is nothing else."""
    expired = jwt(iat=time.time() - 200, exp=time.time() - 100)
    store_token(tmp_path, expired)
    assert await Tokens(data_dir=tmp_path).token() == expired
    assert await Tokens(data_dir=tmp_path, access_token=jwt(iat=5)).token() == jwt(iat=5)


async def test_file_and_env_file_count_when_they_change(tmp_path: Path) -> None:
    """What was there at the start is what the settings have read; what is written later is newer than everything."""
    named, env_file = tmp_path / "secret", tmp_path / ".env"
    named.write_text("one\n")
    env_file.write_text("UPSTOX_ACCESS_TOKEN=shadowed\nOTHER=1\n")
    tokens = Tokens(access_token="one", token_file=named, env_file=env_file, data_dir=tmp_path)
    assert await tokens.token() == "one"
    assert is_static(tokens)
    env_file.write_text("UPSTOX_ACCESS_TOKEN=shadowed\nOTHER=2\n")
    assert await tokens.token() == "one"
    named.write_text("two\n")
    assert await tokens.token() == "two"
    env_file.write_text("ACCESS_TOKEN='three'\n")
    assert await tokens.token() == "three"


async def test_a_placeholder_is_no_token(tmp_path: Path) -> None:
    """A `.env` that is made from a template while the recorder runs has none yet."""
    tokens = Tokens(access_token="one", env_file=tmp_path / ".env", data_dir=tmp_path)
    assert await tokens.token() == "one"
    (tmp_path / ".env").write_text("ACCESS_TOKEN=your-access-token\n")
    assert await tokens.token() == "one"


async def test_same_size_at_the_same_time_is_seen(tmp_path: Path) -> None:
    """A file rewritten within its clock's step is read again."""
    path = store_token(tmp_path, "aaa")
    tokens = Tokens(data_dir=tmp_path)
    before = path.stat()
    assert await tokens.token() == "aaa"
    path.write_text("bbb\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await tokens.token() == "bbb"


async def test_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look costs a stat."""
    aged(store_token(tmp_path, "aaa"), 60)
    reads = []
    original = token_files.read_text
    monkeypatch.setattr(token_files, "read_text", lambda path, what: reads.append(path) or original(path, what))
    tokens = Tokens(data_dir=tmp_path)
    for _ in range(3):
        assert await tokens.token() == "aaa"
    assert len(reads) == 1


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff\xfe\x00", b"x" * 9000])
async def test_unusable_file_is_no_token(tmp_path: Path, content: bytes) -> None:
    """A file that is being replaced, or is no token, makes the other places count."""
    (tmp_path / "token").write_bytes(content)
    (tmp_path / ".env").write_bytes(content)
    tokens = Tokens(access_token="settings", data_dir=tmp_path, env_file=tmp_path / ".env", token_file=tmp_path / "no")
    assert await tokens.token() == "settings"


async def test_url_is_asked_when_nothing_else_is_usable(tmp_path: Path) -> None:
    """A static token wins over the URL until it is refused; then the URL is asked at every attempt."""
    url = Scripted("u1", "u2", "u3")
    tokens = Tokens(access_token="settings", data_dir=tmp_path, url=url)
    assert await tokens.token() == "settings"
    assert not is_static(tokens)
    await tokens.wait_changed("settings", 60)
    assert [await tokens.token() for _ in range(2)] == ["u1", "u2"]
    assert url.asked == 2
    assert not is_static(tokens)


async def test_url_that_is_down(tmp_path: Path) -> None:
    """Its words are the attempt's."""
    with pytest.raises(FeedUnavailable, match="down"):
        await Tokens(data_dir=tmp_path, url=Scripted(None)).token()


async def test_what_was_refused_is_never_given_again(tmp_path: Path) -> None:
    """Whatever else there is, or is not; told once as news."""
    store_token(tmp_path, "stored")
    tokens = Tokens(access_token="settings", data_dir=tmp_path)
    assert [tokens.refuse(token) for token in ("stored", "settings", "stored")] == [True, True, False]
    with pytest.raises(TokenRefused, match="tickvault token set"):
        await tokens.token()
    from_url = Tokens(data_dir=tmp_path, url=Scripted("stored", "url"))
    from_url.refuse("stored")
    with pytest.raises(TokenRefused):
        await from_url.token()


async def test_what_has_expired_is_better_than_what_was_refused(tmp_path: Path) -> None:
    """This machine's clock may be wrong."""
    expired = jwt(iat=time.time() - 200, exp=time.time() - 100)
    store_token(tmp_path, expired)
    tokens = Tokens(access_token="settings", data_dir=tmp_path)
    tokens.refuse("settings")
    assert await tokens.token() == expired


async def test_who_only_wants_a_token_asks_nobody(tmp_path: Path) -> None:
    """The one given last, else one of the files; never the URL."""
    url = Scripted("u1", "u2")
    tokens = Tokens(data_dir=tmp_path, url=url)
    waiting = asyncio.create_task(tokens.known())
    assert await tokens.token() == "u1"
    assert await waiting == await tokens.known() == "u1"
    store_token(tmp_path, "stored")
    assert await Tokens(data_dir=tmp_path, url=url).known() == "stored"
    assert url.asked == 1


async def test_waiting_ends_with_its_time(tmp_path: Path) -> None:
    """Without another token it waits as long as it was told."""
    tokens = Tokens(access_token="settings", data_dir=tmp_path)
    start_s = time.monotonic()
    await wait_changed(tokens, "settings", 0.2)
    await wait_changed(StaticToken("settings"), "settings", 0.2)
    assert time.monotonic() - start_s >= 0.4


async def test_waiting_ends_with_the_files_token(tmp_path: Path) -> None:
    """A token set meanwhile ends the wait within a second or so; the same token set again does not."""
    tokens = Tokens(access_token="settings", data_dir=tmp_path)
    await tokens.token()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(tokens.wait_changed("settings", 60), name="wait")
        store_token(tmp_path, "settings")
        done, _ = await asyncio.wait([waiting], timeout=1.2)
        assert not done
        start_s = time.monotonic()
        store_token(tmp_path, "another")
    assert time.monotonic() - start_s < 3
    assert await tokens.token() == "another"


async def test_waiting_asks_the_url_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most once a pause, the first time a pause after the attempt; what it learns is what the next attempt uses."""
    monkeypatch.setattr(module, "_URL_PAUSE_S", 0.2)
    url = Scripted("old", None, "old", "new", "newer")
    tokens = Tokens(data_dir=tmp_path, url=url)
    assert await tokens.token() == "old"
    start_s = time.monotonic()
    await tokens.wait_changed("old", 60)
    assert time.monotonic() - start_s >= 0.59
    assert url.asked == 4
    assert await tokens.token() == "new"
    assert url.asked == 4
    assert await tokens.token() == "newer"


async def test_hanging_url_does_not_hold_up_a_token_set_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and URL are waited for side by side."""
    monkeypatch.setattr(module, "_URL_PAUSE_S", 0.0)

    class Hanging:
        async def token(self) -> str:
            await asyncio.Event().wait()
            raise AssertionError

    tokens = Tokens(data_dir=tmp_path, url=Hanging())
    async with asyncio.TaskGroup() as group:
        group.create_task(tokens.wait_changed("old", 60), name="wait")
        await asyncio.to_thread(store_token, tmp_path, "new")
    assert await tokens.token() == "new"


async def test_only_so_many_refusals_are_remembered(tmp_path: Path) -> None:
    """Memory is bounded, however often a night's token is refused."""
    tokens = Tokens(data_dir=tmp_path)
    for number in range(600):
        tokens.refuse(f"t{number}")
    assert len(tokens._refused) <= 256


def test_no_token_is_shown() -> None:
    """What a debugger or a log shows of a found token leaves the token out."""
    assert "very-secret" not in repr(Found(token="very-secret", origin=Origin.URL, placed_ns=1))


@pytest.mark.parametrize("text", ["abc", " abc\n", "Bearer abc", "bearer  abc", '"abc"', "'Bearer abc'", "\ufeffabc"])
def test_what_copying_brings_along_is_dropped(text: str) -> None:
    """Blanks, quotes, a byte-order mark, the word Bearer."""
    assert cleaned(text) == "abc"


@pytest.mark.parametrize("text", ["", " \n", "very secret", "läuft", "very-secret\nvery-secret", "Bearer "])
def test_what_is_no_token_is_refused_and_not_quoted(text: str) -> None:
    """The message says what was expected."""
    with pytest.raises(Refused, match="expected an access token") as caught:
        cleaned(text)
    assert "very" not in str(caught.value)


async def opened(api: UpstoxApi, tokens: Tokens, timeout_s: float) -> list[str]:
    """Authorize as a feed does, waiting after each refusal; return the tokens tried."""
    tried = []
    while True:
        token = await tokens.token()
        tried.append(token)
        try:
            await api.authorize(token)
        except TokenRefused:
            await wait_changed(tokens, token, timeout_s)
        else:
            return tried


async def test_recording_comes_back_within_seconds_of_token_set(tmp_path: Path) -> None:
    """The broker refuses the settings' token; a token set by command is used at once, in the same process."""
    simulated = SimulatorSettings(instruments=3, tokens=frozenset({"good"}))
    async with Simulator(simulated) as simulator, aiohttp.ClientSession() as session:
        tokens = Tokens(access_token="dead", data_dir=tmp_path)
        async with asyncio.TaskGroup() as group:
            feed = group.create_task(opened(UpstoxApi(simulator.url, session), tokens, 60), name="feed")
            done, _ = await asyncio.wait([feed], timeout=0.7)
            assert not done
            set_s = time.monotonic()
            await asyncio.to_thread(store_token, tmp_path, "good")
        assert time.monotonic() - set_s < 5
        assert feed.result() == ["dead", "good"]


async def test_rotated_token_comes_from_the_url(tmp_path: Path) -> None:
    """The broker takes back its token; the URL's next one is used."""
    simulated = SimulatorSettings(instruments=3, tokens=frozenset({"first"}), script=(RotateToken(at_s=0.3),))
    async with Simulator(simulated) as simulator, aiohttp.ClientSession() as session:
        api = UpstoxApi(simulator.url, session)
        tokens = Tokens(data_dir=tmp_path, url=TokenUrl(f"{simulator.url}/token", session))
        assert await opened(api, tokens, 60) == ["first"]
        while await TokenUrl(f"{simulator.url}/token", session).token() == "first":
            await asyncio.sleep(0.02)
        with pytest.raises(TokenRefused):
            await api.authorize("first")
        assert await opened(api, tokens, 60) == ["simulator-token-2"]
