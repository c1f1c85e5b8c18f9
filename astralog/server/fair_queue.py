"""Fair queueing among the connections whose client has not shown a token.

Whoever has used the least of the worker lately goes first, so that a client which sends without a
pause, on however many connections, delays only itself: least attained service, with a memory of a
few seconds. Between two slices of such work, all sockets are polled, and clients that have shown a
token are served.
"""

import heapq
import itertools
import math
import time
from collections.abc import Callable

import gevent
from gevent.hub import Waiter

from astralog.deadlines import yield_if_due

#: Seconds of work for connections without a token between two polls of all sockets.
SLICE_SECONDS = 0.01

#: What a request is expected to take for each byte of its head, measured for heads of 16 KiB.
SECONDS_PER_BYTE = 1e-7

#: What a connection has used counts half after so many seconds.
HALF_LIFE_SECONDS = 1.0


class FairQueue:
    """The connections of a worker that wait for it, the one that has used least first."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._timer = self._hub.loop.timer(0)
        self._waiting: list[tuple[float, int, Waiter]] = []
        self._numbers = itertools.count()
        self._iteration = -1
        self._slice_end = 0.0

    def try_start(self) -> bool:
        """Start work at once and return True, unless others wait or this slice is over."""
        if self._waiting:
            return False
        now, iteration = time.monotonic(), self._hub.loop.iteration
        if iteration != self._iteration:
            self._iteration, self._slice_end = iteration, now + SLICE_SECONDS
        return now < self._slice_end

    def wait(self, used_seconds: float) -> None:
        """Return when all who have used less have been served."""
        waiter = Waiter(self._hub)
        heapq.heappush(self._waiting, (used_seconds, next(self._numbers), waiter))
        if not self._timer.active:
            self._timer.start(self._serve)
        waiter.get()

    def _serve(self) -> None:
        """Serve those who wait for one slice; this runs in the hub, once after each poll."""
        end = time.monotonic() + SLICE_SECONDS
        while self._waiting and time.monotonic() < end:
            heapq.heappop(self._waiting)[2].switch(None)  # it works until it waits for something
        if self._waiting:
            self._timer.start(self._serve)


class Flow:
    """One connection's part in the queue, which it leaves for good once it is trusted."""

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._used_seconds = 0.0
        self._started_at = math.inf  # it waits for its client
        self._faded_at = time.monotonic()
        self.is_trusted = False

    def try_start(self) -> bool:
        """Start work at once and return True, unless the connection has to wait."""
        if self.is_trusted:
            return True
        if not self._queue.try_start():
            return False
        self._started_at = time.monotonic()
        return True

    def wait(self, head_bytes: int = 0) -> None:
        """Start work when it is this connection's turn, such as on a request with that head."""
        now = time.monotonic()
        self._used_seconds *= 0.5 ** ((now - self._faded_at) / HALF_LIFE_SECONDS)
        self._faded_at = now
        self._queue.wait(self._used_seconds + SECONDS_PER_BYTE * head_bytes)
        self._started_at = time.monotonic()

    def stop(self) -> None:
        """Count what was used since the start; the connection waits for its client from now on."""
        if not self.is_trusted:
            self._used_seconds += max(0.0, time.monotonic() - self._started_at)
            self._started_at = math.inf

    def share(self) -> Callable[[], None]:
        """Return what long work calls between its steps, so that others are served."""
        return yield_if_due if self.is_trusted else self._pause

    def _pause(self) -> None:
        """Let those go first who have used less."""
        self.stop()
        if not self.try_start():
            self.wait()
