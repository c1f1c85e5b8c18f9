"""Both ends of a connection, for tests of the server's handling of a client's bytes."""

import socket
from collections.abc import Iterator

import pytest
from gunicorn.config import Config

from astralog.server.fair_queue import CpuTime, FairQueue
from astralog.server.head_reuse import Requests
from astralog.server.http11_receiver import Receiver
from astralog.server.http11_request import Request

CLIENT, SERVER = ("192.0.2.1", 40000), ("127.0.0.1", 8080)


class Wire:
    """Both ends of a connection, and the requests that the server's end reads."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair()
        for end in (self.client, self.server):
            end.settimeout(5)
        self.receiver = Receiver(self.server, CpuTime(FairQueue()))
        self.requests = Requests(Config(), self.receiver, CLIENT)
        #: What was held of unfinished heads, one number after another.
        self.held: list[int] = []

    def send(self, data: bytes) -> None:
        """Send as the client."""
        self.client.sendall(data)

    def next(self) -> Request:
        """Return the next request; there must be one."""
        request = self.requests.next(self.held.append)
        assert request is not None
        return request


@pytest.fixture
def wire() -> Iterator[Wire]:
    """Return a connection that is closed at the end."""
    made = Wire()
    with made.client, made.server:
        yield made
