"""Ask the tables for each segment that was sent, before it counts as delivered."""

import time
from dataclasses import dataclass
from enum import Enum

from astralog.forward.client import NOTHING, Held
from astralog.forward.delivery import LogTables

#: Seconds until the tables are asked about a segment at the latest, so that many share a query.
GATHER_SECONDS = 5.0

#: Segments that one query asks about at most, and their lines: the server holds those in memory.
QUERY_SEGMENTS = 200
QUERY_LINES = 2_000_000

#: Seconds for which missing lines may still come, as from a replica that lags, until they are sent
#: again; as many again, until they count as gone. The pause between two queries doubles.
REPLICA_SECONDS = 180.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


class Outcome(Enum):
    """What the tables say of a segment that was sent."""

    UNKNOWN = "they were not asked, or are to be asked again"
    COMPLETE = "they hold each line once"
    DOUBLED = "they hold each line, and more rows"
    MISSING = "they lack lines, which are to be sent again"
    INCOMPLETE = "they lack lines that were sent again"


#: Outcomes after which nothing more is done for a segment.
DELIVERED = (Outcome.COMPLETE, Outcome.DOUBLED, Outcome.INCOMPLETE)


@dataclass
class Sent:
    """A segment that was sent, and what came of it."""

    name: str
    lines: int
    is_repeated: bool  # whether missing lines were sent again
    ask_at: float
    pause: float = FIRST_PAUSE_SECONDS
    missing_since: float | None = None
    held: Held = NOTHING
    outcome: Outcome = Outcome.UNKNOWN

    def judge(self, held: Held, now: float) -> None:
        """Set the outcome by what the tables hold, or the time of the next question."""
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
    """The segments that were sent and do not count as delivered yet."""

    def __init__(self, tables: LogTables) -> None:
        self._tables = tables
        self._sent: dict[str, Sent] = {}
        self._unasked: set[str] = set()  # or delivered, and not removed yet
        self._missing: list[str] = []
        self._ask_at = float("inf")

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._sent)

    def add(self, name: str, lines: int, is_repeated: bool) -> None:
        """Take in a segment that has so many lines, of which all were sent."""
        ask_at = time.monotonic() + GATHER_SECONDS
        self._sent[name] = Sent(name, lines, is_repeated, ask_at)
        self._unasked.add(name)
        self._ask_at = min(self._ask_at, ask_at)

    def remove(self, name: str) -> None:
        """Take out a segment that is delivered, or whose lines are sent again."""
        sent = self._sent.pop(name)
        self._unasked.discard(name)
        if sent.outcome is Outcome.MISSING:
            self._missing.remove(name)

    def next_at(self, is_idle: bool) -> float:
        """Return when the tables are to be asked, at once if there is nothing else to do."""
        if len(self._unasked) >= (1 if is_idle else QUERY_SEGMENTS):
            return 0.0
        return self._ask_at

    def check(self) -> list[Sent]:
        """Ask about some whose time has come; return those that are delivered, as far as known.

        Raises Unavailable. They are asked about again until they are removed.
        """
        now = time.monotonic()
        due = self._due(now)
        held = self._tables.count([sent.name for sent in due]) if due else {}
        for sent in due:
            sent.judge(held.get(sent.name, NOTHING), now)
        self._missing += [sent.name for sent in due if sent.outcome is Outcome.MISSING]
        delivered = [sent for sent in due if sent.outcome in DELIVERED]
        asked = [sent for sent in due if sent.outcome not in DELIVERED]
        self._unasked.difference_update(sent.name for sent in asked)
        waiting = (s.ask_at for s in self._sent.values() if s.outcome is not Outcome.MISSING)
        self._ask_at = min(waiting, default=float("inf"))
        return delivered

    def _due(self, now: float) -> list[Sent]:
        due: list[Sent] = []
        lines = 0
        for sent in self._sent.values():
            is_due = sent.ask_at <= now or sent.name in self._unasked
            if is_due and sent.outcome is not Outcome.MISSING:
                lines += sent.lines
                if due and (len(due) == QUERY_SEGMENTS or lines > QUERY_LINES):
                    break
                due.append(sent)
        return due

    def missing(self) -> Sent | None:
        """Return a segment of which lines are to be sent again, None without any."""
        return self._sent[self._missing[0]] if self._missing else None
