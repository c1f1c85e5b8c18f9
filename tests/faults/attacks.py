"""Bodies that lie, bombs, requests smuggled in, and tokens that must not leak."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.bodies import bombs, honest, lying_bodies
from tests.faults.smuggling import POISON, requests
from tests.faults.stall import watch_health
from tests.faults.table import Row
from tests.support.processes import (
    MIB,
    cpu_seconds,
    peak_bytes,
    resident_bytes,
    start_stopwatch,
)
from tests.support.service import (
    TOKEN,
    Answer,
    Service,
    make_batch,
    make_head,
    make_log,
    read_answer,
)

#: Memory that one body may cost a worker, its largest size being 10 MiB.
MEMORY_BYTES = 400 * MIB

#: Chunks of a byte, that take seconds to read, and of a rejected body.
CHUNKS = 700_000
REJECTED_CHUNKS = 1_800_000

#: Memory on top of what a worker has, and CPU, that one body may cost until it is rejected.
INFLATE_BYTES = 96 * MIB
CPU_SECONDS = 4.0

#: Seconds for which the service reads on after it has rejected a body; then it may reset the
#: connection before the answer is read. A busy machine takes longer to send the body.
DISCARD_SECONDS = 10.0

#: Seconds in which the worst body has its answer.
ANSWER_SECONDS = 10.0

#: Metadata of every batch that may be stored; any other line is forged.
MARK = "honest"


def run(bench: Bench, rounds: int) -> Iterator[Row]:
    """Run each set of attacks `rounds` times."""
    sets: list[tuple[str, Callable[[Bench, Row, Service], None]]] = [
        ("no or wrong token, body unread", _knock),
        ("lying and malformed bodies", _lie),
        ("bombs and broken compression", _inflate),
        ("bodies in a million chunks", _chop),
        ("line breaks and NUL in every field", _break_lines),
        ("invalid UTF-8 in every position", _spoil_utf8),
        ("smuggled requests", _smuggle),
    ]
    for what, attack in sets:
        row = Row(what)
        with Service(bench.make_directory()) as service:
            service.request("GET", "/health")  # what the worker takes to start is not the attack's
            for _ in range(rounds):
                if bench.has_time:
                    attack(bench, row, service)
            _check_health(row, service)
        bench.say(f"{what}: {row.tried} requests")
        yield row


def _check_health(row: Row, service: Service) -> None:
    """Check the files and the log after an attack: no forged line, no traceback, no token."""
    marked = make_batch("x") | {"logs": [make_log(metadata={"mark": MARK})]}
    if service.drain(marked).status != 200:
        row.fail("accepts nothing after the attack")
    for path in service.files():
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                if json.loads(line)["metadata"]["mark"] != MARK:
                    row.forged += 1
                    row.remark(f"stored {line[:100]!r}")
            except (ValueError, KeyError, TypeError):
                row.half += 1
                row.remark(f"stored {line[:100]!r}")
    if "Traceback" in service.log():
        row.fail("wrote a traceback")
        row.remark(service.log()[-300:])
    titles = [Path(f"/proc/{pid}/cmdline").read_text() for pid in service.pids()]
    if TOKEN in service.log() or any(TOKEN in title for title in titles):
        row.fail("a token is in the log or in a process title")
    if service.stop() != 0:
        row.fail("did not stop with status 0")


def _expect(row: Row, answer: Answer | None, what: str, status: int = 400) -> None:
    """Record a request; the status of its response must be in the same class as `status`."""
    row.tried += 1
    if answer is None:
        return
    row.errors += answer.status == 500
    if answer.status // 100 != status // 100:
        row.fail(f"{what}: answered {answer.status}")
    if TOKEN.encode() in answer.raw:
        row.fail(f"{what}: the answer holds the token")


def _knock(bench: Bench, row: Row, service: Service) -> None:
    """Show every kind of wrong token, with a body that is never sent."""
    tokens = [b"", b"Bearer", b"Bearer ", b"Basic " + TOKEN.encode(), TOKEN[:-1].encode()]
    tokens += [TOKEN.encode() + b"x", b"Bearer Bearer " + TOKEN.encode(), TOKEN.upper().encode()]
    tokens += [b"\xff\xfe", "töken".encode(), b"%s", b"{}", b'"', b"'", b"x" * 4000, b"\x80" * 99]
    tokens += [TOKEN.encode() + b", " + TOKEN.encode(), b"\t" + TOKEN[1:].encode()]
    for token in tokens:
        head = b"POST /v1/drain HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\n" % token
        for length in (b"Content-Length: 1000000", b"Transfer-Encoding: chunked"):
            with service.connect() as connection:
                connection.sendall(head + length + b"\r\n\r\n")
                answer = read_answer(connection)
            _expect(row, answer, f"token {token[:20]!r}")
            if answer.status != 401:
                row.fail(f"token {token[:20]!r}: answered {answer.status}")


def _lie(bench: Bench, row: Row, service: Service) -> None:
    (worker,) = service.worker_pids()
    before = resident_bytes(worker)
    for what, head, body in lying_bodies():
        elapsed = start_stopwatch(worker)
        try:
            answer = service.exchange(head + body, half_close=True)
        except OSError:
            answer = None  # it rejected before it had read all
        _expect(row, answer, what)
        if elapsed() > ANSWER_SECONDS:
            row.fail(f"{what}: took {elapsed():.1f} s")
    if resident_bytes(worker) - before > MEMORY_BYTES:
        row.fail(f"the worker grew by {resident_bytes(worker) - before:,} bytes")


def _inflate(bench: Bench, row: Row, service: Service) -> None:
    """Send decompression bombs, and measure their cost for the worker and other clients."""
    with watch_health(service, row):
        for what, coding, body, code in bombs():
            head = make_head(f"Content-Encoding: {coding}", f"Content-Length: {len(body)}")
            answer = _cost(row, service, what, head + body)
            if answer and answer.body.get("code") != code:
                row.fail(f"{what}: answered {answer.body}")
    for what, coding, body in honest():
        _expect(row, service.drain(body, {"Content-Encoding": coding}), what, 200)


def _chop(bench: Bench, row: Row, service: Service) -> None:
    """Send bodies of a byte a chunk, with and without the token."""
    with watch_health(service, row):
        for token, count in ((TOKEN, CHUNKS), ("wrong", REJECTED_CHUNKS)):
            head = make_head("Transfer-Encoding: chunked", token=token)
            chunks = b"1\r\n \r\n" * count + b"0\r\n\r\n"
            _cost(row, service, f"{count:,} chunks, token {token}", head + chunks)


def _cost(row: Row, service: Service, what: str, request: bytes) -> Answer | None:
    """Send a request that must be rejected, and bound its cost for the worker."""
    (worker,) = service.worker_pids()
    memory, seconds = resident_bytes(worker), cpu_seconds([worker])
    start = time.monotonic()
    try:
        answer: Answer | None = service.exchange(request, half_close=True)
    except (OSError, http.client.HTTPException) as error:
        answer = None
        if time.monotonic() - start < DISCARD_SECONDS:
            row.fail(f"{what}: no answer, {error!r}")
    _expect(row, answer, what)
    if service.worker_pids() != [worker]:
        row.fail(f"{what}: the worker died of it")
        return None
    if cpu_seconds([worker]) - seconds > CPU_SECONDS:
        row.fail(f"{what}: took {cpu_seconds([worker]) - seconds:.1f} s of CPU")
    if peak_bytes(worker) - memory > INFLATE_BYTES:
        row.fail(f"{what}: the worker grew by {peak_bytes(worker) - memory:,} bytes")
    return answer


def _break_lines(bench: Bench, row: Row, service: Service) -> None:
    """Store text that imitates the end of a line and another line."""
    forged = json.dumps(make_log(metadata={"mark": "forged"}))
    mark = {"mark": MARK}
    breaks = ["\n", "\r", "\r\n", "\0", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"]
    for text in (f'"}}{line_break}{forged}{line_break}' for line_break in breaks):
        batches = [make_log(**{name: text}, metadata=mark) for name in ("message", "service")]
        batches += [
            make_log(project_id=text, level=text, metadata=mark | {text: [text, {text: 1}]})
        ]
        for ensure_ascii in (True, False):
            body = json.dumps({"logs": batches}, ensure_ascii=ensure_ascii).encode()
            _expect(row, service.drain(body), repr(text[:5]), 200)
        raw = json.dumps({"logs": batches}, ensure_ascii=False)
        if text[2] < " ":
            body = raw.replace(json.dumps(text[2])[1:-1], text[2]).encode()
            _expect(row, service.drain(body), f"bare {text[2]!r}")


def _spoil_utf8(bench: Bench, row: Row, service: Service) -> None:
    """Put a byte that no UTF-8 has, and others that lack their rest, at each place in a batch."""
    body = json.dumps(make_batch("Grüße", "x"), ensure_ascii=False).encode()
    for spoil in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"):
        with service.connect() as connection:
            for place in range(len(body)):
                spoilt = body[:place] + spoil + body[place:]
                connection.sendall(make_head(f"Content-Length: {len(spoilt)}") + spoilt)
                _expect(row, read_answer(connection), f"{spoil!r} at {place}")


def _smuggle(bench: Bench, row: Row, service: Service) -> None:
    """Send requests with an ambiguous end; the hidden second request must never run."""
    for what, data in requests():
        row.tried += 1
        with service.connect(timeout=2) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            try:
                while data := connection.recv(65536):
                    received += data
            except OSError:
                pass
        row.errors += received.count(b"HTTP/1.1 500")
        if POISON.encode() in service.content():
            row.forged += 1
            row.remark(f"{what}: the second request was stored")
            return
        if received.count(b'{"status":"accepted"}'):
            row.fail(f"{what}: was accepted")
