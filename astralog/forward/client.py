"""The two tables in ClickHouse: insert rows once, and ask what is there.

A repeated insert with the same token is dropped by the server, as long as it remembers that token.
Newer servers (26.1 on) forget to for `INSERT ... SELECT`, so that rows go in as they are.
"""

import math
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from astralog.forward.chunks import Chunk
from astralog.forward.rows import COLUMNS, DEAD_LETTER_COLUMNS, DeadLetter, dead_letter_rows
from astralog.settings import Settings

CONNECT_SECONDS = 10

#: Characters of an error that are shown and kept.
ERROR_CHARACTERS = 500

#: So that an insert is one block, and with it all there or not at all: rows and bytes that a
#: server collects before it makes a block, above what any chunk has.
BLOCK_ROWS = 4_000_000
BLOCK_BYTES = 1024 * 1024 * 1024

#: Which rows of a table come from a chunk; the names of the tables are checked by the settings.
HELD = "WHERE node = %(node)s AND segment = %(segment)s AND line BETWEEN %(first)s AND %(last)s"

INSERT_SETTINGS: dict[str, Any] = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "distributed_foreground_insert": 1,
    "wait_end_of_query": 1,
    "send_progress_in_http_headers": 0,
    "input_format_skip_unknown_fields": 0,
    "input_format_allow_errors_num": 0,
    "input_format_allow_errors_ratio": 0,
    "max_insert_block_size": BLOCK_ROWS,
    "min_insert_block_size_rows": BLOCK_ROWS,
    "min_insert_block_size_bytes": BLOCK_BYTES,
    "max_partitions_per_insert_block": 0,
    "date_time_input_format": "best_effort",
}

#: Errors by which a server says that it cannot hold the data, whenever it comes. Any other error
#: may pass. Source of the numbers: ClickHouse, src/Common/ErrorCodes.cpp.
DATA_ERRORS = frozenset(
    {
        6,  # CANNOT_PARSE_TEXT
        25,  # CANNOT_PARSE_ESCAPE_SEQUENCE
        26,  # CANNOT_PARSE_QUOTED_STRING
        27,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
        33,  # CANNOT_READ_ALL_DATA
        38,  # CANNOT_PARSE_DATE
        41,  # CANNOT_PARSE_DATETIME
        53,  # TYPE_MISMATCH
        69,  # ARGUMENT_OUT_OF_BOUND
        70,  # CANNOT_CONVERT_TYPE
        72,  # CANNOT_PARSE_NUMBER
        117,  # INCORRECT_DATA
        130,  # CANNOT_READ_ARRAY_FROM_TEXT
        131,  # TOO_LARGE_STRING_SIZE
        306,  # TOO_DEEP_RECURSION
        321,  # VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
        349,  # CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
        395,  # FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
        407,  # DECIMAL_OVERFLOW
        467,  # CANNOT_PARSE_BOOL
        469,  # VIOLATED_CONSTRAINT
        691,  # UNKNOWN_ELEMENT_OF_ENUM
    }
)


class Unavailable(Exception):
    """The tables did not answer as they should; what was sent may be stored or not."""

    def __init__(self, error: BaseException, code: int | None) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        super().__init__(text[:ERROR_CHARACTERS])
        self.code = code


class Unacceptable(Exception):
    """The table cannot hold some row of an insert; what was sent is not stored."""


class Tables:
    """The table of logs and that of its dead letters, lines that it cannot hold.

    Raises Unavailable throughout. It connects when it is first used.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.clickhouse_url
        self._timeout_seconds = settings.clickhouse_timeout_seconds
        self._node = settings.node
        self._table = settings.clickhouse_table
        self._dead_letter_table = self._table + "_dead_letter"
        self._client: Client | None = None

    @property
    def name(self) -> str:
        """Where the tables are, without user and password."""
        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/{self._table}", "", ""))

    def insert(self, chunk: Chunk, rows: Iterable[bytes]) -> None:
        """Insert rows of a chunk at once; raises Unacceptable where the table cannot hold one."""
        try:
            self._insert(chunk, self._table, COLUMNS, "JSONEachRow", rows)
        except Unavailable as error:
            if error.code in DATA_ERRORS:
                raise Unacceptable(str(error)) from None
            raise

    def insert_dead_letters(self, chunk: Chunk, lines: list[DeadLetter]) -> None:
        """Insert lines of a chunk into the dead-letter table, raw, each with its error."""
        rows = dead_letter_rows(chunk.segment, self._node, lines)
        self._insert(chunk, self._dead_letter_table, DEAD_LETTER_COLUMNS, "TabSeparated", rows)

    def _insert(
        self,
        chunk: Chunk,
        table: str,
        columns: tuple[str, ...],
        row_format: str,
        rows: Iterable[bytes],
    ) -> None:
        # With its end too: chunks of other sizes, as after a change of the settings, are others.
        token = f"{self._node}/{chunk.segment}/{chunk.offset}-{chunk.offset + chunk.size}"
        try:
            self._connected().raw_insert(
                table,
                columns,
                (piece for piece in rows),
                settings={
                    **INSERT_SETTINGS,
                    "insert_deduplication_token": token,
                    "query_id": f"{table}/{token}",  # a server runs one of a name at a time
                },
                fmt=row_format,
            )
        except (ClickHouseError, OSError) as error:
            raise _unavailable(error) from None

    def held(self, chunk: Chunk) -> set[int]:
        """Return those lines of a chunk that the tables hold, by their numbers."""
        tables = (self._table, self._dead_letter_table)
        query = " UNION DISTINCT ".join(f"SELECT line FROM {name} {HELD}" for name in tables)  # nosec
        values = {
            "node": self._node,
            "segment": chunk.segment,
            "first": chunk.first_line,
            "last": chunk.first_line + chunk.lines - 1,
        }
        try:
            answer = self._connected().raw_query(query, values, fmt="TabSeparated")
            return set(map(int, answer.split()))
        except (ClickHouseError, OSError, ValueError) as error:
            raise _unavailable(error) from None

    def disconnect(self) -> None:
        """Close the connections, which the server would do when they are idle for long."""
        if self._client:
            self._client.close_connections()

    def _connected(self) -> Client:
        if self._client is None:
            self._client = clickhouse_connect.get_client(
                dsn=self._url,
                interface=urlsplit(self._url).scheme,
                client_name="astralog",
                compress=False,
                connect_timeout=CONNECT_SECONDS,
                send_receive_timeout=math.ceil(self._timeout_seconds),
                query_retries=0,
                autogenerate_session_id=False,
                show_clickhouse_errors="scrub",
            )
        return self._client


def _unavailable(error: Exception) -> Unavailable:
    """Return the error of the client, with its cause instead where it did not reach the server."""
    code = getattr(error, "code", None)
    cause: BaseException = error
    while code is None and (cause.__cause__ or cause.__context__):
        cause = cause.__cause__ or cause.__context__ or cause
    return Unavailable(cause, code)
