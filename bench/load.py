"""The load generator: many keep-alive connections in one cheap loop, in a process of its own."""

import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench import bodies, measure

HEAD = (
    "POST /v1/drain HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {token}\r\n"
    "Content-Type: application/json\r\nContent-Length: {{}}\r\n\r\n"
)
KEY_LINE = f'Idempotency-Key: "bench-{bodies.SEQUENCE.decode()}"\r\n'
ACKNOWLEDGED = "200"
NO_ANSWER = "no answer"

#: Seconds after a phase's end until requests without an answer are given up.
TIMEOUT_SECONDS = 60.0

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *[0-9]", re.IGNORECASE)


def json_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the pool of requests with `batch` logs each, as the docs have them."""
    return bodies.templates(batch, HEAD.format(token=token))


def keyed_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the same requests, each with an idempotency key of its own."""
    first, _, rest = HEAD.partition("\r\n")
    return bodies.templates(batch, f"{first}\r\n{KEY_LINE}{rest}".format(token=token))


@dataclass(frozen=True)
class Plan:
    """What to send: phases of so many seconds each, or so many requests in all where that is set.

    `pids` are the server's processes, whose CPU time is taken at the ends of each phase; `make`
    returns the requests for a number of logs and a token.
    """

    address: tuple[str, int]
    token: str
    pids: list[int]
    batch: int
    connections: int
    phase_seconds: list[float]
    requests: int | None = None
    make: Callable[[int, str], list[bodies.Template]] = json_requests


@dataclass
class Phase:
    """What a phase measured; every request of it was answered or given up within it."""

    seconds: float = 0.0
    server_cpu: float = 0.0
    load_cpu: float = 0.0
    body_bytes: int = 0  # acknowledged
    latencies: list[float] = field(default_factory=list)  # seconds, acknowledged requests
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def acknowledged(self) -> int:
        """The requests that were answered 200."""
        return self.answers[ACKNOWLEDGED]


@dataclass
class Outcome:
    """What a load did: its phases, and which of its `sent` requests were not acknowledged."""

    phases: list[Phase]
    sent: int
    rejected: set[int]
    unanswered: set[int]


def run(plan: Plan) -> Outcome:
    """Run a plan; the caller does so in a process of its own."""
    load = _Load(plan)
    try:
        phases = [load.phase(seconds) for seconds in plan.phase_seconds]
        return Outcome(phases, load.sent, load.rejected, load.unanswered)
    finally:
        load.close()


class _Client:
    """One connection, with at most one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.sequence = 0
        self.started = 0.0
        self.body_bytes = 0
        self._connect()

    def _connect(self) -> None:
        self.socket = socket.create_connection(self._address, TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._rest = memoryview(b"")
        self._pieces: Iterator[bytes] = iter(())
        self.is_sending = False
        self.is_usable = True

    def reconnect(self) -> None:
        """Start over on a new connection."""
        self.socket.close()
        self._connect()

    def begin(self, pieces: Iterator[bytes]) -> None:
        """Start to send a request."""
        self._pieces = pieces
        self._received = b""
        self.is_sending = True
        self.send()

    def send(self) -> None:
        """Send what the connection takes."""
        try:
            while True:
                if not self._rest:
                    piece = next(self._pieces, None)
                    if piece is None:
                        self.is_sending = False
                        return
                    self._rest = memoryview(piece)
                self._rest = self._rest[self.socket.send(self._rest) :]
        except BlockingIOError:
            return
        except OSError:  # what the server answered before may still be there to read
            self.is_sending = self.is_usable = False

    def receive(self) -> str | None:
        """Return the answer when it is whole: its status, or what is wrong with it."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        length = _LENGTH.search(self._received, 0, head_end) if head_end >= 0 else None
        if length and len(self._received) >= head_end + 4 + int(length[1]):
            return self._judge(self._received[:head_end])
        if data:
            return None
        self.is_usable = False
        return NO_ANSWER

    def _judge(self, head: bytes) -> str:
        if self.is_sending or _CLOSE.search(head):
            self.is_usable = False
        status = head[9:12].decode()
        if status == "503" and not _RETRY_AFTER.search(head):
            return "503 without Retry-After"
        return status


class _Load:
    """All connections and the loop that serves them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._templates = plan.make(plan.batch, plan.token)
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._under_way: set[_Client] = set()
        self.sent = 0
        self.rejected: set[int] = set()
        self.unanswered: set[int] = set()
        for _ in range(plan.connections):
            self._register(_Client(plan.address))

    def phase(self, seconds: float) -> Phase:
        """Send for so many seconds, then wait for what is under way."""
        phase = Phase()
        server_cpu, load_cpu = measure.cpu_seconds(self._plan.pids), time.process_time()
        start = time.perf_counter()
        end = start + seconds
        for client in list(self._clients.values()):
            self._begin(client)
        while self._under_way and time.perf_counter() < end + TIMEOUT_SECONDS:
            for fd, event in self._poll.poll(1.0):
                self._serve(self._clients[fd], event, phase, end)
        for client in list(self._under_way):
            self._finish(client, NO_ANSWER, phase)
        phase.seconds = time.perf_counter() - start
        phase.server_cpu = measure.cpu_seconds(self._plan.pids) - server_cpu
        phase.load_cpu = time.process_time() - load_cpu
        return phase

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            client.socket.close()
        self._poll.close()

    def _register(self, client: _Client) -> None:
        self._clients[client.socket.fileno()] = client
        self._poll.register(client.socket, select.EPOLLIN)

    def _begin(self, client: _Client) -> None:
        if self._plan.requests is not None and self.sent >= self._plan.requests:
            return
        template = self._templates[self.sent % len(self._templates)]
        client.sequence = self.sent
        client.body_bytes = template.body_bytes
        self.sent += 1
        self._under_way.add(client)
        client.started = time.perf_counter()
        client.begin(template.request(client.sequence))
        if client.is_sending:
            self._poll.modify(client.socket, select.EPOLLIN | select.EPOLLOUT)

    def _serve(self, client: _Client, event: int, phase: Phase, end: float) -> None:
        if event & select.EPOLLOUT and client.is_sending:
            client.send()
            if not client.is_sending:
                self._poll.modify(client.socket, select.EPOLLIN)
        if event & ~select.EPOLLOUT:
            answer = client.receive()
            if answer is not None and client in self._under_way:
                self._finish(client, answer, phase)
                if time.perf_counter() < end:
                    self._begin(client)
            elif not client.is_usable:  # closed while idle
                self._renew(client)

    def _finish(self, client: _Client, answer: str, phase: Phase) -> None:
        self._under_way.discard(client)
        phase.answers[answer] += 1
        if answer == ACKNOWLEDGED:
            phase.latencies.append(time.perf_counter() - client.started)
            phase.body_bytes += client.body_bytes
        else:
            fate = self.unanswered if answer == NO_ANSWER else self.rejected
            fate.add(client.sequence)
        if not client.is_usable or answer == NO_ANSWER:
            self._renew(client)

    def _renew(self, client: _Client) -> None:
        del self._clients[client.socket.fileno()]
        client.reconnect()  # closing also ends the old socket's registration
        self._register(client)
