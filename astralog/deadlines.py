"""Time limits: on waits, and on how long a greenlet computes before other clients are served."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

import gevent

Item = TypeVar("Item")

#: Seconds between two polls for waits that are over.
POLL_SECONDS = 0.1

#: Seconds that the greenlets of a worker may compute, all together, before sockets are polled.
TIME_SLICE_SECONDS = 0.01

#: The shortest sleep in which gevent polls its sockets: after one of 0 seconds it may run 50 more
#: greenlets before it does. Measured, it takes 5 µs.
PAUSE_SECONDS = 1e-6

#: Items between two checks of the clock, so that checks cost little per item.
ITEMS_PER_CHECK = 64


class Yielding:
    """Long work that pauses after each time slice, so that other clients are served."""

    def __init__(self, work_seconds: float, pause: Callable[[float], object]) -> None:
        """Call `pause`, with the seconds worked, once they exceed `work_seconds`."""
        self.work_seconds = work_seconds
        self._pause = pause
        self._since = time.monotonic()

    def check(self) -> None:
        """Pause if the time is over; a check takes 0.1 µs."""
        worked = time.monotonic() - self._since
        if worked > self.work_seconds:
            self._since += worked  # others that check during the pause have their own time
            self._pause(worked)
            self._since = time.monotonic()

    def end(self) -> None:
        """Let the next check pause, for work that has just arrived; any thread may call it."""
        self._since -= self.work_seconds


#: The time that the greenlets of this process share: a hundred of them, each with little to
#: compute, block the others as much as a single one does.
hub_time = Yielding(TIME_SLICE_SECONDS, lambda worked: gevent.sleep(PAUSE_SECONDS))

#: Yields to other greenlets if the time slice (TIME_SLICE_SECONDS) is over. Call it in every loop
#: over input whose size a client decides; only greenlets of the hub's thread may. A thread that
#: competes with them for the interpreter has a `Yielding` for itself.
yield_if_due = hub_time.check


def in_runs(items: Sequence[Item], length: int = ITEMS_PER_CHECK) -> Iterator[Sequence[Item]]:
    """Yield the items in runs of a length; yield to other clients between two runs."""
    for start in range(0, len(items), length):
        yield items[start : start + length]
        yield_if_due()


def in_turns(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; between them, other clients are served if the time slice is over.

    For items that take microseconds; code that may take a millisecond calls `yield_if_due`.
    """
    rest = iter(items)

    def runs() -> Iterator[tuple[Item, ...]]:
        while run := tuple(islice(rest, ITEMS_PER_CHECK)):
            yield run
            yield_if_due()

    return chain.from_iterable(runs())


class Deadlines:
    """Contexts with a time limit; a greenlet is in at most one of them at a time.

    Measured, a context takes 0.5 µs; gevent.Timeout takes 4.
    """

    def __init__(self, seconds: Callable[[], float], error: Callable[[], BaseException]) -> None:
        """End a context after `seconds()`, with the exception that `error()` returns."""
        self._seconds = seconds
        self._error = error
        self._waiting: dict[Any, float] = {}  # greenlets and since when, the longest first
        self._ending: dict[Any, float] = {}  # the same of those that `end_longest` ends next
        self._is_watched = False

    def __enter__(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            gevent.spawn(self._watch)
        self._waiting[gevent.getcurrent()] = time.monotonic()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        current = gevent.getcurrent()
        if self._waiting.pop(current, None) is None:
            del self._ending[current]

    def __bool__(self) -> bool:
        """Return whether `end_longest` has a wait to end."""
        return bool(self._waiting)

    @property
    def longest_since(self) -> float:
        """The start of the longest wait by the monotonic clock; infinity without one."""
        return next(iter(self._waiting.values()), math.inf)

    @property
    def ending(self) -> int:
        """The number of waits that `end_longest` ends now."""
        return len(self._ending)

    def end_longest(self) -> None:
        """End the longest wait, unless it succeeds in the next poll of the hub; return afterwards.

        Another call meanwhile ends another wait.
        """
        waiting, since = next(iter(self._waiting.items()))
        self._ending[waiting] = self._waiting.pop(waiting)
        loop = gevent.get_hub().loop
        # A timer fires right after the poll, before the sockets that are ready; a callback follows.
        timer = loop.timer(0)

        def end_after_poll() -> None:
            timer.close()
            loop.run_callback(self._end, waiting, since)

        timer.start(end_after_poll)
        while self._ending.get(waiting) == since:
            gevent.sleep(0)

    def _watch(self) -> None:
        run_in_hub = gevent.get_hub().loop.run_callback
        while True:
            gevent.sleep(POLL_SECONDS)
            latest = time.monotonic() - self._seconds()
            for waiting, since in self._waiting.items():
                if since > latest:
                    break
                run_in_hub(self._end, waiting, since)

    def _end(self, waiting: Any, since: float) -> None:
        """End a wait, unless it succeeded meanwhile."""
        if since in (self._waiting.get(waiting), self._ending.get(waiting)):
            waiting.throw(self._error())


class TimeLimit(BaseException):
    """A context that ends without an error after so many seconds.

    Measured, it takes 0.5 µs if nothing else competes, and gevent.Timeout 1.5: 6 to 9% of the
    CPU of a request that comes alone, which meets two of them.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds)

    def __enter__(self) -> None:
        self._timer.start(gevent.getcurrent().throw, self)

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        self._timer.close()
        return error is self
