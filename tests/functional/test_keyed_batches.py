"""The promises to a client that sends an Idempotency-Key, case by case, over real HTTP."""

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults import races
from tests.faults.bench import Bench
from tests.support.keyed_client import is_replay
from tests.support.otlp import PROTOBUF, encode, make_export, make_record
from tests.support.service import (
    TOKEN,
    Answer,
    Service,
    make_batch,
    make_head,
    read_answer,
)
from tests.support.workers import connect_to

#: Keys that are no keys.
MALFORMED = {
    "empty": b"",
    "blank": b"  ",
    "256 characters, quoted": b'"' + b"x" * 256 + b'"',
    "8,000 characters": b"x" * 8000,
    "Latin-1": b"schl\xfcssel",
    "a tab within": b"a\tb",
    "DEL": b"a\x7fb",
}

#: Keys that are as odd as a key may be.
ODD = {
    "one character": "x",
    "255 characters": "y" * 255,
    "punctuation": "!#$%&'()*+-./:<=>?@[]^_`{|}~",
    "a UUID": "8e03978e-40d5-43dd-bc93-6894a57f9324",
    "a path": "../../etc/passwd",
    "JSON's own": "{\\u0000}",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service of two workers for all cases; it must be in order after the last one."""
    with Service(tmp_path_factory.mktemp("keyed"), workers=2) as service:
        yield service
        assert {"status": "ready"} == service.request("GET", "/ready").body
        assert "Traceback" not in service.log()
        assert 0 == service.stop()


@pytest.fixture
def key(service: Service) -> str:
    """Return an unused key."""
    return f"key-{next(NUMBERS)}"


NUMBERS = itertools.count()


def send(service: Service, body: Any, key: str, **headers: str) -> Answer:
    """Send a batch with a key."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.drain(body, {"Idempotency-Key": key, **more})


def count(service: Service, message: str) -> int:
    """Count the stored logs with a message."""
    return sum(log["message"] == message for log in service.logs())


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_key_may_be_odd(service: Service, odd: str) -> None:
    """Any 1 to 255 visible characters are a key, with blanks around it or not."""
    assert not is_replay(send(service, make_batch(odd), odd))
    assert is_replay(send(service, make_batch(odd), f" \t{odd}\t "))
    assert 422 == send(service, make_batch("other"), odd).status
    assert not is_replay(send(service, make_batch(odd + "'s other"), odd[1:] + "~"))
    assert 1 == count(service, odd)


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_key_is_rejected(service: Service, malformed: bytes) -> None:
    """Nothing is stored: its client believes that it has a key."""
    before = service.content()
    body = json.dumps(make_batch("malformed")).encode()
    head = make_head("Idempotency-Key: KEY", f"Content-Length: {len(body)}", "Connection: close")
    answer = service.exchange(head.replace(b"KEY", malformed) + body)
    assert (400, "bad_request") == (answer.status, answer.body["code"])
    assert before == service.content()


def test_each_worker_knows_the_batches_of_the_other(service: Service, key: str) -> None:
    """A retry is a replay on any worker, at once."""
    body = json.dumps(make_batch(key)).encode()
    request = make_head(f"Idempotency-Key: {key}", f"Content-Length: {len(body)}") + body
    pids = service.worker_pids()
    answers = []
    for pid in (*pids, *pids):
        with connect_to(service, pid) as connection:
            connection.sendall(request)
            answers.append(is_replay(read_answer(connection)))
    assert [False, True, True, True] == answers
    assert 1 == count(service, key)


def test_a_batch_may_come_in_another_coding(service: Service, key: str) -> None:
    """It is the same batch, compressed or in chunks: a proxy may have changed that."""
    body = json.dumps(make_batch(key)).encode()
    assert not is_replay(send(service, gzip.compress(body), key, Content_Encoding="gzip"))
    assert is_replay(send(service, zlib.compress(body), key, Content_Encoding="deflate"))
    assert is_replay(send(service, iter([body[:10], body[10:]]), key))
    assert is_replay(send(service, body, key))
    assert 1 == count(service, key)


def test_a_dry_run_may_have_a_key_that_is_taken(service: Service, key: str) -> None:
    """It checks the body, and neither stores nor replays anything."""
    body = json.dumps(make_batch(key, "another body"))
    headers = {"Authorization": TOKEN, "Idempotency-Key": key}
    assert not is_replay(send(service, make_batch(key), key))
    answer = service.request("POST", "/v1/drain?dry_run=true", body, headers)
    assert not is_replay(answer)
    assert "valid" == answer.body["status"]
    assert is_replay(send(service, make_batch(key), key))
    assert 1 == count(service, key)


def test_an_empty_batch_may_have_a_key(service: Service, key: str) -> None:
    """There is nothing to store twice, and nothing fails."""
    for _ in range(3):
        assert 200 == send(service, {"logs": []}, key).status


def test_opentelemetry_has_keys_too(service: Service, key: str) -> None:
    """An export is stored once, and its retry is answered in the protocol's own form."""
    export = make_export(make_record(key), resource={"project_id": "p", "service.name": "s"})
    body = encode(export, PROTOBUF)
    headers = {"Authorization": TOKEN, "Content-Type": PROTOBUF, "Idempotency-Key": key}
    first = service.request("POST", "/v1/logs", body, headers)
    second = service.request("POST", "/v1/logs", body, headers)
    assert (False, True) == (is_replay(first), is_replay(second))
    assert (first.raw, PROTOBUF) == (second.raw, second.headers["Content-Type"])
    other = encode(make_export(make_record("other")), PROTOBUF)
    answer = service.request("POST", "/v1/logs?project_id=p&service=s", other, headers)
    assert (422, PROTOBUF) == (answer.status, answer.headers["Content-Type"])
    assert 1 == count(service, key)


def test_two_clients_that_race_store_once(tmp_path: Any) -> None:
    """The first one stores, and the other one gets the outcome."""
    (row,) = races.run(Bench(tmp_path, 1, 60, quiet=True), keys=2000, pairs=8)
    assert 2000 == row.tried
    assert (False, []) == (row.is_bad, row.remarks[1:])
