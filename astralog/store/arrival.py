"""Put the lines of several segments into the order in which they arrived, as far as it is known.

A segment's lines are in the order of their arrival, and its name and its last change say when the
first and the last came. When the others came is written nowhere. So between segments that were
written at the same time, a line's timestamp decides where it may be the time of its arrival: where
it lies between the segment's start and its last change, give or take a minute. Any other line stays
with its neighbour.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence

from astralog.store.part import Arrival, Matches, Part
from astralog.store.segment_reader import ReadBudget


def oldest_first(
    parts: Iterable[Part], matches: Matches = bool, budget: ReadBudget | None = None
) -> Iterator[bytes]:
    """Yield the lines of the parts that match, until the budget is spent.

    Each part's `begin` moves along, so that another call with the same parts goes on there. A part
    is opened only when the lines before it in time are through.
    """
    budget = budget or ReadBudget()
    waiting = sorted(parts, key=lambda part: (part.since, part.segment), reverse=True)
    heads: list[tuple[float, int, Arrival, Part, Iterator[Arrival]]] = []
    while True:
        while waiting and not budget.is_spent and (not heads or waiting[-1].since <= heads[0][0]):
            part = waiting.pop()
            lines = part.read(matches, budget)
            if arrival := next(lines, None):
                heapq.heappush(heads, (arrival.time, -len(waiting), arrival, part, lines))
        if not heads:
            return
        _, order, arrival, part, lines = heads[0]
        part.begin = arrival.offset
        yield arrival.line
        if following := next(lines, None):
            heapq.heapreplace(heads, (following.time, order, following, part, lines))
        else:
            heapq.heappop(heads)


def newest_first(
    parts: Sequence[Part], limit: int, matches: Matches = bool, budget: ReadBudget | None = None
) -> Iterator[bytes]:
    """Yield the newest `limit` lines of the parts that match; as `newest_arrivals`."""
    return (arrival.line for arrival in newest_arrivals(parts, limit, matches, budget))


def newest_arrivals(
    parts: Sequence[Part], limit: int, matches: Matches = bool, budget: ReadBudget | None = None
) -> Iterator[Arrival]:
    """Yield the newest `limit` lines of the parts that match, until the budget is spent.

    The parts are in the order of their names. One is opened only when no newer line can be in
    another.
    """
    budget = budget or ReadBudget()
    # Those come first whose last line may be the newest of all.
    waiting = sorted(enumerate(parts), key=lambda item: item[1].successor is None)
    # A rank is negative, since a heap has its least item first. A part without a line ranks as
    # its last line can at best.
    heads: list[tuple[float, int, Arrival | None, Iterator[Arrival]]] = []
    while limit:
        while waiting and (not heads or waiting[-1][1].latest >= -heads[0][0]):
            number, part = waiting.pop()
            lines = part.read_backwards(limit, matches, budget)
            heapq.heappush(heads, (-part.until, -number, None, lines))
        if not heads:
            return
        _, order, arrival, lines = heads[0]
        if arrival:
            limit -= 1
            yield arrival
        if following := next(lines, None):
            heapq.heapreplace(heads, (-following.time, order, following, lines))
        elif budget.is_spent:  # a line of this part may be next
            return
        else:
            heapq.heappop(heads)
