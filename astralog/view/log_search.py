"""Search all stored logs, newest first, in pages of limited time."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from gevent import monkey

from astralog.deadlines import Yielding
from astralog.store.files import regular_files
from astralog.store.follower import Follower
from astralog.store.merge import (
    Part,
    Remaining,
    make_parts,
    newest_arrivals,
    parts_since,
    remaining,
)
from astralog.store.names import parse_file_names
from astralog.store.reader import ReadBudget, Select
from astralog.view.log_filter import LogFilter
from astralog.view.sealer import Sealer

#: While a thread computes, the requests of its process wait for the interpreter, milliseconds each
#: time: so it works for a moment, and then sleeps so many times as long.
WORK_SECONDS = 0.0005
REST = 3

#: Bytes of logs after which a page ends, less than a soft budget holds; the last log may be large.
MAX_PAGE_BYTES = 4 * 1024 * 1024

#: Bytes of logs that a stream reads at once, except for the last log.
MAX_STREAM_BYTES = 1024 * 1024

_cursors = msgspec.json.Decoder(Remaining)

# gevent's own would make a hub for the thread.
_sleep: Callable[[float], None] = monkey.get_original("time", "sleep")


class Found(NamedTuple):
    """Stored lines, newest first, and the cursor for older ones, None if there are none.

    `file_bytes` counts the bytes that were read of files, which may be compressed, and `unreadable`
    the segments that could not be read, or only in part.
    """

    lines: list[bytes]
    rest: Remaining | None
    file_bytes: int
    unreadable: int


class LogSearch:
    """All logs of a data directory; any thread may use it.

    Cursors hold the names and offsets of segments, and with them the sizes of other projects' logs,
    so they are sealed with a secret that the processes of the service share.
    """

    def __init__(self, directory: Path, secret: bytes) -> None:
        self._directory = directory
        self._sealer = Sealer(secret)

    def find(
        self, wanted: LogFilter, limit: int, seconds: float, rest: Remaining | None = None
    ) -> Found:
        """Return the newest logs, or the next ones of `rest`; raises OSError.

        It ends after so many seconds, or as many as the list of segments takes, or MAX_PAGE_BYTES;
        a compressed segment that was begun is read to its end.
        """
        start = time.monotonic()
        parts = self._find_parts()
        # At most half of the time goes to the list, however long that is.
        seconds = max(seconds, time.monotonic() - start)
        if rest is not None:
            parts = list(rest.parts(parts))
        parts = parts_since(parts, wanted.since)
        budget = ReadBudget(max_seconds=seconds, is_soft=True)
        found = newest_arrivals(parts, limit, paced(wanted.select), budget)
        lines = _take((arrival.line for arrival in found), MAX_PAGE_BYTES)
        unreadable = sum(
            part.is_damaged or (part.is_failed and not part.is_removed) for part in parts
        )
        return Found(lines, remaining(parts), budget.file_bytes, unreadable)

    def _find_parts(self) -> list[Part]:
        """Find all parts, slowed down by sleeps: each takes some 10 µs."""
        pace = _make_pace()

        def names() -> Iterator[str]:
            for name in regular_files(self._directory):
                pace.check()
                yield name

        def make(*place: Any) -> Part:
            pace.check()
            return Part(*place)

        return make_parts(self._directory, parse_file_names(names()), make)

    def seal(self, rest: Remaining) -> str:
        return self._sealer.seal_hidden(json.dumps(rest, default=sorted))

    def open(self, sealed: str) -> Remaining:
        """Return the cursor that was sealed; raises ValueError for any other text."""
        return _cursors.decode(self._sealer.open_hidden(sealed))


class LogStream:
    """A stream of new logs of a data directory; one thread at a time may use it."""

    def __init__(self, directory: Path, wanted: LogFilter) -> None:
        self._follower = Follower(directory)
        self._wanted = wanted

    def start(self) -> None:
        """Begin after the stored lines; raises OSError."""
        self._follower.start()
        if self._follower.error:
            raise self._follower.error

    def read(self, seconds: float) -> list[bytes]:
        """Return the lines stored since the last call, or some of them if they are many."""
        budget = ReadBudget(max_seconds=seconds, is_soft=True)
        # Each call has a new pace: the time between two calls is not work.
        lines = self._follower.poll(paced(self._wanted.select), budget)
        return _take(lines, MAX_STREAM_BYTES)

    def close(self) -> None:
        self._follower.close()


def _take(lines: Iterable[bytes], max_bytes: int) -> list[bytes]:
    """Return the first lines up to so many bytes; the last line may exceed them."""
    taken: list[bytes] = []
    size = 0
    for line in lines:
        taken.append(line)
        size += len(line)
        if size >= max_bytes:
            break
    return taken


def _make_pace() -> Yielding:
    return Yielding(WORK_SECONDS, lambda worked: _sleep(REST * worked))


def paced(select: Select) -> Select:
    """Return the function, slowed down by sleeps."""
    pace = _make_pace()

    def select_slowly(block: bytes) -> Iterator[tuple[int, bytes]]:
        pace.check()
        for item in select(block):
            pace.check()
            yield item
        pace.check()

    return select_slowly
