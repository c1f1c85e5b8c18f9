"""Thousands of slow, idle or vanished connections; other clients must be served meanwhile."""

import contextlib
import http.client
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from tests.faults.bench import Bench, tally
from tests.faults.table import Row
from tests.support.background import meanwhile
from tests.support.load import Load
from tests.support.processes import MIB, open_files, resident_bytes, start_stopwatch
from tests.support.service import Service, make_head, wait_for

#: Seconds of a worker in which anyone else has an answer, and of the clock, on a busy machine.
OTHERS_SECONDS = 1.0
OTHERS_SECONDS_AT_MOST = 60.0

#: Seconds that the flood lasts.
STAY_SECONDS = 5.0

#: Memory and descriptors that a worker may keep after the flood.
KEPT_BYTES = 64 * MIB
KEPT_DESCRIPTORS = 12

#: Makes a close reset the connection.
RESET = struct.pack("ii", 1, 0)


Behaviour = Callable[[socket.socket], None]


def run(
    bench: Bench,
    connections: int,
    stay_seconds: float = STAY_SECONDS,
    kinds: Collection[str] = (),
) -> Iterator[Row]:
    """Flood the service with connections of each kind, and release them."""
    raise_open_files_limit()
    for what in kinds or BEHAVIOURS:
        row = Row(f"{connections:,} connections: {what}")
        if bench.has_time:
            with Service(bench.make_directory(), body_timeout_seconds=3) as service:
                arrivals = (_arrive(service, BEHAVIOURS[what]) for _ in range(connections))
                visit(row, service, arrivals, stay_seconds)
            bench.say(row.what)
        yield row
    if bench.has_time:
        yield _flood(bench, stay_seconds)


def _flood(bench: Bench, seconds: float) -> Row:
    """Send requests over two connections without a pause, and without waiting for responses."""
    row = Row("2 connections: requests without a pause")
    data = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    with Service(bench.make_directory()) as service:
        end = time.monotonic() + seconds

        def send() -> None:
            with service.connect() as connection:
                reader = threading.Thread(target=_read_all, args=[connection], daemon=True)
                reader.start()
                while time.monotonic() < end:
                    connection.sendall(data)
                    row.tried += 1000
                connection.shutdown(socket.SHUT_WR)
                reader.join()

        senders = [threading.Thread(target=send, daemon=True) for _ in range(2)]
        for sender in senders:
            sender.start()
        time.sleep(0.2)
        with _watch(service, row, OTHERS_SECONDS):
            for sender in senders:
                sender.join()
        if service.stop() != 0:
            row.fail("did not stop with status 0")
    bench.say(row.what)
    return row


def _read_all(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


def raise_open_files_limit() -> None:
    """Allow as many connections as the system does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _arrive(service: Service, behave: Behaviour) -> socket.socket:
    connection = service.connect()
    with contextlib.suppress(OSError):
        behave(connection)
    return connection


def visit(
    row: Row,
    service: Service,
    arrivals: Iterable[socket.socket],
    stay_seconds: float,
    until_dropped: bool = False,
    linger: Behaviour = lambda connection: None,
    others_seconds: float = OTHERS_SECONDS,
) -> None:
    """Open connections, keep and close them, and check the service meanwhile and afterwards.

    `linger` is called with each connection once per second. With `until_dropped`, the service must
    close them all. Other clients are answered within `others_seconds` of the worker's CPU time; the
    flood stays until they are, however busy the machine is.
    """
    load = Load(service, threads=2)
    with load:
        load.wait_for_acknowledged(20)
    (worker,) = service.worker_pids()
    memory, descriptors = resident_bytes(worker), open_files(worker)
    others = Load(service, threads=1, start=1 << 32, keyed=1)
    with contextlib.ExitStack() as flood, _watch(service, row, others_seconds), others:
        elapsed, at_most = start_stopwatch(worker), 2 * others_seconds
        connections = []
        for connection in arrivals:
            connections.append(flood.enter_context(contextlib.closing(connection)))
            row.tried += 1
        for _ in _stay(stay_seconds, lambda: _were_served(others) or elapsed() > at_most):
            for connection in connections:
                with contextlib.suppress(OSError):
                    linger(connection)
        if not _were_served(others):
            row.fail("no batch was accepted during the flood")
        if until_dropped:
            _check_descriptors(row, worker, descriptors, " of a flood that still lasts")
    _check_descriptors(row, worker, descriptors)
    if resident_bytes(worker) > memory + KEPT_BYTES:
        row.fail(f"keeps {resident_bytes(worker) - memory:,} bytes")
    if "Traceback" in service.log():
        row.fail("wrote a traceback")
    if service.stop() != 0:
        row.fail("did not stop with status 0")
    others.acknowledged.update(load.acknowledged)
    tally(row, others, service.files())


def _stay(seconds: float, is_over: Callable[[], bool]) -> Iterator[None]:
    """Wait for so long, and then until the end, at most a minute; yield once per second."""
    begin = time.monotonic()
    while (stayed := time.monotonic() - begin) < seconds or (
        stayed < OTHERS_SECONDS_AT_MOST and not is_over()
    ):
        yield
        time.sleep(min(1.0, seconds))


def _were_served(others: Load) -> bool:
    """Return whether a batch with a key was accepted, and one without."""
    return bool(others.acknowledged and others.keyed.acknowledged)


def _check_descriptors(row: Row, worker: int, before: int, of_what: str = "") -> None:
    with contextlib.suppress(AssertionError):
        wait_for(lambda: open_files(worker) <= before + KEPT_DESCRIPTORS)
    if open_files(worker) > before + KEPT_DESCRIPTORS:
        row.fail(f"keeps {open_files(worker) - before} descriptors{of_what}")


def _watch(
    service: Service, row: Row, seconds_at_most: float
) -> contextlib.AbstractContextManager[None]:
    """Poll /health and send empty batches on new connections, and record slow responses.

    The CPU time of the worker decides, not its wait for the system. A client that a busy machine
    delays may be the one that is silent the longest; its connection is closed, and it tries again.
    """
    (worker,) = service.worker_pids()

    def ask() -> int:
        """Return the sum of two statuses, or 0 if a connection was closed."""
        with contextlib.suppress(http.client.RemoteDisconnected, ConnectionError, ssl.SSLError):
            health = service.request("GET", "/health", timeout=OTHERS_SECONDS_AT_MOST).status
            return health + service.drain({"logs": []}, timeout=OTHERS_SECONDS_AT_MOST).status
        return 0

    def poll() -> None:
        elapsed = start_stopwatch(worker)
        try:
            while not (statuses := ask()) and elapsed() <= 2 * seconds_at_most:
                pass
        except OSError as error:
            row.fail(f"not served: {error!r}")
            return
        if statuses != 400 or elapsed() > 2 * seconds_at_most:
            row.fail(f"two answers took {elapsed():.1f} s, statuses sum to {statuses}")

    return meanwhile(poll, 0.1)


def _say_nothing(connection: socket.socket) -> None:
    pass


def _send_half_a_head(connection: socket.socket) -> None:
    connection.sendall(b"POST /v1/drain HTTP/1.1\r\nHost: x\r\nX-Slow: ")


def _send_half_a_body(connection: socket.socket) -> None:
    connection.sendall(make_head("Content-Length: 1000") + b'{"logs":[')


def _send_half_a_chunk(connection: socket.socket) -> None:
    connection.sendall(make_head("Transfer-Encoding: chunked") + b'100\r\n{"logs":[')


def _close_half(connection: socket.socket) -> None:
    connection.sendall(make_head("Content-Length: 1000") + b'{"logs":[')
    connection.shutdown(socket.SHUT_WR)


def _vanish(connection: socket.socket) -> None:
    connection.sendall(make_head("Content-Length: 11") + b'{"logs":[]}')
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


def _stay_idle(connection: socket.socket) -> None:
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")


def _read_nothing(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2)


BEHAVIOURS: dict[str, Behaviour] = {
    "silent": _say_nothing,
    "half a head": _send_half_a_head,
    "half a body": _send_half_a_body,
    "half a chunk": _send_half_a_chunk,
    "half-closed": _close_half,
    "gone before the answer": _vanish,
    "idle": _stay_idle,
    "read no answer": _read_nothing,
}
