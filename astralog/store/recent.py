"""The newest lines of a data directory, and then the lines since a cursor, for many clients.

A cursor holds the position that a client has read up to, so that any process can go on. The cost of
a poll is bounded by the bytes that are read and by the number of segments, which are the newest
ones.
"""

import contextlib
import heapq
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from astralog.clock import TrustedClock
from astralog.store.directory import Listing
from astralog.store.merge import Arrival, Part, make_parts, newest_arrivals
from astralog.store.names import Form, SegmentFile, SegmentName, parse_file_names
from astralog.store.reader import ReadBudget, SegmentReader, Select

#: Segments that are looked at, and those that are followed; a cursor has 40 bytes for each of them.
MAX_SEGMENTS = 256
MAX_FOLLOWED = 64

#: Seconds between two listings of the directory at least, and times as long as the last one took.
LIST_SECONDS = 0.5
LIST_COST = 30

#: A segment is listed at most so much later than its name says that it was started.
LATE_SECONDS = 10.0

#: The offset of a compressed segment that is read to its end.
END = 10**15 - 1

_SINCE = re.compile(r"[0-9]{1,18}")
_OFFSET = re.compile(r"[0-9]{1,15}")


class Cursor(NamedTuple):
    """How far the segments were read that may have grown since; others have not.

    One that is not among them and was started at `since` or later, in microseconds since 1970, is
    new.
    """

    since: int
    offsets: Mapping[SegmentName, int]

    def __str__(self) -> str:
        offsets = (f"{segment}:{offset}" for segment, offset in self.offsets.items())
        return ",".join([str(self.since), *offsets])


def parse_cursor(text: str) -> Cursor:
    """Return the cursor of a text; raises ValueError."""
    since, *pairs = text.split(",")
    if not _SINCE.fullmatch(since) or len(pairs) > MAX_FOLLOWED:
        raise ValueError("not a cursor")
    return Cursor(int(since), dict(map(_parse_offset, pairs)))


def _parse_offset(text: str) -> tuple[SegmentName, int]:
    """Return a segment and the offset in it; raises ValueError."""
    name, _, offset = text.partition(":")
    segment = SegmentName.parse(name)
    if segment is None or not _OFFSET.fullmatch(offset):
        raise ValueError("not a cursor")
    return segment, int(offset)


class Recent(NamedTuple):
    """Lines, newest first; `is_all` says whether no others match: in all, or since the cursor.

    `has_more` says that more of those that were read match.
    """

    arrivals: list[Arrival]
    cursor: Cursor
    is_all: bool
    has_more: bool


class RecentLines:
    """The newest lines of a directory; one thread at a time may look, and it waits for the disk."""

    def __init__(self, directory: Path, clock: TrustedClock | None = None) -> None:
        """Take the time from the clock by which segments are named."""
        self._directory = directory
        self._clock = clock or TrustedClock()
        self._forms: dict[SegmentName, Form] = {}  # of the newest segments
        self._has_others = False  # whether there may be older ones
        self._listed_at = 0.0  # in seconds since 1970
        self._list_again_at = 0.0  # by the monotonic clock
        self._listing = Listing(directory)

    def read(
        self, limit: int, select: Select, budget: ReadBudget, after: Cursor | None = None
    ) -> Recent:
        """Return the newest lines that match, of those that came `after`; raises OSError."""
        self._list()
        since = _microseconds(self._listed_at - LATE_SECONDS)
        if after:
            since = max(since, after.since)
        begins = self._begins(after)
        offsets = self._carried(after, since)
        parts = []
        for part in self._parts(begins):
            may_grow = part.is_open or _started_at(part.segment) >= since
            if may_grow or after:
                part.end = self._size(part.segment)
                if may_grow:
                    offsets[part.segment] = END if part.end is None else part.end
            if part.begin != END and (part.end is None or part.end > part.begin):
                parts.append(part)
        found = list(newest_arrivals(parts, limit + 1, select, budget))
        is_read = after is not None or not self._has_others
        has_more = len(found) > limit
        is_all = is_read and not has_more and not budget.is_spent
        return Recent(found[:limit], self._cursor(offsets, since), is_all, has_more)

    def _begins(self, after: Cursor | None) -> Mapping[SegmentName, int]:
        """Return the segments to look at, and from which offset on."""
        if after is None:
            return dict.fromkeys(self._forms, 0)
        new = (segment for segment in self._forms if _started_at(segment) >= after.since)
        known = {segment: n for segment, n in after.offsets.items() if segment in self._forms}
        return dict.fromkeys(new, 0) | known

    def _carried(self, after: Cursor | None, since: int) -> dict[SegmentName, int]:
        """Return the cursor's offsets of segments that another process has listed already."""
        return {
            segment: offset
            for segment, offset in (after.offsets if after else {}).items()
            if segment not in self._forms and _started_at(segment) >= since
        }

    def _parts(self, begins: Mapping[SegmentName, int]) -> Iterable[Part]:
        files = (SegmentFile(segment, self._forms[segment]) for segment in begins)
        for part in make_parts(self._directory, files):
            part.begin = begins[part.segment]
            yield part

    def _size(self, segment: SegmentName) -> int | None:
        """Return the current size of a segment, None if it is unknown, 0 if the segment is gone."""
        try:
            with contextlib.closing(SegmentReader(self._directory, segment)) as reader:
                return None if reader.is_compressed else reader.size()
        except FileNotFoundError:
            return 0

    def _cursor(self, offsets: Mapping[SegmentName, int], since: int) -> Cursor:
        """Return the cursor, in which the open segments come first if there are too many."""
        kept = heapq.nlargest(MAX_FOLLOWED, offsets, key=lambda name: (self._is_open(name), name))
        if left := offsets.keys() - kept:
            since = max(since, _started_at(max(left)) + 1)
        return Cursor(since, {segment: offsets[segment] for segment in kept})

    def _is_open(self, segment: SegmentName) -> bool:
        return self._forms.get(segment, Form.OPEN) is Form.OPEN

    def _list(self) -> None:
        """Find the newest segments, unless that was done just now; raises OSError."""
        start = time.monotonic()
        if start < self._list_again_at:
            return
        listed_at = self._clock.now()
        if (names := self._listing.poll()) is not None:
            self._forms = _newest(names)
            self._has_others = len(self._forms) >= MAX_SEGMENTS
        self._listed_at = listed_at
        end = time.monotonic()
        self._list_again_at = end + max(LIST_SECONDS, LIST_COST * (end - start))

    def read_line(self, name: str, offset: int, budget: ReadBudget) -> bytes | None:
        """Return the line of a segment that ends at an offset, None if there is none.

        Raises READ_ERRORS.
        """
        segment = SegmentName.parse(name)
        if segment is None:
            return None
        try:
            reader = SegmentReader(self._directory, segment)
        except FileNotFoundError:
            return None
        with contextlib.closing(reader):
            if reader.is_compressed:
                return dict(reader.lines(0, offset, budget)).get(offset)
            end, line = next(reader.lines_backwards(offset, budget), (0, b""))
            return line if end == offset > 0 else None


def _started_at(segment: SegmentName) -> int:
    return _microseconds(segment.start)


def _microseconds(seconds: float) -> int:
    return max(round(seconds * 1e6), 0)


def _newest(file_names: Iterable[str]) -> dict[SegmentName, Form]:
    """Return the newest segments among the names of files, and of the open ones."""
    # With 100,000 names, parsing each of them takes several times as long as all of this.
    names = [name for name in file_names if name < ":"]  # which begin with a digit
    opened = _last_segments(
        [name for name in names if name.endswith(Form.OPEN.value)], MAX_FOLLOWED
    )
    return dict([*opened, *_last_segments(names, MAX_SEGMENTS)])


def _last_segments(names: Sequence[str], count: int) -> list[SegmentFile]:
    """Return the segments with the last names, `count` at most; other files do not count."""
    tried = count
    while True:
        last = heapq.nlargest(tried, names)
        found = list(parse_file_names(last))
        if len(found) >= count or tried >= len(names):
            return found[:count]
        tried *= 4
