"""The command `astralog sql`: DuckDB over all segments, as the view `logs`."""

import contextlib
import io
import os
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from astralog.standard_streams import escape
from astralog.store.merge import parts_since
from astralog.view import options

#: Times that a query starts again if a segment was sealed, compressed or removed meanwhile.
TRIES = 3

#: Maximum rows of a table; the other formats have all rows.
MAX_ROWS = 1000

#: Named, since the columns that DuckDB infers from the first logs fail at metadata of another
#: shape. The last line of a segment that is being written may lack its end.
VIEW = """
CREATE OR REPLACE TEMP VIEW logs AS FROM read_json(
  {files}, format = 'newline_delimited', ignore_errors = true, maximum_object_size = 268435456,
  columns = {{project_id: 'VARCHAR', timestamp: 'TIMESTAMPTZ', level: 'VARCHAR',
    service: 'VARCHAR', message: 'VARCHAR', metadata: 'JSON'}})
WHERE project_id IS NOT NULL{condition}"""

EMPTY_VIEW = """
CREATE OR REPLACE TEMP VIEW logs AS SELECT ''::VARCHAR AS project_id, now() AS timestamp,
  ''::VARCHAR AS level, ''::VARCHAR AS service, ''::VARCHAR AS message, NULL::JSON AS metadata
WHERE false"""

COPY = "COPY ({query}\n) TO '/proc/self/fd/{fd}' (FORMAT {format}, USE_TMP_FILE false)"


@click.command()
@click.argument("query", type=options.TEXT)
@options.since
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "csv", "json", "parquet"]),
    default="table",
    show_default=True,
    help="json prints one object per line.",
)
@options.data_dir
def sql(*, query: str, since: str | None, output_format: str, data_dir: Path) -> None:
    """Run a QUERY over the view `logs` of all stored logs with DuckDB.

    Its columns are project_id, timestamp, level, service, message and metadata (JSON).
    """
    options.prepare("sql", None)
    query = query.strip().rstrip(";")
    if not query:
        raise click.UsageError("the QUERY is empty.")
    if output_format == "parquet" and sys.stdout.isatty():
        raise click.UsageError("Parquet is binary; redirect the output to a file.")
    duckdb = _import_duckdb()
    connection = duckdb.connect()
    try:
        for left in reversed(range(TRIES)):
            connection.execute(_view(data_dir, since))
            try:
                _print(connection, query, output_format)
                return
            except duckdb.IOException:
                if not left:
                    raise
    except duckdb.Error as error:
        lines = [escape(str(error), keep="\n")]  # which may have values of logs
        if isinstance(error, duckdb.IOException):
            lines.append("If a compressed segment is damaged, `astralog search --count` names it.")
        if isinstance(error, duckdb.ParserException) and output_format != "table":
            lines.append(f"--format {output_format} accepts a single SELECT.")
        raise click.ClickException("\n".join(lines)) from None


def _import_duckdb() -> ModuleType:
    try:
        import duckdb  # noqa: PLC0415  # of an extra
    except ImportError:
        message = "astralog sql needs DuckDB: pip install duckdb"
        raise click.ClickException(message) from None
    return duckdb


def _view(data_dir: Path, since: str | None) -> str:
    parts = parts_since(options.find_parts(data_dir), since)
    if not parts:
        return EMPTY_VIEW
    files = [_quote(str(part.path)) for part in parts]
    condition = "" if since is None else f" AND timestamp >= {_quote(since)}::TIMESTAMPTZ"
    return VIEW.format(files=f"[{', '.join(files)}]", condition=condition)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _print(connection: Any, query: str, output_format: str) -> None:
    if output_format != "table":
        _copy(connection, query, output_format)
        return
    relation = connection.sql(query)
    if relation is None:
        return
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        relation.show(max_rows=MAX_ROWS)
    click.echo(escape(shown.getvalue(), keep="\n"), nl=False)


def _copy(connection: Any, query: str, output_format: str) -> None:
    """Write a result to stdout through a pipe, since DuckDB opens its output by name."""
    reading, writing = os.pipe()
    failures: list[OSError] = []
    copier = threading.Thread(target=_copy_to_stdout, args=(connection, reading, failures))
    copier.start()
    try:
        connection.execute(COPY.format(query=query, fd=writing, format=output_format))
    finally:
        os.close(writing)
        copier.join()
        if failures:
            raise failures[0]


def _copy_to_stdout(connection: Any, fd: int, failures: list[OSError]) -> None:
    """Copy a pipe to stdout; if stdout fails, end the query, and read what it still writes."""
    with open(fd, "rb") as source:
        try:
            shutil.copyfileobj(source, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except OSError as error:
            failures.append(error)
            connection.interrupt()
            with open(os.devnull, "wb") as nothing:
                shutil.copyfileobj(source, nothing)
