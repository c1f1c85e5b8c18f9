"""A process that answers as a ClickHouse server does over HTTP, with its engine, chdb, inside.

`python -m tests.support.clickhouse_front PORT DIRECTORY [CERTIFICATE KEY]`: port 0 takes a free
one, and the first line of stdout tells which. With a certificate it speaks TLS alone. One statement
runs at a time. `POST /fault?name=NAME&times=N` makes the next N inserts go wrong;
`tests.support.clickhouse` has the names.
"""

import re
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from chdb import session

INSERT = re.compile(r"(INSERT INTO .*) FORMAT (\w+)\s*", re.DOTALL)

#: Parameters of a request that are none of the engine's settings.
TRANSPORT = {
    "query",
    "database",
    "query_id",
    "wait_end_of_query",
    "send_progress_in_http_headers",
    "http_headers_progress_interval_ms",
    "enable_http_compression",
    "client_protocol_version",
    "default_format",
    "buffer_size",
}

#: Errors as a server has them that is up and cannot insert: code and name.
ERRORS = {
    "full": (243, "NOT_ENOUGH_SPACE"),
    "many parts": (252, "TOO_MANY_PARTS"),
    "read-only": (242, "TABLE_IS_READ_ONLY"),
    "memory": (241, "MEMORY_LIMIT_EXCEEDED"),
}


class Engine:
    """The engine, and the faults that are to come."""

    def __init__(self, directory: Path) -> None:
        self._session = session.Session(str(directory))
        self._scratch = directory.with_name("scratch")
        self._scratch.mkdir(exist_ok=True)
        self._lock = threading.Lock()
        self.faults: deque[str] = deque()
        self.silent_seconds = 30.0

    def query(self, text: str, params: dict[str, str]) -> bytes:
        """Run a statement and return its answer; raises RuntimeError with the engine's words."""
        settings = ", ".join(
            f"{name} = '{value}'" for name, value in params.items() if name not in TRANSPORT
        )
        with self._lock:
            if database := params.get("database"):
                self._session.query(f"USE {database}")
            return self._run(_with_settings(text, settings))

    def _run(self, text: str) -> bytes:
        result: Any = self._session.query(text, "TabSeparated")
        return bytes(result.bytes() or b"")

    def insert(self, text: str, body: Iterator[bytes], params: dict[str, str]) -> None:
        """Insert the rows of a request's body; raises RuntimeError."""
        match = INSERT.fullmatch(text)
        if not match:
            raise RuntimeError(f"Code: 62. DB::Exception: not an insert: {text}. (SYNTAX_ERROR)")
        with tempfile.NamedTemporaryFile(dir=self._scratch) as file:
            for piece in body:
                file.write(piece)
            file.flush()
            self.query(f"{match[1]} FROM INFILE '{file.name}' FORMAT {match[2]}", params)


def _with_settings(text: str, settings: str) -> str:
    """Return the statement with the settings where its grammar wants them."""
    if not (settings and text.startswith(("INSERT", "SELECT"))):
        return text
    head, separator, tail = text.rpartition(" FORMAT ")
    if not separator:
        head, tail = text, ""
    return f"{head} SETTINGS {settings}{separator}{tail}"


class Handler(BaseHTTPRequestHandler):
    """Speaks the part of ClickHouse's HTTP interface that its Python client uses."""

    protocol_version = "HTTP/1.1"
    rbufsize = 1024 * 1024  # with less, the client would measure how slow this is
    engine: Engine

    def do_GET(self) -> None:
        """Answer a ping, or a query that stands in the address."""
        self.do_POST()

    def do_POST(self) -> None:
        """Run a statement, which is in the address or in the body."""
        parts = urlsplit(self.path)
        params = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.path == "/ping":
            return self._answer(200, b"Ok.\n")
        if parts.path == "/fault":
            self.engine.faults = deque([""] * int(params["after"]))
            self.engine.faults += [params["name"]] * int(params["times"])
            self.engine.silent_seconds = float(params["seconds"])
            return self._answer(200, b"")
        if parts.path == "/faults":
            return self._answer(200, b"%d" % len(self.engine.faults))
        return self._run(params)

    def _run(self, params: dict[str, str]) -> None:
        text = params.get("query", "")
        is_insert = text.startswith("INSERT")
        fault = self.engine.faults.popleft() if is_insert and self.engine.faults else ""
        try:
            if fault in ERRORS:
                code, name = ERRORS[fault]
                b"".join(self._body())
                raise RuntimeError(f"Code: {code}. DB::Exception: as it was told. ({name})")
            if fault in ("refuse", "mute"):
                return self._misbehave(fault)
            if fault == "discard":
                self._discard_body()
                return self._answer(200, b"")
            if is_insert:
                self.engine.insert(text, self._body(), params)
                answer = b""
            else:
                text = "\n".join(filter(None, (text, b"".join(self._body()).decode())))
                answer = self.engine.query(text, params)
        except RuntimeError as error:
            return self._fail(str(error))
        return self._misbehave(fault) if fault else self._answer(200, answer)

    def _misbehave(self, fault: str) -> None:
        """Do something else than to answer, with what was sent stored or not."""
        self.close_connection = True
        if fault in ("silent", "mute"):
            time.sleep(self.engine.silent_seconds)
        elif fault == "error":
            self._answer(500, b"no more\n")
        elif fault == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Len")
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> Iterator[bytes]:
        """Yield the body; raises ConnectionError where it ends before its time."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline() or b"x", 16):
                yield self._read(size + 2)[:-2]
            self.rfile.readline()
        else:
            yield self._read(int(self.headers.get("Content-Length", 0)))

    def _discard_body(self) -> None:
        """Read a body in chunks as fast as this can; rows have no line end of this kind."""
        tail = b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            data = self.rfile.read1(self.rbufsize)
            if not data:
                raise ConnectionError("the body is cut off")
            tail = (tail + data[-7:])[-7:]

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the body is cut off")
        return data

    def _fail(self, text: str) -> None:
        code = re.search(r"Code: (\d+)", text)
        self._answer(500, text.encode(), code[1] if code else "1000")

    def _answer(self, status: int, body: bytes, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-ClickHouse-Summary", "{}")
        if code:
            self.send_header("X-ClickHouse-Exception-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line for each request."""


class Server(ThreadingHTTPServer):
    """Drops connections that break, as a server does."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore what a client that is gone, or half a request, leads to."""


def main() -> None:
    """Serve until the process is killed."""
    Handler.engine = Engine(Path(sys.argv[2]))
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    if len(sys.argv) > 3:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*sys.argv[3:])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
