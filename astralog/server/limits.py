"""Limits of a worker's connections: their number, memory, waits and CPU time.

`ConnectionLimits` ends the longest waits if there are too many connections or they hold too much
memory. `FairQueue` shares the CPU among connections whose client has not shown a token: the one
that has used the least CPU time in the last seconds goes first (least attained service), so that a
client that sends without a pause, on any number of connections, delays only itself. Between
two slices of such work all sockets are polled, and clients that have shown a token are served.
"""

import heapq
import itertools
import logging
import time
from collections.abc import Callable

import gevent
from gevent.hub import Waiter

from astralog.deadlines import Deadlines, yield_if_due

log = logging.getLogger(__name__)

KIB = 1024
MIB = 1024 * KIB

#: Memory that all connections of a worker may hold before their client has shown a token, plus the
#: unfinished heads and unsent responses of any. Beyond it, connections that have waited longest for
#: their client are ended.
HELD_BYTES = 64 * MIB

#: Memory of an idle connection, measured: over TCP, over TLS during its handshake, and after it.
PLAIN_BYTES = 11 * KIB
HANDSHAKE_BYTES = 57 * KIB
TLS_BYTES = 27 * KIB

#: A client that takes longer to set TLS up loses its connection.
HANDSHAKE_SECONDS = 10.0

#: A client that takes longer to receive WRITE_STEP_BYTES of a response loses its connection.
WRITE_SECONDS = 30.0
WRITE_STEP_BYTES = 64 * KIB

#: Limits on reading an unwanted body before its connection is closed.
DISCARD_BYTES = 32 * MIB
DISCARD_SECONDS = 10.0

#: Seconds between two log lines about connections that were ended for others.
LOG_SECONDS = 60.0

#: Seconds of work for connections without a token between two polls of all sockets.
SLICE_SECONDS = 0.01

#: The expected seconds per byte of a request's head, measured for heads of 16 KiB.
SECONDS_PER_BYTE = 1e-7

#: Seconds after which the CPU time that a connection has used counts half.
HALF_LIFE_SECONDS = 1.0


class ConnectionEnded(Exception):
    """The server ends a connection, since its client took too long or its memory is needed."""


class ConnectionLimits:
    """The bounds that all connections of a worker share.

    A connection waits for its client within one of the deadlines. If the connections exceed
    `max_connections` or `max_bytes`, the longest waits are ended.
    """

    def __init__(
        self,
        max_connections: int,
        head_seconds: Callable[[], float],
        max_bytes: int = HELD_BYTES,
    ) -> None:
        """Limit the time until a head is complete to the result of `head_seconds`."""
        self._max_connections = max_connections
        self._max_bytes = max_bytes
        self.handshakes = Deadlines(lambda: HANDSHAKE_SECONDS, ConnectionEnded)
        self.heads = Deadlines(head_seconds, ConnectionEnded)
        self.writes = Deadlines(lambda: WRITE_SECONDS, ConnectionEnded)
        self.discards = Deadlines(lambda: DISCARD_SECONDS, ConnectionEnded)
        #: Waits for the next head of a client that has shown a token; they are ended last.
        self.trusted_heads = Deadlines(head_seconds, ConnectionEnded)
        self._count = 0
        self._held_bytes = 0
        self._ended = 0
        self._logged_at = -LOG_SECONDS

    @property
    def is_full(self) -> bool:
        """Return whether another connection would exceed the limits."""
        return self._count >= self._max_connections or self._held_bytes > self._max_bytes

    def make_room(self) -> bool:
        """End the longest waits until another connection is within the limits.

        Returns False if that fails: clients that wait for an answer are never ended.
        """
        while self.is_full:
            if not self.end_longest():
                return self._count < self._max_connections  # else memory will be freed soon
        return True

    def end_longest(self) -> bool:
        """End the longest wait, and return whether there was one.

        An idle client that has shown a token is ended after all others, and only for the number of
        connections: it holds no memory that counts here.
        """
        if self._end_longest_untrusted():
            return True
        return self._count >= self._max_connections and self._end(self.trusted_heads)

    def opened(self) -> None:
        """Count a connection that was accepted."""
        self._count += 1

    def closed(self) -> None:
        """Count a connection that has ended."""
        self._count -= 1

    def hold(self, size: int) -> None:
        """Count more bytes of a connection; this may end others, or the caller's own."""
        self._held_bytes += size
        while self._held_bytes > self._max_bytes:
            if self._held_bytes - self._ending_bytes() <= self._max_bytes:
                gevent.sleep(0)  # until they are released
            elif not self._end_longest_untrusted():
                break

    def release(self, size: int) -> None:
        """Count fewer bytes of a connection."""
        self._held_bytes -= size

    def _ending_bytes(self) -> int:
        """Return about the bytes of the connections that are being ended."""
        others = sum(waits.ending for waits in (self.heads, self.writes, self.discards))
        return HANDSHAKE_BYTES * self.handshakes.ending + PLAIN_BYTES * others

    def _end_longest_untrusted(self) -> bool:
        waits = (self.handshakes, self.heads, self.writes, self.discards)
        return self._end(min(waits, key=lambda wait: wait.longest_since))

    def _end(self, waits: Deadlines) -> bool:
        if not waits:
            return False
        self._ended += 1
        self._log()
        waits.end_longest()
        return True

    def _log(self) -> None:
        if time.monotonic() - self._logged_at < LOG_SECONDS:
            return
        self._logged_at = time.monotonic()
        log.warning(
            "too many connections: %d hold %d KiB; closed the %d that waited longest",
            self._count,
            self._held_bytes // KIB,
            self._ended,
        )
        self._ended = 0


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


class Flow:
    """The CPU time that one connection has used; without trust, it waits in the fair queue.

    A client is trusted while it has a valid token and stays within its rate.
    """

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._used_seconds = 0.0
        self._started_at: float | None = None  # None while it waits for its client
        self._faded_at = time.monotonic()
        self._is_trusted = False

    @property
    def is_trusted(self) -> bool:
        """Return whether the client is trusted, so that its time is not counted."""
        return self._is_trusted

    @is_trusted.setter
    def is_trusted(self, is_trusted: bool) -> None:
        self._is_trusted = is_trusted
        self._started_at = None if is_trusted else time.monotonic()

    def try_start(self) -> bool:
        """Start work at once and return True, unless the connection has to wait."""
        if self._is_trusted:
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
        if self._is_trusted:
            yield_if_due()
            return
        self.stop()
        if not self.try_start():
            self.wait()
