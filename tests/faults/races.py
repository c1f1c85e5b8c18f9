"""Two clients that race with one key, on two workers: one of them stores."""

import contextlib
import os
import re
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.faults.bench import Bench, read_lines
from tests.faults.table import Row
from tests.support.numbered_batches import make_body
from tests.support.service import Service, make_head
from tests.support.workers import connect_to

#: Pairs of connections that race, each pair with keys of its own.
PAIRS = 16

#: Requests that a connection sends without waiting for the answers between.
PIPELINED = 25

#: Logs of a batch.
LOGS = 1

_SIZE = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: [0-9]+\r\n", re.IGNORECASE)
_REPLAYED = re.compile(rb"\r\nidempotency-replayed: true\r\n", re.IGNORECASE)

#: Valid responses to two tries of one batch, in any order.
STORED, REPLAYED, IN_USE = "stored", "replayed", "in use"
RIGHT = ([REPLAYED, STORED], [IN_USE, STORED])


def run(bench: Bench, keys: int, pairs: int = PAIRS) -> Iterator[Row]:
    """Let two clients race with each of the `keys`, in several lanes at once."""
    row = Row("two clients race with one key")
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else bench.directory
    with tempfile.TemporaryDirectory(dir=memory) as path:
        directory = bench.make_directory()
        service = Service(directory, workers=2, data_dir=Path(path) / "data")
        with service:
            lanes = [_Lane(bench, service, pair << 32, keys // pairs) for pair in range(pairs)]
            for lane in lanes:
                lane.thread.start()
            for lane in lanes:
                lane.thread.join()
            if service.stop() != 0 or "Traceback" in service.log():
                row.fail("did not stop with status 0, or wrote a traceback")
            _tally(row, lanes, read_lines(service.files(), row))
            if bench.has_time and row.tried < keys // pairs * pairs:
                row.fail("a client came to no end")
    bench.say(f"{row.what}: {row.tried} keys, {row.sent_again} answers beyond the first")
    yield row


class _Lane:
    """Two clients, each at a different worker, that send the same batches."""

    def __init__(self, bench: Bench, service: Service, first: int, keys: int) -> None:
        self._bench = bench
        self._first = first
        self._keys = keys
        self._clients = [_Client(service, pid) for pid in service.worker_pids()]
        self.answers: dict[int, list[str]] = {}  # what each number was answered
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        end = self._first + self._keys
        for start in range(self._first, end, PIPELINED):
            if not self._bench.has_time:
                break
            numbers = range(start, min(start + PIPELINED, end))
            requests = list(map(_make_request, numbers))
            for client in self._clients:
                client.send(requests)
            tries = [client.read_answers() for client in self._clients]
            for number, *answers in zip(numbers, *tries, strict=True):
                self.answers[number] = sorted(answers)
        for client in self._clients:
            client.connection.close()


class _Client:
    """A client that sends requests to one worker without waiting for the answers between."""

    def __init__(self, service: Service, pid: int) -> None:
        self._service = service
        self._pid = pid
        self._requests: list[bytes] = []
        self.connection = connect_to(service, pid)

    def send(self, requests: list[bytes]) -> None:
        """Send requests; some may stay unread if the service closes the connection."""
        self._requests = requests
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.sendall(b"".join(requests))

    def read_answers(self) -> list[str]:
        """Return the names of the responses; unread requests are resent on a new connection."""
        names = _read_answers(self.connection, len(self._requests))
        while len(names) < len(self._requests):
            self.connection.close()
            self.connection = connect_to(self._service, self._pid)
            rest = self._requests[len(names) :]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.connection.sendall(b"".join(rest))
            names += _read_answers(self.connection, len(rest))
        return names


def _make_request(number: int) -> bytes:
    body = make_body(number, LOGS)
    return make_head(f"Idempotency-Key: {number}", f"Content-Length: {len(body)}") + body


def _read_answers(connection: socket.socket, count: int) -> list[str]:
    """Return the names of so many responses; fewer if the connection ends."""
    data = b""
    names: list[str] = []
    while len(names) < count:
        head, separator, rest = data.partition(b"\r\n\r\n")
        size = _SIZE.search(head + b"\r\n")
        if separator and size and len(rest) >= int(size[1]):
            names.append(_name(head + b"\r\n"))
            data = rest[int(size[1]) :]
            continue
        try:
            received = connection.recv(1 << 16)
        except ConnectionResetError:
            break
        if not received:
            break
        data += received
    return names


def _name(head: bytes) -> str:
    """Return the name of a response; its head if the contract does not have it."""
    status = head[9:12]
    if status == b"200":
        return REPLAYED if _REPLAYED.search(head) else STORED
    if status == b"409" and _RETRY.search(head):
        return IN_USE
    return head.decode()


def _tally(row: Row, lanes: list[_Lane], lines: Counter[tuple[int, int]]) -> None:
    """Add the responses and the stored lines to the row: each batch once."""
    met = 0
    for lane in lanes:
        for number, answers in lane.answers.items():
            row.tried += 1
            row.sent_again += len(answers) - 1
            row.acknowledged += STORED in answers
            row.keyed += STORED in answers
            met += IN_USE in answers
            count = lines.pop((number, 0), 0)
            row.lost += count == 0
            row.doubled += count > 1
            if answers not in RIGHT:
                row.fail(f"key {number} was answered {answers}")
    row.forged += len(lines)
    if not met:
        row.fail("no two tries met")
    row.remark(f"{met:,} tries met the other one under way")
