"""The gunicorn worker that serves AstraLog: gunicorn's gevent worker, with less to do a request."""

import contextlib
import itertools
from typing import Any

import gevent
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.util import close
from gunicorn.workers.ggevent import GeventWorker

from astralog.api.rejection_log import Source
from astralog.api.responses import reject
from astralog.deadlines import Deadlines
from astralog.errors import Rejection
from astralog.server.http1 import RequestParser, Response
from astralog.server.malformed import describe
from astralog.time_slice import TimeSlice

#: Seconds that a connection waits for a head at the stop.
STOPPING_SECONDS = 0.5

#: Requests of a connection between two chances for others to be served: as long as a client sends
#: without a pause, nothing else makes it wait.
REQUESTS_PER_TIME_SLICE = 8

#: What is read of a rejected body before its connection is closed.
DISCARD_BYTES = 32 * 1024 * 1024
DISCARD_SECONDS = 10.0
DISCARD_STEP_BYTES = 32 * 1024

#: A block as large is mapped and freed at the start. Twice as many bytes of freed heap then stay
#: with the process (mallopt(3), M_MMAP_THRESHOLD); else they are given back and faulted in again
#: with every batch. Measured at 500 logs: -90 of 1,230 µs a request.
HEAP_BYTES = 16 * 1024 * 1024

MALFORMED_HEAD = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


class Worker(GeventWorker):  # type: ignore[misc]
    """A gevent worker that stops without waiting for idle connections and does less a request.

    It serves HTTP/1.1 alone, with gunicorn's own parser.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heads = Deadlines(self._head_seconds, StopIteration)

    def run(self) -> None:
        """Serve until the stop."""
        bytes(HEAP_BYTES)
        super().run()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve a connection, one request after another."""
        request = None
        try:
            client.setblocking(1)
            parser = RequestParser(self.cfg, client, addr)
            name = listener.getsockname()
            with self.wsgi.app_context():  # one for all requests; pushing one for each costs 3 µs
                for count in itertools.count(1):
                    request = None
                    with self._heads:
                        request = next(parser)
                    self.handle_request(name, request, client, addr)
                    if count % REQUESTS_PER_TIME_SLICE == 0:
                        gevent.sleep(0)
        except (StopIteration, NoMoreData):
            pass
        except OSError as error:
            self.log.debug("connection lost: %s", error)
        except Exception as error:
            self.handle_error(request, client, addr, error)
        finally:
            close(client)

    def _head_seconds(self) -> float:
        """Return how long a connection may wait for a head, or take to send it."""
        return float(self.cfg.keepalive) if self.alive else STOPPING_SECONDS

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Answer one request; StopIteration ends its connection."""
        if self.log.access_log_enabled:
            super().handle_request(listener_name, req, sock, addr)
            return
        response = Response(req, sock, self.cfg)
        if not self.alive:
            response.force_close()
        try:
            for item in self.wsgi(req.environ(addr, listener_name), response.start_response):
                response.write(item)
            response.close()
            is_last = response.should_close()
            if response.status_code >= 400:
                is_last = not _discard(req.body) or is_last
        except gevent.GreenletExit:  # the stop does not wait any longer
            is_last = True
        if is_last:
            raise StopIteration

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Reject what is no HTTP."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        rejection = Rejection("bad_request", describe(exc))
        peer = addr[0] if addr else "a local socket"
        source = Source(rejection.code, peer, "no token read")
        self.wsgi.extensions["astralog_rejections"].add(source, rejection.message)
        body = reject(rejection).data
        with contextlib.suppress(OSError):
            client.sendall(MALFORMED_HEAD % len(body) + body)


def _discard(body: Any) -> bool:
    """Read what is left of a rejected body, within bounds, and return whether that was all.

    A client that still sends would otherwise lose its connection before it reads the rejection.
    """
    left = DISCARD_BYTES
    body.is_awaited = False  # nobody asks for it now
    time_slice = TimeSlice()
    with gevent.Timeout(DISCARD_SECONDS, False), contextlib.suppress(OSError, ParseException):
        while left > 0:
            data = body.read(min(left, DISCARD_STEP_BYTES))
            if not data:
                return True
            left -= len(data)
            time_slice.end_if_over()
    return False
