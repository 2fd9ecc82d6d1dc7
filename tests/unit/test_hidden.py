"""Secrets are blotted out of whatever leaves the process, in whatever form they are written."""

from __future__ import annotations

import io
import json
import traceback
from urllib.parse import quote

import pytest

from tickvault import hidden

SECRET = 'Canary/"quoted"\\ ₹+1'


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden, "_forms", ())
    hidden.hide([SECRET, "abc", ""])


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        json.dumps({"token": SECRET}),
        json.dumps({"token": SECRET}, ensure_ascii=False),
        f"http://host/?key={quote(SECRET)}",
        f"http://host/{quote(SECRET, safe='')}/",
        repr(ValueError(SECRET)),
        f"{SECRET}{SECRET}",
    ],
)
def test_every_form_is_blotted_out(text: str) -> None:
    """As it is, in JSON, in a URL, in a repr."""
    shown = hidden.scrubbed(text)
    assert "***" in shown
    assert "canary" not in shown.lower()


def test_short_ones_and_everything_else_stay() -> None:
    """Three letters would blacken words."""
    assert hidden.scrubbed("abc and more") == "abc and more"


def test_a_secret_within_another_does_not_spoil_it() -> None:
    """The longer one goes first."""
    hidden.hide(["key1", "key1-and-the-rest"])
    assert hidden.scrubbed("key1-and-the-rest, key1") == "***, ***"


def test_a_stream_lets_no_secret_through() -> None:
    """Also not in a traceback; it is a stream like the one behind it otherwise, and wrapped once."""
    behind = io.StringIO()
    stream = hidden.scrubbing(behind)
    assert hidden.scrubbing(stream) is stream
    traceback.print_exception(ValueError(f"refused: {SECRET}"), file=stream)
    stream.writelines([SECRET, "\n"])
    stream.flush()
    assert "ValueError: refused: ***\n***\n" in behind.getvalue()
    assert not stream.isatty()
