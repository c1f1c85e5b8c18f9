"""The load generator: many keep-alive connections in one cheap loop, in a separate process."""

import select
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from bench import bodies
from bench.client import NO_ANSWER, TIMEOUT_SECONDS, Client
from tests.support.processes import cpu_seconds

HEAD = (
    "POST /v1/drain HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {token}\r\n"
    "Content-Type: application/json\r\nContent-Length: {{}}\r\n\r\n"
)
KEY_LINE = f'Idempotency-Key: "bench-{bodies.SEQUENCE.decode()}"\r\n'

#: Statuses of a stored batch; Loki's is 204.
ACKNOWLEDGED = frozenset(("200", "204"))


def json_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the pool of requests with `batch` logs each, as the docs have them."""
    return bodies.templates(batch, HEAD.format(token=token))


def ndjson_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the same requests with one log per line."""
    head = HEAD.format(token=token).replace("application/json", "application/x-ndjson")
    pool = [template.decode_logs() for template in bodies.templates(batch)]
    return [
        bodies.Template(b"\n".join(map(msgspec.json.encode, logs)), batch, head) for logs in pool
    ]


def keyed_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the same requests, each with its own idempotency key."""
    first, _, rest = HEAD.partition("\r\n")
    return bodies.templates(batch, f"{first}\r\n{KEY_LINE}{rest}".format(token=token))


@dataclass(frozen=True)
class Plan:
    """The load: phases of given seconds each, or a total number of requests if that is set.

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
    rate: float = 0.0  # requests a second, of an open loop


@dataclass
class Phase:
    """The measurements of a phase; each of its requests was answered or given up within it."""

    seconds: float = 0.0
    server_cpu: float = 0.0
    load_cpu: float = 0.0
    body_bytes: int = 0  # acknowledged
    latencies: list[float] = field(default_factory=list)  # seconds, acknowledged requests
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def acknowledged(self) -> int:
        """The requests that were answered with a status of ACKNOWLEDGED."""
        return sum(self.answers[status] for status in ACKNOWLEDGED)


@dataclass
class Outcome:
    """The result of a load: its phases, and its unacknowledged requests among the `sent` ones."""

    phases: list[Phase]
    sent: int
    rejected: set[int]
    unanswered: set[int]


def run(plan: Plan) -> Outcome:
    """Run a plan; the caller does so in a separate process."""
    return Load(plan).run()


class Load:
    """All connections and the loop that serves them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._templates = plan.make(plan.batch, plan.token)
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._under_way: set[Client] = set()
        self.sent = 0
        self.rejected: set[int] = set()
        self.unanswered: set[int] = set()
        for _ in range(plan.connections):
            self._register(Client(plan.address))

    def run(self) -> Outcome:
        """Send as the plan says, phase by phase."""
        try:
            phases = [self.run_phase(seconds) for seconds in self._plan.phase_seconds]
            return Outcome(phases, self.sent, self.rejected, self.unanswered)
        finally:
            self.close()

    def run_phase(self, seconds: float) -> Phase:
        """Send for so many seconds, then wait for open requests."""
        phase = Phase()
        self._serve_all(0.0, phase)  # what was closed since the last phase is renewed
        with self._measured(phase):
            self._send(phase, seconds)
            for client in list(self._under_way):
                self._finish(client, NO_ANSWER, phase)
        return phase

    @contextmanager
    def _measured(self, phase: Phase) -> Iterator[None]:
        server_cpu, load_cpu = cpu_seconds(self._plan.pids), time.process_time()
        start = time.perf_counter()
        yield
        phase.seconds = time.perf_counter() - start
        phase.server_cpu = cpu_seconds(self._plan.pids) - server_cpu
        phase.load_cpu = time.process_time() - load_cpu

    def _send(self, phase: Phase, seconds: float) -> None:
        """Let each connection send the next request when the last one is answered."""
        self._end = time.perf_counter() + seconds
        for client in list(self._clients.values()):
            self._begin(client)
        while self._under_way and time.perf_counter() < self._end + TIMEOUT_SECONDS:
            self._serve_all(1.0, phase)

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            client.socket.close()
        self._poll.close()

    def _register(self, client: Client) -> None:
        self._clients[client.socket.fileno()] = client
        self._poll.register(client.socket, select.EPOLLIN)

    def _begin(self, client: Client) -> None:
        """Send the next request, if there is one."""
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

    def _serve_all(self, timeout: float, phase: Phase) -> None:
        """Receive and send as much as possible, or wait."""
        for fd, event in self._poll.poll(timeout):
            self._serve(self._clients[fd], event, phase)

    def _serve(self, client: Client, event: int, phase: Phase) -> None:
        if event & select.EPOLLOUT and client.is_sending:
            client.send()
            if not client.is_sending:
                self._poll.modify(client.socket, select.EPOLLIN)
        if event & ~select.EPOLLOUT:
            answer = client.receive()
            if answer is not None and client in self._under_way:
                self._finish(client, answer, phase)
                self._go_on(client)
            elif not client.is_usable:  # closed while idle
                self._renew(client)

    def _go_on(self, client: Client) -> None:
        """Let a connection send again that was answered."""
        if time.perf_counter() < self._end:
            self._begin(client)

    def _finish(self, client: Client, answer: str, phase: Phase) -> None:
        self._under_way.discard(client)
        phase.answers[answer] += 1
        if answer in ACKNOWLEDGED:
            phase.latencies.append(time.perf_counter() - client.started)
            phase.body_bytes += client.body_bytes
        else:
            fate = self.unanswered if answer == NO_ANSWER else self.rejected
            fate.add(client.sequence)
        if not client.is_usable or answer == NO_ANSWER:
            self._renew(client)

    def _renew(self, client: Client) -> None:
        del self._clients[client.socket.fileno()]
        client.reconnect()  # closing also ends the old socket's registration
        self._register(client)
