"""One client's connection, from its first byte to its end."""

import contextlib
import logging
import socket
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from flask import Flask
from gunicorn import util
from gunicorn.http.errors import ParseException

from astralog.api.rejection_log import Rejected
from astralog.api.responses import reject
from astralog.app import services_of
from astralog.errors import Rejection
from astralog.log import log_exception
from astralog.server.balance import Share
from astralog.server.fair_queue import CpuTime, FairQueue
from astralog.server.head_reuse import Requests
from astralog.server.http11_receiver import DISCARD_STEP_BYTES, Receiver
from astralog.server.http11_request import Request, describe
from astralog.server.http11_response import Response, send
from astralog.server.limits import (
    DISCARD_BYTES,
    HANDSHAKE_BYTES,
    PLAIN_BYTES,
    TLS_BYTES,
    ConnectionEnded,
    ConnectionLimits,
    ConnectionMemory,
)

log = logging.getLogger(__name__)

#: Bytes received at once from a client whose bytes are dropped.
LINGER_STEP_BYTES = 64 * 1024

MALFORMED_HEAD = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
    b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n"
)

#: The answer to plain HTTP on a port of TLS; the client may be a browser.
PLAIN_HTTP = "This port serves HTTPS only, and received plain HTTP; use https:// in its address."


@dataclass
class Shared:
    """Shared by the connections of a worker; `cfg` is gunicorn's, `tls` the context, if any."""

    app: Flask
    cfg: Any
    limits: ConnectionLimits
    share: Share
    tls: Any = None
    is_stopping: bool = False
    fair_queue: FairQueue = field(default_factory=FairQueue)


class Connection:
    """One client's connection."""

    def __init__(self, shared: Shared, sock: Any, peer: Any, local: Any) -> None:
        """Take over an accepted socket, with the addresses of both of its ends."""
        self._shared = shared
        self._limits = shared.limits
        self._sock = sock
        self._peer = peer
        self._local = local
        self._cpu_time = CpuTime(shared.fair_queue)
        self._memory = ConnectionMemory(shared.limits, TLS_BYTES if shared.tls else PLAIN_BYTES)
        self._head_waits = shared.limits.heads  # the deadlines of its waits for a head
        self._active_in = -1

    def serve(self) -> None:
        """Serve one request after another, until either side ends the connection."""
        try:
            self._memory.charge_idle()
            if self._shared.tls and not self._shake_hands():
                return
            is_tls = self._shared.tls is not None
            with contextlib.closing(Receiver(self._sock, self._cpu_time, is_tls)) as receiver:
                self._serve_requests(Requests(self._shared.cfg, receiver, self._peer))
        except ConnectionEnded:
            pass
        except OSError as error:
            log.debug("connection lost: %s", error)
        except Exception:
            log_exception(log, "request failed")
        finally:
            self._memory.release()
            util.close(self._sock)

    def _shake_hands(self) -> bool:
        """Set up TLS; return False after the answer to a client that speaks plain HTTP."""
        with self._limits.handshakes:
            is_http = self._sock.recv(1, socket.MSG_PEEK).isupper()  # a request's method
            if not is_http:
                self._cpu_time.pause()
                self._memory.charge_extra(HANDSHAKE_BYTES - TLS_BYTES)
                self._sock = self._shared.tls.wrap_socket(
                    self._sock, server_side=True, do_handshake_on_connect=False
                )
                self._sock.do_handshake()
        self._memory.charge_extra(0)
        if is_http:
            self._refuse(PLAIN_HTTP, PLAIN_HTTP.encode() + b"\n", b"text/plain; charset=utf-8")
        return not is_http

    def _serve_requests(self, requests: Requests) -> None:
        while True:
            request = None  # an idle connection holds none
            try:
                with self._head_waits:
                    request = requests.next(self._memory.charge_extra)
            except ParseException as error:
                message = describe(error)
                break  # the error's traceback holds the head
            if request is None:
                return
            try:
                if not self._answer(request):
                    return
            finally:
                request.body.close()
        self._memory.charge_extra(0)
        body = reject(Rejection("bad_request", message)).data
        self._refuse(message, body, b"application/json")

    def _answer(self, request: Request) -> bool:
        """Answer a request, and return whether the connection stays open."""
        if request.large_head_bytes and not self._cpu_time.is_trusted:
            self._memory.charge_extra(request.large_head_bytes)
        response = Response(request, self._sock, self._limits)
        response.is_last = self._is_last()
        self._run_app(request, response)
        self._update_trust(request.method, response.status_code)
        if request.lacks_length:
            self._linger()
            return False
        if not request.body.is_finished and not self._discard(request):
            return False
        if self._memory.extra:
            self._memory.charge_extra(0)
        return not response.is_last

    def _run_app(self, request: Request, response: Response) -> None:
        """Send the application's response (PEP 3333)."""
        environ = request.environ(self._peer, self._local)
        items = self._shared.app.wsgi_app(environ, response.start_response)
        try:
            for item in items:
                response.write(item)
            response.close()
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            environ.clear()  # werkzeug's request and it refer to each other

    def _is_last(self) -> bool:
        """Return whether to close the connection after this request, for a less busy worker."""
        share = self._shared.share
        if self._active_in != share.tick_number:
            self._active_in = share.tick_number
            if share.is_moved():
                return True
        return self._shared.is_stopping

    def _update_trust(self, method: str, status_code: int) -> None:
        """Trust a client with a valid token, until it exceeds its rate.

        A trusted connection skips the fair queue, is ended last, and is not charged while it is
        idle, only for unfinished heads and unsent responses. No POST is answered 200 without a
        token, and none 429.
        """
        if self._cpu_time.is_trusted:
            if status_code == HTTPStatus.TOO_MANY_REQUESTS:
                self._cpu_time.distrust()
                self._head_waits = self._limits.heads
                self._memory.charge_idle()
        elif method == "POST" and status_code == HTTPStatus.OK:
            self._cpu_time.trust()
            self._head_waits = self._limits.trusted_heads
            self._memory.release()

    def _discard(self, request: Request) -> bool:
        """Discard the rest of an unwanted body, and return whether its end was reached.

        A client that still sends would otherwise lose its connection before it reads the answer.
        """
        if not self._cpu_time.is_trusted:
            self._memory.charge_extra(request.large_head_bytes + DISCARD_STEP_BYTES)
        with self._limits.discards, contextlib.suppress(OSError, Rejection):
            if request.body.discard(DISCARD_BYTES):
                return True
        self._linger()
        return False

    def _linger(self) -> None:
        """Read on for a while, so that a reset of the connection does not discard the response."""
        left = DISCARD_BYTES
        with self._limits.discards:
            self._sock.shutdown(socket.SHUT_WR)
            while left > 0 and (size := len(self._sock.recv(LINGER_STEP_BYTES))):
                left -= size
                self._cpu_time.pause()  # this may take long, so the data is not kept

    def _refuse(self, message: str, body: bytes, content_type: bytes) -> None:
        """Log and answer bytes that are not a request, and end the connection."""
        peer = self._peer[0] if self._peer else "a local socket"
        rejected = Rejected("bad_request", peer, "no token read")
        services_of(self._shared.app).rejections.add(rejected, message)
        send(self._sock, MALFORMED_HEAD % (content_type, len(body)) + body, self._limits)
        self._linger()
