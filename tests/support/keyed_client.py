"""A client that sends batches with keys, and misbehaves in every way that a client can."""

import contextlib
import http.client
import json
import random
import socket
import struct
import time
from typing import NamedTuple, Protocol

from tests.support.numbered_batches import make_body
from tests.support.service import TIMEOUT_SECONDS, TOKEN, Answer, Service

#: Batches after which a client takes a new connection, which another worker may get.
KEPT_BATCHES = 20

#: Batches that a client remembers, to send one of them again.
REMEMBERED_BATCHES = 200

#: Of so many batches one is sent and not waited for, one is sent in half, and one is sent over two
#: connections at once.
BAD_EVERY = 12

#: Makes a close reset the connection.
RESET = struct.pack("ii", 1, 0)


class Try(NamedTuple):
    """The outcome of a request: `code` is "accepted" and `message` empty if it was."""

    status: int
    code: str
    message: str
    is_replayed: bool
    retry_after: str | None

    @property
    def fault(self) -> str | None:
        """The error of the response, or None.

        The batches are valid, each with its own key: only these 4xx are right.
        """
        if self.status == 200:
            return None if self.code == "accepted" else f"200 {self.code}"
        if self.status == 409:
            is_right = self.code == "key_in_use" and (self.retry_after or "").isdigit()
            return None if is_right else f"409 {self.code}, Retry-After: {self.retry_after}"
        if self.status in (408, 429) or (self.status >= 500 and self.code != "internal"):
            return None
        return f"{self.status} {self.code}"


class Listener(Protocol):
    """The interface that a client reports each request to."""

    def note_try(self, number: int, port: int) -> None:
        """Record a batch that is about to be posted from a port."""

    def note_answer(self, answer: Try, seconds: float) -> None:
        """Record a response and its duration."""

    def note_fault(self, fault: str) -> None:
        """Record an error."""


class KeyedClient:
    """One client: its connection, and its stored batches."""

    def __init__(
        self, service: Service, listener: Listener, largest: int, chance: random.Random
    ) -> None:
        self._service = service
        self._listener = listener
        self._largest = largest
        self._chance = chance
        self._connection: http.client.HTTPConnection | None = None
        self._kept = 0
        self._number = -1  # of the last batch
        self._stored: set[int] = set()  # batches of which a try was answered that it stored them
        self.remembered: list[int] = []

    def remember(self, number: int) -> None:
        """Keep a batch, to send it again later."""
        if len(self.remembered) == REMEMBERED_BATCHES:
            del self.remembered[self._chance.randrange(REMEMBERED_BATCHES)]
        self.remembered.append(number)

    def close(self) -> None:
        """Close the connection; the next try takes a new one."""
        if self._connection:
            self._connection.close()
        self._connection = None
        self._kept = 0

    def post(self, number: int) -> Try | None:
        """Send a batch once; return None without a response.

        A batch that is sent again uses a new connection, and so any worker.
        """
        if number == self._number or self._kept == KEPT_BATCHES:
            self.close()
        start = time.monotonic()
        try:
            answer = _read(self._send(number))
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            return None
        self._kept += 1
        self._note(number, answer, time.monotonic() - start)
        return answer

    def misbehave(self, number: int) -> None:
        """Sometimes lose a response, truncate a body, or race with itself, before the request."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            match self._chance.randrange(BAD_EVERY):
                case 0:
                    self._send(number)
                    self._cut()
                case 1:
                    self._send(number, is_half=True)
                    self._cut()
                case 2:
                    with contextlib.closing(self._send(number)) as racing:
                        self._connection = None
                        self.post(number)
                        self._note(number, _read(racing), 0)

    def _send(self, number: int, is_half: bool = False) -> http.client.HTTPConnection:
        """Send a batch, and return the connection of its response."""
        connection = self._connection
        if connection is None:
            connection = self._connection = self._service.open_connection(TIMEOUT_SECONDS)
        if connection.sock is None:  # it is new, or the service closed it
            connection.connect()
        body = make_body(number, number % self._largest + 1)
        self._listener.note_try(number, connection.sock.getsockname()[1])
        self._number = number
        connection.putrequest("POST", "/v1/drain")
        for name, value in make_headers(number).items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[: len(body) // 2] if is_half else body)
        return connection

    def _cut(self) -> None:
        """Disconnect without a response, almost at once, sometimes with a reset."""
        if self._connection and self._chance.random() < 0.5:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        time.sleep(self._chance.choice((0, 0, 0.001, 0.005, 0.02)))
        self.close()

    def _note(self, number: int, answer: Try, seconds: float) -> None:
        """Record a response: only one request per batch may store it."""
        self._listener.note_answer(answer, seconds)
        if answer.status == 200 and not answer.is_replayed:
            if number in self._stored:
                self._listener.note_fault("a stored batch was stored again")
            self._stored.add(number)


def _read(connection: http.client.HTTPConnection) -> Try:
    """Read a response; raises ValueError if it is not the service's."""
    response = connection.getresponse()
    content = json.loads(response.read())
    is_replayed = response.headers["Idempotency-Replayed"] == "true"
    code = content.get("code", content.get("status"))
    message = content.get("message", "")
    return Try(response.status, code, message, is_replayed, response.headers["Retry-After"])


def make_headers(number: int) -> dict[str, str]:
    """Return the headers of a batch, its key quoted or not."""
    key = f"batch-{number}" if number % 2 else f'"batch-{number}"'
    return {"Authorization": TOKEN, "Idempotency-Key": key}


def is_replay(answer: Answer) -> bool:
    """Return whether a response marks a replay; its status must be 200."""
    assert 200 == answer.status, answer.raw
    replayed = answer.headers.get_all("Idempotency-Replayed", [])
    assert replayed in ([], ["true"])
    return bool(replayed)
