"""The newest lines of a data directory, and then those that have come since, for many who ask.

Whoever asks again says with a cursor how far it has read, so that any process can go on. What one
look costs is bounded: by the bytes that are read, and by the segments that are looked at, which are
the newest ones.
"""

import contextlib
import heapq
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from astralog.store.arrival import newest_arrivals
from astralog.store.files import OPEN_SUFFIX
from astralog.store.part import Arrival, Matches, Part, start_time
from astralog.store.segment_reader import ReadBudget, SegmentReader, split_name
from astralog.store.tail import make_parts

#: Segments that are looked at, and those that are followed; a cursor has 40 bytes for each of them.
MAX_SEGMENTS = 256
MAX_FOLLOWED = 64

#: Seconds between two listings of the directory at least, and times as long as the last one took.
LIST_SECONDS = 0.5
LIST_COST = 30

#: A segment is listed at most so much later than its name says that it was started.
LATE_SECONDS = 10.0

#: A directory that changed so recently may change again without showing it.
SETTLED_SECONDS = 2.5

#: The offset of a compressed segment that is read to its end.
END = 10**15 - 1

_STEM = r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[0-9]{1,10}(?:-[0-9]{1,3})?"
_CURSOR = re.compile(rf"[0-9]{{1,18}}(?:,{_STEM}:[0-9]{{1,15}}){{0,{MAX_FOLLOWED}}}")


class Cursor(NamedTuple):
    """How far the segments were read that may have grown since; others have not.

    One that is not among them and was started at `since` or later, in microseconds since 1970, is
    new.
    """

    since: int
    offsets: Mapping[str, int]

    def __str__(self) -> str:
        return ",".join([str(self.since), *(f"{stem}:{n}" for stem, n in self.offsets.items())])


def parse_cursor(text: str) -> Cursor:
    """Return the cursor of a text; raises ValueError."""
    if not _CURSOR.fullmatch(text):
        raise ValueError("not a cursor")
    since, *segments = text.split(",")
    pairs = (segment.split(":") for segment in segments)
    return Cursor(int(since), {stem: int(offset) for stem, offset in pairs})


class Recent(NamedTuple):
    """Lines, newest first; `is_all` says whether no others match: in all, or since the cursor."""

    arrivals: list[Arrival]
    cursor: Cursor
    is_all: bool


class RecentLines:
    """The newest lines of a directory; one thread at a time may look, and it waits for the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._suffixes: dict[str, str] = {}  # of the newest segments
        self._has_others = False  # whether there may be older ones
        self._listed_at = 0.0  # in seconds since 1970
        self._list_again_at = 0.0  # by the monotonic clock
        self._settled: tuple[int, int] | None = None  # the directory, once it is settled

    def read(
        self, limit: int, matches: Matches, budget: ReadBudget, after: Cursor | None = None
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
            may_grow = part.is_open or _started_at(part.stem) >= since
            if may_grow or after:
                part.end = self._size(part.stem)
                if may_grow:
                    offsets[part.stem] = END if part.end is None else part.end
            if part.begin != END and (part.end is None or part.end > part.begin):
                parts.append(part)
        found = list(newest_arrivals(parts, limit + 1, matches, budget))
        is_read = after is not None or not self._has_others
        is_all = is_read and len(found) <= limit and not budget.is_spent
        return Recent(found[:limit], self._cursor(offsets, since), is_all)

    def _begins(self, after: Cursor | None) -> Mapping[str, int]:
        """Return the segments to look at, and from which offset on."""
        if after is None:
            return dict.fromkeys(self._suffixes, 0)
        new = (stem for stem in self._suffixes if _started_at(stem) >= after.since)
        known = {stem: n for stem, n in after.offsets.items() if stem in self._suffixes}
        return dict.fromkeys(new, 0) | known

    def _carried(self, after: Cursor | None, since: int) -> dict[str, int]:
        """Return what the cursor knows of segments that another process has listed already."""
        return {
            stem: offset
            for stem, offset in (after.offsets if after else {}).items()
            if stem not in self._suffixes and _started_at(stem) >= since
        }

    def _parts(self, begins: Mapping[str, int]) -> Iterable[Part]:
        names = [stem + self._suffixes[stem] for stem in begins]
        for part in make_parts(self._directory, names):
            part.begin = begins[part.stem]
            yield part

    def _size(self, stem: str) -> int | None:
        """Return how long a segment is by now, None where that is not known; 0 where it is gone."""
        try:
            with contextlib.closing(SegmentReader(self._directory, stem)) as reader:
                return None if reader.is_compressed else reader.size()
        except FileNotFoundError:
            return 0

    def _cursor(self, offsets: Mapping[str, int], since: int) -> Cursor:
        """Return the cursor, in which the open segments come first if there are too many."""
        kept = heapq.nlargest(MAX_FOLLOWED, offsets, key=lambda stem: (self._is_open(stem), stem))
        if left := offsets.keys() - kept:
            since = max(since, _started_at(max(left)) + 1)
        return Cursor(since, {stem: offsets[stem] for stem in kept})

    def _is_open(self, stem: str) -> bool:
        return self._suffixes.get(stem, OPEN_SUFFIX) == OPEN_SUFFIX

    def _list(self) -> None:
        """Find the newest segments, unless that was done just now; raises OSError."""
        start = time.monotonic()
        if start < self._list_again_at:
            return
        now = time.time()
        status = os.stat(self._directory)
        state = (status.st_ino, status.st_mtime_ns)
        if state != self._settled:
            names = os.listdir(self._directory)
            self._suffixes = _newest(names)
            self._has_others = len(names) > MAX_SEGMENTS
            is_settled = abs(now - status.st_mtime) > SETTLED_SECONDS
            self._settled = state if is_settled else None
        self._listed_at = now
        end = time.monotonic()
        self._list_again_at = end + max(LIST_SECONDS, LIST_COST * (end - start))

    def read_line(self, stem: str, offset: int, budget: ReadBudget) -> bytes | None:
        """Return the line that ends at an offset, None where there is none.

        Raises READ_ERRORS.
        """
        if not re.fullmatch(_STEM, stem):
            return None
        try:
            reader = SegmentReader(self._directory, stem)
        except FileNotFoundError:
            return None
        with contextlib.closing(reader):
            if reader.is_compressed:
                return dict(reader.lines(0, offset, budget)).get(offset)
            end, line = next(reader.lines_backwards(offset, budget), (0, b""))
            return line if end == offset > 0 else None


def _started_at(stem: str) -> int:
    return _microseconds(start_time(stem))


def _microseconds(seconds: float) -> int:
    return max(round(seconds * 1e6), 0)


def _newest(names: Iterable[str]) -> dict[str, str]:
    """Return the suffixes of the newest segments among the names of files, and of open ones."""
    # Measured with 100,000 names, splitting each of them takes twice as long as all of this.
    segments = [name for name in names if name < ":"]  # which begin with a digit
    opened = heapq.nlargest(MAX_FOLLOWED, [name for name in segments if name.endswith(OPEN_SUFFIX)])
    newest = heapq.nlargest(MAX_SEGMENTS, segments)
    known = [segment for name in [*opened, *newest] if (segment := split_name(name))]
    return {stem: suffix for stem, suffix in known if re.fullmatch(_STEM, stem)}
