"""The lines of the same segment before and after matching lines, as `grep -C` shows them."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from astralog.store.merge import Arrival, Part, last_first
from astralog.store.names import SegmentName
from astralog.store.reader import Block, ReadBudget, Select, every_line

#: The separator between lines that do not follow each other.
GAP = b"--"


class Group:
    """A matching line, with the lines around it that are not in an earlier group."""

    def __init__(self, offset: int, before: Iterable[bytes], line: bytes, *, has_gap: bool) -> None:
        self.offset = offset
        self.lines = [*before, line]
        self.has_gap = has_gap  # whether lines before it are left out


def groups(blocks: Iterable[Block], select: Select, before: int, after: int) -> Iterator[Group]:
    """Yield a group for each matching line; `before` and `after` limit the lines around it."""
    passed: deque[bytes] = deque(maxlen=before)  # lines before the next group
    has_gap = False
    group: Group | None = None
    left = 0  # lines that the group may still take
    for start, lines in blocks:
        found = {offset for offset, _ in select(lines)}
        if found or group:
            around = every_line(lines)
        else:
            around = _last_lines(lines, before)
            has_gap = has_gap or lines.count(b"\n") > before
        for offset, line in around:
            if offset in found:
                if group:
                    yield group
                group = Group(start + offset, passed, line, has_gap=has_gap)
                passed.clear()
                left, has_gap = after, False
            elif group and left:
                group.lines.append(line)
                left -= 1
            else:
                if group:
                    yield group
                    group = None
                has_gap = has_gap or len(passed) == before
                passed.append(line)
    if group:
        yield group


def _last_lines(lines: bytes, count: int) -> Iterator[tuple[int, bytes]]:
    """Return the last lines of a block without any that matches."""
    last = lines[:-1].rsplit(b"\n", count)[-count:] if count else []
    return ((0, line) for line in last)


class ContextPart(Part):
    """A part of a segment that yields texts of several lines; `unpack` separates them."""

    def __init__(self, before: int, after: int, *place: Any) -> None:
        super().__init__(*place)
        self._before = before
        self._after = after

    def _read(self, select: Select, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        with self._reader() as reader:
            blocks = reader.blocks(self.begin, self.end, budget)
            for group in groups(blocks, select, self._before, self._after):
                lines = [GAP, *group.lines] if group.has_gap else group.lines
                yield group.offset, b"\n".join(lines)

    def _read_backwards(
        self, limit: int, select: Select, budget: ReadBudget
    ) -> Iterator[tuple[int, bytes]]:
        yield from last_first(lambda: self._read(select, budget), limit, budget)


def unpack(arrivals: Iterable[Arrival]) -> Iterator[bytes]:
    """Yield the lines of a ContextPart, with GAP between those that do not follow each other."""
    last: SegmentName | None = None
    for arrival in arrivals:
        first, *lines = arrival.line.split(b"\n")
        has_gap = first == GAP and bool(lines)
        if last is not None and (has_gap or last != arrival.segment):
            yield GAP
        last = arrival.segment
        yield from lines if has_gap else [first, *lines]
