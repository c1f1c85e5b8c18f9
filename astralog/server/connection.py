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

from astralog.api.rejection_log import Source
from astralog.api.responses import reject
from astralog.errors import Rejection
from astralog.log import log_exception
from astralog.server.balance import Share
from astralog.server.connection_limits import (
    DISCARD_BYTES,
    HANDSHAKE_BYTES,
    PLAIN_BYTES,
    TLS_BYTES,
    ConnectionEnded,
    ConnectionLimits,
)
from astralog.server.fair_queue import FairQueue, Flow
from astralog.server.malformed import describe
from astralog.server.receiver import Receiver
from astralog.server.request import Request, Requests
from astralog.server.request_body import DISCARD_STEP_BYTES
from astralog.server.response import Response, send

log = logging.getLogger(__name__)

#: What is received at once of a client that is not listened to any more.
LINGER_STEP_BYTES = 64 * 1024

MALFORMED_HEAD = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
    b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n"
)

#: What a client is told that speaks plain HTTP to a port of TLS; it may be a browser.
PLAIN_HTTP = "This port speaks HTTPS alone; plain HTTP was sent to it. Use https:// in its address."


@dataclass
class Server:
    """What the connections of a worker share; `cfg` is gunicorn's, `tls` the context, if any."""

    app: Flask
    cfg: Any
    limits: ConnectionLimits
    share: Share
    tls: Any = None
    is_stopping: bool = False
    queue: FairQueue = field(default_factory=FairQueue)


class Connection:
    """One client's connection."""

    def __init__(self, server: Server, sock: Any, peer: Any, local: Any) -> None:
        """Take a socket that was accepted, with the addresses of both of its ends."""
        self._server = server
        self._limits = server.limits
        self._sock = sock
        self._peer = peer
        self._local = local
        self._flow = Flow(server.queue)
        self._waits = self._limits.heads
        self._base_bytes = TLS_BYTES if server.tls else PLAIN_BYTES
        self._held_bytes = 0
        self._active_in = -1

    def serve(self) -> None:
        """Serve the client, one request after another, until either side ends the connection."""
        try:
            self._hold(self._base_bytes)
            if self._server.tls and not self._shake_hands():
                return
            is_tls = self._server.tls is not None
            with contextlib.closing(Receiver(self._sock, self._flow, is_tls)) as receiver:
                self._serve_requests(Requests(self._server.cfg, receiver, self._peer))
        except ConnectionEnded:
            pass
        except OSError as error:
            log.debug("connection lost: %s", error)
        except Exception:
            log_exception(log, "request failed")
        finally:
            self._hold(0)
            util.close(self._sock)

    def _shake_hands(self) -> bool:
        """Set TLS up, and return whether the client speaks it; another is told so."""
        with self._limits.handshakes:
            is_http = self._sock.recv(1, socket.MSG_PEEK).isupper()  # the method of a request
            if not is_http:
                self._flow.share()()
                self._hold(HANDSHAKE_BYTES)
                self._sock = self._server.tls.wrap_socket(
                    self._sock, server_side=True, do_handshake_on_connect=False
                )
                self._sock.do_handshake()
        self._hold(self._base_bytes)
        if is_http:
            self._log(Rejection("bad_request", PLAIN_HTTP))
            self._answer_bare(PLAIN_HTTP.encode() + b"\n", b"text/plain; charset=utf-8")
        return not is_http

    def _serve_requests(self, requests: Requests) -> None:
        while True:
            request = None  # an idle connection holds none
            try:
                with self._waits:
                    request = requests.next(self._hold_head)
            except ParseException as error:
                rejection = Rejection("bad_request", describe(error))
                break  # with the error goes the head that its traceback holds
            if request is None:
                return
            try:
                if not self._answer(request):
                    return
            finally:
                request.body.close()
        self._hold_head(0)
        self._log(rejection)
        self._answer_bare(reject(rejection).data, b"application/json")

    def _answer(self, request: Request) -> bool:
        """Answer a request, and return whether the connection goes on."""
        if request.held_bytes and self._base_bytes:
            self._hold_head(request.held_bytes)
        response = Response(request, self._sock, self._server.cfg, self._limits)
        if self._is_last():
            response.force_close()
        environ = request.environ(self._peer, self._local)
        items = self._server.app(environ, response.start_response)
        try:
            for item in items:
                response.write(item)
            response.close()
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            environ.clear()  # werkzeug's request and it refer to each other
        if request.method == "POST" and response.status_code == HTTPStatus.OK:
            self._trust()
        goes_on = not response.should_close()
        if request.lacks_length:
            self._linger()
        elif not request.body.is_finished and not self._discard(request):
            return False
        if self._held_bytes > self._base_bytes:
            self._hold_head(0)
        return goes_on

    def _is_last(self) -> bool:
        """Return whether the client is to go on elsewhere after this request."""
        share = self._server.share
        if self._active_in != share.tick_number:
            self._active_in = share.tick_number
            share.active += 1
            if share.moves:
                share.moves -= 1
                return True
        return self._server.is_stopping

    def _trust(self) -> None:
        """Take note that the client has shown a token; without one, no POST is answered 200."""
        if self._base_bytes:
            self._flow.is_trusted = True
            self._waits = self._limits.trusted_heads
            self._base_bytes = 0
            self._hold(0)

    def _discard(self, request: Request) -> bool:
        """Read what is left of a body that nobody wants, and return whether that was all.

        A client that still sends would otherwise lose its connection before it reads the answer.
        """
        if self._base_bytes:
            self._hold_head(request.held_bytes + DISCARD_STEP_BYTES)
        with self._limits.discards, contextlib.suppress(OSError, Rejection):
            if request.body.discard(DISCARD_BYTES):
                return True
        self._linger()
        return False

    def _linger(self) -> None:
        """Read on for a while, so that the client does not lose the answer with the connection."""
        left = DISCARD_BYTES
        pause = self._flow.share()
        with self._limits.discards:
            self._sock.shutdown(socket.SHUT_WR)
            while left > 0 and (size := len(self._sock.recv(LINGER_STEP_BYTES))):
                left -= size
                pause()  # which may take long, and what was read is freed

    def _log(self, rejection: Rejection) -> None:
        """Log what a client sends that does not speak HTTP."""
        peer = self._peer[0] if self._peer else "a local socket"
        source = Source(rejection.code, peer, "no token read")
        self._server.app.extensions["astralog_rejections"].add(source, rejection.message)

    def _answer_bare(self, body: bytes, kind: bytes) -> None:
        """Answer what is no request, and end the connection."""
        send(self._sock, MALFORMED_HEAD % (kind, len(body)) + body, self._limits)
        self._linger()

    def _hold_head(self, size: int) -> None:
        self._hold(self._base_bytes + size)

    def _hold(self, size: int) -> None:
        """Account for so many bytes in all."""
        more = size - self._held_bytes
        self._held_bytes = size
        if more > 0:
            self._limits.hold(more)
        else:
            self._limits.release(-more)
