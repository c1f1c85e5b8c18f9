"""Logs from OpenTelemetry's SDK for Python are stored, through kills and restarts."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.connections import free_port
from tests.support.otlp import JSON, PROTOBUF, encode, make_export, make_record
from tests.support.service import ROOT, TOKEN, Service, wait_for

APP = ROOT / "tests" / "support" / "otel_app.py"

#: The encodings and the packages that bring their exporters; that of JSON is not part of the SDK.
EXPORTERS = {
    "protobuf": "opentelemetry.exporter.otlp.proto.http",
    "json": "opentelemetry.exporter.otlp.json",
}


class Application:
    """A process that logs through the SDK, configured by environment variables alone."""

    def __init__(self, service: Service, encoding: str, count: int, pause: float = 0) -> None:
        port = service.address[1]
        environ = os.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization={TOKEN}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
            "OTEL_BLRP_MAX_QUEUE_SIZE": "10000",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=shop,project_id=org-xyz",
        }
        command = [sys.executable, str(APP), encoding, str(count), str(pause)]
        self.process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait(self) -> tuple[set[int], str]:
        """Return the acknowledged numbers, and the errors that the SDK reported."""
        out, err = self.process.communicate(timeout=100)
        assert 0 == self.process.returncode, err
        return set(map(int, out.split())), err


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as running:
        yield running


@pytest.fixture(params=list(EXPORTERS))
def encoding(request: pytest.FixtureRequest) -> str:
    """Return an encoding whose exporter is installed."""
    package = EXPORTERS[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"NOT TESTED: {package} is not installed")
    found: str = request.param
    return found


def number_of(log: dict[str, Any]) -> int:
    return int(log["message"].removeprefix("order "))


def test_the_sdk_sends_its_logs(service: Service, encoding: str) -> None:
    """An application needs only two variables and a project."""
    stored, complaints = Application(service, encoding, 1000).wait()
    assert (set(range(1000)), "") == (stored, complaints)
    logs = service.logs()
    assert list(range(1000)) == sorted(map(number_of, logs))
    for log in logs:
        metadata = log["metadata"]
        assert ("org-xyz", "WARN", "shop") == (log["project_id"], log["level"], log["service"])
        assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{9}Z", log["timestamp"])
        attributes = metadata["attributes"]
        assert (number_of(log), True, ["a"]) == (
            attributes["order"],
            attributes["ok"],
            attributes["parts"],
        )
        assert re.fullmatch("[0-9a-f]{32}", metadata["trace_id"])
        assert re.fullmatch("[0-9a-f]{16}", metadata["span_id"])
        assert (13, "shop.orders") == (metadata["severity_number"], metadata["scope"]["name"])
        assert "shop" == metadata["resource"]["attributes"]["service.name"]


def test_nothing_acknowledged_is_lost_when_the_service_dies(tmp_path: Path, encoding: str) -> None:
    """The SDK retries unanswered exports, and acknowledged ones are stored."""
    with Service(tmp_path, bind=f"127.0.0.1:{free_port()}") as service:
        application = Application(service, encoding, 3000, pause=0.1)
        for seen in (0, 1000):
            wait_for(lambda seen=seen: service.content().count(b"\n") > seen)  # type: ignore[misc]
            service.kill()
            service.start()
        stored, _ = application.wait()
        assert set(range(3000)) == stored == set(map(number_of, service.logs()))


def test_a_rejected_export_is_not_sent_again(tmp_path: Path, encoding: str) -> None:
    """The rejection is permanent: the SDK reports the service's message, and continues."""
    with Service(tmp_path, tokens="another") as service:
        stored, complaints = Application(service, encoding, 10).wait()
        assert set() == stored
        assert "401" in complaints or "Unauthorized" in complaints
        assert [] == service.logs()
        metrics = service.request("GET", "/metrics").raw
        assert b'astralog_rejected_batches_total{code="unauthorized"} 1.0' in metrics


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_full_disk_is_answered_with_retry_after(tmp_path: Path, kind: str) -> None:
    """The 503 is in the encoding of the request."""
    body = encode(make_export(*[make_record()] * 100), kind)
    headers = {"Authorization": TOKEN, "Content-Type": kind}
    with Service(tmp_path, min_free_bytes=2**60) as service:
        answer = service.request("POST", "/v1/logs", body, headers)
        assert (503, kind) == (answer.status, answer.headers["Content-Type"])
        assert "5" == answer.headers["Retry-After"]
        assert b"storage_full" in answer.raw
        assert [] == service.logs()
