"""Merge the lines of many segments in the order of their arrival, if it is known.

The lines of a segment are in the order of their arrival, and its name and its last change bound the
time of the first and of the last. No file records when the others arrived. So between segments that
were written at the same time, a line's timestamp decides if it may be the time of its arrival: if
it lies between the segment's start and its last change, plus or minus a minute. Any other line
stays with its neighbour.
"""

import contextlib
import heapq
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, TypeVar

from astralog.errors import explain
from astralog.store.files import regular_files
from astralog.store.names import Form, SegmentFile, SegmentName, parse_file_names
from astralog.store.reader import READ_ERRORS, ReadBudget, SegmentReader, Select, not_blank

log = logging.getLogger(__name__)

#: Seconds by which a log may arrive after its timestamp, and a sender's clock may be ahead.
CLOCK_SECONDS = 60.0

#: Segments that may begin after a segment and before its last line. If the file's time of change is
#: unreliable, as in a copy of the directory, this limits the segments that a search opens.
CONCURRENT_SEGMENTS = 128

#: Bytes of lines of a segment that are held in memory to yield the last one first, in addition to
#: the largest line.
MAX_HELD_BYTES = 16 * 1024 * 1024

# A stored line is as the service encodes it: no quote in a string goes without its backslash, so
# that the first such text is the log's own timestamp.
_TIMESTAMP = re.compile(rb'"timestamp":"([0-9T:-]{19})(\.[0-9]+)?Z"')


class Arrival(NamedTuple):
    """A line of a segment, the offset after it, and about when it arrived, since 1970."""

    segment: SegmentName
    time: float
    offset: int
    line: bytes


@dataclass(slots=True, eq=False)
class Part:
    """The lines of one segment from `begin` to `end`, or to the file's end if that is None.

    They arrived between `since` and `until`, in seconds since 1970. `successor` is the name of a
    segment that began after the last of them, if one is known.

    A dict per part, a name's own type, and cached times would take 50 MiB for 300,000 segments.
    """

    directory: Path
    name: str
    form: Form
    successor: str | None
    begin: int = 0
    end: int | None = None
    reached: int | None = None  #: the offset to which reading backwards has come
    is_read: bool = False  #: whether all was read that there is
    is_failed: bool = False  #: whether the file cannot be read
    is_damaged: bool = False  #: the same, once it is known, before the lines that can be read
    is_removed: bool = False  #: whether that is because it was removed

    @property
    def segment(self) -> SegmentName:
        """The segment's name; `name` is the same as a plain string, which takes less memory."""
        return SegmentName(self.name)

    @property
    def is_open(self) -> bool:
        """Whether the segment is being written, by the name under which it was listed."""
        return self.form is Form.OPEN

    @property
    def since(self) -> float:
        return self.segment.start

    @property
    def latest(self) -> float:
        """The upper bound of `until`, by the names alone."""
        return float("inf") if self.successor is None else SegmentName(self.successor).start

    @property
    def until(self) -> float:
        """The last change of the segment."""
        latest = self.latest
        with contextlib.suppress(OSError):  # renamed or removed meanwhile
            latest = min(latest, self.path.stat().st_mtime)
        return max(self.since, latest)

    @property
    def path(self) -> Path:
        """The file's path, by the name under which it was listed."""
        return self.segment.path(self.directory, self.form)

    def file_size(self) -> int:
        """Return the size of the file in bytes, 0 if it was renamed or removed."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @contextlib.contextmanager
    def _reader(self) -> Iterator[SegmentReader]:
        with contextlib.closing(SegmentReader(self.directory, self.segment)) as reader:
            yield reader

    def read(self, limit: int | None, select: Select, budget: ReadBudget) -> Iterator[Arrival]:
        """Yield the matching lines until the budget is spent; the next call continues.

        With a limit, these are the newest `limit` lines, newest first; of a line in which `begin`
        lies, which was not whole then, all is yielded. Lines count as read once the next one is
        asked for. A file that cannot be read ends.
        """
        segment, since, until = self.segment, self.since, self.until
        time = since if limit is None else until
        try:
            for offset, line in self._lines(limit, select, budget):
                time = _arrival_time(line, since, until, time)
                if limit is not None:
                    self.reached = offset
                yield Arrival(segment, time, offset, line)
        except FileNotFoundError:
            log.warning("%s was removed before it was read", segment)
            self.is_failed = self.is_removed = True
        except READ_ERRORS as error:
            log.warning("cannot read %s: %s", segment, explain(error))
            self.is_failed = True

    def _lines(
        self, limit: int | None, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of `read`, each with the offset after it; raises READ_ERRORS."""
        if limit is None:
            return self._read(select, budget)
        return self._read_backwards(limit, select, budget)

    def _read(self, select: Select, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        with self._reader() as reader:
            for start, lines in reader.blocks(self.begin, self.end, budget):
                for offset, line in select(lines):
                    yield start + offset, line
                    self.begin = start + offset
                self.begin = start + len(lines)
            self.is_read = not budget.is_spent

    def _read_backwards(
        self, limit: int, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        with self._reader() as reader:
            if reader.is_compressed:
                yield from self._read_inflated_backwards(reader, limit, select, budget)
                return
            reached = reader.size() if self.end is None else self.end
            self.reached = reached
            for start, lines in reader.blocks_backwards(self.end, budget):
                for offset, line in reversed(list(select(lines))):
                    if start + offset > self.begin:
                        yield start + offset, line
                self.reached = reached = start
                if start <= self.begin:
                    break
            self.is_read = reached <= self.begin or not budget.is_spent

    def _read_inflated_backwards(
        self, reader: SegmentReader, limit: int, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        # It can only be read from its beginning.
        own = ReadBudget() if budget.is_soft else budget

        def read() -> Iterator[tuple[int, bytes]]:
            try:
                for start, lines in reader.blocks(0, self.end, own):
                    for offset, line in select(lines):
                        if start + offset > self.begin:
                            yield start + offset, line
            except READ_ERRORS:
                self.is_damaged = True
                raise
            finally:
                if own is not budget:
                    budget.bytes_read += own.bytes_read
                    budget.file_bytes += own.file_bytes

        self.reached = None
        has_others = yield from last_first(read, limit, budget)
        self.is_read = not has_others


#: A line, or several lines, whose length is in bytes.
Lines = TypeVar("Lines", bound=Sized)


def last_first(
    read: Callable[[], Iterable[tuple[int, Lines]]], limit: int, budget: ReadBudget
) -> Generator[tuple[int, Lines], None, bool]:
    """Yield the last `limit` lines of a reader, last first; return whether there are others.

    Lines of more than MAX_HELD_BYTES are read in several passes, except with a soft budget: there
    is one pass. With any other budget that is spent, nothing is yielded. An error that ends the
    reading is raised after the lines before it.
    """
    end: float = math.inf
    failed: Exception | None = None
    while True:
        last: deque[tuple[int, Lines]] = deque()
        held_bytes = 0
        has_others = False
        try:
            for offset, line in read():
                if offset >= end:
                    break
                last.append((offset, line))
                held_bytes += len(line)
                while len(last) > limit or (held_bytes > MAX_HELD_BYTES and len(last) > 1):
                    held_bytes -= len(last.popleft()[1])
                    has_others = True
        except READ_ERRORS as error:
            failed = error
        if budget.is_spent and not budget.is_soft:
            return True
        limit -= len(last)
        while last:
            end, line = last.pop()
            yield int(end), line
        if budget.is_soft or not has_others or not limit:
            break
    if failed and not has_others:
        raise failed
    return has_others


#: Makes a part of the arguments of `Part`.
MakePart = Callable[[Path, str, Form, str | None], Part]


def _arrival_time(line: bytes, since: float, until: float, otherwise: float) -> float:
    """Return the line's timestamp, clamped, if it is near its arrival, else `otherwise`."""
    match = _TIMESTAMP.search(line)
    if match is None:
        return otherwise
    try:
        second = datetime.fromisoformat(match[1].decode())
    except ValueError:
        return otherwise
    time = second.replace(tzinfo=UTC).timestamp() + float(match[2] or 0)
    if since - CLOCK_SECONDS <= time <= until + CLOCK_SECONDS:
        return min(max(time, since), until)
    return otherwise


def find_parts(directory: Path, make: MakePart = Part) -> list[Part]:
    """Return a part with all lines of each segment, in the order of names; raises OSError."""
    return make_parts(directory, parse_file_names(regular_files(directory)), make)


def newest_lines(
    parts: Sequence[Part], limit: int, select: Select = not_blank, budget: ReadBudget | None = None
) -> list[bytes]:
    """Return the newest `limit` lines that match, in the order of their arrival.

    If the budget is spent, they are fewer, and older ones were not searched.
    """
    return [arrival.line for arrival in newest_arrivals(parts, limit, select, budget)][::-1]


def parts_since(parts: Iterable[Part], timestamp: str | None) -> list[Part]:
    """Return the parts that may have lines since a stored timestamp; None selects all."""
    if timestamp is None:
        return list(parts)
    moment = datetime.fromisoformat(timestamp[:19] + "Z").timestamp() - CLOCK_SECONDS
    return [part for part in parts if part.latest >= moment and part.until >= moment]


def make_parts(directory: Path, files: Iterable[SegmentFile], make: MakePart = Part) -> list[Part]:
    """Return a part with all lines of each segment among the files, in the order of names."""
    # While a segment gets another name, it may be listed with both; a sealed one is not open.
    forms: dict[str, Form] = {}
    for segment, form in files:
        name = str(segment)  # takes less memory
        if form is not Form.OPEN or name not in forms:
            forms[name] = form
    segments = sorted(forms)
    return [
        make(directory, segment, forms[segment], None if forms[segment] is Form.OPEN else successor)
        for segment, successor in zip_longest(segments, segments[CONCURRENT_SEGMENTS:])
    ]


def oldest_first(
    parts: Iterable[Part], select: Select = not_blank, budget: ReadBudget | None = None
) -> Iterator[bytes]:
    """Yield the matching lines of the parts; as `oldest_arrivals`."""
    return (arrival.line for arrival in oldest_arrivals(parts, select, budget))


def oldest_arrivals(
    parts: Iterable[Part], select: Select = not_blank, budget: ReadBudget | None = None
) -> Iterator[Arrival]:
    """Yield the lines of the parts that match, until the budget is spent.

    Each part's `begin` moves along, so that another call with the same parts goes on there. A part
    is opened only when the lines before it in time are through.
    """
    budget = budget or ReadBudget()
    waiting = sorted(parts, key=lambda part: part.name, reverse=True)
    heads: list[tuple[float, int, Arrival, Part, Iterator[Arrival]]] = []
    since = waiting[-1].since if waiting else math.inf  # of the next part
    while True:
        while waiting and not budget.is_spent and (not heads or since <= heads[0][0]):
            part = waiting.pop()
            since = waiting[-1].since if waiting else math.inf
            lines = part.read(None, select, budget)
            if arrival := next(lines, None):
                heapq.heappush(heads, (arrival.time, -len(waiting), arrival, part, lines))
        if not heads:
            return
        _, order, arrival, part, lines = heads[0]
        part.begin = arrival.offset
        yield arrival
        if following := next(lines, None):
            heapq.heapreplace(heads, (following.time, order, following, part, lines))
        else:
            heapq.heappop(heads)


def newest_arrivals(
    parts: Sequence[Part], limit: int, select: Select = not_blank, budget: ReadBudget | None = None
) -> Iterator[Arrival]:
    """Yield the newest `limit` lines of the parts that match, until the budget is spent.

    The parts are in the order of their names. One is opened only when no newer line can be in
    another. Afterwards, `remaining` returns a cursor for the lines that come after these.
    """
    if not limit:
        return
    budget = budget or ReadBudget()
    # Those come first whose last line may be the newest of all.
    waiting = sorted(range(len(parts)), key=lambda number: parts[number].successor is None)
    # A rank is negative, since a heap has its least item first. A part without a line ranks as
    # its last line can at best.
    heads: list[tuple[float, int, Arrival | None, Part, Iterator[Arrival]]] = []
    while True:
        while waiting and (not heads or parts[waiting[-1]].latest >= -heads[0][0]):
            number = waiting.pop()
            part = parts[number]
            lines = part.read(limit, select, budget)
            heapq.heappush(heads, (-part.until, -number, None, part, lines))
        if not heads:
            return
        _, order, arrival, part, lines = heads[0]
        if arrival:
            limit -= 1
            part.reached = arrival.offset - len(arrival.line) - 1
            yield arrival
            if not limit:
                return
        if following := next(lines, None):
            heapq.heapreplace(heads, (-following.time, order, following, part, lines))
        elif budget.is_spent:  # a line of this part may be next
            return
        else:
            heapq.heappop(heads)


class Remaining(NamedTuple):
    """The lines that `newest_arrivals` has not reached: a cursor.

    These are the lines of the segments whose names are at most `latest`, except those of `read`,
    and of each of `ends` up to an offset.
    """

    latest: str
    read: frozenset[str]
    ends: Mapping[str, int]

    def parts(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield the parts with unread lines, cut at the positions up to which they were read."""
        for part in parts:
            if part.segment in self.ends:
                part.end = self.ends[part.segment]
                yield part
            elif part.segment <= self.latest and part.segment not in self.read:
                yield part


#: The cursor after the last line.
NOTHING = Remaining("", frozenset(), {})


def remaining(parts: Iterable[Part], latest: str = "") -> Remaining | None:
    """Return a cursor of the lines that `newest_arrivals` has not reached, None if none are left.

    All other segments whose names are at most `latest` remain too.
    """
    read: list[SegmentName] = []
    ends: dict[str, int] = {}
    for part in parts:
        end = part.end if part.reached is None else part.reached  # where an earlier call ended
        if part.is_failed or part.is_read or (end is not None and end <= part.begin):
            read.append(part.segment)
        elif end is None:
            latest = max(latest, part.segment)
        else:
            ends[part.segment] = end
    if not latest and not ends:
        return None
    return Remaining(latest, frozenset(name for name in read if name <= latest), ends)
