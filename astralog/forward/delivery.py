"""Exactly-once delivery: send each chunk once, and verify each segment in the tables.

`Doubts` queries segments without facts, `Delivery` sends a chunk, `Verifier` queries the tables
before a segment counts as delivered.
"""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import NamedTuple

from astralog.forward.backlog import Backlog
from astralog.forward.chunks import Chunk, DeadLetter, Rows, as_dead_letters
from astralog.forward.clickhouse import NOTHING, Held, Tables, Unacceptable, Unavailable
from astralog.forward.cursor import Cursor

#: Rejected inserts per chunk until the rest of it becomes dead letters: bounds the search for the
#: lines that a table with other columns cannot hold.
SEARCH_INSERTS = 500


class Miscounted(Unavailable):
    """ClickHouse reports fewer written rows than were sent."""


class Delivered(NamedTuple):
    """Number of delivered lines of a chunk, and of the dead letters among them."""

    lines: int
    dead_letters: int


class Delivery:
    """Delivers one chunk; after an error, a new Delivery in doubt sends the rest."""

    def __init__(self, tables: Tables, node: str, again: bool = False) -> None:
        """Send lines under a second token if `again`, since the tables may remember the first.

        That is for lines that are missing although they were delivered.
        """
        self._tables = tables
        self._node = node
        self._again = again
        self._rejected_inserts = 0

    def deliver(self, chunk: Chunk, in_doubt: bool) -> Delivered:
        """Return once the tables hold every line; raises Unavailable if they may not.

        If the chunk is `in_doubt`, the tables are queried first.
        """
        held: Collection[int] = self._tables.held(chunk) if in_doubt else ()
        if held and len(held) == chunk.lines:
            return Delivered(chunk.lines, 0)
        rows = Rows(chunk, self._node, held)
        try:
            self._insert(chunk, rows)
        except Unacceptable as error:
            return self._bisect(chunk, str(error))
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

    def _bisect(self, chunk: Chunk, error: str) -> Delivered:
        """Deliver a chunk with a row that the table cannot hold, half by half.

        A row that fails alone becomes a dead letter; so does the rest after too long a search.
        """
        self._rejected_inserts += 1
        if chunk.lines == 1 or self._rejected_inserts > SEARCH_INSERTS:
            lines = as_dead_letters(chunk, self._tables.held(chunk), error)
            self._insert_dead_letters(chunk, lines)
            return Delivered(chunk.lines, len(lines))
        # In doubt: the rejection may come from a view, with the rows stored in the table.
        first, second = (self.deliver(half, in_doubt=True) for half in chunk.halves())
        return Delivered(first.lines + second.lines, first.dead_letters + second.dead_letters)


def _check_count(written: int, sent: int) -> None:
    if written < sent:
        raise Miscounted(ValueError(f"{sent} rows were sent, {written} were written"), None)


#: File bytes of the segments per query about doubts: the server counts their distinct lines in
#: memory.
QUERY_BYTES = 256 * 1024 * 1024


class Doubts:
    """Queries the tables about segments without facts, many per query, and keeps the answers.

    Segments that an earlier process began have a fact in the cursor; the tables are queried about
    these chunk by chunk when they are delivered.
    """

    def __init__(self, tables: Tables, cursor: Cursor, backlog: Backlog) -> None:
        self._tables = tables
        self._cursor = cursor
        self._backlog = backlog
        self._held: dict[str, Held] = {}

    def ask_about(self, name: str) -> None:
        """Query a segment and others that wait, unless already known; raises Unavailable."""
        if self._is_unknown(name):
            names = {name, *filter(self._is_unknown, self._backlog.oldest_within(QUERY_BYTES))}
            answer = self._tables.count(names)
            self._held |= {name: answer.get(name, NOTHING) for name in names}

    def _is_unknown(self, name: str) -> bool:
        is_asked = name in self._held or name in self._cursor.in_doubt
        return not is_asked and self._cursor.may_be_held(name)

    def holds(self, chunk: Chunk) -> bool:
        held = self._held.get(chunk.segment, NOTHING)
        if not held.is_whole or held.last < chunk.first_line:
            return False  # without counting the chunk's lines
        return held.last >= chunk.first_line + chunk.lines - 1

    def may_hold(self, chunk: Chunk) -> bool:
        """Return whether the tables may hold lines of a chunk and must be queried."""
        if chunk.segment in self._cursor.in_doubt:
            return True
        return self._held.get(chunk.segment, NOTHING).last >= chunk.first_line

    def prune(self) -> None:
        """Drop answers about segments that no longer wait, since a removed one may come back."""
        gone = [name for name in self._held if name not in self._backlog]
        for name in gone:
            del self._held[name]


#: Longest delay before a sent segment is verified, so that many share a query.
GATHER_SECONDS = 5.0

#: Most segments per verifying query, and most lines: the server holds these in memory.
QUERY_SEGMENTS = 200
QUERY_LINES = 2_000_000

#: Seconds to wait for missing lines, since a replica may lag, before they are sent again, and once
#: more before they count as gone. The pause between two queries doubles.
REPLICA_SECONDS = 180.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


class Outcome(Enum):
    """The result of verifying a segment."""

    UNKNOWN = "not verified yet"
    COMPLETE = "the tables hold each line once"
    DOUBLED = "the tables hold each line, and more rows"
    MISSING = "the tables lack lines, which will be sent again"
    INCOMPLETE = "the tables lack lines that were sent again"


#: Final outcomes.
DELIVERED = (Outcome.COMPLETE, Outcome.DOUBLED, Outcome.INCOMPLETE)


@dataclass
class Sent:
    """A segment that was sent, and the state of its verification."""

    name: str
    lines: int
    is_repeated: bool  # whether missing lines were sent again
    ask_at: float
    pause: float = FIRST_PAUSE_SECONDS
    missing_since: float | None = None
    held: Held = NOTHING
    outcome: Outcome = Outcome.UNKNOWN

    @property
    def is_unasked(self) -> bool:
        """Whether it was not queried yet, or is delivered and not removed yet."""
        return self.missing_since is None or self.outcome in DELIVERED

    def update(self, held: Held, now: float) -> None:
        """Set the outcome from the tables' content, or the time of the next query."""
        self.held = held
        if held.is_whole and held.lines >= self.lines:
            is_exact = held.rows == self.lines
            self.outcome = Outcome.COMPLETE if is_exact else Outcome.DOUBLED
            return
        if self.missing_since is None:
            self.missing_since = now
        if now - self.missing_since >= REPLICA_SECONDS:
            self.outcome = Outcome.INCOMPLETE if self.is_repeated else Outcome.MISSING
        self.ask_at = now + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE_SECONDS)


class Verifier:
    """Segments that were sent and do not count as delivered yet."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._sent: dict[str, Sent] = {}

    def __bool__(self) -> bool:
        return bool(self._sent)

    def add(self, name: str, lines: int, is_repeated: bool) -> None:
        """Add a segment whose `lines` lines were all sent."""
        self._sent[name] = Sent(name, lines, is_repeated, time.monotonic() + GATHER_SECONDS)

    def remove(self, name: str) -> None:
        del self._sent[name]

    def next_at(self, is_idle: bool) -> float:
        """Return the monotonic time of the next query; 0 if one is due now."""
        waiting = [s for s in self._sent.values() if s.outcome is not Outcome.MISSING]
        if sum(sent.is_unasked for sent in waiting) >= (1 if is_idle else QUERY_SEGMENTS):
            return 0.0
        return min((sent.ask_at for sent in waiting), default=float("inf"))

    def check(self) -> list[Sent]:
        """Query the segments that are due; return the delivered ones among them.

        Raises Unavailable. A delivered segment is queried again until it is removed.
        """
        now = time.monotonic()
        due = self._due(now)
        held = self._tables.count([sent.name for sent in due]) if due else {}
        for sent in due:
            sent.update(held.get(sent.name, NOTHING), now)
        return [sent for sent in due if sent.outcome in DELIVERED]

    def _due(self, now: float) -> list[Sent]:
        due: list[Sent] = []
        lines = 0
        for sent in self._sent.values():
            is_due = sent.ask_at <= now or sent.is_unasked
            if is_due and sent.outcome is not Outcome.MISSING:
                lines += sent.lines
                if due and (len(due) == QUERY_SEGMENTS or lines > QUERY_LINES):
                    break
                due.append(sent)
        return due

    def missing(self) -> Sent | None:
        """Return a segment whose missing lines must be sent again, or None."""
        missing = (sent for sent in self._sent.values() if sent.outcome is Outcome.MISSING)
        return next(missing, None)
