"""Limits of a worker's connections: their number, memory and waits.

`ConnectionLimits` ends the longest waits if there are too many connections or they hold too much
memory; `ConnectionMemory` charges it for one connection.
"""

import logging
import time
from collections.abc import Callable

import gevent

from astralog.deadlines import Deadlines
from astralog.settings import KIB, MIB

log = logging.getLogger(__name__)

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


class ConnectionEnded(Exception):
    """The server ends a connection, since its client took too long or its memory is needed."""


class ConnectionLimits:
    """The bounds that all connections of a worker share.

    A connection waits for its client within one of the deadlines. If the connections exceed
    `max_connections` or `max_bytes`, the longest waits are ended.
    """

    def __init__(
        self, max_connections: int, head_seconds: Callable[[], float], max_bytes: int = HELD_BYTES
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
        #: The greenlets of all connections; the worker adds and discards them.
        self.connections: set[gevent.Greenlet] = set()
        self._held_bytes = 0
        self._ended = 0
        self._logged_at = -LOG_SECONDS

    @property
    def _has_max_connections(self) -> bool:
        return len(self.connections) >= self._max_connections

    def make_room(self) -> bool:
        """End the longest waits until another connection is within the limits.

        Returns False if that fails: clients that wait for an answer are never ended.
        """
        while self._has_max_connections or self._held_bytes > self._max_bytes:
            if not self.end_longest():
                return not self._has_max_connections  # else memory will be freed soon
        return True

    def end_longest(self) -> bool:
        """End the longest wait, and return whether there was one.

        An idle client that has shown a token is ended after all others, and only for the number of
        connections: it holds no memory that counts here.
        """
        if self._end_longest_untrusted():
            return True
        return self._has_max_connections and self._end(self.trusted_heads)

    def hold(self, size: int) -> None:
        """Count more bytes of a connection; this may end others, or the caller's own."""
        self._held_bytes += size
        while self._held_bytes > self._max_bytes:
            if self._held_bytes - self._ending_bytes() <= self._max_bytes:
                gevent.sleep(0)  # until they are released
            elif not self._end_longest_untrusted():
                break

    def release(self, size: int) -> None:
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
        if time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.warning(
                "too many connections: %d hold %d KiB; closed the %d that waited longest",
                len(self.connections),
                self._held_bytes // KIB,
                self._ended,
            )
            self._ended = 0
        waits.end_longest()
        return True


class ConnectionMemory:
    """The memory that one connection is charged for.

    It is that of the idle connection, unless its client is trusted, and `extra` bytes: of a TLS
    handshake, an unfinished head, or a request that is answered.
    """

    def __init__(self, limits: ConnectionLimits, idle_bytes: int) -> None:
        self._limits = limits
        self._idle_bytes = idle_bytes
        self._charged_idle = 0  # 0 while the client is trusted
        self._charged = 0  # in total
        self.extra = 0

    def charge_idle(self) -> None:
        """Charge the idle connection from now on, and no extra bytes."""
        self._charged_idle = self._idle_bytes
        self.charge_extra(0)

    def charge_extra(self, extra: int) -> None:
        self.extra = extra
        more = self._charged_idle + extra - self._charged
        self._charged += more
        if more > 0:
            self._limits.hold(more)
        else:
            self._limits.release(-more)

    def release(self) -> None:
        """Release all bytes, and stop charging the idle connection."""
        self._charged_idle = 0
        self.charge_extra(0)
