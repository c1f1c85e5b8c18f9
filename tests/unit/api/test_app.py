import errno
import gzip
import io
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from astralog.app import create_app, services_of
from astralog.settings import InvalidSettings, Settings
from astralog.store.writer import Storage
from tests.support.fake_system import BreakOs, Disk
from tests.support.service import TOKEN, make_log, read_logs

MakeApp = Callable[[Settings], Flask]

#: The API page's own example, as curl sends it.
EXAMPLE = b"""{
"logs": [
{
"project_id": "org-xyz",
"timestamp": "2024-05-31T15:30:45Z",
"level": "info",
"service": "api-gateway",
"message": "User logged in",
"metadata": { "user_id": 123, "ip": "1.1.1.1" }
}
]
}"""


class Unread(io.BytesIO):
    """A body that must not be read."""

    def read(self, size: int | None = -1) -> bytes:
        raise AssertionError("the body was read")


def drain(client: FlaskClient, body: Any, **headers: str) -> TestResponse:
    """POST a body with the token; anything but bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    all_headers = {"Authorization": TOKEN} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return client.post("/v1/drain", data=data, headers=all_headers)


def drain_unread(client: FlaskClient, **environ: Any) -> TestResponse:
    """POST a body that must not be read."""
    return client.post(
        "/v1/drain",
        input_stream=Unread(),
        environ_overrides={"HTTP_AUTHORIZATION": TOKEN, "CONTENT_LENGTH": "100"} | environ,
    )


def assert_rejected(response: TestResponse, status: int, code: str, path: Path) -> dict[str, Any]:
    """Assert the form of a rejection, and that none of the batch is on disk."""
    body: dict[str, Any] = response.get_json()
    assert (status, "rejected", code) == (response.status_code, body["status"], body["code"])
    assert set(body) <= {"status", "code", "message", "errors"}
    assert str(path) not in response.text
    assert TOKEN not in response.text
    seconds = "5" if code in ("storage_full", "storage_failed") else "1"
    assert (seconds if status == 503 else None) == response.headers.get("Retry-After")
    assert [] == stored(path)
    return body


def stored(path: Path) -> list[dict[str, Any]]:
    return list(read_logs(sorted(path.glob("*.ndjson*"))))


# --- Making an app


def test_app_is_created_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without settings it reads the environment; it does not create a missing data directory."""
    monkeypatch.setenv("ASTRALOG_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(InvalidSettings, match="data/token: No such file"):
        create_app()
    monkeypatch.setenv("ASTRALOG_TOKENS", TOKEN)
    app = create_app()
    assert 503 == drain(app.test_client(), {"logs": [make_log()]}).status_code
    services_of(app).queue.stop(1)
    assert [] == list(tmp_path.iterdir())


def test_app_with_wrong_settings_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong variable stops the start before anything is created."""
    monkeypatch.setenv("ASTRALOG_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ASTRALOG_WORKERS", "none")
    with pytest.raises(InvalidSettings, match="ASTRALOG_WORKERS"):
        create_app()
    assert [] == list(tmp_path.iterdir())


def test_two_apps_share_nothing(make_app: MakeApp, settings: Settings, tmp_path: Path) -> None:
    """All state belongs to the app: each has its own tokens, pipeline and files."""
    for name in "ab":
        (tmp_path / name).mkdir()
    first = make_app(replace(settings, data_dir=tmp_path / "a"))
    second = make_app(replace(settings, data_dir=tmp_path / "b", tokens="other"))
    batch = {"logs": [make_log()]}
    assert 200 == drain(first.test_client(), batch).status_code
    assert 401 == drain(second.test_client(), batch).status_code
    assert ([make_log()], []) == (stored(tmp_path / "a"), stored(tmp_path / "b"))


# --- POST /v1/drain: what is stored


def test_the_example_of_the_api_page_is_accepted(client: FlaskClient, tmp_path: Path) -> None:
    """The documented request gets the documented response, and its log is on disk."""
    response = drain(client, EXAMPLE, Content_Type="application/json")
    assert (200, b'{"status":"accepted"}') == (response.status_code, response.data)
    assert "application/json" == response.content_type
    assert json.loads(EXAMPLE)["logs"] == stored(tmp_path)


def test_every_log_of_every_batch_is_stored_in_order(client: FlaskClient, tmp_path: Path) -> None:
    """Batches of any size are stored whole, one after another."""
    logs = [make_log(message=str(number)) for number in range(600)]
    for batch in (logs[:1], logs[1:500], [], logs[500:]):
        assert 200 == drain(client, {"logs": batch}).status_code
    assert logs == stored(tmp_path)


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", ""],
)
def test_any_content_type_is_read_as_json(
    client: FlaskClient, tmp_path: Path, content_type: str
) -> None:
    """A client that forgets the header, as curl's users do, is understood."""
    assert 200 == drain(client, EXAMPLE, Content_Type=content_type).status_code
    assert 1 == len(stored(tmp_path))


def test_a_compressed_batch_is_stored(client: FlaskClient, tmp_path: Path) -> None:
    """A gzip body is decompressed."""
    response = drain(client, gzip.compress(EXAMPLE), Content_Encoding="gzip")
    assert 200 == response.status_code
    assert json.loads(EXAMPLE)["logs"] == stored(tmp_path)


@pytest.mark.parametrize("authorization", [TOKEN, f"Bearer {TOKEN}", f"bearer {TOKEN}"])
def test_token_is_accepted_alone_or_after_bearer(
    client: FlaskClient, tmp_path: Path, authorization: str
) -> None:
    """Both forms are accepted."""
    assert 200 == drain(client, EXAMPLE, Authorization=authorization).status_code
    assert 1 == len(stored(tmp_path))


# --- POST /v1/drain: what is rejected


@pytest.mark.parametrize("authorization", ["", "wrong", "Bearer wrong", f"Basic {TOKEN}", "\xff"])
@pytest.mark.parametrize("query", ["", "dry_run=true", "dry_run=maybe"])
def test_an_unknown_token_is_rejected_before_the_body_is_read(
    client: FlaskClient, tmp_path: Path, authorization: str, query: str
) -> None:
    """401 costs the client only its headers, and names the scheme; a dry run needs a token too."""
    response = drain_unread(client, HTTP_AUTHORIZATION=authorization, QUERY_STRING=query)
    assert_rejected(response, 401, "unauthorized", tmp_path)
    assert "Bearer" == response.headers["WWW-Authenticate"]


def test_a_missing_token_is_rejected(client: FlaskClient, tmp_path: Path) -> None:
    """Without the header nothing is stored."""
    response = client.post("/v1/drain", data=EXAMPLE)
    assert_rejected(response, 401, "unauthorized", tmp_path)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"logs", "invalid_json"),
        (EXAMPLE[:-1], "invalid_json"),
        (EXAMPLE + EXAMPLE, "invalid_json"),
        (b'{"logs": [NaN]}', "invalid_json"),
        (b'{"logs": "\xff"}', "invalid_json"),
        (b'{"logs":' + b"[" * 100_000, "invalid_json"),
        (b'{"logs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b"[]", "invalid_batch"),
        (b"{}", "invalid_batch"),
        (b'{"logs": {}}', "invalid_batch"),
        (b'{"logs": [1]}', "invalid_batch"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_malformed_body_is_rejected(
    client: FlaskClient, tmp_path: Path, body: bytes, code: str
) -> None:
    """Invalid JSON and JSON that is not a batch are 400, with different codes."""
    assert_rejected(drain(client, body), 400, code, tmp_path)


def test_invalid_log_rejects_its_whole_batch(client: FlaskClient, tmp_path: Path) -> None:
    """400 names the index and field of each invalid log; none of the batch is stored."""
    logs = [make_log(), make_log(timestamp="10"), make_log(), make_log(level="", host="a")]
    body = assert_rejected(drain(client, {"logs": logs}), 400, "invalid_batch", tmp_path)
    assert "2 of 4 logs are invalid; nothing was stored" == body["message"]
    assert ["1", "3"] == sorted(body["errors"]["logs"])
    assert ["timestamp"] == list(body["errors"]["logs"]["1"])
    assert ["host", "level"] == sorted(body["errors"]["logs"]["3"])
    assert 200 == drain(client, {"logs": [logs[0], logs[2]]}).status_code
    assert 2 == len(stored(tmp_path))


@pytest.mark.parametrize("timestamp", ["9999-W52-7", "9999-W53-7", "9999-12-31T23:59:60Z"])
def test_timestamp_after_the_year_9999_is_rejected(
    client: FlaskClient, tmp_path: Path, timestamp: str
) -> None:
    """It is 400, in any form."""
    response = drain(client, {"logs": [make_log(timestamp=timestamp)]})
    body = assert_rejected(response, 400, "invalid_batch", tmp_path)
    assert ["timestamp"] == list(body["errors"]["logs"]["0"])


def test_a_body_too_large_is_rejected_before_it_is_read(
    client: FlaskClient, tmp_path: Path
) -> None:
    """413 costs the client only its headers."""
    response = drain_unread(client, CONTENT_LENGTH=str(10 * 1024 * 1024 + 1))
    assert_rejected(response, 413, "body_too_large", tmp_path)


def test_an_unknown_encoding_is_rejected_before_the_body_is_read(
    client: FlaskClient, tmp_path: Path
) -> None:
    """415 costs the client only its headers."""
    response = drain_unread(client, HTTP_CONTENT_ENCODING="br")
    assert_rejected(response, 415, "unsupported_encoding", tmp_path)


def test_body_that_is_not_gzip_is_rejected(client: FlaskClient, tmp_path: Path) -> None:
    """A body that declares gzip and is not gzip is 400."""
    response = drain(client, EXAMPLE, Content_Encoding="gzip")
    assert_rejected(response, 400, "invalid_encoding", tmp_path)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "storage_full"), (errno.EIO, "storage_failed")]
)
def test_a_batch_that_cannot_be_stored_is_rejected(
    client: FlaskClient,
    tmp_path: Path,
    break_os: BreakOs,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: str,
) -> None:
    """The message of the 503 states that nothing was stored and that a retry can succeed."""
    monkeypatch.setattr(Storage, "is_maintenance_due", lambda storage: False)  # or it recovers
    break_os("writev", number)
    assert_rejected(drain(client, EXAMPLE), 503, code, tmp_path)
    assert_rejected(drain_unread(client), 503, code, tmp_path)
    ready = client.get("/ready")
    assert (503, {"status": "unavailable", "reason": code}) == (ready.status_code, ready.json)


def test_a_full_disk_rejects_and_recovers(
    make_app: MakeApp, settings: Settings, disk: Disk, tmp_path: Path
) -> None:
    """With too little free disk, batches are rejected; stored ones stay."""
    client = make_app(replace(settings, min_free_bytes=1000)).test_client()
    assert 200 == drain(client, EXAMPLE).status_code
    disk.free = 1000
    assert 503 == drain(client, EXAMPLE).status_code
    assert 1 == len(stored(tmp_path))


def test_a_body_without_room_is_rejected(
    make_app: MakeApp, settings: Settings, tmp_path: Path
) -> None:
    """A queue without room for the body rejects it before it is read."""
    app = make_app(replace(settings, queue_bytes=settings.max_body_bytes))
    with closing(services_of(app).queue.admit(b"another")) as reservation:
        reservation.resize(1000)
        answer = drain_unread(app.test_client(), CONTENT_LENGTH=str(settings.max_body_bytes))
    assert_rejected(answer, 503, "queue_full", tmp_path)


def test_a_stopping_service_rejects_before_the_body_is_read(
    make_app: MakeApp, settings: Settings, tmp_path: Path
) -> None:
    """During the stop no batch is accepted, but the process is still healthy."""
    app = make_app(settings)
    services_of(app).queue.stop(1)
    client = app.test_client()
    assert_rejected(drain_unread(client), 503, "stopping", tmp_path)
    ready = client.get("/ready")
    assert (503, {"status": "unavailable", "reason": "stopping"}) == (ready.status_code, ready.json)
    assert "1" == ready.headers["Retry-After"]
    assert 200 == client.get("/health").status_code


def test_internal_error_has_no_details(
    client: FlaskClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An unexpected error is 500 `internal`, without its text."""

    def fail(*args: object) -> None:
        raise ZeroDivisionError(f"secret {tmp_path}")

    monkeypatch.setattr("astralog.store.commit_queue.CommitQueue.commit", fail)
    response = drain(client, EXAMPLE)
    assert_rejected(response, 500, "internal", tmp_path)
    assert "secret" not in response.text
    assert "secret" in caplog.text


def test_rejected_request_releases_its_memory(client: FlaskClient, tmp_path: Path) -> None:
    """Every way out of a request releases its memory."""
    app = client.application
    for body in (EXAMPLE, b"", b"{}", b'{"logs": [{}]}', b'{"logs": []}'):
        drain(client, body)
        drain(client, body, Content_Encoding="gzip")
        drain(client, body, Content_Encoding="br")
        drain(client, body, Authorization="wrong")
    assert 0 == services_of(app).queue.budget.reserved
    assert 1 == len(stored(tmp_path))


# --- Other paths and methods


@pytest.mark.parametrize("path", ["/v1", "/v1/drain/", "/v2/drain", "/static/x", "/metric"])
def test_another_path_is_not_found(client: FlaskClient, tmp_path: Path, path: str) -> None:
    """The 404 names the path that accepts logs."""
    body = assert_rejected(client.post(path, data=EXAMPLE), 404, "not_found", tmp_path)
    assert "/v1/drain" in body["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_another_method_is_not_allowed(client: FlaskClient, tmp_path: Path, method: str) -> None:
    """405 names the methods of the path."""
    response = client.open("/v1/drain", method=method, headers={"Authorization": TOKEN})
    assert_rejected(response, 405, "method_not_allowed", tmp_path)
    assert "POST" == response.headers["Allow"]


# --- Health


@pytest.mark.parametrize(
    ("path", "expected"), [("/health", {"status": "ok"}), ("/ready", {"status": "ready"})]
)
def test_health_needs_no_token(client: FlaskClient, path: str, expected: dict[str, str]) -> None:
    """Load balancers may also use HEAD."""
    response = client.get(path)
    assert (200, expected) == (response.status_code, response.json)
    head = client.head(path)
    assert (200, b"") == (head.status_code, head.data)


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_accepts_no_post(client: FlaskClient, path: str) -> None:
    """The health checks do not support POST."""
    assert 405 == client.post(path).status_code


def test_health_does_not_access_the_disk(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs does not make the process unhealthy."""

    def touched(*args: object) -> None:
        raise AssertionError("the disk was touched")

    with monkeypatch.context() as patch:
        for name in ("open", "stat", "statvfs", "fsync", "fdatasync", "writev"):
            patch.setattr(f"os.{name}", touched)
        statuses = [client.get(path).status_code for path in ("/health", "/ready")]
    assert [200, 200] == statuses


# --- NDJSON, the dry run, and tokens bound to projects

HEADERS = {"Authorization": TOKEN}


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "Application/X-NDJSON; a=b",
    ],
)
def test_body_with_one_log_per_line_is_stored(
    client: FlaskClient, tmp_path: Path, content_type: str
) -> None:
    """The content type marks a body as NDJSON."""
    body = "\n".join(json.dumps(make_log(message=text)) for text in "ab")
    answer = client.post("/v1/drain", data=body, headers=HEADERS, content_type=content_type)
    assert (200, b'{"status":"accepted"}') == (answer.status_code, answer.data)
    (path,) = tmp_path.glob("*.ndjson.open")
    assert ["a", "b"] == [json.loads(text)["message"] for text in path.read_text().splitlines()]
    answer = client.post("/v1/drain", data=body, headers=HEADERS, content_type="application/json")
    assert 400 == answer.status_code


def test_a_dry_run_shows_a_batch_and_stores_nothing(client: FlaskClient, tmp_path: Path) -> None:
    """The response has the first logs in their stored form."""
    logs = [make_log(timestamp="2024-05-31 15:30", message=str(number)) for number in range(30)]
    answer = client.post("/v1/drain?dry_run=true", json={"logs": logs}, headers=HEADERS)
    expected = [log | {"timestamp": "2024-05-31T15:30:00Z"} for log in logs[:20]]
    assert (200, {"status": "valid", "logs": expected}) == (answer.status_code, answer.json)
    assert [] == list(tmp_path.glob("*.ndjson*"))


@pytest.mark.parametrize(
    ("query", "body", "expected"),
    [
        ("dry_run=1", {"logs": []}, {"status": "valid", "logs": []}),
        ("dry_run=false", {"logs": []}, {"status": "accepted"}),
        ("dry_run=0", {"logs": []}, {"status": "accepted"}),
    ],
)
def test_only_true_makes_a_dry_run(
    client: FlaskClient, query: str, body: Any, expected: Any
) -> None:
    """Only dry_run=true is a dry run."""
    assert expected == client.post(f"/v1/drain?{query}", json=body, headers=HEADERS).json


FOREIGN = {"timestamp": "2024-05-31T15:30:45Z", "message": "m", "host": "h"}
FILLED = {"project_id": "p", "level": "i", "service": "s"}
OPTIONS = "project_id=p&level=i&service=s&unknown=metadata"


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
def test_query_options_complete_the_logs_of_a_sender(
    client: FlaskClient, tmp_path: Path, kind: str
) -> None:
    """Missing fields are filled in, and unknown ones are stored under metadata."""
    body = json.dumps({"logs": [FOREIGN]} if kind == "application/json" else FOREIGN)
    path = "/v1/drain"
    assert 400 == client.post(path, data=body, headers=HEADERS, content_type=kind).status_code
    answer = client.post(f"{path}?{OPTIONS}", data=body, headers=HEADERS, content_type=kind)
    assert (200, b'{"status":"accepted"}') == (answer.status_code, answer.data)
    (log,) = stored(tmp_path)
    assert log == FILLED | {
        "timestamp": FOREIGN["timestamp"],
        "message": "m",
        "metadata": {"host": "h"},
    }


def test_valid_logs_are_stored_with_partial(
    client: FlaskClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The response has the number of invalid logs and their errors; without partial, 400."""
    lines = "\n".join(map(json.dumps, [make_log(message="a"), make_log(level=""), make_log()]))
    headers = HEADERS | {"Content-Type": "application/x-ndjson"}
    assert 400 == client.post("/v1/drain", data=lines, headers=headers).status_code
    assert [] == stored(tmp_path)
    left_out = {"rejected": 1, "errors": {"logs": {"2": {"level": ["Must not be empty."]}}}}
    dry = client.post("/v1/drain?partial=true&dry_run=true", data=lines, headers=headers)
    valid = [make_log(message="a"), make_log()]
    assert (200, {"status": "valid", "logs": valid} | left_out) == (dry.status_code, dry.json)
    assert [] == stored(tmp_path)
    caplog.clear()
    other = {"REMOTE_ADDR": "192.0.2.7"}
    answer = client.post(
        "/v1/drain?partial=true", data=lines, headers=headers, environ_overrides=other
    )
    assert (200, {"status": "accepted"} | left_out) == (answer.status_code, answer.json)
    assert valid == stored(tmp_path)
    (line,) = (text for text in caplog.messages if "rejected" in text)
    assert "192.0.2.7" in line
    assert "1 logs are invalid; the others were stored; logs.2.level: Must not be empty." in line


@pytest.mark.parametrize("query", ["dryrun=true", "partial=", "level=a&level=b", "unknown=drop"])
def test_malformed_query_is_rejected(client: FlaskClient, tmp_path: Path, query: str) -> None:
    """An unknown, empty, repeated or wrong parameter is named before the body is read."""
    body = assert_rejected(drain_unread(client, QUERY_STRING=query), 400, "bad_request", tmp_path)
    assert query.partition("=")[0] in body["message"]


@pytest.mark.parametrize(
    ("query", "code"), [("dry_run=true", "invalid_batch"), ("dry_run=maybe", "bad_request")]
)
def test_a_dry_run_rejects_as_usual(client: FlaskClient, query: str, code: str) -> None:
    """A dry run rejects an invalid batch and a malformed query like any request."""
    body = {"logs": [make_log(level="")]}
    answer = client.post(f"/v1/drain?{query}", json=body, headers=HEADERS)
    assert answer.json is not None
    assert (400, code) == (answer.status_code, answer.json["code"])


def test_a_token_writes_only_its_projects(
    make_app: MakeApp, settings: Settings, tmp_path: Path
) -> None:
    """A batch with another project is rejected whole, in any form and as a dry run."""
    path = tmp_path / "tokens"
    path.write_text("bound org-xyz other\n")
    changed = replace(settings, tokens="", tokens_file=str(path))
    client = make_app(changed).test_client()
    headers = {"Authorization": "bound"}
    mine, theirs = make_log(), make_log(project_id="theirs")
    assert 200 == client.post("/v1/drain", json={"logs": [mine]}, headers=headers).status_code
    ndjson = {**headers, "Content-Type": "application/x-ndjson"}
    lines = f"{json.dumps(mine)}\n{json.dumps(theirs)}"
    queries = ("", "?dry_run=true", "?partial=true", "?unknown=metadata")
    for path_and_query in (f"/v1/drain{query}" for query in queries):
        for answer in (
            client.post(path_and_query, json={"logs": [mine, theirs]}, headers=headers),
            client.post(path_and_query, data=lines, headers=ndjson),
        ):
            assert answer.json is not None
            assert (403, "forbidden_project") == (answer.status_code, answer.json["code"])
            assert "'theirs'" in answer.json["message"]
    del theirs["project_id"]
    answer = client.post("/v1/drain?project_id=a", json={"logs": [theirs]}, headers=headers)
    assert 403 == answer.status_code
    (stored,) = tmp_path.glob("*.ndjson.open")
    assert 1 == len(stored.read_text().splitlines())
