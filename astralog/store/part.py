"""A part of a segment: the lines between two offsets, and estimates of when they arrived."""

import contextlib
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from astralog.store.names import Form, SegmentName
from astralog.store.segment_reader import READ_ERRORS, ReadBudget, SegmentReader

log = logging.getLogger(__name__)

#: Returns whether a line is wanted; `bool` wants all.
Matches = Callable[[bytes], bool]

#: A log may arrive so much later than its timestamp, and a sender's clock may be so much ahead.
CLOCK_SECONDS = 60.0

# A stored line is as the service encodes it: no quote in a string goes without its backslash, so
# that the first such text is the log's own timestamp.
_TIMESTAMP = re.compile(rb'"timestamp":"([0-9T:-]{19})(\.[0-9]+)?Z"')


class Arrival(NamedTuple):
    """A line of a segment, the offset after it, and about when it arrived, since 1970."""

    segment: SegmentName
    time: float
    offset: int
    line: bytes


class Part:
    """The lines of one segment from `begin` to `end`, or to the file's end where that is None.

    They arrived between `since` and `until`, in seconds since 1970. `successor` names a segment
    that began after the last of them, where one is known.
    """

    def __init__(
        self, directory: Path, segment: SegmentName, form: Form, successor: SegmentName | None
    ) -> None:
        self.segment = segment
        self.begin = 0
        self.end: int | None = None
        self.is_read = False  # whether all was read that there is
        self.is_failed = False  # whether the file cannot be read
        self._directory = directory
        self._form = form
        self.successor = successor

    @property
    def is_open(self) -> bool:
        """Whether the segment is being written, as far as its listed name tells."""
        return self._form is Form.OPEN

    @cached_property
    def since(self) -> float:
        """The start of the segment."""
        return self.segment.start

    @cached_property
    def latest(self) -> float:
        """What `until` is at most, by the names alone."""
        return self.successor.start if self.successor else float("inf")

    @cached_property
    def until(self) -> float:
        """The last change of the segment."""
        try:
            changed = self.segment.path(self._directory, self._form).stat().st_mtime
        except OSError:  # renamed or removed meanwhile
            changed = self.latest
        return max(self.since, changed)

    @contextlib.contextmanager
    def _reader(self) -> Iterator[SegmentReader]:
        """Open the file for a while."""
        with contextlib.closing(SegmentReader(self._directory, self.segment)) as reader:
            yield reader

    def read(self, matches: Matches, budget: ReadBudget) -> Iterator[Arrival]:
        """Yield the lines that match, until the budget is spent; then the next call goes on.

        Lines count as read once the next one is asked for. A file that cannot be read ends.
        """
        time = self.since
        for offset, line in self._without_errors(self._read(matches, budget)):
            time = self._event_time(line, time)
            yield Arrival(self.segment, time, offset, line)

    def _read(self, matches: Matches, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        with self._reader() as reader:
            for offset, line in reader.lines(self.begin, self.end, budget):
                if matches(line):
                    yield offset, line
                self.begin = offset
            self.is_read = not budget.is_spent

    def read_backwards(self, limit: int, matches: Matches, budget: ReadBudget) -> Iterator[Arrival]:
        """Yield the newest lines that match, `limit` at most, newest first; else as `read`.

        Of a line in which `begin` lies, which was not whole then, all is yielded.
        """
        time = self.until
        for offset, line in self._without_errors(self._read_backwards(limit, matches, budget)):
            time = self._event_time(line, time)
            yield Arrival(self.segment, time, offset, line)

    def _read_backwards(
        self, limit: int, matches: Matches, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        with self._reader() as reader:
            if reader.is_compressed:
                lines = reader.lines(0, self.end, budget)
                found = (item for item in lines if item[0] > self.begin and matches(item[1]))
                newest = deque(found, maxlen=limit)
                if not budget.is_spent:  # else these are not the newest
                    yield from reversed(newest)
                return
            for offset, line in reader.lines_backwards(self.end, budget):
                if offset <= self.begin:
                    return
                if matches(line):
                    yield offset, line

    def _event_time(self, line: bytes, otherwise: float) -> float:
        """Return the line's timestamp where it may be, within a minute, when it arrived."""
        time = event_time(line)
        if self.since - CLOCK_SECONDS <= time <= self.until + CLOCK_SECONDS:
            return min(max(time, self.since), self.until)
        return otherwise

    def _without_errors(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        try:
            yield from lines
        except FileNotFoundError:
            log.warning("%s was removed before it was read", self.segment)
            self.is_failed = True
        except READ_ERRORS as error:
            log.warning("cannot read %s: %s", self.segment, error)
            self.is_failed = True


def event_time(line: bytes) -> float:
    """Return a stored line's timestamp in seconds since 1970; NaN, which is never, for none."""
    match = _TIMESTAMP.search(line)
    try:
        second = datetime.fromisoformat(match[1].decode()) if match else None
    except ValueError:
        second = None
    if match is None or second is None:
        return math.nan
    return second.replace(tzinfo=UTC).timestamp() + float(match[2] or 0)
