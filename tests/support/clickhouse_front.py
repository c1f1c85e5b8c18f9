"""A process that answers as a ClickHouse server does over HTTP, with its engine, chdb, inside.

`python -m tests.support.clickhouse_front PORT DIRECTORY [CERTIFICATE KEY]`: port 0 takes a free
one, and the first line of stdout tells which. With a certificate it speaks TLS alone. One statement
runs at a time. `POST /fault?name=NAME&times=N` makes the next N inserts go wrong, or with
`&of=query` the next N queries of forward's; `tests.support.clickhouse` has the names.

The headers are those of a server with `wait_end_of_query=1` (src/Server/HTTPHandler.cpp and
WriteBufferFromHTTPServerResponse.cpp): the query's id and format when its pipeline is made, the
summary last; its numbers are strings. Written rows are counted before a table drops them as known.
"""

import json
import re
import socket
import ssl
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, deque
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


#: Answers of status 200 to what was not run; by a "lie", nothing shows that.
STRANGE = ("page", "other query", "fewer rows", "more rows", "no summary", "exception", "lie")

#: What a proxy answers while it does not pass on what it is sent.
PAGE = b"<html><h1>Scheduled maintenance</h1></html>"

#: How often a byte of an answer that drips is sent.
DRIP_SECONDS = 0.3


class Engine:
    """The engine, and the faults that are to come."""

    def __init__(self, directory: Path) -> None:
        self._session = session.Session(str(directory))
        self._scratch = directory.with_name("scratch")
        self._scratch.mkdir(exist_ok=True)
        self._lock = threading.Lock()
        self.faults: dict[str, deque[str]] = {"insert": deque(), "query": deque()}
        self.silent_seconds = 30.0
        self._discarded: dict[str, Counter[str]] = {}  # rows of segments, by the inserts' tokens

    def next_fault(self, kind: str) -> str:
        """Return the fault of the next statement of a kind, or None."""
        return self.faults[kind].popleft() if self.faults[kind] else ""

    def query(self, text: str, params: dict[str, str]) -> bytes:
        """Run a statement and return its result; raises RuntimeError with the engine's message."""
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

    def discard(self, token: str, rows: int) -> None:
        """Record rows that are dropped, as if a table had them."""
        _, segment, _ = token.split("/", 2)
        self._discarded[token] = Counter({segment: rows})

    def forget_discarded(self) -> None:
        """Drop the records of dropped rows."""
        self._discarded.clear()

    def discarded(self, text: str) -> bytes | None:
        """Return the answer to a query for whole segments that were dropped."""
        if not (self._discarded and "uniqExact" in text):
            return None
        rows: Counter[str] = sum(self._discarded.values(), Counter())
        names = {name for name in re.findall(r"'([^']+)'", text) if rows[name]}
        data = [[name, *[rows[name]] * 3] for name in names]
        return json.dumps({"data": data, "rows": len(data)}).encode()

    def insert(self, text: str, body: Iterator[bytes], params: dict[str, str]) -> int:
        """Insert the rows of a request's body; return their number. Raises RuntimeError."""
        match = INSERT.fullmatch(text)
        if not match:
            raise RuntimeError(f"Code: 62. DB::Exception: not an insert: {text}. (SYNTAX_ERROR)")
        with tempfile.NamedTemporaryFile(dir=self._scratch) as file:
            rows = 0
            for piece in body:
                rows += piece.count(b"\n")
                file.write(piece)
            file.flush()
            self.query(f"{match[1]} FROM INFILE '{file.name}' FORMAT {match[2]}", params)
        return rows


def _with_settings(text: str, settings: str) -> str:
    """Return the statement with the settings at the place that its grammar requires."""
    if not (settings and text.startswith(("INSERT", "SELECT"))):
        return text
    head, separator, tail = text.rpartition(" FORMAT ")
    if not separator:
        head, tail = text, ""
    return f"{head} SETTINGS {settings}{separator}{tail}"


class Handler(BaseHTTPRequestHandler):
    """Implements the part of ClickHouse's HTTP interface that its Python client uses."""

    protocol_version = "HTTP/1.1"
    rbufsize = 1024 * 1024  # with less, the client would measure how slow this is
    engine: Engine
    _query_id = ""

    def do_GET(self) -> None:
        """Answer a ping, or a query in the address."""
        self.do_POST()

    def do_POST(self) -> None:
        """Run a statement from the address or the body."""
        parts = urlsplit(self.path)
        params = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.path == "/ping":
            return self._answer(200, b"Ok.\n")
        if parts.path == "/fault":
            faults = [""] * int(params["after"]) + [params["name"]] * int(params["times"])
            self.engine.faults[params["of"]] = deque(faults)
            self.engine.forget_discarded()
            self.engine.silent_seconds = float(params["seconds"])
            return self._answer(200, b"")
        if parts.path == "/faults":
            return self._answer(200, b"%d" % sum(map(len, self.engine.faults.values())))
        self._query_id = params.get("query_id") or str(uuid.uuid4())
        return self._run(params)

    def _run(self, params: dict[str, str]) -> None:
        text = params.get("query", "")
        is_insert = text.startswith("INSERT")
        is_question = self._query_id.startswith("astralog/")  # of forward, not of its client
        kind = "insert" if is_insert else "query"
        fault = self.engine.next_fault(kind) if is_insert or is_question else ""
        written = 0
        try:
            if fault in ERRORS:
                code, name = ERRORS[fault]
                b"".join(self._body())
                raise RuntimeError(f"Code: {code}. DB::Exception: as it was told. ({name})")
            if fault in ("refuse", "mute"):
                return self._misbehave(fault)
            if fault == "discard":
                rows = self._discard_body()
                self.engine.discard(params["insert_deduplication_token"], rows)
                return self._answer(200, b"", written=rows)
            if fault in STRANGE:
                return self._answer_strangely(fault)
            if is_insert:
                written = self.engine.insert(text, self._body(), params)
                answer = b""
            else:
                text = "\n".join(filter(None, (text, b"".join(self._body()).decode())))
                answer = self.engine.discarded(text) or self.engine.query(text, params)
        except RuntimeError as error:
            return self._fail(str(error))
        if fault:
            return self._misbehave(fault, answer)
        return self._answer(200, answer, written=written)

    def _answer_strangely(self, fault: str) -> None:
        """Answer 200 to a statement that was not run, in a recognisable way."""
        rows = b"".join(self._body()).count(b"\n")
        if fault == "page":
            self._send(200, [("Content-Type", "text/html")], PAGE)
        elif fault == "other query":
            self._query_id = f"astralog/{uuid.uuid4()}"
            self._answer(200, b'{"data": [], "rows": 0}', written=rows)
        elif fault == "fewer rows":
            self._answer(200, b"", written=rows - 1)
        elif fault == "more rows":
            self._answer(200, b"", written=rows + 1)
        elif fault == "no summary":
            self._send(200, [("X-ClickHouse-Query-Id", self._query_id)], b"")
        elif fault == "exception":
            self._answer(200, b"Code: 241. DB::Exception: memory", "241", written=rows)
        elif fault == "lie":
            self._answer(200, b"", written=rows)

    def _misbehave(self, fault: str, answer: bytes = b"") -> None:
        """Do something other than answering, with the rows stored or not."""
        self.close_connection = True
        if fault in ("silent", "mute"):
            time.sleep(self.engine.silent_seconds)
        elif fault == "error":
            self._answer(500, b"no more\n")
        elif fault == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Len")
        elif fault == "half a body":  # and nothing says how long it would have been
            head = f"HTTP/1.0 200 OK\r\nX-ClickHouse-Query-Id: {self._query_id}\r\n\r\n"
            self.wfile.write(head.encode() + answer[: len(answer) // 2])
        elif fault == "drip":
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 600:
                self.wfile.write(bytes([byte]))
                time.sleep(DRIP_SECONDS)
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> Iterator[bytes]:
        """Yield the body; raises ConnectionError if it ends early."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline() or b"x", 16):
                yield self._read(size + 2)[:-2]
            self.rfile.readline()
        else:
            yield self._read(int(self.headers.get("Content-Length", 0)))

    def _discard_body(self) -> int:
        """Read a body in chunks as fast as possible; return its rows, which have no CR LF."""
        tail = b""
        rows = 0
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            data = self.rfile.read1(self.rbufsize)
            if not data:
                raise ConnectionError("the body is cut off")
            is_split = tail.endswith(b"\r") and data.startswith(b"\n")
            rows += data.count(b"\n") - data.count(b"\r\n") - is_split
            tail = (tail + data[-7:])[-7:]
        return rows

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the body is cut off")
        return data

    def _fail(self, text: str) -> None:
        code = re.search(r"Code: (\d+)", text)
        self._answer(500, text.encode(), code[1] if code else "1000")

    def _answer(self, status: int, body: bytes, code: str = "", written: int = 0) -> None:
        summary = {"read_rows": str(written), "written_rows": str(written), "result_rows": "0"}
        headers = [
            ("X-ClickHouse-Query-Id", self._query_id),
            ("X-ClickHouse-Timezone", "UTC"),
            ("X-ClickHouse-Summary", json.dumps(summary)),
        ]
        if code:
            headers.append(("X-ClickHouse-Exception-Code", code))
        self._send(status, headers, body)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """Drops broken connections, as a server does."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of disconnected clients and incomplete requests."""


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
