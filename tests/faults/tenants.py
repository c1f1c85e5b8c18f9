"""Two tenants that attack each other: each keeps its rate."""

import itertools
import json
import multiprocessing
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.synchronize import Event
from typing import Any

from tests.faults.bench import Bench
from tests.faults.table import Row
from tests.support.service import Service, make_head, make_log, write_tokens

#: The rate of each token, and what it may send at once.
RATE = 20_000
BURST_BYTES = 10 * RATE

#: Bytes that a tenant sends in all: more than the burst, so that it is limited to its rate.
SENT_BYTES = 14 * RATE

PROJECTS = ("org-a", "org-b")

#: Connections per tenant that send batches without a pause, and that hold a body.
FLOODING = 8
HOLDING = 60

#: Bytes that each of the latter sends of a body that never ends.
HELD_BYTES = 200_000

#: Bodies of the flood, most of which are beyond the rate.
FLOOD = (b"{", b'{"logs": [{}]}', json.dumps({"logs": [make_log()] * 500}).encode())

#: Requests of the flood in addition.
LOOKS = ("/v1/search?q=nowhere", "/status/history", "/status/logs?q=nowhere", "/metrics", "/none")


class Honest:
    """A client that sends at its rate, and respects Retry-After."""

    def __init__(self, service: Service, project: str) -> None:
        self.project = project
        self.sent: list[str] = []  # the messages of the accepted batches
        self.faults: list[str] = []
        self.tries = 0
        self._service = service
        self._bytes = 0
        #: When the first batch was sent, and accepted: in between, its bytes were taken.
        self._times: tuple[float, float] | None = None

    def run(self) -> None:
        """Send batches of ten logs until SENT_BYTES are accepted."""
        while self._bytes < SENT_BYTES and not self.faults:
            message = f"{self.project} {len(self.sent)} ".ljust(1000, "x")
            batch = {"logs": [make_log(project_id=self.project, message=message)] * 10}
            body = json.dumps(batch).encode()
            while (seconds := self._try(body)) and not self.faults:
                time.sleep(seconds)
            self.sent.append(message)

    def _try(self, body: bytes) -> int:
        """Send a batch, and return the seconds to wait if it is to be sent again."""
        asked_at = time.monotonic()
        answer = self._service.drain(body, {"Authorization": f"honest-{self.project}"})
        answered_at = time.monotonic()
        self.tries += 1
        self._times = self._times or (asked_at, answered_at)
        if answer.status == 200:
            self._bytes += len(body)
            most = BURST_BYTES + RATE * (answered_at - self._times[0]) + len(body)
            if self._bytes > most:
                self.faults.append(f"{self._bytes} bytes were accepted, not {most:.0f} at most")
            return 0
        least = BURST_BYTES + RATE * (asked_at - self._times[1])
        if answer.body.get("code") != "rate_limited":
            self.faults.append(f"{answer.status} {answer.body}")
        elif self._bytes < least:
            self.faults.append(f"{self._bytes} bytes were accepted, not {least:.0f}")
        return int(answer.headers.get("Retry-After", "1"))


class Hostile:
    """A tenant that does everything its token permits, as fast as it can."""

    def __init__(self, service: Service, project: str, is_over: Event) -> None:
        self._service = service
        self._token = f"hostile-{project}"
        self._is_over = is_over

    def run(self, floods: int) -> None:
        """Attack until the end, in a separate process, so that no other client is delayed."""
        acts: list[Callable[[], None]] = [self._flood] * floods
        threads = [threading.Thread(target=act) for act in [*acts, self._hold_bodies, self._poll]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _flood(self) -> None:
        bodies = itertools.cycle(FLOOD)
        while not self._is_over.is_set():
            connection = self._service.open_connection(30)
            with suppress(OSError):
                for body in itertools.islice(bodies, 1000):
                    connection.request("POST", "/v1/drain", body, {"Authorization": self._token})
                    connection.getresponse().read()
                    if self._is_over.is_set():
                        break
            connection.close()

    def _poll(self) -> None:
        for path in itertools.cycle(LOOKS):
            if self._is_over.is_set():
                return
            self._service.request("GET", path, headers={"Authorization": self._token})

    def _hold_bodies(self) -> None:
        """Keep bodies open, and replace each that the service rejects."""
        held: list[socket.socket] = []
        head = make_head(f"Content-Length: {2 * HELD_BYTES}", token=self._token)
        while not self._is_over.wait(0.05):
            for connection in select.select(held, [], [], 0)[0]:
                held.remove(connection)
                connection.close()
            if len(held) < HOLDING:
                held.append(self._service.connect())
                with suppress(OSError):
                    held[-1].sendall(head + b" " * HELD_BYTES)
        for connection in held:
            connection.close()


def run(bench: Bench, floods: int = FLOODING) -> Iterator[Row]:
    """Have two tenants attack each other, while each also sends at its rate."""
    row = Row("two tenants that flood each other, and keep their rates")
    directory = bench.make_directory()
    tokens = "".join(
        f"{kind}-{project} {project} rate={RATE // 1000}KB/s\n"
        for kind in ("honest", "hostile")
        for project in PROJECTS
    )
    path = write_tokens(directory / "tokens", tokens)
    with Service(directory, tokens=None, tokens_file=path, workers=2) as service:
        context = multiprocessing.get_context("fork")
        is_over = context.Event()
        hostile = [
            context.Process(target=Hostile(service, project, is_over).run, args=[floods])
            for project in PROJECTS
        ]
        honest = [Honest(service, project) for project in PROJECTS]
        threads = [threading.Thread(target=one.run) for one in honest]
        clients: list[Any] = [*hostile, *threads]
        for client in clients:
            client.start()
        for thread in threads:
            thread.join()
        is_over.set()
        for process in hostile:
            process.join()
        if service.stop() != 0:
            row.fail("did not stop with status 0")
        stored = Counter(log["message"] for log in service.logs())
    for one in honest:
        _check(row, one, stored)
    bench.say(row.what)
    bench.remove(directory)
    yield row


def _check(row: Row, tenant: Honest, stored: Counter[str]) -> None:
    row.tried += tenant.tries
    row.acknowledged += len(tenant.sent)
    row.lost += sum(stored[message] < 10 for message in tenant.sent)
    row.doubled += sum(stored[message] > 10 for message in tenant.sent)
    for fault in tenant.faults:
        row.fail(f"{tenant.project}: {fault}")
