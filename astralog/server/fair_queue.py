"""The queue that shares a worker's CPU among connections whose client has not shown a token.

The connection that has used the least CPU time in the last seconds goes first (least attained
service), so that a client that sends without a pause, on any number of connections, delays only
itself. Between two slices of such work all sockets are polled, and clients that have shown a token
are served.
"""

import heapq
import itertools
import time

import gevent
from gevent.hub import Waiter

from astralog.deadlines import yield_if_due

#: Seconds of work for connections without a token between two polls of all sockets.
SLICE_SECONDS = 0.01

#: The expected seconds per byte of a request's head, measured for heads of 16 KiB.
SECONDS_PER_BYTE = 1e-7

#: Seconds after which the CPU time that a connection has used counts half.
HALF_LIFE_SECONDS = 1.0


class FairQueue:
    """Connections that wait for CPU time, ordered by the CPU time that they have used."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._timer = self._hub.loop.timer(0)
        self._waiting: list[tuple[float, int, Waiter]] = []
        self._numbers = itertools.count()
        self._iteration = -1
        self._slice_end = 0.0

    def try_start(self) -> bool:
        """Start work and return True, unless other connections wait or the time slice is over."""
        if self._waiting:
            return False
        now, iteration = time.monotonic(), self._hub.loop.iteration
        if iteration != self._iteration:
            self._iteration, self._slice_end = iteration, now + SLICE_SECONDS
        return now < self._slice_end

    def wait(self, used_seconds: float) -> None:
        """Wait until all connections that have used less CPU time were served."""
        waiter = Waiter(self._hub)
        heapq.heappush(self._waiting, (used_seconds, next(self._numbers), waiter))
        if not self._timer.active:
            self._timer.start(self._serve)
        waiter.get()

    def _serve(self) -> None:
        """Serve waiting connections for one slice; this runs in the hub, once after each poll."""
        end = time.monotonic() + SLICE_SECONDS
        while self._waiting and time.monotonic() < end:
            heapq.heappop(self._waiting)[2].switch(None)  # it works until its next wait
        if self._waiting:
            self._timer.start(self._serve)


class CpuTime:
    """The CPU time that one connection has used; unless it is trusted, it waits in the queue."""

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._used_seconds = 0.0
        self._started_at: float | None = None  # None while it waits for its client
        self._faded_at = time.monotonic()
        #: Whether the connection skips the queue; set by `trust` and `distrust`.
        self.is_trusted = False

    def trust(self) -> None:
        self.is_trusted = True
        self._started_at = None

    def distrust(self) -> None:
        self.is_trusted = False
        self._started_at = time.monotonic()

    def try_start(self) -> bool:
        """Start work at once and return True, unless the connection has to wait."""
        if self.is_trusted:
            return True
        if not self._queue.try_start():
            return False
        self._started_at = time.monotonic()
        return True

    def wait(self, head_bytes: int = 0) -> None:
        """Wait for this connection's turn, and start work on a head of `head_bytes`."""
        now = time.monotonic()
        self._used_seconds *= 0.5 ** ((now - self._faded_at) / HALF_LIFE_SECONDS)
        self._faded_at = now
        self._queue.wait(self._used_seconds + SECONDS_PER_BYTE * head_bytes)
        self._started_at = time.monotonic()

    def stop(self) -> None:
        """Count the time since the start; the connection now waits for its client."""
        if self._started_at is not None:
            self._used_seconds += time.monotonic() - self._started_at
            self._started_at = None

    def pause(self) -> None:
        """Serve other connections; long work calls it between its steps."""
        if self.is_trusted:
            yield_if_due()
            return
        self.stop()
        if not self.try_start():
            self.wait()
