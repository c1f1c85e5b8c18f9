"""How long one greenlet may compute before others are served."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import gevent

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Work that keeps its worker busy for longer than a slice pauses, so that others are served.
TIME_SLICE_SECONDS = 0.02
PAUSE_SECONDS = 0.001

#: Items that are worked through between two looks at whether the slice is over: up to 10 ms.
ITEMS_PER_LOOK = 1000


class TimeSlice:
    """What a greenlet may compute at a stretch: work that is there already makes no one wait."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def end_if_over(self) -> None:
        """Let others be served, if this slice is over.

        A sleep of 0 would let gevent run 50 such slices before it looks at any socket.
        """
        if time.monotonic() - self._start > TIME_SLICE_SECONDS:
            gevent.sleep(PAUSE_SECONDS)
            self._start = time.monotonic()


def map_in_slices(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what the function makes of each item; where that takes long, others are served."""
    results: list[Result] = []
    time_slice = TimeSlice()
    for start in range(0, len(items), ITEMS_PER_LOOK):
        results += map(function, items[start : start + ITEMS_PER_LOOK])
        time_slice.end_if_over()
    return results
