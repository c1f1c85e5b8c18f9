"""Clients that break TLS: before, during and after the handshake; others are served meanwhile."""

import http.client
import itertools
import os
import random
import socket
import ssl
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.connection_flood import RESET, raise_open_files_limit, visit
from tests.faults.table import Row
from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.service import TOKEN, Service, make_head

#: Seconds that the flood lasts.
STAY_SECONDS = 5.0

#: Kinds of TLS record, and the version that every one of them names (RFC 8446, 5.1).
ALERT, HANDSHAKE, DATA, HEARTBEAT = b"\x15", b"\x16", b"\x17", b"\x18"
VERSION = b"\x03\x03"


class TlsService(Service):
    """A service that serves HTTPS, with its own log."""

    def __init__(self, directory: Path, **settings: object) -> None:
        cert, key = make_certificate(directory)
        super().__init__(directory, tls_cert=cert, tls_key=key, log_level="debug", **settings)
        self.context = ssl.create_default_context(cafile=str(cert))
        self.old_context = ssl.create_default_context(cafile=str(cert))
        self.old_context.maximum_version = ssl.TLSVersion.TLSv1_2

    def open_connection(self, timeout: float) -> http.client.HTTPConnection:
        """Return a connection that speaks HTTPS."""
        return http.client.HTTPSConnection(*self.address, timeout=timeout, context=self.context)

    def shake_hands(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """Return a connection whose handshake is done."""
        context = context or self.context
        return context.wrap_socket(self.connect(), server_hostname="localhost")


class Flood:
    """The ways in which a client breaks TLS; each makes a connection and returns it."""

    def __init__(self, service: TlsService, chance: random.Random) -> None:
        self._service = service
        self._garbage = itertools.cycle(list(_garbage(self._hello(), chance)))
        self._contexts = itertools.cycle((service.context, service.old_context))

    def speak_plain_http(self) -> socket.socket:
        """Send a whole request, token and all, without TLS."""
        return self._send(make_head("Content-Length: 11") + b'{"logs":[]}')

    def send_half_a_hello(self) -> socket.socket:
        """Begin the handshake, and send nothing more."""
        return self._send(self._hello()[:100])

    def send_a_hello(self) -> socket.socket:
        """Let the server do its part of the handshake, and send nothing more."""
        return self._send(self._hello())

    def send_garbage(self) -> socket.socket:
        """Send bytes that are no handshake."""
        return self._send(next(self._garbage))

    def spoil_the_stream(self) -> socket.socket:
        """Shake hands, begin a request, and continue with a handshake or garbage in plain text."""
        connection = self._service.shake_hands(next(self._contexts))
        connection.sendall(make_head("Content-Length: 1000") + b'{"logs":[')
        os.write(connection.fileno(), next(self._garbage))
        return connection

    def vanish_in_the_body(self) -> socket.socket:
        """Shake hands, send half a body, and reset the connection."""
        connection = self.send_half_a_body()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.close()
        return connection

    def send_half_a_body(self) -> socket.socket:
        """Shake hands, and send the rest of the body byte by byte, if at all."""
        connection = self._service.shake_hands(next(self._contexts))
        connection.sendall(make_head("Content-Length: 1000") + b'{"logs":[')
        return connection

    def _send(self, data: bytes) -> socket.socket:
        connection = self._service.connect()
        connection.sendall(data)
        return connection

    def _hello(self) -> bytes:
        """Return the first message of a client."""
        out = ssl.MemoryBIO()
        client = self._service.context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            return out.read()
        raise AssertionError("a handshake without a server")


KINDS = {
    "plain HTTP": Flood.speak_plain_http,
    "half a hello": Flood.send_half_a_hello,
    "silent after the hello": Flood.send_a_hello,
    "garbage": Flood.send_garbage,
    "a handshake in the midst of data": Flood.spoil_the_stream,
    "gone in the midst of a body": Flood.vanish_in_the_body,
    "a byte of a body a second": Flood.send_half_a_body,
}


def run(
    bench: Bench,
    connections: int,
    stay_seconds: float = STAY_SECONDS,
    kinds: Collection[str] = tuple(KINDS),
    until_dropped: bool = True,
) -> Iterator[Row]:
    """Flood the TLS port with each kind; if `until_dropped`, wait until the service drops it."""
    if not can_make_certificate():
        bench.say("NOT TESTED: broken TLS; it takes openssl to make a certificate")
        return
    raise_open_files_limit()
    for what in kinds:
        row = Row(f"{connections:,} TLS connections: {what}")
        if bench.has_time:
            directory = bench.make_directory()
            with TlsService(directory, body_timeout_seconds=3) as service:
                flood = Flood(service, bench.random)
                arrivals = (KINDS[what](flood) for _ in range(connections))
                visit(row, service, arrivals, stay_seconds, until_dropped, _trickle)
                if TOKEN in service.log():
                    row.fail("a token is in the log")
            bench.remove(directory)
            bench.say(row.what)
        yield row


def _trickle(connection: socket.socket) -> None:
    """Send one byte more of a body."""
    if isinstance(connection, ssl.SSLSocket):
        connection.send(b" ")


def _record(kind: bytes, data: bytes) -> bytes:
    return kind + VERSION + len(data).to_bytes(2) + data


def _garbage(hello: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yield bytes that neither begin nor continue TLS."""
    yield hello
    yield chance.randbytes(5000)
    yield HANDSHAKE + VERSION + b"\xff\xff" + chance.randbytes(70_000)  # longer than any may be
    yield _record(HANDSHAKE, b"") * 1000
    yield _record(ALERT, b"\x01\0") * 1000  # only warnings
    yield _record(HEARTBEAT, b"\x01\x40\0")  # asks for 16 KiB of memory
    yield _record(DATA, chance.randbytes(100))
    yield b"".join(_record(HANDSHAKE, hello[place : place + 1]) for place in range(5, len(hello)))
    place = chance.randrange(5, len(hello))
    yield hello[:place] + bytes([hello[place] ^ 0xFF]) + hello[place + 1 :]
    yield b"\x80\x2e\x01\0\x02" + chance.randbytes(43)  # SSL 2
