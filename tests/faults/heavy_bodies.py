"""Hundreds of bodies at once that are expensive to decode; other clients must be served.

`python -m tests.faults.heavy_bodies` prints the cost of each kind of body by itself, and
`python -m tests.faults.heavy_bodies NAME` that of one kind.
"""

import http.client
import itertools
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.faults.bench import Bench
from tests.faults.table import Row
from tests.support.background import meanwhile
from tests.support.processes import MIB, peak_bytes, start_stopwatch
from tests.support.service import TOKEN, Service, make_head, make_log, read_answer

#: Bytes of a body: the longest that is decoded in one piece.
BODY_BYTES = MIB

#: Memory that a worker may need in total.
MEMORY_BYTES = 500 * MIB

#: Seconds in which /health and a batch of one log are answered, if the worker has a core to itself:
#: its CPU time meanwhile decides. The second number bounds the wall time.
OTHERS_SECONDS = 1.0
OTHERS_SECONDS_AT_MOST = 8.0

#: Seconds in which each body is answered, with any outcome.
ANSWER_SECONDS = 30.0

#: Valid outcomes for such a body.
EXPECTED = {"accepted", "invalid_batch", "invalid_json", "body_too_large", "queue_full"}

NDJSON = "Content-Type: application/x-ndjson"


class Shape(NamedTuple):
    """A function that makes a body of about a given size, and the way to send it."""

    make: Callable[[int], bytes]
    is_lines: bool = False
    query: str = ""


def _log(fields: bytes = b"", timestamp: bytes = b"2024-05-31T15:30:45Z") -> bytes:
    """Return a short valid log that ends with the given JSON text."""
    start = b'{"project_id":"p","timestamp":"%s","level":"i","service":"s","message":""%s}'
    return start % (timestamp, fields)


def _twice(fields: bytes = b"") -> bytes:
    """Return a valid log that only the slow path accepts: the first of two levels is a number."""
    return b'{"level":5,' + _log(fields)[1:]


def _fill(unit: bytes, size: int, separator: bytes = b",") -> bytes:
    return separator.join([unit] * (size // (len(unit) + len(separator))))


def _number(form: str, size: int) -> bytes:
    """Return units made of consecutive numbers."""
    length = len(form.format(10**6)) + 1
    return ",".join(form.format(10**6 + number) for number in range(size // length)).encode()


def _batch(logs: bytes) -> bytes:
    return b'{"logs":[%s]}' % logs


def _logs(unit: bytes) -> Shape:
    """Return a batch of nothing but copies of a log."""
    return Shape(lambda size: _batch(_fill(unit, size - 20)))


def _values(make: Callable[[int], bytes], log: Callable[[bytes], bytes] = _twice) -> Shape:
    """Return a batch of one log with many values in its metadata."""
    return Shape(lambda size: _batch(log(b',"metadata":{"a":[%s]}' % make(size - 200))))


def _copies(unit: bytes) -> Callable[[int], bytes]:
    return lambda size: _fill(unit, size)


def _lines(unit: bytes, query: str = "") -> Shape:
    return Shape(lambda size: _fill(unit, size, b"\n"), is_lines=True, query=query)


_SURROGATE = b',"metadata":{"a":{},"b":{},"c":"\\ud83d"}'

SHAPES: Mapping[str, Shape] = {
    "zeros": _logs(b"0"),
    "empty objects": _logs(b"{}"),
    "short logs": _logs(_log()),
    "a field twice": _logs(_twice()),
    "surrogates and empty objects": _logs(_log(_SURROGATE)),
    "empty objects in metadata": _values(_copies(b"{}")),
    "small objects in metadata": _values(_copies(b'{"":0}')),
    "many keys in metadata": Shape(
        lambda size: _batch(_twice(b',"metadata":{%s}' % _number('"{}":0', size - 200)))
    ),
    "many unknown fields": Shape(lambda size: _batch(b"{%s}" % _number('"{}":0', size - 20))),
    "a batch of unknown fields": Shape(lambda size: b"{%s}" % _number('"{}":0', size - 20)),
    "long unknown fields": Shape(
        lambda size: _batch(
            b"{%s}" % b",".join(b'"%s%d":0' % (b"k" * (size // 21), n) for n in range(20))
        )
    ),
    "small strings": _values(lambda size: _number('"{}"', size)),
    "large integers": _values(_copies(b"9" * 20)),
    "the largest integers": _values(_copies(b"9" * 4300)),
    "numbers that grow": _values(_copies(b"1e15"), log=_log),
    "numbers that grow, slowly": _values(_copies(b"1e15")),
    "deep lists": _logs(_twice(b',"metadata":{"a":%s}' % (b"[" * 300 + b"]" * 300))),
    "deep objects": _logs(_twice(b',"metadata":' + b'{"":' * 150 + b"0" + b"}" * 150)),
    "nothing but escapes": _values(lambda size: b'"' + b"\\ud83d" * (size // 6) + b'"'),
    "cut off": Shape(lambda size: _batch(_fill(b"{}", size - 20))[:-1]),
    "timestamps of SQL": Shape(
        lambda size: _batch(
            b",".join(
                _log(timestamp=b"2024-05-31 15:30:45.%06d+02:00" % number)
                for number in range(size // (len(_log()) + 15))
            )
        )
    ),
    "lines: ones": _lines(b"1"),
    "lines: empty objects": _lines(b"{}"),
    "lines: blank": _lines(b""),
    "lines: spaces": _lines(b" "),
    "lines: a field twice": _lines(_twice()),
    "lines: surrogates": _lines(_log(b',"metadata":{"c":"\\ud83d"}')),
    "lines: an empty level": _lines(_log(b',"level":""')),
    "lines: unknown fields": _lines(
        b'{"timestamp":"20240531","message":"","a":{}}',
        "?unknown=metadata&project_id=p&service=s&level=i",
    ),
    "lines: that grow": _lines(
        b'{"timestamp":"20240531","message":""}',
        f"?project_id={'p' * 255}&service={'s' * 255}&level={'l' * 255}",
    ),
    "lines: a few of them invalid": _lines(
        b"\n".join([_twice()] * 15 + [b"{"]) + b"\n", "?partial=true"
    ),
}


def run(bench: Bench, bodies: int) -> Iterator[Row]:
    """Send so many bodies at once, of all shapes together and then of two that are worst."""
    sets = {
        "of every kind": list(SHAPES),
        "of lines that are no logs": ["lines: ones"],
        "of surrogates and empty objects": ["surrogates and empty objects"],
    }
    for what, names in sets.items():
        row = Row(f"{bodies} heavy bodies {what}")
        if bench.has_time:
            with Service(bench.make_directory()) as service:
                flood(row, service, bodies, names)
                if service.stop() != 0:
                    row.fail("did not stop with status 0")
            bench.say(row.what)
        yield row


def flood(row: Row, service: Service, bodies: int, names: list[str]) -> None:
    """Send bodies of the named shapes, all at once, and check the effect on other clients."""
    requests = [_request(SHAPES[name]) for name in names]
    (worker,) = service.worker_pids()
    service.drain({"logs": [make_log()]})
    ready, go = threading.Semaphore(0), threading.Event()
    codes: Counter[str] = Counter()

    def post(request: bytes) -> None:
        row.tried += 1
        try:
            with service.connect(ANSWER_SECONDS) as connection:
                try:
                    connection.sendall(request[:-1])
                finally:
                    ready.release()
                go.wait(ANSWER_SECONDS)
                connection.sendall(request[-1:])
                body = read_answer(connection).body
                codes[body.get("code", body["status"])] += 1
        except (OSError, http.client.HTTPException) as error:
            codes[repr(error)] += 1

    posted = itertools.islice(itertools.cycle(requests), bodies)
    threads = [threading.Thread(target=post, args=[request], daemon=True) for request in posted]
    for thread in threads:
        thread.start()
    for _ in threads:
        ready.acquire(timeout=ANSWER_SECONDS)
    with meanwhile(lambda: _poll(row, service, worker), 0.02):
        go.set()
        for thread in threads:
            thread.join(2 * ANSWER_SECONDS)
    row.acknowledged += codes["accepted"]
    if codes.keys() - EXPECTED or codes.total() != bodies:
        row.fail(f"the answers were {dict(codes)}")
    if service.worker_pids() != [worker]:
        row.fail("the worker died of it")
    elif peak_bytes(worker) > MEMORY_BYTES:
        row.fail(f"the worker took {peak_bytes(worker) // MIB} MiB")


def _request(shape: Shape) -> bytes:
    body = shape.make(BODY_BYTES)
    assert 0.9 * BODY_BYTES < len(body) <= BODY_BYTES
    headers = [f"Content-Length: {len(body)}", *([NDJSON] if shape.is_lines else [])]
    return make_head(*headers).replace(b"/v1/drain", f"/v1/drain{shape.query}".encode(), 1) + body


def _poll(row: Row, service: Service, worker: int) -> None:
    """Poll /health and send a log, each on a new connection, and record slow responses."""
    body = json.dumps({"logs": [make_log()]})
    headers = {"Authorization": TOKEN}
    for method, path in (("GET", "/health"), ("POST", "/v1/drain")):
        elapsed = start_stopwatch(worker)
        try:
            status = service.request(method, path, body, headers, timeout=ANSWER_SECONDS).status
        except OSError as error:
            row.fail(f"{path}: {error!r}")
            return
        row.was_back_after(elapsed())
        if status != 200 or elapsed() > OTHERS_SECONDS:
            row.fail(f"{path} answered {status} after {elapsed():.1f} s")


def main() -> int:
    """Print the effect of 200 bodies of each shape, or of the named one, on a worker."""
    names = sys.argv[1:] or list(SHAPES)
    is_bad = False
    for name in names:
        row = Row(name)
        with (
            tempfile.TemporaryDirectory(prefix="astralog-heavy-bodies-") as directory,
            Service(Path(directory)) as service,
        ):
            flood(row, service, 200, [name])
            peak = peak_bytes(service.worker_pids()[0]) // MIB
        seconds = row.back_seconds or 0.0
        print(f"{name:32} {peak:5} MiB, others {seconds:5.2f} s {row.remarks}", flush=True)
        is_bad |= row.is_bad
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
