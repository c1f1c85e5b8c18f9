"""The sealed segments in memory, oldest first."""

from collections.abc import Generator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from astralog.store.names import SegmentName

#: Names that go back into the index one by one; of more, all are put into order at once.
FEW_NAMES = 100


class Entry(NamedTuple):
    """What is known of a sealed segment."""

    size: int
    changed_at: float  #: its last change, in seconds since 1970
    sealed_at: float | None = None  #: by CLOCK_BOOTTIME; None unless this process saw it written
    is_ahead: bool = False  #: whether its name is ahead of the clock: it counts as the oldest

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
        # Heaps; names that are gone stay until they are the oldest.
        self._ahead: list[SegmentName] = []
        self._names: list[SegmentName] = []
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
            entry = entry._replace(size=size, changed_at=changed_at)
        self.put(name, entry)

    def put(self, name: SegmentName, entry: Entry) -> None:
        """Note what is known of a segment, known or new."""
        known = self._entries.get(name)
        if known is None:
            heappush(self._ahead if entry.is_ahead else self._names, name)
        self.bytes += entry.size - (known.size if known else 0)
        self._entries[name] = entry

    def remove(self, name: SegmentName) -> int:
        """Forget a segment; return the bytes it had, 0 for one that is not known."""
        entry = self._entries.pop(name, None)
        size = entry.size if entry else 0
        self.bytes -= size
        for heap in (self._ahead, self._names):
            while heap and heap[0] not in self._entries:
                heappop(heap)
        return size

    def oldest_first(self) -> Generator[SegmentName, None, None]:
        """Yield the segments: those named ahead of the clock, then the others, by their names.

        The caller may remove each one that it got, and closes the iterator when it stops early.
        """
        for heap in (self._ahead, self._names):
            passed: list[SegmentName] = []
            try:
                while heap:
                    name = heappop(heap)
                    if name in self._entries and name not in passed[-1:]:
                        passed.append(name)
                        yield name
            finally:
                self._put_back(heap, [name for name in passed if name in self._entries])

    def _put_back(self, heap: list[SegmentName], names: list[SegmentName]) -> None:
        if len(names) > FEW_NAMES:
            heap += names
            heapify(heap)
        else:
            for name in names:
                heappush(heap, name)
