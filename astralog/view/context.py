"""The lines of the same segment before and after matching lines, as `grep -C` shows them."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

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
    """A matching line, with the lines around it that are not in an earlier group."""

    def __init__(self, offset: int, before: Iterable[bytes], line: bytes, *, has_gap: bool) -> None:
        self.offset = offset
        self.before = [*before]
        self.line = line
        self.after: list[bytes] = []
        self.after_bytes = 0
        self.has_gap = has_gap  # whether lines before it are left out

    def __len__(self) -> int:
        """Return the bytes of the lines."""
        return sum(map(len, self.before)) + len(self.line) + self.after_bytes

    @property
    def lines(self) -> list[bytes]:
        """The lines, in their order."""
        return [*self.before, self.line, *self.after]

    def add(self, line: bytes) -> None:
        """Add a line after the matching one."""
        self.after.append(line)
        self.after_bytes += len(line)


class _Passed:
    """The last lines before the next group, limited in number and in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Begin after a line that was yielded."""
        self.lines: deque[bytes] = deque()
        self._bytes = 0
        self.has_gap = False  # whether lines before them are left out

    def add(self, line: bytes) -> None:
        """Add a line, and forget the first ones above the limits."""
        self.lines.append(line)
        self._bytes += len(line)
        while len(self.lines) > self._limit or self._bytes > MAX_BYTES:
            self._bytes -= len(self.lines.popleft())
            self.has_gap = True


def groups(blocks: Iterable[Block], select: Select, before: int, after: int) -> Iterator[Group]:
    """Yield a group for each matching line; `before` and `after` limit the lines around it.

    An error of `blocks` is raised after the groups before it.
    """
    passed = _Passed(before)
    group: Group | None = None
    left = 0  # lines that the group may still take
    failed: Exception | None = None
    try:
        for start, lines in blocks:
            found = {offset for offset, _ in select(lines)}
            if found or group:
                around = every_line(lines)
            else:
                around = _last_lines(lines, before)
                passed.has_gap = passed.has_gap or lines.count(b"\n") > before
            for offset, line in around:
                if offset in found:
                    if group:
                        yield group
                    group = Group(start + offset, passed.lines, line, has_gap=passed.has_gap)
                    passed.clear()
                    left = after
                elif group and left and group.after_bytes + len(line) <= MAX_BYTES:
                    group.add(line)
                    left -= 1
                else:
                    if group:
                        yield group
                        group = None
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


class _Waiting(NamedTuple):
    """A group whose lines are not yielded yet, and the lines and bytes from a gap up to them."""

    group: Group
    lines: int
    size: int


def with_lines_before(found: Iterable[Group], before: int) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the text of each group; the groups come last first.

    A text has all lines before the matching one that are in no text yet, within the limits: also
    the matching lines among them, and the lines that are in earlier groups.
    """
    groups = iter(found)
    earlier = next(groups, None)
    waiting: deque[_Waiting] = deque()
    lines: deque[bytes] = deque()  # of these groups, the last one first
    has_gap = False  # whether lines before these are left out
    while earlier is not None or waiting:
        if not waiting:
            read = size = yielded = 0
        while earlier is not None and (
            not waiting
            or not (
                has_gap
                or read >= waiting[0].lines + before
                or size + len(earlier) > waiting[0].size + MAX_BYTES
            )
        ):
            line_and_after = [earlier.line, *earlier.after]
            waiting.append(
                _Waiting(earlier, read + len(line_and_after), size + sum(map(len, line_and_after)))
            )
            lines.extend(reversed(earlier.lines))
            read += len(earlier.lines)
            size += len(earlier)
            has_gap = earlier.has_gap
            earlier = next(groups, None)
        group, place, _ = waiting.popleft()
        end = min(place + before, read)
        own = [lines.popleft() for _ in range(yielded, end)][::-1]
        index = end - place
        is_new = index < len(own)  # it was not among the lines before a later one
        if is_new:
            del own[index]
        yielded = max(yielded, end)
        yield group.offset, _pack(group.line, index if is_new else _NO_INDEX, own, has_gap=True)


#: Stands for the place of a matching line that an earlier text has.
_NO_INDEX = -1


def _pack(line: bytes, index: int, others: list[bytes], *, has_gap: bool) -> bytes:
    """Return a text of a matching line, which comes first, and the lines around it."""
    return b"\n".join([line, b"%d %d" % (index, has_gap), *others])


class ContextPart(ProcessPart):
    """A part of a segment that yields texts of several lines; `unpack` separates them."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: int, after: int, *place: Any) -> None:
        super().__init__(*place)
        self._before = before
        self._after = after

    def _read_backwards(
        self, limit: int, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        # Each line before the first wanted group may be a group.
        found = last_first(lambda: self._groups(select, budget), limit + self._before, budget)
        groups = (group for _, group in found)
        return islice(with_lines_before(groups, self._before), limit)

    def _read(self, select: Select, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        for offset, group in self._groups(select, budget):
            others = [*group.before, *group.after]
            yield offset, _pack(group.line, len(group.before), others, has_gap=group.has_gap)

    def _groups(self, select: Select, budget: ReadBudget) -> Iterator[tuple[int, Group]]:
        with self._reader() as reader:
            blocks = reader.blocks(self.begin, self.end, budget)
            for group in groups(blocks, select, self._before, self._after):
                yield group.offset, group


def unpack(arrivals: Iterable[Arrival], *, marks_gaps: bool) -> Iterator[bytes]:
    """Yield the lines of a ContextPart, perhaps with GAP between those that are not neighbours."""
    last: SegmentName | None = None
    for arrival in arrivals:
        line, numbers, *lines = arrival.line.split(b"\n")
        index, has_gap = map(int, numbers.split())
        if index != _NO_INDEX:
            lines.insert(index, line)
        if not lines:
            continue
        if marks_gaps and last is not None and (has_gap or last != arrival.segment):
            yield GAP
        last = arrival.segment
        yield from lines
