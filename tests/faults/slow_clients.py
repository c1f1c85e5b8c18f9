"""Slow clients without a token that occupy connections, memory and the worker's time."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tests.faults.bench import Bench
from tests.faults.connection_flood import OTHERS_SECONDS, raise_open_files_limit, visit
from tests.faults.stall import watch_health
from tests.faults.table import Row
from tests.faults.tls import Flood, TlsService
from tests.support.background import meanwhile
from tests.support.certificate import can_make_certificate
from tests.support.processes import (
    KIB,
    MIB,
    cpu_seconds,
    open_files,
    peak_bytes,
    resident_bytes,
)
from tests.support.service import Service, make_head, wait_for

#: Memory that a worker's connections may hold, and its overhead.
HELD_BYTES = 64 * MIB
SPARE_BYTES = 32 * MIB

#: More connections than a worker keeps, so that some must be closed.
CONNECTIONS = 4500
TLS_CONNECTIONS = 2000

#: Connections that measure the cost of one on this machine: a handshake with an RSA key takes 1 to
#: 2 ms of CPU, the start of a head of 15,000 bytes 0.2 to 1 ms.
MEASURED = 100

#: Bytes of a head that are sent before its connection falls silent.
HEAD_SIZES = (0, 50, 8 * KIB, 15 * KIB, 150 * KIB)

#: Connections that read no response, and the time after which they are closed.
READERS = 20
LET_GO_SECONDS = 45.0

#: More than the service reads of the rest of a rejected body.
ENDLESS_MIB = 100

PATHS = (
    "/health",
    "/ready",
    "/metrics",
    "/",
    "/docs",
    "/docs/docs.css",
    "/openapi.json",
    "/nowhere",
)


def run(
    bench: Bench,
    connections: int = CONNECTIONS,
    readers: int = READERS,
    sizes: Sequence[int] = HEAD_SIZES,
    paths: Sequence[str] = PATHS,
    tls_connections: int = TLS_CONNECTIONS,
) -> Iterator[Row]:
    """Run each kind, with thousands of connections if it is about connections and memory.

    Bodies without end go to `paths`. A kind without `readers` or `tls_connections` is left out.
    """
    raise_open_files_limit()
    kinds: list[tuple[str, Callable[[Bench, Row], None]]] = [
        (
            f"{connections:,} connections: {size:,} bytes of a head",
            partial(_flood_of_heads, connections, size),
        )
        for size in sizes
    ]
    kinds += [
        ("bodies without end behind every answer", partial(_send_on, paths)),
        ("chunks of little but extensions, sizes and trailers", _chop),
    ]
    if readers:
        what = f"{readers} connections: scripts asked for, and not taken"
        kinds.append((what, partial(_read_not, readers)))
    if tls_connections and can_make_certificate():
        what = f"{tls_connections:,} TLS connections: silent after the hello"
        kinds.append((what, partial(_shake_no_hands, tls_connections)))
    for what, hog in kinds:
        row = Row(what)
        if bench.has_time:
            hog(bench, row)
            bench.say(what)
        yield row


def _flood_of_heads(connections: int, size: int, bench: Bench, row: Row) -> None:
    """Open connections with the start of a head, and measure their cost."""
    head = _long_head(size)

    def arrive() -> socket.socket:
        connection = service.connect()
        with contextlib.suppress(OSError):  # it was rejected meanwhile
            connection.sendall(head)
        return connection

    with Service(bench.make_directory()) as service:
        arrivals = (arrive() for _ in range(connections))
        others_seconds = OTHERS_SECONDS + connections * _seconds_each(service, arrive) / 2
        with _bounded_memory(row, service):
            visit(row, service, arrivals, stay_seconds=1.0, others_seconds=others_seconds)


def _shake_no_hands(connections: int, bench: Bench, row: Row) -> None:
    directory = bench.make_directory()
    with TlsService(directory) as service:
        flood = Flood(service, bench.random)
        arrivals = (flood.send_a_hello() for _ in range(connections))
        seconds = _seconds_each(service, flood.send_a_hello)
        others_seconds = OTHERS_SECONDS + connections * seconds / 2
        with _bounded_memory(row, service):
            visit(row, service, arrivals, stay_seconds=1.0, others_seconds=others_seconds)


def _seconds_each(service: Service, arrive: Callable[[], socket.socket]) -> float:
    """Return the worker's CPU seconds for a connection of a flood.

    A client that comes after the whole flood waits for its cost: once, for two answers.
    """
    service.drain({"logs": []})
    (worker,) = service.worker_pids()
    before = cpu_seconds([worker])
    with contextlib.ExitStack() as connections:
        for _ in range(MEASURED):
            connections.enter_context(contextlib.closing(arrive()))
        service.drain({"logs": []})  # connections that arrive together are served in order
        return (cpu_seconds([worker]) - before) / MEASURED


@contextlib.contextmanager
def _bounded_memory(row: Row, service: Service) -> Iterator[None]:
    """Check that the worker never takes more than its connections may hold, and a little."""
    service.drain({"logs": []})
    (worker,) = service.worker_pids()
    before = resident_bytes(worker)
    peaks = [before]

    def poll() -> None:
        with contextlib.suppress(OSError, IndexError):  # it was stopped
            peaks.append(peak_bytes(worker))

    with meanwhile(poll, 0.1):
        yield
    if max(peaks) > before + HELD_BYTES + SPARE_BYTES:
        row.fail(f"the worker grew by {max(peaks) - before:,} bytes")


def _long_head(size: int) -> bytes:
    """Return the start of a head of `size` bytes, in fields of allowed lengths."""
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 3000) for number in range(60))
    return (b"POST /v1/drain HTTP/1.1\r\nHost: x\r\n" + lines)[:size]


def _send_on(paths: Sequence[str], bench: Bench, row: Row) -> None:
    """Send a body without end behind every answer, in one piece and in chunks."""
    chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
    with Service(bench.make_directory()) as service, watch_health(service, row):
        workers = service.worker_pids()
        for method in ("GET", "HEAD", "POST"):
            for path in paths:
                for framing, piece in (
                    ("Content-Length: 99999999999", bytes(MIB)),
                    ("Transfer-Encoding: chunked", chunk),
                ):
                    row.tried += 1
                    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
                    if not _is_cut_off(service, head.encode(), piece):
                        row.fail(f"{method} {path}, {framing}: read {ENDLESS_MIB} MiB")
        if service.worker_pids() != workers:
            row.fail("a worker died of it")


def _is_cut_off(service: Service, head: bytes, piece: bytes) -> bool:
    """Return whether the service ends a connection that sends on and on."""
    with service.connect() as connection:
        try:
            connection.sendall(head)
            for _ in range(ENDLESS_MIB):
                connection.sendall(piece)
        except OSError:
            return True
    return False


def _chop(bench: Bench, row: Row) -> None:
    """Send chunked bodies with too much framing, with and without a token."""
    chunks = (
        b"1;" + b"x" * 4000 + b"\r\n \r\n",
        b'1;x="' + b"y" * 60 + b'"\r\n \r\n',
        b"1\r\n \r\n",
        b"0" * 3000 + b"1\r\n \r\n",
    )
    trailers = b"0\r\n" + b"X-Trailer: x\r\n" * 1_000_000
    with Service(bench.make_directory()) as service, watch_health(service, row):
        for head in (make_head("Transfer-Encoding: chunked"), _anonymous()):
            for chunk in chunks:
                row.tried += 1
                _send(service, head + chunk * (128 * MIB // len(chunk) // 4))
            row.tried += 1
            _send(service, head + trailers)
        if service.drain({"logs": []}).status != 200:
            row.fail("accepts nothing afterwards")


def _anonymous() -> bytes:
    return b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


def _send(service: Service, data: bytes) -> None:
    with service.connect() as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.recv(65536)


def _read_not(count: int, bench: Bench, row: Row) -> None:
    """Request much and read nothing, or a byte per second, over TCP; all must be disconnected."""
    request = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 30
    with Service(bench.make_directory()) as service, contextlib.ExitStack() as stack:
        service.drain({"logs": []})
        (worker,) = service.worker_pids()
        before = open_files(worker)
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(service.address)
            connection.sendall(request)
            connections.append(connection)
            row.tried += 1
        wait_for(lambda: open_files(worker) >= before + count - 2)
        end = time.monotonic() + LET_GO_SECONDS
        with watch_health(service, row):
            while open_files(worker) > before + count // 2 and time.monotonic() < end:
                _take_a_byte(connections[::2])
                time.sleep(1)
        if open_files(worker) > before + count // 2:
            row.fail(f"still held {open_files(worker) - before} after {LET_GO_SECONDS:g} s")


def _take_a_byte(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.settimeout(0.01)
        with contextlib.suppress(OSError):
            connection.recv(1)
