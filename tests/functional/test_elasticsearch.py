"""Senders of Elasticsearch's bulk API store their logs, and understand the responses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import TOKEN, Answer, Service

BULK = "/elasticsearch/_bulk"
DOCUMENT = {"@timestamp": "2024-05-31T15:30:45Z", "message": "paid", "service": {"name": "shop"}}
BODY = f'{{"create":{{"_index":"org-xyz"}}}}\n{json.dumps(DOCUMENT)}\n'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("elasticsearch")) as running:
        yield running


def send(service: Service, body: Any, path: str = BULK, **headers: str) -> Answer:
    sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/x-ndjson"} | headers
    return service.request("POST", path, body, sent)


@pytest.mark.parametrize("count", [1, 500, 501, 2000])
def test_each_of_many_documents_has_its_result(service: Service, count: int) -> None:
    """A short response has a length, and a long one is written piece by piece."""
    before = len(service.logs())
    answer = send(service, BODY * count)
    items = [item["create"] for item in answer.body["items"]]
    assert [201] * count == [item["status"] for item in items]
    assert count == len({item["_id"] for item in items}) == len(service.logs()) - before
    assert (count <= 500) == ("Content-Length" in answer.headers)


@pytest.mark.parametrize("kind", ["basic", "api_key", "bearer"])
def test_the_official_client_stores_documents(service: Service, kind: str) -> None:
    """It checks the product first, and reports the invalid item."""
    from elasticsearch import Elasticsearch, helpers  # noqa: PLC0415  # imports pyarrow: 1 s

    ways: dict[str, dict[str, Any]] = {
        "basic": {"basic_auth": ("any", TOKEN)},
        "api_key": {"api_key": ("any", TOKEN)},
        "bearer": {"bearer_auth": TOKEN},
    }
    before = len(service.logs())
    url = f"http://127.0.0.1:{service.address[1]}/elasticsearch"
    with Elasticsearch(url, **ways[kind]) as client:
        assert client.ping()
        assert client.info()["version"]["number"].startswith("8.")
        actions: list[Any] = [
            {"_index": "org-xyz", **DOCUMENT, "message": f"paid {i}"} for i in range(100)
        ]
        assert (100, []) == helpers.bulk(client, actions)
        bad: list[Any] = [{"_index": "org-xyz", "@timestamp": "yesterday"}, *actions[:1]]
        stored, errors = helpers.bulk(client, bad, raise_on_error=False)
    assert (1, 400) == (stored, errors[0]["index"]["status"])  # type: ignore[index]
    logs = service.logs()[before:]
    assert [f"paid {i}" for i in [*range(100), 0]] == [log["message"] for log in logs]
    assert ("org-xyz", "shop") == (logs[0]["project_id"], logs[0]["service"])


@pytest.mark.parametrize(
    ("method", "path", "member"),
    [
        ("GET", "/elasticsearch/", "version"),
        ("GET", "/elasticsearch", "version"),
        ("GET", "/elasticsearch/_license?human=false", "license"),
        ("GET", "/elasticsearch/_cluster/health", "status"),
        ("GET", "/elasticsearch/_nodes/http", "nodes"),
        ("PUT", "/elasticsearch/_index_template/filebeat", "acknowledged"),
        ("GET", "/elasticsearch/_ilm/policy/filebeat", "acknowledged"),
    ],
)
def test_first_requests_of_clients_are_answered(
    service: Service, method: str, path: str, member: str
) -> None:
    answer = service.request(method, path, headers={"Authorization": TOKEN})
    assert (200, "Elasticsearch") == (answer.status, answer.headers["X-Elastic-Product"])
    assert member in answer.body
    unknown = service.request(method, path, headers={"Authorization": "wrong"})
    assert (401, "security_exception") == (unknown.status, unknown.body["error"]["type"])


def test_no_valid_document_is_a_result_for_each(service: Service) -> None:
    """As in Elasticsearch: 200 with an error in each item, and nothing is stored."""
    before = service.content()
    answer = send(service, '{"delete":{"_index":"i","_id":"1"}}\n{"index":{"_index":"i"}}\n[]\n')
    assert (200, True) == (answer.status, answer.body["errors"])
    assert [400, 400] == [next(iter(item.values()))["status"] for item in answer.body["items"]]
    assert before == service.content()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}\n{}\n", 400),
        (b'{"index":{}}', 400),
        (b"[" * 1_000_000, 400),
        (b'{"index":{"_index":"i"}}\n{}\n' * 60_000, 413),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_hostile_body_gets_elasticsearchs_error_and_stores_nothing(
    service: Service, body: bytes, status: int
) -> None:
    before = service.content()
    answer = send(service, body)
    assert (status, status) == (answer.status, answer.body["status"])
    assert answer.body["error"]["root_cause"][0]["type"] == answer.body["error"]["type"]
    assert before == service.content()


def test_deep_and_broken_documents_cost_themselves_alone(service: Service) -> None:
    before = len(service.logs())
    index = b'{"index":{}}\n'
    deep, broken = b'{"a":' + b"[" * 100_000 + b"\n", b'{"message":"\xff"}\n'
    body = index + deep + index + broken + index + json.dumps(DOCUMENT).encode()
    answer = send(service, body, "/elasticsearch/org-xyz/_bulk")
    statuses = [item["index"]["status"] for item in answer.body["items"]]
    assert (200, [400, 400, 201]) == (answer.status, statuses)
    assert before + 1 == len(service.logs())


@pytest.mark.parametrize(
    ("name", "project"),
    [("caf%C3%A9", "caf\u00e9"), ("a%2541", "a%41"), ("caf%E9", "caf\ufffd")],
)
def test_the_index_of_a_path_is_decoded_once(service: Service, name: str, project: str) -> None:
    body = f'{{"create":{{}}}}\n{json.dumps(DOCUMENT)}\n'
    answer = send(service, body, f"/elasticsearch/{name}/_bulk")
    assert (200, project) == (answer.status, answer.body["items"][0]["create"]["_index"])
    assert project == service.logs()[-1]["project_id"]


@pytest.mark.parametrize(
    ("query", "headers"), [("?once=body", {}), ("", {"Idempotency-Key": "bulk"})]
)
def test_a_retry_has_the_same_results_and_stores_nothing(
    service: Service, query: str, headers: dict[str, str]
) -> None:
    body = BODY + BODY.replace("2024-05-31T15:30:45Z", "yesterday")
    before = len(service.logs())
    answers = [send(service, body, BULK + query, **headers) for _ in range(2)]
    statuses = [[item["create"]["status"] for item in each.body["items"]] for each in answers]
    assert statuses == [[201, 400]] * 2
    assert [each.headers["Idempotency-Replayed"] for each in answers] == [None, "true"]
    assert len(service.logs()) == before + 1


def test_other_paths_and_methods_have_elasticsearchs_form(service: Service) -> None:
    headers = {"Authorization": TOKEN}
    for method, path, status in [
        ("GET", BULK, 405),
        ("GET", "/elasticsearch/org/_search", 404),
        ("POST", "/elasticsearch/org/_doc", 404),
    ]:
        answer = service.request(method, path, headers=headers)
        assert (status, status) == (answer.status, answer.body["status"])


def test_full_disk_is_answered_as_overload(tmp_path: Path) -> None:
    headers = {"Authorization": TOKEN}
    with Service(tmp_path, min_free_bytes=2**60) as service:
        answer = send(service, BODY)
        assert (503, "5") == (answer.status, answer.headers["Retry-After"])
        assert "cluster_block_exception" == answer.body["error"]["type"]
        assert "storage_full" in answer.body["error"]["reason"]
        health = service.request("GET", "/elasticsearch/_cluster/health", headers=headers)
        assert (408, "red") == (health.status, health.body["status"])
        assert [] == service.logs()
