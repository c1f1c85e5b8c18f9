"""Deliver a chunk so that the tables hold each of its lines once, whatever happened before."""

from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import NamedTuple, Protocol

from astralog.forward.chunks import Chunk
from astralog.forward.client import Held, Unacceptable, Unavailable
from astralog.forward.rows import DeadLetter, Rows, as_dead_letters

#: Inserts of one chunk that fail for their data, until the rest of it becomes dead letters: it
#: bounds the search for the lines that a table of other columns cannot hold.
SEARCH_INSERTS = 500


class Miscounted(Unavailable):
    """ClickHouse says that it wrote fewer rows than it was sent."""

    def __init__(self, written: int, sent: int) -> None:
        super().__init__(ValueError(f"{sent} rows were sent, and {written} written"), None)


class LogTables(Protocol):
    """Where the lines go: `client.Tables`."""

    def insert(self, chunk: Chunk, rows: Iterable[bytes], again: bool) -> int:
        """Insert rows of a chunk, all or none; return how many were written."""

    def insert_dead_letters(self, chunk: Chunk, lines: list[DeadLetter], again: bool) -> int:
        """Insert lines into the dead-letter table, all or none; return how many were written."""

    def held(self, chunk: Chunk) -> set[int]:
        """Return those lines of a chunk that the tables hold."""

    def count(self, segments: Collection[str]) -> dict[str, Held]:
        """Return what the tables hold of each of these segments."""


class Delivered(NamedTuple):
    """How many lines of a chunk are delivered, and how many of these as dead letters."""

    lines: int
    dead_letters: int


class Delivery:
    """Delivers one chunk; after an error, another one that is in doubt goes on with the rest."""

    def __init__(
        self, tables: LogTables, node: str, chunk: Chunk, in_doubt: bool, again: bool = False
    ) -> None:
        """If the chunk is `in_doubt`, the tables are asked first.

        `again` is for lines that are missing although they were delivered: the tables may remember
        their tokens.
        """
        self._tables = tables
        self._node = node
        self._chunk = chunk
        self._in_doubt = in_doubt
        self._again = again
        self._searched = 0

    def deliver(self) -> Delivered:
        """Return when the tables hold every line; raises Unavailable if they may not."""
        return self._deliver(self._chunk, self._in_doubt)

    def _deliver(self, chunk: Chunk, in_doubt: bool) -> Delivered:
        held: Collection[int] = self._tables.held(chunk) if in_doubt else ()
        if held and len(held) == chunk.lines:
            return Delivered(chunk.lines, 0)
        rows = Rows(chunk, self._node, held)
        try:
            self._insert(chunk, rows)
        except Unacceptable as error:
            return self._search(chunk, str(error))
        self._insert_dead_letters(chunk, rows.dead_letters)
        return Delivered(rows.lines, len(rows.dead_letters))

    def _insert(self, chunk: Chunk, rows: Rows) -> None:
        pieces: Iterator[bytes] = iter(rows)
        first = next(pieces, None)
        if first is not None:
            written = self._tables.insert(chunk, chain([first], pieces), self._again)
            _check_count(written, rows.rows)

    def _insert_dead_letters(self, chunk: Chunk, lines: list[DeadLetter]) -> None:
        if lines:
            written = self._tables.insert_dead_letters(chunk, lines, self._again)
            _check_count(written, len(lines))

    def _search(self, chunk: Chunk, error: str) -> Delivered:
        """Deliver a chunk of which the table cannot hold some row: half by half.

        What is left of a row that fails alone, or of too long a search, becomes dead letters.
        """
        self._searched += 1
        if chunk.lines == 1 or self._searched > SEARCH_INSERTS:
            return self._give_up(chunk, error)
        # That a table cannot hold a row may be said of one that is filled from this one.
        first, second = (self._deliver(half, in_doubt=True) for half in chunk.halves())
        return Delivered(first.lines + second.lines, first.dead_letters + second.dead_letters)

    def _give_up(self, chunk: Chunk, error: str) -> Delivered:
        lines = as_dead_letters(chunk, self._tables.held(chunk), error)
        self._insert_dead_letters(chunk, lines)
        return Delivered(chunk.lines, len(lines))


def _check_count(written: int, sent: int) -> None:
    if written < sent:
        raise Miscounted(written, sent)
