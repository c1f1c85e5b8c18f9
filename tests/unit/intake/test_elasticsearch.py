"""Documents of a bulk request become logs, field by field, each with a result."""

import json
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest

from astralog.errors import Rejection
from astralog.intake.elasticsearch import MAX_ITEMS, Bulk
from astralog.intake.options import Options
from tests.support.decoding import make_context

DOCUMENT = {"@timestamp": "2024-05-31T15:30:45.123Z", "message": "paid"}
LOG = {
    "project_id": "org",
    "timestamp": "2024-05-31T15:30:45.123Z",
    "level": "unspecified",
    "service": "unknown_service",
    "message": "paid",
}


def make_body(*documents: Any, action: str = '{"create":{"_index":"org"}}') -> bytes:
    lines = [f"{action}\n{json.dumps(document)}\n" for document in documents]
    return "".join(lines).encode()


def decode(body: bytes, index: str = "", **context: Any) -> tuple[list[dict[str, Any]], Bulk]:
    bulk = Bulk(index)
    batch = bulk.decode(body, make_context(**context)).batch
    return [json.loads(line) for line in bytes(batch.lines).splitlines()], bulk


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"@timestamp": 1717169445123}, {}),
        ({"@timestamp": "1717169445123"}, {}),
        ({"@timestamp": 1717169445.123}, {}),
        ({"message": None, "log": "a", "msg": "b"}, {"message": "a", "metadata": ...}),
        ({"message": {"a": 1}, "msg": "b"}, {"message": "b", "metadata": {"message": {"a": 1}}}),
        (
            {"service": {"name": "1"}, "fields": {"service": "2"}},
            {"service": "1", "metadata": {"service": {"name": "1"}, "fields": {"service": "2"}}},
        ),
        ({"service.name": "1", "service": "2"}, {"service": "1", "metadata": {"service": "2"}}),
        ({"service": "2"}, {"service": "2"}),
        ({"fields": {"service": "3"}}, {"service": "3", "metadata": ...}),
        ({"agent": {"name": "4"}}, {"service": "4", "metadata": ...}),
        ({"log": {"level": "a"}, "level": "b"}, {"level": "a", "metadata": ...}),
        ({"level": "b", "severity": "c"}, {"level": "b", "metadata": {"severity": "c"}}),
        ({"severity": 3}, {"level": "3"}),
        ({"a": {"b": [1.50]}}, {"metadata": {"a": {"b": [1.5]}}}),
    ],
    ids=str,
)
def test_each_member_of_a_document_has_its_field(
    change: dict[str, Any], expected: dict[str, Any]
) -> None:
    (log,), _ = decode(make_body(DOCUMENT | change))
    for name in [name for name, value in expected.items() if value is ...]:
        del log[name]
    expected = {name: value for name, value in expected.items() if value is not ...}
    assert {name: LOG[name] for name in LOG if name in log} | expected == log


def test_a_document_without_a_message_is_its_own() -> None:
    (log,), _ = decode(make_body({"a": 1}))
    assert ('{"a": 1}', {"a": 1}) == (log["message"], log["metadata"])


def test_the_query_the_token_and_the_path_decide_the_project() -> None:
    body = make_body(DOCUMENT, action='{"index":{"_id":"7"}}')
    assert "path" == decode(body, "path")[0][0]["project_id"]
    ((log,), _) = decode(make_body(DOCUMENT), options=Options({"project_id": "p", "level": "l"}))
    assert ("p", "l", {"_index": "org"}) == (log["project_id"], log["level"], log["metadata"])
    assert {"_id": "7"} == decode(body, projects=["only"])[0][0]["metadata"]
    with pytest.raises(Rejection) as rejected:
        decode(make_body(DOCUMENT), projects=["a", "b"])
    assert "forbidden_project" == rejected.value.code


def test_each_item_has_its_result_and_valid_ones_are_stored() -> None:
    """Deletes and updates get the error of a data stream."""
    body = (
        make_body(DOCUMENT, DOCUMENT | {"@timestamp": "yesterday"})
        + b'{"delete":{"_index":"org","_id":"1"}}\n{"update":{"_id":"2"}}\n{"doc":{}}\n'
        + b'{"index":{"_index":"org"}}\n{"message":\n'
        + make_body(DOCUMENT)
    )
    logs, bulk = decode(body)
    assert [LOG, LOG] == logs
    assert [
        ("create", 201, ""),
        ("create", 400, "document_parsing_exception"),
        ("delete", 400, "illegal_argument_exception"),
        ("update", 400, "illegal_argument_exception"),
        ("index", 400, "document_parsing_exception"),
        ("create", 201, ""),
    ] == [(item.action, item.status, item.type) for item in bulk.items]


@pytest.mark.parametrize(
    "odd",
    [
        b'{"delete":{"_id":"1"}}\n',
        b'\n{"index":{"_index":"other","_id":"7"}}\r\n{"message":"m","a":[1.50]}\r\n',
        b'{"create":{}}\n{"@timestamp":"yesterday"}\n',
        b'{"create":{}}\n{"@timestamp":"2024-05-31 15:30:45+02:00","log":{"level":"a"}}\n',
        b'{"create":{}}\n{"message":"\xff"}\n',
        b'{"create":{}}\n{"@timestamp":null,"message":{}}\n',
        b'{"create":{}}\n{"@timestamp":""}\n',
    ],
)
def test_runs_of_documents_become_the_same_logs_as_single_ones(odd: bytes) -> None:
    """One of another form, or an invalid one, changes nothing for those before and after it."""
    half = make_body(*[DOCUMENT | {"service.name": "é", "n": n} for n in range(1000)])
    body = half + odd + half
    found = []
    for is_single in (False, True):
        bulk = Bulk("org")
        with patch.object(Bulk, "_add_run", return_value=False) if is_single else nullcontext():
            batch = bulk.decode(body, make_context()).batch
        lines = [json.loads(line) for line in bytes(batch.lines).splitlines()]
        for line in lines:
            if not line["timestamp"].startswith("2024"):
                del line["timestamp"]  # of the arrival
        found.append((lines, bulk.items))
    assert found[1] == found[0]
    assert 2001 == len(found[0][1])


def test_other_members_after_an_action_are_ignored() -> None:
    """As in Elasticsearch 8: winston-elasticsearch writes its attempts there."""
    bulk = Bulk("org")
    body = b'{"index":{"_index":"a","pipeline":null},"attempts":0}\n{"message":"x"}\n'
    assert 1 == bulk.decode(body, make_context()).batch.logs
    assert [("index", "a", 201)] == [
        (item.action, item.index_name, item.status) for item in bulk.items
    ]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_batch"),
        (b"\n\n", "invalid_batch"),
        (b"{}\n{}\n", "invalid_json"),
        (b'{"create":{}}\n', "invalid_json"),
        (b'{"create":1}\n{}\n', "invalid_json"),
        (b'{"upsert":{}}\n{}\n', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"create":{},"index":{}}\n{}\n', "invalid_json"),
        (b'{"index":{"_index":"\xff"}}\n{}\n', "invalid_json"),
        (b'{"index":{"_id":"\xc3"}}\n{}\n', "invalid_json"),
        (b'{"index":{}}\n{}\n' * (MAX_ITEMS + 1), "body_too_large"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_malformed_action_rejects_the_request(body: bytes, code: str) -> None:
    bulk = Bulk("org")
    with pytest.raises(Rejection) as rejected:
        bulk.decode(body, make_context())
    assert (code, False) == (rejected.value.code, bulk.is_complete)
