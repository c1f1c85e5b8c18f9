"""Responses to OpenTelemetry: OTLP's own messages, in the encoding of the request."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask import Flask
from flask.testing import FlaskClient
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from astralog.api import otlp
from astralog.api.pages import NOT_OF_BATCHES
from astralog.errors import STATUS_OF_CODE
from astralog.intake.otlp_protobuf import Protobuf
from astralog.settings import Settings
from tests.support.fake_system import Disk
from tests.support.otlp import JSON, PROTOBUF, encode, make_export, make_record, to_json
from tests.support.segment_files import stored
from tests.support.service import ROOT, TOKEN


class Answer(NamedTuple):
    """A response: `body` is its message as JSON."""

    status: int
    body: dict[str, Any]
    headers: Any


@pytest.fixture(params=[PROTOBUF, JSON])
def kind(request: pytest.FixtureRequest) -> str:
    """Return the media type of an encoding."""
    found: str = request.param
    return found


def post(
    client: FlaskClient, body: bytes, kind: str, path: str = "/v1/logs", **headers: str
) -> Answer:
    """Send a body, and decode the response of the same Content-Type."""
    headers = {"Authorization": TOKEN, "Content-Type": kind} | headers
    response = client.post(path, data=body, headers=headers, content_length=len(body))
    assert kind == response.content_type
    if kind == JSON:
        return Answer(response.status_code, response.get_json(), response.headers)
    if response.status_code == 200:
        success = ExportLogsServiceResponse.FromString(response.data)
        partial = success.partial_success
        shown = {
            "rejectedLogRecords": str(partial.rejected_log_records),
            "errorMessage": partial.error_message,
        }
        found = {"partialSuccess": shown} if success.HasField("partial_success") else {}
        return Answer(200, found, response.headers)
    status = Status.FromString(response.data)
    return Answer(
        response.status_code, {"code": status.code, "message": status.message}, response.headers
    )


def test_an_export_is_stored(client: FlaskClient, settings: Settings, kind: str) -> None:
    """200 with an empty message means that every log is in a file."""
    body = encode(make_export(make_record("a"), make_record("b")), kind)
    assert (200, {}) == post(client, body, kind)[:2]
    assert 2 == stored(settings.data_dir).count(b'{"project_id":"org-xyz"')
    assert (200, {}) == post(client, b"" if kind == PROTOBUF else b"{}", kind)[:2]


@pytest.mark.parametrize("kind", [f"{PROTOBUF}; charset=x", "application/PROTOBUF", "", "text/x"])
def test_body_not_declared_as_protobuf_is_json(client: FlaskClient, kind: str) -> None:
    """Users of curl forget the header."""
    is_protobuf = "proto" in kind.lower()
    body = encode(make_export(make_record()), PROTOBUF if is_protobuf else JSON)
    headers = {"Authorization": TOKEN, "Content-Type": kind}
    response = client.post("/v1/logs", data=body, headers=headers)
    expected = (200, PROTOBUF if is_protobuf else JSON)
    assert expected == (response.status_code, response.content_type)


def test_an_invalid_export_is_rejected_whole(
    client: FlaskClient, settings: Settings, kind: str
) -> None:
    """The message has the code, the number of invalid logs, their index and their error."""
    body = encode(make_export(make_record(), make_record(trace_id=b"x")), kind)
    status, answer, _ = post(client, body, kind)
    assert (400, Code.INVALID_ARGUMENT) == (status, answer["code"])
    assert answer["message"].startswith(
        "invalid_batch: 1 of 2 logs are invalid; nothing was stored; log 1: trace_id: Must have 16"
    )
    assert b"" == stored(settings.data_dir)


def test_partial_success_reports_invalid_logs(
    client: FlaskClient, settings: Settings, kind: str
) -> None:
    """With partial=true, the valid logs are stored."""
    body = encode(make_export(make_record("kept"), *[make_record(span_id=b"x")] * 9), kind)
    status, answer, _ = post(client, body, kind, "/v1/logs?partial=true")
    partial = answer["partialSuccess"]
    assert (200, "9") == (status, partial["rejectedLogRecords"])
    assert partial["errorMessage"].startswith(
        "invalid_batch: 9 logs are invalid; the others were stored; log 1: span_id:"
    )
    assert "log 3" in partial["errorMessage"]
    assert "log 4" not in partial["errorMessage"]
    assert 1 == stored(settings.data_dir).count(b"\n")
    assert b"kept" in stored(settings.data_dir)


def test_rejection_has_its_code(
    client: FlaskClient, settings: Settings, kind: str, disk: Disk
) -> None:
    """Each has its status, the code of google.rpc and the usual headers."""
    body = encode(make_export(make_record()), kind)
    unauthorized = post(client, body, kind, Authorization="wrong")
    assert (401, Code.UNAUTHENTICATED) == (unauthorized.status, unauthorized.body["code"])
    assert "Bearer" == unauthorized.headers["WWW-Authenticate"]
    for query in ("dry_run=true", "unknown=metadata", "typo=1"):
        status, answer, _ = post(client, body, kind, f"/v1/logs?{query}")
        assert (400, Code.INVALID_ARGUMENT) == (status, answer["code"])
        assert answer["message"].startswith("bad_request: There is no query parameter")
    status, answer, _ = post(client, b"\x0a", kind)
    expected = "invalid_protobuf: " if kind == PROTOBUF else "invalid_json: "
    assert (400, expected) == (status, answer["message"][: len(expected)])
    disk.free = -1
    full = post(client, body, kind)
    assert (503, Code.UNAVAILABLE) == (full.status, full.body["code"])
    assert "5" == full.headers["Retry-After"]
    assert full.body["message"].startswith("storage_full: ")
    assert b"" == stored(settings.data_dir)


def test_every_code_has_a_google_rpc_code(client: FlaskClient, kind: str) -> None:
    """None of them is OK."""
    for code, status in STATUS_OF_CODE.items():
        if code not in NOT_OF_BATCHES or code == "not_found":
            assert otlp.CODE_OF_STATUS[status] in Code.values()


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_other_signals_are_rejected_clearly(client: FlaskClient, kind: str, signal: str) -> None:
    """The message names the path for logs and the setting that disables the other signals."""
    status, answer, _ = post(client, b"anything", kind, f"/v1/{signal}")
    assert (404, Code.UNIMPLEMENTED) == (status, answer["code"])
    assert answer["message"].startswith("not_found: AstraLog accepts logs at /v1/logs, but no")
    assert f"OTEL_{signal.upper()}_EXPORTER=none" in answer["message"]


def test_a_failure_is_a_500_without_details(
    client: FlaskClient, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The details are only in the service's own log."""

    def fail(*arguments: object) -> None:
        raise OSError(5, "secret", "/srv/secret")

    monkeypatch.setattr(otlp, "decode", fail)
    status, answer, _ = post(client, b"", kind)
    assert (500, Code.INTERNAL) == (status, answer["code"])
    assert "secret" not in answer["message"]


def test_rejection_is_logged_and_counted(
    make_app: Callable[[Settings], Flask], settings: Settings, kind: str
) -> None:
    """As for a drain: in the log, and under its code in the metrics."""
    app = make_app(settings)
    client = app.test_client()
    post(client, b"\x0a", kind)
    post(client, encode(make_export(make_record()), kind), kind)
    metrics = client.get("/metrics").get_data(as_text=True)
    code = "invalid_protobuf" if kind == PROTOBUF else "invalid_json"
    assert f'astralog_rejected_batches_total{{code="{code}"}} 1.0' in metrics
    assert "astralog_accepted_logs_total 1.0" in metrics


def test_a_bound_token_needs_no_project(
    make_app: Callable[[Settings], Flask], settings: Settings, tmp_path: Path
) -> None:
    """The token's only project is that of its logs; another project is forbidden."""
    (tmp_path / "tokens").write_text("bound mine\n")
    settings = replace(settings, tokens="", tokens_file=str(tmp_path / "tokens"))
    client = make_app(settings).test_client()
    bare, named = make_export(make_record(), resource={}), make_export(make_record())
    assert 200 == post(client, to_json(bare), JSON, Authorization="bound").status
    status, answer, _ = post(client, to_json(named), JSON, Authorization="bound")
    assert (403, Code.PERMISSION_DENIED) == (status, answer["code"])
    lines = stored(settings.data_dir)
    assert (1, 1) == (lines.count(b'"project_id":"mine"'), lines.count(b"\n"))


@pytest.mark.parametrize("kind", ["application/octet-stream", "", "application/grpc"])
def test_undeclared_protobuf_is_explained(client: FlaskClient, kind: str) -> None:
    """A sender that forgot the Content-Type gets a hint; a sender of JSON does not."""
    body = encode(make_export(make_record("a")), PROTOBUF)
    headers = {"Authorization": TOKEN, "Content-Type": kind}
    message = client.post("/v1/logs", data=body, headers=headers).get_json()["message"]
    assert message.startswith("invalid_json: ")
    assert message.endswith("; protobuf is sent with the Content-Type application/x-protobuf")
    assert "protobuf" not in post(client, b"{", JSON).body["message"]


def test_hint_follows_a_message_that_is_a_sentence(client: FlaskClient) -> None:
    """A message that ends with a period loses it before the hint."""
    headers = {"Authorization": TOKEN, "Content-Type": ""}
    message = client.post("/v1/logs", data=b'{"logs": []}', headers=headers).get_json()["message"]
    assert "POST /v1/drain; protobuf is sent" in message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
def test_export_that_is_not_utf8_is_explained(client: FlaskClient, encoding: str) -> None:
    """The message is that of a drained batch."""
    status, body, _ = post(client, '{"resourceLogs": []}'.encode(encoding), JSON)
    words = "byte order mark" if encoding == "utf-8-sig" else "UTF-16 or UTF-32"
    assert (400, True) == (status, words in body["message"])


def test_an_export_of_another_charset_is_rejected(client: FlaskClient) -> None:
    """In OTLP's own form, and only if it is text."""
    declared = "application/json; charset=iso-8859-1"
    headers = {"Authorization": TOKEN, "Content-Type": declared}
    answer = client.post("/v1/logs", data=b"{}", headers=headers)
    assert 415 == answer.status_code
    assert answer.get_json()["message"].startswith("unsupported_charset: ")


def test_an_export_without_a_length_is_rejected(client: FlaskClient, kind: str) -> None:
    """In OTLP's own form."""
    headers = {"Authorization": TOKEN, "Content-Type": kind}
    answer = client.post("/v1/logs", headers=headers, environ_overrides={"CONTENT_LENGTH": ""})
    assert (411, kind) == (answer.status_code, answer.content_type)
    assert b"length_required: " in answer.data


def test_status_message_is_googles() -> None:
    """The Status has the bytes of google.rpc's own message."""
    sent = Protobuf.encode_status(3, "ä")
    expected: Message = Status(code=3, message="ä")
    assert expected.SerializeToString() == sent


@pytest.mark.slow
def test_protobuf_is_imported_on_first_use() -> None:
    """Its decoder is imported with the first protobuf body."""
    code = (
        "import sys; from astralog.app import create_app; from astralog.settings import Settings\n"
        "client = create_app(Settings(tokens='t')).test_client()\n"
        "headers = {'Authorization': 't', 'Content-Type': sys.argv[1]}\n"
        "body = {'data': sys.argv[2], 'content_length': len(sys.argv[2])}\n"
        "assert client.post('/v1/logs', **body, headers=headers).status_code == 200\n"
        "print(any(name.startswith('google.protobuf') for name in sys.modules))"
    )
    for kind, body, expected in ((JSON, "{}", "False\n"), (PROTOBUF, "", "True\n")):
        command = [sys.executable, "-c", code, kind, body]
        assert expected == subprocess.check_output(command, cwd=ROOT, text=True)
