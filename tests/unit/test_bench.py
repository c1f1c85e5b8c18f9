"""The load generator: its requests, its counters, and its check of the disk."""

import json
import os
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Self

import msgspec
import pytest

from astralog.intake import elasticsearch, hec, loki
from astralog.intake.batch import decode_lines
from astralog.intake.decoder import Decoder
from astralog.intake.options import parse_options
from astralog.intake.otlp import decode
from astralog.intake.otlp_protobuf import Protobuf
from bench import bodies, foreign, lean_logs, load, measure, open_loop, options, otlp, stored
from bench.load import Outcome
from bench.rate_results import Rate, rate_marks
from bench.service import BareService
from tests.support.decoding import encode_batch, make_context
from tests.support.processes import cpu_seconds


def test_bodies_are_well_formed_and_distinct() -> None:
    """Every body follows the contract, and a log has about 370 bytes."""
    pool = [template.body(number) for number, template in enumerate(bodies.templates(10))]
    assert len(set(pool)) == bodies.POOL_BODIES
    assert all(encode_batch(body).logs == 10 for body in pool)
    assert 350 < sum(map(len, pool)) / (10 * len(pool)) < 390


def test_log_id_identifies_request_and_index() -> None:
    """Each log has the number of its request and its index in the batch."""
    logs = msgspec.json.decode(bodies.templates(10)[3].body(4711))["logs"]
    places = [bodies.place(log["metadata"]["log_id"]) for log in logs]
    assert [(4711, index) for index in range(10)] == places


def test_lean_logs_are_shorter() -> None:
    """They have about 300 bytes, with four keys of metadata, and are all different."""
    pool = lean_logs.requests(10)
    assert 270 < sum(template.body_bytes for template in pool) / (10 * len(pool)) < 330
    logs = [json.loads(line) for line in encode_batch(pool[3].body(4711)).lines.splitlines()]
    assert {4} == {len(log["metadata"]) for log in logs}
    ids = [bodies.place(log["metadata"]["log_id"]) for log in logs]
    assert [(4711, index) for index in range(10)] == ids


def test_requests_with_keys_differ_in_nothing_else() -> None:
    """Each has the key of its number, and its head has the right Content-Length."""
    pairs = zip(load.json_requests(10, "t"), load.keyed_requests(10, "t"), strict=True)
    for plain, keyed in pairs:
        request = b"".join(keyed.request(7))
        line = b'Idempotency-Key: "bench-0000000007"\r\n'
        assert 1 == request.count(line)
        assert b"".join(plain.request(7)) == request.replace(line, b"")


def test_exports_are_the_same_logs() -> None:
    """The bench's OTLP exports are valid, have the declared length and are all different."""
    query = otlp.HEAD.partition("?")[2].partition(" ")[0]
    context = make_context(options=parse_options(query))
    for number, template in enumerate(otlp.requests(10, "token")):
        body = template.body(number)
        assert template.body_bytes == len(body)
        logs = [
            json.loads(line) for line in decode(Protobuf, body, context).batch.lines.splitlines()
        ]
        ids = [bodies.place(log["metadata"]["attributes"]["log_id"]) for log in logs]
        assert [(number, index) for index in range(10)] == ids
        assert 3000 < len(body) < 4500


def test_logs_that_need_options_are_the_same_logs() -> None:
    """With the query options, their lines become the same logs as those of other requests."""
    query = options.HEAD.partition("?")[2].partition(" ")[0]
    context = make_context(options=parse_options(query))
    sent = [template.body(7) for template in options.requests(10, "token")]
    lines = [bytes(decode_lines(body, context).batch.lines) for body in sent]
    expected = [bytes(encode_batch(template.body(7)).lines) for template in bodies.templates(10)]
    for stored_lines, expected_lines in zip(lines, expected, strict=True):
        pairs = zip(stored_lines.splitlines(), expected_lines.splitlines(), strict=True)
        for text, expected_text in pairs:
            log, expected_log = msgspec.json.decode(text), msgspec.json.decode(expected_text)
            assert expected_log["metadata"] == log["metadata"]
            assert expected_log["timestamp"] == log["timestamp"]
            assert ("shop", "info", "shipper") == tuple(log[name] for name in options.FILLED_IN)


def _decode_foreign(form: str, body: bytes) -> bytes:
    """Return the lines that the service stores for a body in another sender's form."""
    context = make_context(options=parse_options(foreign.PINO_PATH.partition("?")[2]))
    if form == "mapped fields":
        return bytes(decode_lines(body, context).batch.lines)
    decoders: dict[str, Decoder] = {
        "HEC": hec.decode_events,
        "Loki in JSON": partial(loki.decode_json, "shop"),
        "bulk": elasticsearch.Bulk("shop").decode,
    }
    return bytes(decoders[form](body, make_context()).batch.lines)


@pytest.mark.parametrize("form", foreign.FORMS)
def test_foreign_logs_are_found_on_the_disk(form: str, tmp_path: Path) -> None:
    """The check of the disk finds each log of a foreign request once."""
    template = foreign.FORMS[form](10, "token")[0]
    body = template.body(0)
    assert template.body_bytes == len(body)
    segment = tmp_path / "segment.ndjson"
    segment.write_bytes(_decode_foreign(form, body))
    assert stored.Check(stored=10) == stored.check([segment], 10, Outcome([], 1, set(), set()))


@pytest.mark.parametrize("batch", [1, 10, bodies.CHUNK_LOGS, 2 * bodies.CHUNK_LOGS + 1])
def test_a_request_is_its_head_and_body(batch: int) -> None:
    """A request sent in pieces has the same bytes as one rendered at once."""
    template = bodies.templates(batch, "{}\r\n")[0]
    expected = b"%d\r\n" % template.body_bytes + template.body(7)
    assert expected == b"".join(template.request(7))
    assert template.body_bytes == len(template.body(7))


def test_percentiles() -> None:
    """A percentile is a measured value; without values it is 0."""
    values = [float(value) for value in range(100, 0, -1)]
    assert [measure.percentile(values, p) for p in (50, 99, 100)] == [50.0, 99.0, 100.0]
    assert measure.percentile([3.0], 50) == 3.0
    assert measure.percentile([], 99) == 0.0


def test_cpu_time_of_a_process_is_read_from_outside() -> None:
    """The clock of a process, read by its id, equals the time that it reads itself."""
    before = time.process_time()
    assert before <= cpu_seconds([os.getpid()]) <= time.process_time()


def _lines(*sequences: int) -> bytes:
    return b"".join(encode_batch(bodies.templates(10)[0].body(n)).lines for n in sequences)


def _check(path: Path, lines: bytes, sent: int, rejected: set[int]) -> stored.Check:
    segment = path / "segment.ndjson"
    segment.write_bytes(lines)
    return stored.check([segment], 10, Outcome([], sent, rejected, set()))


def test_disk_check_accepts_complete_batches(tmp_path: Path) -> None:
    """Acknowledged batches are stored once, in any order; rejected ones may be stored or not."""
    check = _check(tmp_path, _lines(1, 0, 3), 4, {2, 3})
    assert check == stored.Check(stored=30)
    assert check.is_sound


def test_disk_check_counts_faults(tmp_path: Path) -> None:
    """A missing, doubled, halved, torn or unknown log is counted."""
    lines = _lines(0, 1)
    one = lines.index(b"\n") + 1
    cases = [
        (lines[one:], 2, set(), stored.Check(stored=19, missing=1)),
        (lines + lines[:one], 2, set(), stored.Check(stored=21, doubled=1)),
        (lines[one:], 2, {0}, stored.Check(stored=19, halved=1)),
        (lines[:-1], 2, set(), stored.Check(stored=19, malformed=1, missing=1)),
        (lines[5:], 2, set(), stored.Check(stored=19, malformed=1, missing=1)),
        (lines, 1, set(), stored.Check(stored=20, unknown=10)),
    ]
    for content, sent, rejected, expected in cases:
        check = _check(tmp_path, content, sent, rejected)
        assert expected == check
        assert not check.is_sound


class Stalling:
    """A server with one connection that answers its first request late."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            seconds = self._seconds
            while connection.recv(65536):
                time.sleep(seconds)
                seconds = 0.0
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(10)


def test_open_loop_measures_from_the_due_time() -> None:
    """Requests queued behind a late one are late too, though each is answered at once."""
    with Stalling(0.2) as server:
        plan = load.Plan(server.address, "token", [], 1, 1, [0.3], rate=100.0)
        outcome = open_loop.run(plan)
    phase = outcome.phases[0]
    assert (30, 30) == (outcome.sent, phase.acknowledged)
    assert 10 <= sum(latency > 0.1 for latency in phase.latencies)
    assert phase.seconds >= 0.29  # what is not due yet is not sent


def test_rate_is_compared_with_its_limits() -> None:
    """One worker is compared with its limit, two workers with one worker's rate."""

    def rate(logs: int, workers: int, cpu_us: float) -> Rate:
        return Rate(logs, 1, workers, "always", cpu_us, 0.5, 0.9, 1.1, 0.1, stored.Check())

    marks = list(rate_marks([rate(1000, 1, 300.0), rate(1000, 2, 360.0), rate(7, 1, 1.0)]))
    assert [(300.0, 350, True), (1.2, 1.15, True)] == [mark[1:] for mark in marks]


def test_the_service_is_measured_without_the_monitor_of_tests(tmp_path: Path) -> None:
    starts = [
        path.name
        for path in Path(bodies.__file__).parent.glob("*.py")
        if " Service(" in path.read_text()
    ]

    assert BareService(tmp_path).command()[1:] == ["wsgi:app"]
    assert starts == []
