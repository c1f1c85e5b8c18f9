"""Waits that last too long are ended; one timer for all of them costs less than one for each."""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import gevent

#: Seconds between two looks at which waits are over.
LOOK_SECONDS = 0.1


class Deadlines:
    """Contexts that last at most so many seconds each; a greenlet is in one of them at a time.

    Measured, a context takes 0.5 µs; gevent.Timeout takes 4.
    """

    def __init__(self, seconds: Callable[[], float], error: Callable[[], BaseException]) -> None:
        """Throw what `error` returns into a context after the seconds that `seconds` returns."""
        self._seconds = seconds
        self._error = error
        self._waiting: dict[Any, float] = {}  # greenlets and since when, the longest first
        self._is_watched = False

    def __enter__(self) -> None:
        if not self._is_watched:
            self._is_watched = True
            gevent.spawn(self._watch)
        self._waiting[gevent.getcurrent()] = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._waiting[gevent.getcurrent()]

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self._waiting)

    @property
    def longest_since(self) -> float:
        """When the longest wait began, in seconds of the monotonic clock; infinity without one."""
        return next(iter(self._waiting.values()), math.inf)

    def end_longest(self) -> None:
        """End the longest wait when the hub runs next, unless what it waits for comes first."""
        waiting, since = next(iter(self._waiting.items()))
        gevent.get_hub().loop.run_callback(self._end, waiting, since)

    def _watch(self) -> None:
        run_in_hub = gevent.get_hub().loop.run_callback
        while True:
            gevent.sleep(LOOK_SECONDS)
            latest = time.monotonic() - self._seconds()
            for waiting, since in self._waiting.items():
                if since > latest:
                    break
                run_in_hub(self._end, waiting, since)

    def _end(self, waiting: Any, since: float) -> None:
        """End a wait, unless what it waited for came meanwhile."""
        if self._waiting.get(waiting) == since:
            waiting.throw(self._error())


class TimeLimit(BaseException):
    """A context that ends without an error after so many seconds.

    Measured, it takes 0.5 µs where nothing else competes, and gevent.Timeout 1.5: 6 to 9% of the
    CPU of a request that comes alone, which meets two of them.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds)

    def __enter__(self) -> None:
        self._timer.start(gevent.getcurrent().throw, self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._timer.close()
        return error is self
