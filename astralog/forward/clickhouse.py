"""The two tables in ClickHouse: insert rows once, query the rows they hold, within a deadline.

A server drops a repeated insert with the same token while it remembers that token. Newer servers
(26.1 on) do not for `INSERT ... SELECT`, so rows are inserted directly.
"""

import contextlib
import json
import math
import signal
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from astralog.forward.chunks import (
    COLUMNS,
    DEAD_LETTER_COLUMNS,
    Chunk,
    DeadLetter,
    dead_letter_rows,
)
from astralog.settings import Settings
from astralog.store.forward_state import encode_word

Answer = TypeVar("Answer")

CONNECT_SECONDS = 10

#: Characters of an error that are logged, and stored with a dead letter.
ERROR_CHARACTERS = 500

#: Rows and bytes that a server collects before it makes a block: more than any chunk has, so that
#: an insert is one block and therefore atomic.
BLOCK_ROWS = 4_000_000
BLOCK_BYTES = 1024 * 1024 * 1024

#: Conditions for the rows of a chunk, and of some segments.
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

#: Permanent errors: the table cannot hold the data. Any other error may be temporary. Source of
#: the numbers: ClickHouse, src/Common/ErrorCodes.cpp.
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


#: The response is not ClickHouse's to this query; it is a proxy's page, for example.
NOT_CLICKHOUSE = "the response has no X-ClickHouse-Query-Id of this query; a proxy may have sent it"


class Unavailable(Exception):
    """A request failed; the rows that were sent may be stored or not."""

    def __init__(self, error: BaseException, code: int | None) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        super().__init__(text[:ERROR_CHARACTERS])
        self.code = code


class Unacceptable(Exception):
    """The table cannot hold at least one row of an insert; no row was stored."""


class Held(NamedTuple):
    """A segment's content in the tables: rows, distinct lines, and the last line number."""

    rows: int
    lines: int
    last: int

    @property
    def is_whole(self) -> bool:
        """Return whether no line up to the last one is missing."""
        return self.lines == self.last


NOTHING = Held(0, 0, 0)


class _Table(NamedTuple):
    """A table with the columns and format of its inserts; the settings validate its name."""

    name: str
    columns: tuple[str, ...]
    row_format: str


class Tables:
    """The table of logs, and the table of dead letters: lines that the first cannot hold.

    Every method may raise Unavailable. The first request connects. A response counts only if
    ClickHouse's header has the query's own id.
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
        """Address of the table, without user and password."""
        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]
        path = f"{parts.path.rstrip('/')}/{self._logs.name}"
        return urlunsplit((parts.scheme, host, path, "", ""))

    def insert(self, chunk: Chunk, rows: Iterable[bytes], again: bool) -> int:
        """Insert rows of a chunk in one statement; return the count that ClickHouse reports.

        The count includes rows of views and of shards behind the table. `again` sends lines under
        a second token, for lines that the table lacks although it may remember the first. Raises
        Unacceptable if the table cannot hold a row.
        """
        try:
            return self._insert(chunk, self._logs, rows, again)
        except Unavailable as error:
            if error.code in DATA_ERRORS:
                raise Unacceptable(str(error)) from None
            raise

    def insert_dead_letters(self, chunk: Chunk, lines: list[DeadLetter], again: bool) -> int:
        rows = dead_letter_rows(chunk.segment, self._node, lines)
        return self._insert(chunk, self._dead_letters, rows, again)

    def _insert(self, chunk: Chunk, table: _Table, rows: Iterable[bytes], again: bool) -> int:
        # The end is part of it: after a change of the settings, chunks have other sizes.
        token = f"{self._node}/{chunk.segment}/{chunk.offset}-{chunk.offset + chunk.size}"
        token += "/again" * again
        query_id = encode_word(f"{table.name}/{token}")
        settings = {
            **INSERT_SETTINGS,
            "insert_deduplication_token": token,
            "query_id": query_id,  # a server runs one query per id at a time
        }

        def ask(client: Client) -> int:
            pieces = (piece for piece in rows)  # a generator is not sent a second time
            answer = client.raw_insert(
                table.name, table.columns, pieces, settings, table.row_format
            )
            if answer.query_id() != query_id:
                raise ValueError(NOT_CLICKHOUSE)
            return answer.written_rows

        return self._ask(ask)

    def held(self, chunk: Chunk) -> set[int]:
        """Return the numbers of a chunk's lines that the tables hold."""
        last = chunk.first_line + chunk.lines - 1
        values = {"segment": chunk.segment, "first": chunk.first_line, "last": last}

        def read(rows: list[list[Any]]) -> set[int]:
            [[lines]] = rows
            return set(map(int, lines))

        return self._select("SELECT groupUniqArray(line) FROM ({lines})", OF_CHUNK, values, read)

    def count(self, segments: Collection[str]) -> dict[str, Held]:
        """Return the content of each segment that the tables know."""
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
        """Query the lines of both tables; return the rows as converted by `read`."""
        lines = " UNION ALL ".join(
            f"SELECT segment, line FROM {table.name} WHERE {where}"  # nosec  # constants and a checked name
            for table in (self._logs, self._dead_letters)
        )
        query_id = f"astralog/{uuid.uuid4()}"

        def ask(client: Client) -> Answer:
            response: Any = client.raw_stream(  # a response of urllib3
                query.format(lines=lines),
                {"node": self._node, **values},
                {"query_id": query_id, "wait_end_of_query": 1},
                "JSONCompact",  # a part of it is not valid JSON
            )
            with contextlib.closing(response):
                if response.headers.get("X-ClickHouse-Query-Id") != query_id:
                    raise ValueError(NOT_CLICKHOUSE)
                content = json.loads(response.read())
            if "exception" in content or len(content["data"]) != content["rows"]:
                raise ValueError(content.get("exception", "rows are missing in the response"))
            return read(content["data"])

        return self._ask(ask)

    def _ask(self, ask: Callable[[Client], Answer]) -> Answer:
        """Run a request within the deadline; raises Unavailable."""
        try:
            if self._client is None:
                self._client = call_within(self._timeout_seconds, self._connect)
            client = self._client
            return call_within(self._timeout_seconds, lambda: ask(client))
        except Exception as error:  # the client raises many kinds for invalid responses
            raise _unavailable(error) from None

    def disconnect(self) -> None:
        """Close idle connections before the server does."""
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
    """Convert an error of the client; without a server's code, report its root cause."""
    code = getattr(error, "code", None)
    cause: BaseException = error
    while code is None and (cause.__cause__ or cause.__context__):
        cause = cause.__cause__ or cause.__context__ or cause
    return Unavailable(cause, code)


#: Seconds until the signal is repeated: an exception raised inside a finalizer is lost.
REPEAT_SECONDS = 1.0


class _Expired(BaseException):
    """The deadline passed; a BaseException, so that no `except Exception` swallows it."""


class _Alarm:
    """Signal handler that raises _Expired in the main thread while armed."""

    is_armed = True

    def __call__(self, number: int, frame: object) -> None:
        if self.is_armed:
            raise _Expired


def call_within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """Return the result of `call`; raises TimeoutError if it takes longer than `seconds`.

    A socket timeout restarts with every byte, so a dripping response never reaches it. Main
    thread only. A pending name resolution delays the deadline, since C code runs it.
    """
    alarm = _Alarm()
    handler = signal.signal(signal.SIGALRM, alarm)
    started = time.monotonic()
    delay, interval = signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)
    try:
        try:
            return call()
        finally:
            alarm.is_armed = False
    except _Expired:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        if delay:  # of an outer timer, such as a test's own deadline
            left = max(delay - (time.monotonic() - started), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left, interval)
    raise TimeoutError(f"no complete answer within {seconds:g} s")
