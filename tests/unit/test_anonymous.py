"""What a stranger may see of a text."""

from __future__ import annotations

import json

import pytest

from tickvault.anonymous import anonymous, anonymous_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unable to parse 'tick,instrument_key=NSE_EQ|INE1 ltp=241.27,vtt=1234i 17'", None),
        ("user 7PBC6D (someone@example.com) is not allowed", "user # (#) is not allowed"),
        ("token eyJ0eXAiOiJKV1Qi.eyJzdWIiOiI3UEJDNkQi.x-y_z is wrong", "token # is wrong"),
        ("NSE_INDEX|Nifty 50, NSE_EQ|INE002A01018: skipped", "#, #: skipped"),
        ("http://10.1.2.3:8086 answered 503: overloaded", "http://# answered 503: overloaded"),
        ("HTTP 401 UDAPI100050 Invalid token", "HTTP 401 UDAPI100050 Invalid token"),
        ("closed (code 1006)", "closed (code 1006)"),
        ("3 full_d30, 12 full_d5 from tickvault 0.1.0", "# full_d30, # full_d5 from tickvault 0.1.0"),
        ("ends 2026-11-24 03:30 IST; told 2026-11-23T15:47:26.987654Z", None),
        (
            'File "/home/me/.venv/lib/tickvault/delivery.py", line 132, in run',
            'File "tickvault/delivery.py", line 132, in run',
        ),
        ("tick,symbol=GRASIM ltp=1", "tick,symbol=# ltp=#"),
        ("NIFTY24500CE at 24,500.55", "# at #"),
    ],
)
def test_figures_go_and_what_is_known_to_be_harmless_stays(text: str, shown: str | None) -> None:
    """Prices, volumes, ids, keys and addresses become one sign; codes, times and versions stay."""
    found = anonymous(text)
    if shown is not None:
        assert found == shown
    for private in ("241", "1234", "INE", "7PBC6D", "eyJ", "example.com", "Nifty", "10.1", "24500", "24,5"):
        assert private not in found
    if "IST" in text:
        assert found == text


def test_json_keeps_what_has_a_unit() -> None:
    """Counts and seconds stay; a fraction without a unit may be a price."""
    entry = {
        "event": "sink.retrying",
        "timestamp": "2026-11-23T15:47:26.987654Z",
        "recorder_id": "8edf734be9b1",
        "error": "ltp=241.27",
        "last": 241.27,
        "lag_s": 1.5,
        "keys": 6,
        "running": True,
        "oldest_s": {"NSE_EQ|INE1": 3.5},
        "problems": {"no_plus": ["NSE_EQ|INE1", "MCX_FO|12345"]},
        "nested": [{"price": 1.25, "detail": "7PBC6D"}],
    }
    found = anonymous_values(entry)
    for name in ("event", "timestamp", "recorder_id", "lag_s", "keys", "running"):
        assert found[name] == entry[name]
    assert found["oldest_s"] == {"#": 3.5}
    assert found["problems"] == {"no_plus": ["#", "#"]}
    text = json.dumps(found)
    assert not any(private in text for private in ("241", "INE1", "12345", "1.25", "7PBC6D"))
