"""The lines of the same segment before and after matching lines, as `grep -C` shows them."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from astralog.store.merge import Arrival, last_first
from astralog.store.names import SegmentName
from astralog.store.reader import READ_ERRORS, Block, ReadBudget, Select, every_line
from astralog.view.processes import ProcessPart

#: The separator between lines that do not follow each other.
GAP = b"--"

#: The highest number of lines before or after a matching line.
MAX_LINES = 1000

#: Maximum bytes of the lines before a matching line, and of those after it, since they are held in
#: memory; the lines that are farther away are left out.
MAX_BYTES = 1024 * 1024


class Group:
    """A matching line and the lines around it, which follow each other in their segment.

    `offset` is that after the matching line.
    """

    def __init__(self, offset: int, before: Iterable[bytes], line: bytes) -> None:
        self.offset = offset
        self.lines = [*before, line]
        self.after_bytes = 0
        self._index = len(self.lines) - 1

    def __len__(self) -> int:
        """Return the bytes of the lines."""
        return sum(map(len, self.lines))

    def add(self, line: bytes) -> None:
        self.lines.append(line)
        self.after_bytes += len(line)

    def pack(self) -> tuple[int, bytes]:
        """Return the offset, and a text: the matching line, the group's place, the other lines."""
        index, line = self._index, self.lines[self._index]
        start = self.offset - _size(self.lines[: index + 1])
        others = [*self.lines[:index], *self.lines[index + 1 :]]
        return self.offset, b"\n".join([line, b"%d %d" % (start, index), *others])


def _size(lines: Sequence[bytes]) -> int:
    return sum(map(len, lines)) + len(lines)


class _Passed:
    """The last lines before the next group, limited in number and in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        self.lines: deque[bytes] = deque()
        self._bytes = 0

    def add(self, line: bytes) -> None:
        """Add a line, and forget the first ones above the limits."""
        self.lines.append(line)
        self._bytes += len(line)
        while len(self.lines) > self._limit or self._bytes > MAX_BYTES:
            self._bytes -= len(self.lines.popleft())


def groups(
    blocks: Iterable[Block], select: Select, before: int, after: int, *, overlap: bool
) -> Iterator[Group]:
    """Yield a group for each matching line; `before` and `after` limit the lines around it.

    The lines before it may be in the last group too if groups may `overlap`; those after it end at
    the next matching line. An error of `blocks` is raised after the groups before it.
    """
    passed = _Passed(before)
    group: Group | None = None
    left = 0  # lines that the group may still take
    failed: Exception | None = None
    try:
        for start, lines in blocks:
            found = {offset for offset, _ in select(lines)}
            around = every_line(lines) if found or group else _last_lines(lines, before)
            for offset, line in around:
                if offset in found:
                    if group:
                        yield group
                    group = Group(start + offset, passed.lines, line)
                    left = after
                elif group and left and group.after_bytes + len(line) <= MAX_BYTES:
                    group.add(line)
                    left -= 1
                elif group:
                    yield group
                    group = None
                if group and not overlap:
                    passed.clear()
                else:
                    passed.add(line)
    except READ_ERRORS as error:
        failed = error
    if group:
        yield group
    if failed:
        raise failed


def _last_lines(lines: bytes, count: int) -> Iterator[tuple[int, bytes]]:
    """Return the last lines of a block without any that matches."""
    last = lines[:-1].rsplit(b"\n", count)[-count:] if count else []
    return ((0, line) for line in last)


class ContextPart(ProcessPart):
    """A part of a segment that yields texts of several lines; `unpack` separates them."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: int, after: int, *place: Any) -> None:
        super().__init__(*place)
        self._before = before
        self._after = after

    def _read(self, select: Select, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        return map(Group.pack, self._groups(select, budget))

    def _read_backwards(
        self, limit: int, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        def read() -> Iterator[tuple[int, Group]]:
            groups = self._groups(select, budget, overlap=True)
            return ((group.offset, group) for group in groups)

        return (group.pack() for _, group in last_first(read, limit, budget))

    def _groups(
        self, select: Select, budget: ReadBudget, *, overlap: bool = False
    ) -> Iterator[Group]:
        with self._reader() as reader:
            blocks = reader.blocks(self.begin, self.end, budget)
            yield from groups(blocks, select, self._before, self._after, overlap=overlap)


def unpack(arrivals: Iterable[Arrival], *, marks_gaps: bool) -> Iterator[bytes]:
    """Yield the lines of ContextParts, each once, perhaps with GAP between those apart.

    The groups of a segment come in their order, or last first.
    """
    shown: dict[SegmentName, tuple[int, int]] = {}  # the offsets around all shown lines
    last: tuple[SegmentName, int] | None = None
    for arrival in arrivals:
        segment = arrival.segment
        line, numbers, *lines = arrival.line.split(b"\n")
        start, index = map(int, numbers.split())
        lines.insert(index, line)
        end = start + _size(lines)
        first, until = shown.get(segment, (start, start))
        if first <= start < until:
            continue
        while start < first < end:
            end -= len(lines.pop()) + 1
        if marks_gaps and last is not None and last != (segment, start):
            yield GAP
        yield from lines
        last = (segment, end)
        shown[segment] = (min(start, first), max(end, until))
