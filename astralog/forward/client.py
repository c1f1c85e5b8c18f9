"""The two tables in ClickHouse: insert rows once, and ask what is there.

A repeated insert with the same token is dropped by the server, as long as it remembers that token.
Newer servers (26.1 on) forget to for `INSERT ... SELECT`, so that rows go in as they are.
"""

import json
import math
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from urllib3 import BaseHTTPResponse

from astralog.forward.chunks import Chunk
from astralog.forward.deadline import call_within
from astralog.forward.rows import COLUMNS, DEAD_LETTER_COLUMNS, DeadLetter, dead_letter_rows
from astralog.settings import Settings
from astralog.store.forward_state import encode_word

Answer = TypeVar("Answer")

CONNECT_SECONDS = 10

#: Characters of an error that are shown and kept.
ERROR_CHARACTERS = 500

#: So that an insert is one block, and with it all there or not at all: rows and bytes that a
#: server collects before it makes a block, above what any chunk has.
BLOCK_ROWS = 4_000_000
BLOCK_BYTES = 1024 * 1024 * 1024

#: Which rows of a table come from a chunk, or from some segments.
OF_CHUNK = "node = %(node)s AND segment = %(segment)s AND line BETWEEN %(first)s AND %(last)s"
OF_SEGMENTS = "node = %(node)s AND segment IN %(segments)s"

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


class NotClickHouse(Exception):
    """An answer that ClickHouse did not give to this query, as a page of a proxy."""

    def __init__(self) -> None:
        super().__init__(
            "the answer has no X-ClickHouse-Query-Id of this query: a proxy's, or else"
        )


class Held(NamedTuple):
    """What the tables hold of a segment: its rows, its distinct lines, and the last of these."""

    rows: int
    lines: int
    last: int

    @property
    def is_whole(self) -> bool:
        """Return whether no line up to the last one is missing."""
        return self.lines == self.last


NOTHING = Held(0, 0, 0)


class _Table(NamedTuple):
    """A table, and how rows go into it; the settings have checked its name."""

    name: str
    columns: tuple[str, ...]
    row_format: str


class Tables:
    """The table of logs and that of its dead letters, lines that it cannot hold.

    Raises Unavailable throughout. It connects when it is first used. Only an answer with the
    query's own id in ClickHouse's header counts as one.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.clickhouse_url
        self._timeout_seconds = settings.clickhouse_timeout_seconds
        self._node = settings.node
        table = settings.clickhouse_table
        self._logs = _Table(table, COLUMNS, "JSONEachRow")
        self._dead_letters = _Table(f"{table}_dead_letter", DEAD_LETTER_COLUMNS, "TabSeparated")
        self._client: Client | None = None

    @property
    def name(self) -> str:
        """Where the tables are, without user and password."""
        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]
        path = f"{parts.path.rstrip('/')}/{self._logs.name}"
        return urlunsplit((parts.scheme, host, path, "", ""))

    def insert(self, chunk: Chunk, rows: Iterable[bytes], again: bool) -> int:
        """Insert rows of a chunk at once; return how many ClickHouse says it wrote.

        These are more with rows of views, or of the shards behind the table. Raises Unacceptable
        if the table cannot hold a row. `again` is for lines that the table lacks although it may
        remember their token.
        """
        try:
            return self._insert(chunk, self._logs, rows, again)
        except Unavailable as error:
            if error.code in DATA_ERRORS:
                raise Unacceptable(str(error)) from None
            raise

    def insert_dead_letters(self, chunk: Chunk, lines: list[DeadLetter], again: bool) -> int:
        """Insert lines of a chunk into the dead-letter table, raw, each with its error."""
        rows = dead_letter_rows(chunk.segment, self._node, lines)
        return self._insert(chunk, self._dead_letters, rows, again)

    def _insert(self, chunk: Chunk, table: _Table, rows: Iterable[bytes], again: bool) -> int:
        # With its end too: chunks of other sizes, as after a change of the settings, are others.
        token = f"{self._node}/{chunk.segment}/{chunk.offset}-{chunk.offset + chunk.size}"
        token += "/again" * again
        query_id = encode_word(f"{table.name}/{token}")
        settings = {
            **INSERT_SETTINGS,
            "insert_deduplication_token": token,
            "query_id": query_id,  # a server runs one of a name at a time
        }

        def ask(client: Client) -> int:
            pieces = (piece for piece in rows)  # a generator is not sent a second time
            answer = client.raw_insert(
                table.name, table.columns, pieces, settings, table.row_format
            )
            if answer.query_id() != query_id:
                raise NotClickHouse
            return answer.written_rows

        return self._ask(ask)

    def held(self, chunk: Chunk) -> set[int]:
        """Return those lines of a chunk that the tables hold, by their numbers."""
        values = {
            "segment": chunk.segment,
            "first": chunk.first_line,
            "last": chunk.first_line + chunk.lines - 1,
        }

        def read(rows: list[list[Any]]) -> set[int]:
            [[lines]] = rows
            return set(map(int, lines))

        return self._select("SELECT groupUniqArray(line) FROM ({lines})", OF_CHUNK, values, read)

    def count(self, segments: Collection[str]) -> dict[str, Held]:
        """Return what the tables hold of each of these segments, without those they do not know."""
        query = (
            "SELECT segment, count(), uniqExact(line), max(line) FROM ({lines}) GROUP BY segment"
        )

        def read(rows: list[list[Any]]) -> dict[str, Held]:
            return {str(segment): Held(*map(int, counts)) for segment, *counts in rows}

        return self._select(query, OF_SEGMENTS, {"segments": tuple(segments)}, read)

    def _select(
        self,
        query: str,
        where: str,
        values: Mapping[str, object],
        read: Callable[[list[list[Any]]], Answer],
    ) -> Answer:
        """Return what `read` makes of the rows of a query over the lines of both tables."""
        lines = " UNION ALL ".join(
            f"SELECT segment, line FROM {table.name} WHERE {where}"  # nosec
            for table in (self._logs, self._dead_letters)
        )
        query_id = f"astralog/{uuid.uuid4()}"

        def ask(client: Client) -> Answer:
            response = cast(
                BaseHTTPResponse,
                client.raw_stream(
                    query.format(lines=lines),
                    {"node": self._node, **values},
                    {"query_id": query_id, "wait_end_of_query": 1},
                    "JSONCompact",  # of which a part is no JSON
                ),
            )
            try:
                if response.headers.get("X-ClickHouse-Query-Id") != query_id:
                    raise NotClickHouse
                content = json.loads(response.read())
            finally:
                response.close()
            if "exception" in content or len(content["data"]) != content["rows"]:
                raise ValueError(content.get("exception", "rows are missing in the answer"))
            return read(content["data"])

        return self._ask(ask)

    def _ask(self, ask: Callable[[Client], Answer]) -> Answer:
        """Return what ClickHouse answers within the time that it has."""
        try:
            if self._client is None:
                self._client = call_within(self._timeout_seconds, self._connect)
            client = self._client
            return call_within(self._timeout_seconds, lambda: ask(client))
        except Exception as error:  # the client fails in many ways on what ClickHouse never sent
            raise _unavailable(error) from None

    def disconnect(self) -> None:
        """Close the connections, which the server would do when they are idle for long."""
        if self._client:
            self._client.close_connections()

    def _connect(self) -> Client:
        return clickhouse_connect.get_client(
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


def _unavailable(error: Exception) -> Unavailable:
    """Return the error of the client, with its cause instead where it did not reach the server."""
    code = getattr(error, "code", None)
    cause: BaseException = error
    while code is None and (cause.__cause__ or cause.__context__):
        cause = cause.__cause__ or cause.__context__ or cause
    return Unavailable(cause, code)
