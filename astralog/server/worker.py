"""The gunicorn worker that serves AstraLog."""

import contextlib
import logging
import resource
import time
from typing import Any

import gevent
from gevent.socket import wait_read
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from astralog.server.balance import LOOK_SECONDS, TICK_SECONDS, Share
from astralog.server.connection import Connection, Shared
from astralog.server.limits import ConnectionLimits

log = logging.getLogger(__name__)

#: Seconds that a connection waits for a head at the stop.
STOPPING_SECONDS = 0.5

#: Seconds between two looks at whether the last connection has ended.
LOOK_AT_STOP_SECONDS = 0.05

#: Connections accepted between two chances for others to be served.
ACCEPTS_PER_TIME_SLICE = 16

#: Seconds until a connection is accepted, where that cannot be done now.
ACCEPT_RETRY_SECONDS = 0.05

#: Open files that connections leave to everything else.
SPARE_FILES = 128

#: A block as large is mapped and freed at the start. Twice as many bytes of freed heap then stay
#: with the process (mallopt(3), M_MMAP_THRESHOLD); else they are given back and faulted in again
#: with every batch. Measured at 500 logs: -90 of 1,230 µs a request.
HEAP_BYTES = 16 * 1024 * 1024


class Worker(GeventWorker):  # type: ignore[misc]
    """A gevent worker that takes its share of the connections and bounds what they cost.

    It serves HTTP/1.1 alone, with gunicorn's own parser, and its stop does not wait for idle
    connections.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.share: Share = self.app.balance.join()

    def run(self) -> None:
        """Serve until the stop."""
        bytes(HEAP_BYTES)
        limits = ConnectionLimits(self._max_connections(), self._head_seconds)
        tls = ssl_context(self.cfg) if self.cfg.is_ssl else None  # the master has read it
        self._shared = Shared(self.wsgi, self.cfg, limits, self.share, tls)
        self._connections: set[gevent.Greenlet] = set()
        acceptors = [gevent.spawn(self._accept_from, listener) for listener in self.sockets]
        self.share.start()
        while self.alive and not any(acceptor.dead for acceptor in acceptors):
            self.notify()
            gevent.sleep(TICK_SECONDS)
            self.share.tick()
        self.share.withdraw()
        gevent.killall(acceptors)
        for listener in self.sockets:
            listener.close()
        self._finish_connections()

    def _max_connections(self) -> int:
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return min(int(self.worker_connections), max(open_files - SPARE_FILES, 1))

    def _head_seconds(self) -> float:
        """Return how long a connection may wait for a head, or take to send it."""
        return float(self.cfg.keepalive) if self.alive else STOPPING_SECONDS

    def _accept_from(self, listener: Any) -> None:
        """Accept connections as long as the worker serves."""
        listener.setblocking(False)
        while True:
            wait_read(listener.fileno())
            gevent.sleep(self._accept(listener))

    def _accept(self, listener: Any) -> float:
        """Accept what is this worker's to accept, and return for how long to pause after it."""
        for _ in range(ACCEPTS_PER_TIME_SLICE):
            if self.share.leaves():
                return LOOK_SECONDS
            try:
                sock, peer = listener.accept()
            except BlockingIOError:  # another worker has it
                break
            except OSError as error:  # too many open files, perhaps
                log.debug("cannot accept a connection: %s", error)
                self._shared.limits.end_longest()
                return ACCEPT_RETRY_SECONDS
            while not self._shared.limits.make_room():
                gevent.sleep(ACCEPT_RETRY_SECONDS)
            self._open(sock, peer, listener.getsockname())
        return 0.0

    def _open(self, sock: Any, peer: Any, local: Any) -> None:
        self._shared.limits.opened()
        opened_at = self.share.opened()
        self._connections.add(gevent.spawn(self._serve, opened_at, sock, peer, local))

    def _serve(self, opened_at: float, sock: Any, peer: Any, local: Any) -> None:
        try:
            Connection(self._shared, sock, peer, local).serve()
        finally:
            self.share.closed(opened_at)
            self._shared.limits.closed()
            self._connections.discard(gevent.getcurrent())

    def _finish_connections(self) -> None:
        """Let connections end by themselves for a while, then end them."""
        self._shared.is_stopping = True
        end = time.monotonic() + self.cfg.graceful_timeout
        while self._connections and time.monotonic() < end:
            self.notify()
            gevent.sleep(LOOK_AT_STOP_SECONDS)
        with contextlib.suppress(gevent.Timeout):
            gevent.killall(list(self._connections), timeout=1)
