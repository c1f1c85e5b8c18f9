"""What the connections of a worker may cost: how many, how much memory, and how long they wait."""

import logging
import time
from collections.abc import Callable

import gevent

from astralog.deadlines import Deadlines

log = logging.getLogger(__name__)

KIB = 1024
MIB = 1024 * KIB

#: Memory that a worker's connections may hold in all: those whose client has not shown a token yet,
#: and, of any, unfinished heads and responses that wait to be taken. Beyond it, those that have
#: waited longest for their client are ended.
HELD_BYTES = 64 * MIB

#: What a connection itself holds, measured: one over TCP, one over TLS during its handshake, and
#: one after it.
PLAIN_BYTES = 11 * KIB
HANDSHAKE_BYTES = 57 * KIB
TLS_BYTES = 27 * KIB

#: A client that takes longer to set TLS up loses its connection.
HANDSHAKE_SECONDS = 10.0

#: A client that takes longer for so many bytes of a response loses its connection.
WRITE_SECONDS = 30.0
WRITE_STEP_BYTES = 64 * KIB

#: What is read of a body that nobody wants before its connection is closed.
DISCARD_BYTES = 32 * MIB
DISCARD_SECONDS = 10.0

#: Seconds between two log lines on connections that were ended for others.
LOG_SECONDS = 60.0


class ConnectionEnded(Exception):
    """The server ends a connection: its client took too long, or others need what it holds."""


class ConnectionLimits:
    """The bounds that all connections of a worker share.

    A connection waits for its client inside of one of the deadlines. Where the connections exceed
    `max_connections` or `max_bytes`, those are ended that have waited longest.
    """

    def __init__(
        self,
        max_connections: int,
        head_seconds: Callable[[], float],
        max_bytes: int = HELD_BYTES,
    ) -> None:
        """Bound the wait for a head, and its sending, by what `head_seconds` returns."""
        self._max_connections = max_connections
        self._max_bytes = max_bytes
        self.handshakes = Deadlines(lambda: HANDSHAKE_SECONDS, ConnectionEnded)
        self.heads = Deadlines(head_seconds, ConnectionEnded)
        self.writes = Deadlines(lambda: WRITE_SECONDS, ConnectionEnded)
        self.discards = Deadlines(lambda: DISCARD_SECONDS, ConnectionEnded)
        #: Waits for the next head of a client that has shown a token: they are ended last.
        self.trusted_heads = Deadlines(head_seconds, ConnectionEnded)
        self._count = 0
        self._held_bytes = 0
        self._ended = 0
        self._logged_at = -LOG_SECONDS

    @property
    def is_full(self) -> bool:
        """Return whether one connection more would exceed the limits."""
        return self._count >= self._max_connections or self._held_bytes > self._max_bytes

    def make_room(self) -> bool:
        """End what has waited longest until a connection more is within the limits.

        Returns whether one is: clients that wait for an answer of the service are never ended.
        """
        while self.is_full:
            if not self.end_longest():
                return self._count < self._max_connections  # else what is held will be free again
        return True

    def end_longest(self) -> bool:
        """End the longest wait, and return whether there was any.

        A client that has shown a token, and waits for nothing, is ended after all others, and only
        for the number of connections: it holds no memory that counts here.
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
        """Take note that a connection holds more bytes; others may be ended, or the caller."""
        self._held_bytes += size
        while self._held_bytes > self._max_bytes and self._end_longest_untrusted():
            pass

    def release(self, size: int) -> None:
        """Take note that a connection holds fewer bytes."""
        self._held_bytes -= size

    def _end_longest_untrusted(self) -> bool:
        waits = (self.handshakes, self.heads, self.writes, self.discards)
        return self._end(min(waits, key=lambda wait: wait.longest_since))

    def _end(self, waits: Deadlines) -> bool:
        if not waits:
            return False
        waits.end_longest()
        self._ended += 1
        self._log()
        gevent.sleep(0)  # for the hub to end it
        return True

    def _log(self) -> None:
        if time.monotonic() - self._logged_at < LOG_SECONDS:
            return
        self._logged_at = time.monotonic()
        log.warning(
            "too many connections: %d hold %d KiB; ended %d that waited longest for their client",
            self._count,
            self._held_bytes // KIB,
            self._ended,
        )
        self._ended = 0
