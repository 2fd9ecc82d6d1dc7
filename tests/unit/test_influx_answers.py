"""What each answer of a server means for delivery, by the words that real servers used."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from servers import batch_of, tick

from tickvault.backoff import retry_after_s
from tickvault.errors import BatchRejected, BatchTooLarge, ConfigurationError, SinkMisconfigured, SinkUnavailable
from tickvault.sinks.influx import InfluxSink
from tickvault.sinks.influx_answers import Answer, judge, named_rows
from tickvault.sinks.lineprotocol import Lines, encode_tickvault

NOW = dt.datetime(2026, 9, 1, 9, 15, tzinfo=dt.UTC)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 207, 208])
def test_accepted(status: int) -> None:
    assert judge(Answer(status=status), "http://db", NOW) is None


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        # InfluxDB 1.6.7
        (400, """{"error":"unable to parse 'tick f=x 1': invalid number"}""", BatchRejected),
        (400, """{"error":"partial write: unable to parse 'a b=oops 1': invalid boolean dropped=0"}""", BatchRejected),
        (
            400,
            """{"error":"partial write: field type conflict: input field \\"f\\" on ... dropped=1"}""",
            BatchRejected,
        ),
        (400, '{"error":"partial write: max-values-per-tag limit exceeded (3/3): ... dropped=1"}', SinkMisconfigured),
        (400, '{"error":"partial write: max-series-per-database limit exceeded: (9) dropped=1"}', SinkMisconfigured),
        (400, '{"error":"database is required"}', SinkMisconfigured),
        (400, '{"error":"gzip: invalid header"}', SinkUnavailable),
        (400, '{"error":"unexpected EOF"}', SinkUnavailable),
        (401, '{"error":"unable to parse authentication credentials"}', SinkMisconfigured),
        (403, '{"error":"\\"low\\" user is not authorized to write to database \\"d\\""}', SinkMisconfigured),
        (404, '{"error":"database not found: \\"nope\\""}', SinkMisconfigured),
        (413, '{"error":"Request Entity Too Large"}', BatchTooLarge),
        (500, '{"error":"engine: cache-max-memory-size exceeded: (2496469/2097152)"}', SinkUnavailable),
        (500, '{"error":"engine: error writing WAL entry: ... no space left on device"}', SinkUnavailable),
        (500, '{"error":"retention policy not found: nope"}', SinkMisconfigured),
        (500, '{"error":"write failed: hinted handoff queue not empty"}', SinkUnavailable),
        (500, """{"error":"unable to parse 'cpu value': invalid field format"}""", BatchRejected),
        # InfluxDB 2
        (400, '{"code":"invalid","message":"unable to parse ..."}', BatchRejected),
        (422, '{"code":"unprocessable entity","message":"partial write: ... dropped=1"}', BatchRejected),
        (401, '{"code":"unauthorized","message":"unauthorized access"}', SinkMisconfigured),
        (403, '{"code":"forbidden","message":"insufficient permissions for write"}', SinkMisconfigured),
        (404, '{"code":"not found","message":"bucket \\"x\\" not found"}', SinkMisconfigured),
        (500, '{"code":"internal error","message":"unexpected error writing points"}', SinkUnavailable),
        # InfluxDB 3
        (400, '{"error":"partial write of line protocol occurred","data":[]}', BatchRejected),
        (400, '{"error":"line protocol parsing error","data":{"line_number":1}}', BatchRejected),
        (422, '{"error":"Update to schema would exceed number of columns per table limit of 500"}', SinkMisconfigured),
        (422, '{"error":"Adding a new database would exceed limit of 5 databases"}', SinkMisconfigured),
        (500, '{"error":"wal buffer full with 100000 ops"}', SinkUnavailable),
        # VictoriaMetrics
        (400, 'requestURI: /x/write; unsupported path requested: "/x/write"', SinkMisconfigured),
        # Others
        (406, "", BatchRejected),
        (408, "", SinkUnavailable),
        (429, "", SinkUnavailable),
        (502, "<html>", SinkUnavailable),
        (503, "", SinkUnavailable),
        (504, "", SinkUnavailable),
        (405, "", SinkMisconfigured),
        (418, "", SinkMisconfigured),
        (203, "", SinkUnavailable),
    ],
)
def test_refused(status: int, text: str, error: type[Exception]) -> None:
    """Rows are refused only by words or statuses that speak of rows."""
    assert type(judge(Answer(status=status, text=text), "http://db", NOW)) is error


@pytest.mark.parametrize("status", [200, 400, 422])
def test_a_web_page_is_no_database(status: int) -> None:
    """A proxy's login page must neither count as stored nor empty a day into dead letters."""
    page = Answer(status=status, text="<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    assert isinstance(judge(page, "http://db", NOW), SinkMisconfigured)


def test_redirects_are_a_setting_to_correct() -> None:
    moved = Answer(status=308, headers={"Location": "https://user:pw@other:8086/write?token=hush"})
    error = judge(moved, "http://db", NOW)
    assert isinstance(error, SinkMisconfigured)
    assert "https://other:8086" in str(error)
    assert "hush" not in str(error)
    assert "pw" not in str(error)


def test_messages_are_one_bounded_line_with_the_next_step() -> None:
    error = judge(Answer(status=401, text='{"error":"' + "no\\n\\u001b[31m" * 1000 + '"}'), "http://db", NOW)
    assert str(error).startswith("http://db answered 401: no [31mno")
    assert "INFLUX_TOKEN" in str(error)
    assert len(str(error)) < 500
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Tue, 01 Sep 2026 09:15:30 GMT", 30.0),
        ("Tue, 01 Sep 2026 09:14:30 GMT", 0.0),
        ("Tue, 01 Sep 2026 09:15:30 -0000", 30.0),
        ("Tue, 01 Sep 2036 09:15:30 GMT", 3600.0),
        ("999999999", 3600.0),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds
    error = judge(Answer(status=429, headers={"Retry-After": value}), "http://db", NOW)
    assert isinstance(error, SinkUnavailable)
    assert error.retry_after_s == seconds


def lines_of(*prices: float) -> Lines:
    rows = [tick(ltp=price, seq=seq, symbol="it's: 'A") for seq, price in enumerate(prices, 1)]
    return encode_tickvault(batch_of(ticks=rows), 5)


def quoting(lines: Lines, *indices: int, why: str = "invalid number") -> str:
    texts = bytes(lines.body()).decode().splitlines()
    return "\n".join(f"unable to parse '{texts[index]}': {why}" for index in indices)


def test_quoted_lines_name_their_rows() -> None:
    """A symbol may hold the very characters that end a quotation."""
    lines = lines_of(1.0, 2.0, 3.0)
    answer = Answer(status=400, text=f"partial write: {quoting(lines, 0, 2)} dropped=0")
    assert named_rows(answer, lines) == {0: "invalid number", 2: "invalid number"}


@pytest.mark.parametrize("text", ["partial write: field type conflict: dropped=1", "", "unable to parse 'else': why"])
def test_without_traceable_quotations_nothing_is_known(text: str) -> None:
    assert named_rows(Answer(status=400, text=text), lines_of(1.0)) == {}


def test_an_answer_cut_short_names_nothing() -> None:
    lines = lines_of(1.0, 2.0)
    assert named_rows(Answer(status=400, text=quoting(lines, 0), cut=True), lines) == {}


def numbering(*found: Any, error: str = "partial write of line protocol occurred") -> Answer:
    """Return what InfluxDB 3 says of lines by number."""
    data = [{"original_line": "tick …", "line_number": number, "error_message": why} for number, why in found]
    return Answer(status=400, text=json.dumps({"error": error, "data": data}))


def test_numbered_lines_name_their_rows() -> None:
    """Lines count from 1 in a body, rows from 0 in a batch; a body may begin in the middle of one."""
    lines = lines_of(1.0, 2.0, 3.0)
    later = Lines(text=lines.text[1:], rows=lines.rows[1:])
    assert named_rows(numbering((1, "invalid column type"), (2, "no\x1b[31m")), later) == {
        1: "invalid column type",
        2: "no [31m",
    }


@pytest.mark.parametrize(
    "answer",
    [
        numbering((4, "beyond the body")),
        numbering((0, "before it")),
        numbering((True, "no number")),
        numbering(("1", "no number")),
        numbering((1, None)),
        numbering(),
        numbering(*[(1, "and perhaps more")] * 100),
        numbering((1, "nothing is stored then"), error="parsing failed for write_lp endpoint"),
        Answer(status=400, text='{"error":"partial write of line protocol occurred","data":{"line_number":1}}'),
        Answer(status=400, text='{"error":"partial write of line protocol occurred","data":[1]}'),
        Answer(status=400, text="[" * 100_000),
    ],
)
def test_numbers_that_cannot_be_trusted_name_nothing(answer: Answer) -> None:
    """Delivery halves the batch then; a hundred is where the server stops counting."""
    assert named_rows(answer, lines_of(1.0, 2.0, 3.0)) == {}


@pytest.mark.parametrize("token", ["two\nlines", "cr\r", "nul\x00"])
def test_a_token_that_no_header_can_carry_is_refused_unseen(token: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        InfluxSink(url="http://db:8086", bucket="d", token=token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("bucket", [None, ""])
def test_a_bucket_is_needed(bucket: str | None) -> None:
    with pytest.raises(ConfigurationError, match="INFLUX_BUCKET"):
        InfluxSink(url="http://db:8086", bucket=bucket)


def test_an_answer_nested_without_end_is_judged_by_its_status() -> None:
    """It is no JSON that we read, and nothing that parks a sink."""
    for status, error in [(400, BatchRejected), (503, SinkUnavailable)]:
        judged = judge(Answer(status=status, text='{"error":' + "[" * 200_000), "http://db", NOW)
        assert isinstance(judged, error)
        assert len(str(judged)) < 1000
