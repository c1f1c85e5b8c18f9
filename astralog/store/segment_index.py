"""The sealed segments in memory, oldest first."""

from collections.abc import Generator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from astralog.store.eras import FOUND_ERA
from astralog.store.names import SegmentName

#: Names that go back into the index one by one; of more, all are put into order at once.
FEW_NAMES = 100


class Entry(NamedTuple):
    """What is known of a sealed segment.

    Segments of an earlier era are older; within an era, the names decide.
    """

    size: int
    changed_at: float  #: its last change, in seconds since 1970
    sealed_at: float | None = None  #: by CLOCK_BOOTTIME; None unless this process saw it written
    era: int = FOUND_ERA

    def age(self, now: float, elapsed: float) -> float:
        """Return the seconds since the last change, by a wall clock and by CLOCK_BOOTTIME.

        What this process saw being written is not older than that, whatever the wall clock says.
        """
        age = now - self.changed_at
        return age if self.sealed_at is None else min(age, elapsed - self.sealed_at)


class SegmentIndex:
    """Sealed segments by name, each with its entry.

    A change costs the logarithm of what is there, and a hundred thousand segments take 30 MB.
    """

    def __init__(self) -> None:
        self._entries: dict[SegmentName, Entry] = {}
        # A heap for each era; names that are gone stay until they are the oldest.
        self._heaps: dict[int, list[SegmentName]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: SegmentName) -> Entry | None:
        """Return what is known of a segment, None for one that is not known."""
        return self._entries.get(name)

    def items(self) -> list[tuple[SegmentName, Entry]]:
        """Return all segments, in no order."""
        return list(self._entries.items())

    def add(self, name: SegmentName, entry: Entry) -> None:
        """Note what is known of a segment in one form, in addition to its other form."""
        if known := self._entries.get(name):
            size, changed_at = known.size + entry.size, max(known.changed_at, entry.changed_at)
            entry = known._replace(size=size, changed_at=changed_at)
        self.put(name, entry)

    def put(self, name: SegmentName, entry: Entry) -> None:
        """Note what is known of a segment, known or new."""
        known = self._entries.get(name)
        if known is None or known.era != entry.era:
            heappush(self._heaps.setdefault(entry.era, []), name)
        self.bytes += entry.size - (known.size if known else 0)
        self._entries[name] = entry

    def remove(self, name: SegmentName) -> int:
        """Forget a segment; return the bytes it had, 0 for one that is not known."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return 0
        self.bytes -= entry.size
        heap = self._heaps[entry.era]
        while heap and not self._is_of(heap[0], entry.era):
            heappop(heap)
        return entry.size

    def _is_of(self, name: SegmentName, era: int) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.era == era

    def oldest_first(self) -> Generator[SegmentName, None, None]:
        """Yield the segments in the order of their age.

        The caller may remove each one that it got, and closes the iterator when it stops early.
        """
        for era in sorted(self._heaps):
            heap = self._heaps[era]
            passed: list[SegmentName] = []
            try:
                while heap:
                    name = heappop(heap)
                    if self._is_of(name, era) and name not in passed[-1:]:
                        passed.append(name)
                        yield name
            finally:
                _put_back(heap, [name for name in passed if self._is_of(name, era)])
                if not heap:
                    del self._heaps[era]


def _put_back(heap: list[SegmentName], names: list[SegmentName]) -> None:
    if len(names) > FEW_NAMES:
        heap += names
        heapify(heap)
    else:
        for name in names:
            heappush(heap, name)
