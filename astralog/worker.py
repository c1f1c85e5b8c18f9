"""The gunicorn worker that serves AstraLog: gunicorn's gevent worker, with less to do a request."""

import contextlib
import itertools
import logging
import time
from functools import lru_cache
from typing import Any

import gevent
from gunicorn.http import wsgi
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.parser import RequestParser
from gunicorn.util import close
from gunicorn.workers.ggevent import GeventWorker
from werkzeug.http import http_date

from astralog import create_app
from astralog.body import Turn
from astralog.errors import Refusal
from astralog.settings import InvalidSettings

log = logging.getLogger(__name__)

#: Seconds between two looks at which connections wait too long for a head; at the stop, one that is
#: idle as long is closed.
OVERDUE_SECONDS = 0.5

#: Requests of a connection between two chances for others to be served: as long as a client sends
#: without a pause, nothing else makes it wait.
REQUESTS_A_TURN = 8

#: What is read of a refused body before its connection is closed.
DISCARD_BYTES = 32 * 1024 * 1024
DISCARD_SECONDS = 10.0
DISCARD_STEP_BYTES = 32 * 1024


MALFORMED_HEAD = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@lru_cache(maxsize=1)
def _http_date(timestamp: int) -> str:
    return http_date(timestamp)


class OnePacketResponse(wsgi.Response):  # type: ignore[misc]
    """A response whose head goes out with its body, in one send where gunicorn takes two."""

    headers_sent: bool
    _head = b""

    def default_headers(self) -> list[str]:
        """Return the status line and gunicorn's headers, the date rendered once a second."""
        major, minor = self.req.version
        lines = [
            f"HTTP/{major}.{minor} {self.status}\r\n",
            f"Date: {_http_date(int(time.time()))}\r\n",
            f"Connection: {'close' if self.should_close() else 'keep-alive'}\r\n",
        ]
        return [*lines, "Transfer-Encoding: chunked\r\n"] if self.chunked else lines

    def send_headers(self) -> None:
        """Render the head, and keep it for the body."""
        if not self.headers_sent:
            lines = self.default_headers()
            lines += [f"{name}: {value}\r\n" for name, value in self.headers]
            self._head = ("".join(lines) + "\r\n").encode("latin-1")
            self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        head, self._head = self._head, b""
        if self.chunked:
            self.sock.sendall(head)
            super()._emit_body(data)
        else:
            self._send(head + data)

    def close(self) -> None:
        """Send what is left: the head, where there was no body."""
        self.send_headers()
        if self._head:
            self._send(self._head)
        super().close()

    def _send(self, data: bytes) -> None:
        """Send all, without sendall's look at the buffer's size where one send is enough."""
        sent = self.sock.send(data)
        if sent < len(data):
            self.sock.sendall(data[sent:])


class Worker(GeventWorker):  # type: ignore[misc]
    """A gevent worker that stops without waiting for idle connections and does less a request.

    It serves HTTP/1.1 alone, with gunicorn's own parser.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: dict[Any, float] = {}  # connections that wait for a head, and since when

    def load_wsgi(self) -> None:
        """Load the application; after a reload with a faulty file of tokens, with the old ones."""
        try:
            super().load_wsgi()
        except InvalidSettings as error:
            log.error("tokens stay as they are: %s", "; ".join(error.problems))
            self.wsgi = create_app(tokens=self.app.tokens)

    def run(self) -> None:
        """Serve until the stop."""
        gevent.spawn(self._close_overdue)
        super().run()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve a connection, one request after another."""
        request = None
        try:
            client.setblocking(1)
            parser = RequestParser(self.cfg, client, addr)
            name = listener.getsockname()
            for count in itertools.count(1):
                request = None
                request = self._next_request(parser)
                self.handle_request(name, request, client, addr)
                if count % REQUESTS_A_TURN == 0:
                    gevent.sleep(0)
        except (StopIteration, NoMoreData):
            pass
        except OSError as error:
            self.log.debug("connection lost: %s", error)
        except Exception as error:
            self.handle_error(request, client, addr, error)
        finally:
            close(client)

    def _next_request(self, parser: RequestParser) -> Any:
        """Return the next request; StopIteration says that there is none."""
        connection = gevent.getcurrent()
        self._idle[connection] = time.monotonic()
        try:
            return next(parser)
        finally:
            del self._idle[connection]

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Answer one request; StopIteration ends its connection."""
        if self.log.access_log_enabled:
            super().handle_request(listener_name, req, sock, addr)
            return
        response, environ = wsgi.create(
            req, sock, addr, listener_name, self.cfg, response_class=OnePacketResponse
        )
        environ["wsgi.multithread"] = True
        if not self.alive:
            response.force_close()
        try:
            for item in self.wsgi(environ, response.start_response):
                response.write(item)
            response.close()
            is_refused = response.status_code >= 400
            is_last = response.should_close() or (is_refused and not _discard(req.body))
        except gevent.GreenletExit:  # the stop does not wait any longer
            is_last = True
        if is_last:
            raise StopIteration

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Refuse what is no HTTP, without a word of it in the log: it may hold a token."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        kind = type(exc).__name__
        log.warning("malformed request from %s: %s", addr[0] if addr else "a local socket", kind)
        body = Refusal("bad_request", f"The request is no valid HTTP: {kind}.").response().data
        with contextlib.suppress(OSError):
            client.sendall(MALFORMED_HEAD % len(body) + body)

    def _close_overdue(self) -> None:
        """Close the connections that wait too long for a head; one timer serves them all."""
        while True:
            gevent.sleep(OVERDUE_SECONDS)
            patience = self.cfg.keepalive if self.alive else OVERDUE_SECONDS
            latest = time.monotonic() - patience
            overdue = [connection for connection, since in self._idle.items() if since <= latest]
            gevent.killall(overdue, StopIteration, block=False)


def _discard(body: Any) -> bool:
    """Read what is left of a refused body, within bounds, and tell whether that was all.

    A client that still sends would otherwise lose its connection before it reads the refusal.
    """
    left = DISCARD_BYTES
    turn = Turn()
    with gevent.Timeout(DISCARD_SECONDS, False), contextlib.suppress(OSError, ParseException):
        while left > 0:
            data = body.read(min(left, DISCARD_STEP_BYTES))
            if not data:
                return True
            left -= len(data)
            turn.end_if_over()
    return False
