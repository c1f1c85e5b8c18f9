"""The newest lines of a data directory, and then the lines since a cursor, for many clients.

A cursor holds the position that a client has read up to, so that any process can go on. The cost of
a poll is bounded by the bytes that are read and by the number of segments, which are the newest
ones.
"""

import contextlib
import heapq
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from astralog.clock import TrustedClock
from astralog.store.directory import Listing
from astralog.store.merge import (
    Arrival,
    Part,
    Remaining,
    find_parts,
    make_parts,
    newest_arrivals,
    remaining,
)
from astralog.store.names import Form, SegmentFile, SegmentName, parse_file_names
from astralog.store.reader import Block, ReadBudget, SegmentReader, Select

#: Segments that are read, and those that are followed; a cursor has 40 bytes for each followed one.
MAX_SEGMENTS = 256
MAX_FOLLOWED = 64

#: Minimum seconds between two listings of the directory, and multiple of the last one's duration.
LIST_SECONDS = 0.5
LIST_COST = 30

#: Seconds after the start in its name within which a segment is listed.
LATE_SECONDS = 10.0

#: The offset of a compressed segment that is read to its end.
END = 10**15 - 1


class PageCursor(NamedTuple):
    """The positions up to which growing segments were read; other segments do not grow.

    One that is not among them and was started at `since` or later, in microseconds since 1970, is
    new.
    """

    since: int
    offsets: Mapping[str, int]

    def parts(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield the parts that may have lines since the cursor, beginning at these lines."""
        for part in parts:
            if part.segment in self.offsets:
                part.begin = self.offsets[part.segment]
                yield part
            elif _started_at(part.segment) >= self.since:
                yield part


class Gap(NamedTuple):
    """Lines that a budget left unread: `rest` since the cursor; `limit` of them are requested."""

    rest: Remaining
    since: PageCursor | None
    limit: int


class Recent(NamedTuple):
    """Lines, newest first; `is_all` is True if no others match, in total or since the cursor.

    `has_more` says that more of those that were read match, and `gap` has those that were not read.
    """

    arrivals: list[Arrival]
    cursor: PageCursor
    is_all: bool
    has_more: bool
    gap: Gap | None


class Older(NamedTuple):
    """Lines of a gap, newest first, and the rest of the gap, None at its end.

    If `has_more`, the gap has more lines than its limit, and its rest is dropped.
    """

    arrivals: list[Arrival]
    gap: Gap | None
    has_more: bool


class RecentLines:
    """The newest lines of a directory; used by one thread at a time, which waits for the disk."""

    def __init__(self, directory: Path, clock: TrustedClock | None = None) -> None:
        """Use the clock that names segments."""
        self._directory = directory
        self._clock = clock or TrustedClock()
        self._forms: dict[SegmentName, Form] = {}  # of the newest segments
        self._oldest = ""  # of these, unless there are no older ones
        self._listed_at = 0.0  # in seconds since 1970
        self._list_again_at = 0.0  # by the monotonic clock
        self._listing = Listing(directory)

    def read(
        self, limit: int, select: Select, budget: ReadBudget, after: PageCursor | None = None
    ) -> Recent:
        """Return the newest matching lines since the cursor `after`; raises OSError."""
        self._list()
        since = _microseconds(self._listed_at - LATE_SECONDS)
        if self._oldest:  # older ones are in the gap, or are left out
            since = max(since, _started_at(self._oldest))
        if after:
            since = max(since, after.since)
        offsets = self._carried(after, since)
        parts = []
        for part in self._parts(after):
            may_grow = part.is_open or _started_at(part.segment) >= since
            if may_grow or part.begin:
                part.end = self._size(part.segment)
                if may_grow:
                    offsets[part.segment] = part.end
            if part.end is None or part.end > part.begin:
                parts.append(part)
        found = list(newest_arrivals(parts, limit + 1, select, budget))
        has_more = len(found) > limit
        rest = None if has_more else remaining(parts, self._latest_other(after))
        is_read = after is not None or not self._oldest
        return Recent(
            found[:limit],
            self._cursor(offsets, since),
            is_read and not has_more and not budget.is_spent,
            has_more,
            rest and Gap(rest, after, limit - len(found)),
        )

    def read_gap(self, gap: Gap, select: Select, budget: ReadBudget) -> Older:
        """Continue in a gap; raises OSError."""
        parts: Iterable[Part] = find_parts(self._directory)
        if gap.since:
            parts = gap.since.parts(parts)
        parts = list(gap.rest.parts(parts))
        found = list(newest_arrivals(parts, gap.limit + 1, select, budget))
        has_more = len(found) > gap.limit
        rest = None if has_more else remaining(parts)
        left = rest and Gap(rest, gap.since, gap.limit - len(found))
        return Older(found[: gap.limit], left, has_more)

    def _parts(self, after: PageCursor | None) -> Iterable[Part]:
        """Return the newest segments that may have lines since the cursor."""
        parts = make_parts(self._directory, itertools.starmap(SegmentFile, self._forms.items()))
        return parts if after is None else after.parts(parts)

    def _latest_other(self, after: PageCursor | None) -> str:
        """Return the last segment that may have lines but is too old to be listed, "" for none."""
        oldest = self._oldest
        if not oldest or after is None or _started_at(oldest) > after.since:
            return oldest
        unlisted = after.offsets.keys() - self._forms.keys()
        return max((segment for segment in unlisted if segment < oldest), default="")

    def _carried(self, after: PageCursor | None, since: int) -> dict[str, int]:
        """Return the cursor's offsets in segments that another process has listed already."""
        return {
            segment: offset
            for segment, offset in (after.offsets if after else {}).items()
            if segment not in self._forms and _started_at(segment) >= since
        }

    def _size(self, segment: SegmentName) -> int:
        """Return the current size of a segment, 0 if it is gone, END if it is compressed."""
        try:
            with contextlib.closing(SegmentReader(self._directory, segment)) as reader:
                return END if reader.is_compressed else reader.size()
        except FileNotFoundError:
            return 0

    def _cursor(self, offsets: Mapping[str, int], since: int) -> PageCursor:
        """Return the cursor; if there are too many segments, open ones take precedence."""
        kept = heapq.nlargest(MAX_FOLLOWED, offsets, key=lambda name: (self._is_open(name), name))
        if left := offsets.keys() - kept:
            since = max(since, _started_at(max(left)) + 1)
        return PageCursor(since, {segment: offsets[segment] for segment in kept})

    def _is_open(self, segment: str) -> bool:
        return self._forms.get(SegmentName(segment), Form.OPEN) is Form.OPEN

    def _list(self) -> None:
        """Find the newest segments, unless the last scan is recent; raises OSError."""
        start = time.monotonic()
        if start < self._list_again_at:
            return
        listed_at = self._clock.now()
        if (names := self._listing.poll()) is not None:
            self._note(names)
        self._listed_at = listed_at
        end = time.monotonic()
        self._list_again_at = end + max(LIST_SECONDS, LIST_COST * (end - start))

    def _note(self, file_names: Iterable[str]) -> None:
        """Keep the newest segments, and the newest open ones."""
        # With 100,000 names, parsing each of them takes several times as long as all of this.
        names = [name for name in file_names if name < ":"]  # which begin with a digit
        opened = [name for name in names if name.endswith(Form.OPEN.value)]
        newest = _last_segments(names, MAX_SEGMENTS)
        self._forms = dict([*_last_segments(opened, MAX_FOLLOWED), *newest])
        self._oldest = newest[-1].segment if len(newest) == MAX_SEGMENTS else ""

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
            if reader.is_compressed:  # its last block, since it is read forwards only
                blocks = iter(deque(reader.blocks(0, offset, budget), maxlen=1))
            else:
                blocks = reader.blocks_backwards(offset, budget)
            start, lines = next(blocks, Block(0, b""))
        is_end = start + len(lines) == offset > 0
        return lines[:-1].rpartition(b"\n")[2] if is_end else None


def _started_at(segment: str) -> int:
    return _microseconds(SegmentName(segment).start)


def _microseconds(seconds: float) -> int:
    return max(round(seconds * 1e6), 0)


def _last_segments(names: Sequence[str], count: int) -> list[SegmentFile]:
    """Return the segments with the last names, last first, `count` at most."""
    tried = count
    while True:
        last = heapq.nlargest(tried, names)
        found = list(parse_file_names(last))
        if len(found) >= count or tried >= len(names):
            return found[:count]
        tried *= 4
