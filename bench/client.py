"""One keep-alive connection of the load generator."""

import re
import socket
from collections.abc import Iterator

NO_ANSWER = "no answer"

#: Seconds after a phase's end until requests without an answer are given up.
TIMEOUT_SECONDS = 60.0

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *[0-9]", re.IGNORECASE)


class Client:
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
        """Send as much as the connection accepts."""
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
        """Return the complete response: its status, or its error."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if self._is_complete(head_end):
            return self._judge(self._received[:head_end])
        if data:
            return None
        self.is_usable = False
        return NO_ANSWER

    def _is_complete(self, head_end: int) -> bool:
        if head_end < 0:
            return False
        length = _LENGTH.search(self._received, 0, head_end)
        if length is None:  # a 204 has no body
            return self._received.startswith(b"HTTP/1.1 204")
        return len(self._received) >= head_end + 4 + int(length[1])

    def _judge(self, head: bytes) -> str:
        if self.is_sending or _CLOSE.search(head):
            self.is_usable = False
        status = head[9:12].decode()
        if status == "503" and not _RETRY_AFTER.search(head):
            return "503 without Retry-After"
        return status
