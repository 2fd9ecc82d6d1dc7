"""Runs a query and prints its answer in the format asked for."""

from __future__ import annotations

import json
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


def print_answer(data_dir: Path, sql: str, form: str) -> None:
    """Run SQL over a data folder and print the answer on stdout.

    Raises:
        ConfigurationError: no such format, or SQL that DuckDB does not take.
        Refused: nothing is recorded there; or the answer would be short.
    """
    if form not in _FORMATS:
        raise ConfigurationError(f"--format: expected one of {', '.join(_FORMATS)}, got {form!r}")
    with query.connect(data_dir) as db:
        try:
            _refuse_all_but_a_question(db, sql)
            if form in {"table", "json"}:
                _print_rows(db, sql, form)
                return
            answer = db.sql(sql).to_arrow_table()
        except duckdb.Error as exc:
            words = " ".join(str(exc).split())
            raise ConfigurationError(
                f"the query failed: {words}; the tables are {', '.join(query.VIEWS)} (`DESCRIBE ticks` shows columns)"
            ) from exc
    out = sys.stdout.buffer
    if form == "csv":
        pacsv.write_csv(_flat(answer), out)
    elif sys.stdout.isatty():
        raise Refused("a Parquet file is not for a terminal; redirect it: tickvault query … --format parquet > file")
    else:
        sink = pa.BufferOutputStream()
        pq.write_table(answer, sink, compression="zstd")
        out.write(sink.getvalue())
    out.flush()


def _refuse_all_but_a_question(db: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Pass exactly one statement that reads: `query` never writes, and answers all that it was asked.

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


def _print_rows(db: duckdb.DuckDBPyConnection, sql: str, form: str) -> None:
    """Print rows as DuckDB writes its values, so that times show in the session's zone."""
    if not _is_select(sql):
        rows = db.execute(sql).fetchall()
        names = [column[0] for column in db.description or ()]
        _show(names, rows, len(rows), form)
        return
    db.execute(f"CREATE TEMP TABLE answer AS {sql.rstrip().rstrip(';')}")
    names = [row[0] for row in db.execute("SELECT column_name FROM (DESCRIBE answer)").fetchall()]
    if form == "json":
        for (line,) in db.execute("SELECT to_json(answer)::VARCHAR FROM answer").fetchall():
            print(line)  # noqa: T201 - the command's output
        return
    count = db.execute("SELECT count(*) FROM answer").fetchall()[0][0]
    limit = _SHOWN if sys.stdout.isatty() else count
    texts = ", ".join('"' + name.replace('"', '""') + '"::VARCHAR' for name in names)
    rows = db.execute(f"SELECT {texts} FROM answer LIMIT {limit}").fetchall()  # noqa: S608 - quoted names
    _show(names, rows, count, form)


def _show(names: list[str], rows: list[tuple[object, ...]], count: int, form: str) -> None:
    if form == "json":
        for row in rows:
            render.dump_json(dict(zip(names, row, strict=True)))
        return
    render.table(names, rows)
    if len(rows) < count:
        render.console().print(f"{len(rows):,} of {count:,} rows shown; --format csv, json or parquet has them all")


def _is_select(sql: str) -> bool:
    return sql.lstrip().upper().startswith(("SELECT", "WITH", "FROM", "VALUES", "("))


def _flat(answer: pa.Table) -> pa.Table:
    """Lists as JSON text: a CSV cell holds one value."""
    columns = []
    for column in answer.columns:
        if pa.types.is_nested(column.type):
            texts = [None if one.as_py() is None else json.dumps(one.as_py(), default=str) for one in column]
            columns.append(pa.chunked_array([pa.array(texts, pa.string())]))
        else:
            columns.append(column)
    return pa.table(columns, names=answer.column_names)
