"""The gunicorn worker that serves AstraLog."""

import contextlib
import logging
import math
import os
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import gevent
from flask import Flask
from gevent.socket import wait_read
from gunicorn.workers.ggevent import GeventWorker
from gunicorn.workers.workertmp import WorkerTmp

from astralog.app import Services, create_app, services_of
from astralog.auth import Tokens
from astralog.memory_file import make_memory_file
from astralog.resources import keep_freed_heap
from astralog.server.balance import POLL_SECONDS, TICK_SECONDS, Balance, Share
from astralog.server.connection import Connection, Shared
from astralog.server.limits import ConnectionLimits
from astralog.settings import Settings

log = logging.getLogger(__name__)

#: The master kills a worker that takes longer to stop.
STOP_SECONDS = 9

#: The parts of it for open requests, and then at least for the drain and its seals, which may use
#: all that is left: on a slow disk, all workers wait for each other's syncs.
REQUESTS_STOP_SECONDS = 4
DRAIN_STOP_SECONDS = 3

#: The part of it for everything else: to notice the stop, and to close the last files.
OTHER_STOP_SECONDS = 2

#: Seconds that a connection waits for a head during the stop.
STOPPING_SECONDS = 0.5

#: Seconds between two checks for the end of the last connection.
STOP_POLL_SECONDS = 0.05

#: Connections accepted before other clients are served.
ACCEPTS_PER_TIME_SLICE = 16

#: Seconds until the next try to accept a connection after a failure.
ACCEPT_RETRY_SECONDS = 0.05

#: Seconds until a thread that waits for the interpreter gets it from one that computes. A commit's
#: thread waits up to five times: with Python's 5 ms, a commit of 2 ms takes 12 while others decode.
SWITCH_SECONDS = 0.0002

#: Open files that are reserved for all uses except connections.
SPARE_FILES = 128


@dataclass
class MasterState:
    """The state that the master passes to its workers, which read no files of their own.

    The tokens and the certificate are those of the last start or reload: the files may be faulty
    by now, and their disk may stall. A worker that starts later thus uses the checked state.
    """

    settings: Settings
    tokens: Tokens
    tls: Any | None  #: The TLS context, if the service has a certificate.
    balance: Balance
    metrics_fd: int  #: The file in which the workers share their metrics.
    started_at: float  #: The start of the service, in seconds since 1970.


class Heartbeat(WorkerTmp):
    """A heartbeat file in memory, whose time a worker sets and the master reads.

    gunicorn creates it in `worker_tmp_dir`, and its master ends if it cannot: any local user can
    fill /dev/shm or /tmp.
    """

    def __init__(self, cfg: Any) -> None:
        """Create the file for the worker's user, so that the worker may set the time."""
        fd = make_memory_file("astralog-heartbeat")
        os.fchown(fd, cfg.uid, cfg.gid)
        self._tmp = os.fdopen(fd, "r+b", buffering=0)


class Worker(GeventWorker):
    """A gevent worker that accepts its share of the connections and limits their cost.

    It serves HTTP/1.1 only, and its stop does not wait for idle connections.
    """

    state: MasterState
    share: Share
    wsgi: Flask

    #: Whether the master has asked this worker to stop.
    is_told_to_stop = False
    _services: Services | None = None

    #: The time by which the queue shall be stored and its segments sealed.
    _drain_deadline = -math.inf

    def inherit(self, state: MasterState) -> None:
        """Take over the master's state; called in the master, before the fork."""
        self.state = state
        self.share = state.balance.join()

    def load_wsgi(self) -> None:
        """Build the app with the master's settings and tokens, and start its services.

        wsgi.py is not imported: a worker that starts after an upgrade replaced the files would run
        a mixture of both versions.
        """
        self.wsgi = create_app(self.state.settings, self.state.tokens)
        self._services = services_of(self.wsgi)
        self.cfg.set("graceful_timeout", REQUESTS_STOP_SECONDS)
        # As plain attributes: gunicorn reads 20 for each head that it parses, 10 of 75 µs less.
        # Later calls of `cfg.set` have no effect.
        self.cfg.__dict__.update({name: item.get() for name, item in self.cfg.settings.items()})
        self._services.start(self.state.metrics_fd, self.state.started_at)

    def stop_services(self) -> None:
        """Store the queued batches; gunicorn also calls this in the master, without effect."""
        if self._services is not None:
            left = self._drain_deadline - time.monotonic()
            self._services.stop(max(left, DRAIN_STOP_SECONDS))

    def run(self) -> None:
        keep_freed_heap()
        sys.setswitchinterval(SWITCH_SECONDS)
        limits = ConnectionLimits(self._max_connections(), self._head_seconds)
        self._shared = Shared(self.wsgi, self.cfg, limits, self.share, self.state.tls)
        self._connections = limits.connections
        acceptors = [gevent.spawn(self._accept_from, listener) for listener in self.sockets]
        self.share.start()
        while self.alive and not any(acceptor.dead for acceptor in acceptors):
            self.notify()
            gevent.sleep(TICK_SECONDS)
            self.share.tick()
        self._drain_deadline = time.monotonic() + STOP_SECONDS - OTHER_STOP_SECONDS
        self.share.withdraw()
        gevent.killall(acceptors)
        for listener in self.sockets:
            listener.close()
        self._finish_connections()

    def _max_connections(self) -> int:
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return min(int(self.worker_connections), max(open_files - SPARE_FILES, 1))

    def _head_seconds(self) -> float:
        """Return the seconds within which a connection must send its next head."""
        return float(self.cfg.keepalive) if self.alive else STOPPING_SECONDS

    def _accept_from(self, listener: Any) -> None:
        listener.setblocking(False)
        while True:
            wait_read(listener.fileno())
            gevent.sleep(self._accept(listener))

    def _accept(self, listener: Any) -> float:
        """Accept this worker's share of waiting connections; return the seconds to pause then."""
        for _ in range(ACCEPTS_PER_TIME_SLICE):
            if self.share.leaves():
                return POLL_SECONDS
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
            local = listener.getsockname()
            opened_at = self.share.opened()
            self._connections.add(gevent.spawn(self._serve, opened_at, sock, peer, local))
        return 0.0

    def _serve(self, opened_at: float, sock: Any, peer: Any, local: Any) -> None:
        try:
            Connection(self._shared, sock, peer, local).serve()
        finally:
            self.share.closed(opened_at)
            self._connections.discard(gevent.getcurrent())

    def _finish_connections(self) -> None:
        """Wait for the connections to end by themselves, then end the rest."""
        self._shared.is_stopping = True
        services_of(self.wsgi).streams.stop()
        end = time.monotonic() + self.cfg.graceful_timeout
        while self._connections and time.monotonic() < end:
            self.notify()
            gevent.sleep(STOP_POLL_SECONDS)
        with contextlib.suppress(gevent.Timeout):
            gevent.killall(list(self._connections), timeout=1)
