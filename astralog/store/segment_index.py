"""The sealed segments in memory, oldest first."""

from heapq import heappop, heappush

from astralog.store.names import SegmentName


class SegmentIndex:
    """Sealed segments by name, each with its bytes.

    A change costs the logarithm of what is there, and a hundred thousand segments take 20 MB.
    """

    def __init__(self) -> None:
        self._sizes: dict[SegmentName, int] = {}
        self._names: list[
            SegmentName
        ] = []  # a heap; names that are gone stay until they are the oldest
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, name: SegmentName, size: int) -> None:
        """Add bytes to a segment, which is new or known in its other form."""
        self.put(name, self._sizes.get(name, 0) + size)

    def put(self, name: SegmentName, size: int) -> None:
        """Note how many bytes a segment has, known or new."""
        if name not in self._sizes:
            heappush(self._names, name)
        self.bytes += size - self._sizes.get(name, 0)
        self._sizes[name] = size

    def remove(self, name: SegmentName) -> int:
        """Forget a segment; return the bytes it had, 0 for one that is not known."""
        size = self._sizes.pop(name, 0)
        self.bytes -= size
        self.oldest()
        return size

    def oldest(self) -> SegmentName | None:
        """Return the first segment by name, None where there is none."""
        while self._names and self._names[0] not in self._sizes:
            heappop(self._names)
        return self._names[0] if self._names else None
