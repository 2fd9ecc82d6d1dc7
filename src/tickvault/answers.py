"""Runs a query and prints its answer in the format asked for."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

import duckdb
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tickvault import query, render
from tickvault.errors import ConfigurationError, Refused

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["print_answer"]

_FORMATS: Final = ("table", "csv", "json", "parquet")
_READING: Final = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)  # SHOW, DESCRIBE, SUMMARIZE: SELECT too
_SHOWN: Final = 1_000  # rows of a table for people; the other formats have them all
_AT_A_TIME: Final = 10_000  # rows
_NUMBERS: Final = re.compile(
    r"(U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)|BOOLEAN|VARCHAR)"
)  # plain in a CSV
_NESTED: Final = re.compile(r".*\[\d*\]|(STRUCT|MAP|UNION)\(.*\)", re.DOTALL)
# A string as it is, or one of the names that JSON has no number for.
_NOT_JSON: Final = re.compile(r'("(?:[^"\\]|\\.)*")|-?\b(?:NaN|Infinity)\b')


def print_answer(data_dir: Path, sql: str, form: str) -> None:
    """Run SQL over a data folder and print the answer on stdout.

    Raises:
        ConfigurationError: no such format, or SQL that DuckDB does not take.
        Refused: nothing is recorded there; or the answer would be short.
        JournalDamaged: a part of the journal that the answer needs.
    """
    if form not in _FORMATS:
        raise ConfigurationError(f"--format: expected one of {', '.join(_FORMATS)}, got {form!r}")
    if form == "parquet" and sys.stdout.isatty():
        raise Refused("a Parquet file is not for a terminal; redirect it: tickvault query … --format parquet > file")
    with query.connect(data_dir) as db:
        try:
            _print(_relation(db, _question(db, sql)), form)
        except duckdb.Error as exc:
            raise ConfigurationError(_explained(exc)) from exc
    sys.stdout.flush()


def _question(db: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Return the one statement that reads: `query` never writes, and answers all that it was asked.

    Raises:
        ConfigurationError: none, several, or one that writes.
    """
    statements = db.extract_statements(sql)
    if len(statements) != 1:
        raise ConfigurationError(
            f"expected one SQL statement, got {len(statements) or 'an empty query'}; ask them one by one"
        )
    kind = statements[0].type
    if kind not in _READING:
        raise ConfigurationError(
            f"expected a statement that reads, got {kind.name}; for a file: tickvault query … --format csv > FILE"
        )
    # The answer is taken as a subquery, where no semicolon may stand. Offsets are of UTF-8.
    text = sql.encode()
    ends = (at for at, kind in duckdb.tokenize(sql) if kind == duckdb.token_type.operator and text[at : at + 1] == b";")
    return text[: next(ends, len(text))].decode()


def _relation(db: duckdb.DuckDBPyConnection, question: str) -> duckdb.DuckDBPyRelation:
    try:
        return db.sql(question)
    except (duckdb.BinderException, duckdb.CatalogException):
        db.execute(question)  # it fails again, and this time says where
        raise


def _explained(exc: duckdb.Error) -> str:
    """Return what DuckDB says in one line, and below it the place in the SQL, if it shows one."""
    words, found, place = str(exc).partition("\nLINE ")
    told = f"the query failed: {' '.join(words.split())}; the tables are {', '.join(query.VIEWS)} (`DESCRIBE ticks` shows columns)"
    return f"{told}\nLINE {place.rstrip()}" if found else told


def _print(answer: duckdb.DuckDBPyRelation, form: str) -> None:
    match form:
        case "table":
            _print_table(answer)
        case "json":
            lines = answer.set_alias("answer").project("to_json(answer)::VARCHAR")
            for batch in lines.to_arrow_reader(_AT_A_TIME):
                for line in batch.column(0).to_pylist():
                    print(_json(line))  # noqa: T201 - the command's output
        case "csv":
            _print_csv(answer)
        case _:
            sink = pa.BufferOutputStream()
            pq.write_table(answer.to_arrow_table(), sink, compression="zstd")
            sys.stdout.buffer.write(sink.getvalue())


def _print_table(answer: duckdb.DuckDBPyRelation) -> None:
    """Print rows as DuckDB writes its values, so that times show in the session's zone."""
    texts = answer.project("COLUMNS(*)::VARCHAR")
    if not sys.stdout.isatty():
        render.rows(answer.columns, texts.fetchall())
        return
    rows = texts.limit(_SHOWN + 1).fetchall()
    render.rows(answer.columns, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        render.console().print(f"the first {_SHOWN:,} rows; --format csv, json or parquet has them all")


def _print_csv(answer: duckdb.DuckDBPyRelation) -> None:
    """Print numbers and text as they are, lists as JSON, everything else (times above all) as in a table."""
    columns = []
    for number, (name, kind) in enumerate(zip(answer.columns, map(str, answer.types), strict=True), 1):
        quoted = '"' + name.replace('"', '""') + '"'
        if _NUMBERS.fullmatch(kind):
            columns.append(f"#{number} AS {quoted}")
        elif _NESTED.fullmatch(kind):
            columns.append(f"to_json(#{number})::VARCHAR AS {quoted}")
        else:
            columns.append(f"#{number}::VARCHAR AS {quoted}")
    nested = [number for number, kind in enumerate(map(str, answer.types)) if _NESTED.fullmatch(kind)]
    batches = answer.project(", ".join(columns)).to_arrow_reader(_AT_A_TIME)
    with pacsv.CSVWriter(sys.stdout.buffer, batches.schema) as writer:
        for batch in batches:
            arrays = batch.columns
            for number in nested:
                texts = [None if text is None else _json(text) for text in arrays[number].to_pylist()]
                arrays[number] = pa.array(texts, pa.string())
            writer.write_batch(pa.record_batch(arrays, schema=batches.schema))


def _json(text: str) -> str:
    """Return what DuckDB wrote as JSON, with null for numbers that JSON does not have."""
    return _NOT_JSON.sub(lambda found: found[1] or "null", text)
