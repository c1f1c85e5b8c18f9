"""A service with prepared responses, for tests of clients."""

import gzip
import json
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

Headers = Mapping[str, str]


class Request(NamedTuple):
    """A batch as it was received, `body` still compressed."""

    received_at: float
    peer: tuple[str, int]
    path: str
    headers: Headers
    body: bytes

    @property
    def logs(self) -> list[dict[str, Any]]:
        logs: list[dict[str, Any]] = json.loads(gzip.decompress(self.body))["logs"]
        return logs

    @property
    def messages(self) -> list[str]:
        return [log["message"] for log in self.logs]


@dataclass(frozen=True)
class Answer:
    """A response; `content` is sent as JSON, unless it is bytes."""

    status: int = 200
    content: Any = b'{"status":"accepted"}'
    headers: Headers = field(default_factory=dict)

    def __call__(self, handler: "_Handler") -> None:
        body = (
            self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()
        )
        handler.send_response(self.status)
        for name, value in {**self.headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


def reject(status: int, code: str, errors: Any = None, **headers: str) -> Answer:
    """Return a rejection in the service's own form; a header's underscores are hyphens."""
    content = {"status": "rejected", "code": code, "message": "No.", "errors": errors}
    return Answer(status, content, {name.replace("_", "-"): headers[name] for name in headers})


def hang_up(handler: "_Handler") -> None:
    """Close the connection without a response."""
    handler.close_connection = True


#: What answers a request.
Reply = Callable[["_Handler"], None]


class Stall:
    """A response that is sent only once the test continues it, or never."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def __call__(self, handler: "_Handler") -> None:
        self.is_over.wait(60)
        Answer()(handler)


class FakeService:
    """Accepts batches, after the responses that a test has put into `answers`.

    `decide`, if set, returns the response to each request instead. `answer_early`, if set, is sent
    before the body is read, and ends the connection.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.answers: deque[Reply] = deque()
        self.decide: Callable[[Request], Reply] | None = None
        self.answer_early: Answer | None = None
        self._server = _Server(self)
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if context else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    @property
    def messages(self) -> list[str]:
        """The messages sent so far, in order."""
        return [message for request in list(self.requests) for message in request.messages]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, service: FakeService) -> None:
        self.service = service
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        service = self.server.service
        if service.answer_early:
            service.answer_early(self)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_WR)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = dict(self.headers)
        request = Request(time.monotonic(), self.client_address, self.path, headers, body)
        answer: Reply = Answer()
        if service.decide:
            answer = service.decide(request)
        elif service.answers:
            answer = service.answers.popleft()
        service.requests.append(request)
        answer(self)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
