"""Real senders: the recipes of docs/senders.md, run with their programs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.connections import free_port
from tests.support.fake_service import FakeService, reject
from tests.support.otlp import PROTOBUF, encode, make_export, make_record
from tests.support.service import ROOT, TOKEN, Service, make_batch, wait_for
from tests.support.syslog_ng import DESTINATIONS, SyslogNg, find_syslog_ng, make_message

RECIPES = (ROOT / "docs" / "senders.md").read_text()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as running:
        yield running


@pytest.mark.parametrize("program", ["gzip", "zstd"])
def test_curl_sends_a_compressed_file(tmp_path: Path, service: Service, program: str) -> None:
    """A file goes from a compressor through curl to the disk."""
    if shutil.which(program) is None:
        pytest.skip(f"NOT TESTED: {program} is not installed")
    (tmp_path / "batch.json").write_text(json.dumps(make_batch("a", "b", "c")))
    url = f"http://127.0.0.1:{service.address[1]}/v1/drain"
    headers = f'-H "Authorization: {TOKEN}" -H "Content-Encoding: {program}"'
    line = f"{program} -c batch.json | curl -sf {url} {headers} --data-binary @-"
    subprocess.run(["bash", "-ec", line], cwd=tmp_path, check=True)
    assert 3 == len(service.logs())


def test_the_logging_handler_works(tmp_path: Path, service: Service) -> None:
    """A program's logs through the Python client are stored as it logged them."""
    (code,) = re.findall(r"```python\n(.*?)```", RECIPES, re.DOTALL)
    (tmp_path / "data" / "token").write_text(TOKEN + "\n")
    code = code.replace("localhost:8080", f"127.0.0.1:{service.address[1]}")
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python")}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, env=environ, check=True, timeout=30)
    (log,) = service.logs()
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{6}Z", log.pop("timestamp"))
    assert isinstance(log["metadata"].pop("line"), int)
    expected = {"project_id": "org-xyz", "level": "info", "service": "billing"}
    metadata = {"logger": "root", "file": "<string>", "order": "A-17"}
    assert expected | {"message": "paid 7", "metadata": metadata} == log


def test_splunk_handler_retries_by_its_recipe(tmp_path: Path) -> None:
    """It sends the same bytes again after a 503, with the query that stores them once."""
    (code,) = re.findall(r"```py\n(import logging\nfrom splunk.*?)```", RECIPES, re.DOTALL)
    with FakeService() as fake:
        fake.answers.append(reject(503, "storage_full", Retry_After="0"))
        port = str(urlsplit(fake.url).port)
        code = code.replace("localhost", "127.0.0.1").replace("8080", port)
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    first, second = fake.requests
    assert first.path == second.path == "/services/collector/event?once=body"
    assert first.body == second.body
    assert b"paid 7" in first.body


#: Logs whatever a program may log, in the order in which it is stored.
ODD = """
odd = [
    "", "control \\x01\\x1b[2J\\x7f\\t\\r\\n", "nul \\0 after", 'quote " \\\\ {"a":1}', "123",
    "null", "1e999", "long " * 500_000, 5, {"a": 1}, None, b"\\xff", float("nan"),
]
for value in odd:
    logger.info(value, extra={"odd": value, "\\0": "name"})
"""

#: How the SDK of OpenTelemetry is set up in a program, where its documentation's agent does not.
SDK = """
import logging
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

provider = LoggerProvider()
provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
logger = logging.getLogger("shop")
logger.propagate = False
logger.setLevel(logging.INFO)
logger.addHandler(LoggingHandler(logger_provider=provider))
"""

CLIENT = """
import logging, os
from astralog_logging import AstraLogHandler

options = {"project_id": "org-xyz", "service": "shop", "token": os.environ["TOKEN"]}
handler = AstraLogHandler(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"], **options)
logging.basicConfig(level=logging.INFO, handlers=[handler])
logger = logging.getLogger("shop")
"""


def run_program(service: Service, code: str) -> str:
    """Run a program that logs to the service; return its stderr."""
    environ = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{service.address[1]}",
        "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization={TOKEN}",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=shop,project_id=org-xyz",
        "TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT / "clients" / "python"),
    }
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(
        command, env=environ, check=True, timeout=60, stderr=subprocess.PIPE, text=True
    )
    return result.stderr


@pytest.mark.parametrize(
    "program", [CLIENT, SDK + "import atexit; atexit.register(provider.shutdown)"]
)
def test_programs_may_log_anything(service: Service, program: str) -> None:
    """Each log is stored, in order, without an error message."""
    assert "" == run_program(service, program + ODD)
    messages = [log["message"] for log in service.logs()]
    texts = ["", "control \x01\x1b[2J\x7f\t\r\n", "nul \0 after", 'quote " \\ {"a":1}']
    assert [*texts, "123", "null", "1e999", "long " * 500_000, "5"] == messages[:9]
    assert 13 == len(messages)


def test_half_a_character_costs_the_sdk_its_export(service: Service) -> None:
    """The SDK reports it, as documented, and continues; the client stores U+FFFD."""
    code = 'logger.info("half \\ud83d")\n'
    shutdown = "provider.force_flush()\nlogger.info('after')\nprovider.shutdown()"
    assert "Failed to encode logs batch" in run_program(service, SDK + code + shutdown)
    assert "" == run_program(service, CLIENT + code)
    assert ["after", "half \ufffd"] == [log["message"] for log in service.logs()]


#: What the programs send whose recipes cannot be run here, as their documentation has it.
LINES: dict[str, dict[str, object]] = {
    "fluent bit": {"timestamp": "2024-05-31T15:30:45.123456Z", "message": "paid", "order": 7},
    "docker": {
        "timestamp": "2024-05-31T15:30:45.000000Z",
        "container_id": "4f1c",
        "service": "/shop",
        "source": "stdout",
        "message": "paid",
    },
    "vector": {
        "file": "/var/log/shop/a.log",
        "host": "host-1",
        "message": "paid",
        "source_type": "file",
        "timestamp": "2024-05-31T15:30:45.123456789Z",
    },
    "logstash": {
        "timestamp": "2024-05-31T15:30:45.123Z",
        "message": "paid",
        "metadata": {"host": "host-1", "file": "/var/log/shop/a.log"},
    },
}


def test_recipes_store_complete_logs(service: Service) -> None:
    """Each program's logs are stored completely, in the form that its recipe describes."""
    found = set(re.findall(r"/v1/drain(\?[\w=&,-]+)", RECIPES))
    queries = {query for query in found if "_field=" not in query}  # those: test_any_json
    assert 5 == len(queries)
    for query in queries - {"?partial=true", "?once=body"}:  # of syslog-ng and jq: whole logs
        for line in LINES.values():
            if "metadata" not in line and "unknown" not in query:
                continue
            headers = {"Authorization": TOKEN, "Content-Type": "application/x-ndjson"}
            answer = service.request("POST", f"/v1/drain{query}", json.dumps(line), headers)
            assert (200, {"status": "accepted"}) == (answer.status, answer.body)
    for log in service.logs():
        assert ("org-xyz", "info", "paid") == (log["project_id"], log["level"], log["message"])
        assert log["metadata"]
    queries = set(re.findall(r"/v1/logs(\?[^\s\"`]+)", RECIPES))
    assert 5 == len(queries)
    for query in queries:
        body = encode(make_export(make_record(), resource={}), PROTOBUF)
        headers = {"Authorization": TOKEN, "Content-Type": PROTOBUF}
        answer = service.request("POST", f"/v1/logs{query}", body, headers)
        assert (200, b"") == (answer.status, answer.raw)


#: Records as Fluent Bit sends them by the recipe for its output `http`, after its filter.
RECORDS: list[dict[str, object]] = [
    {"message": "a level of pino's", "level": 30},
    {"message": "a numeric service", "service": 5, "project_id": 7},
    {"message": "its own time", "record_timestamp": 1577836800},
    {"message": {"text": "an object"}},
    {"message": ["a list", None]},
    {"message": 5},
    {"message": "", "record_metadata": "x", "odd": [1.5, "\0"]},
    {"message": "nothing of its own", "level": None, "service": None},
]

#: Those that the recipe says are left out.
NO_NAMES: list[object] = ["", [], {}]
LEFT_OUT: list[dict[str, object]] = [
    {"no": "message"},
    {"message": None},
    *[{"message": "m", "level": value} for value in NO_NAMES],
    *[{"message": "m", "service": value} for value in NO_NAMES],
]


def test_the_records_of_fluent_bit_are_stored(service: Service) -> None:
    """All except those that its recipe names, and each of these is counted."""
    for line in ("timestamp record_timestamp", "metadata record_metadata", "log message"):
        assert f"Rename                    {line}\n" in RECIPES
    (query,) = set(
        re.findall(r"/v1/drain(\?project_id=[\w-]+&service=shop\S+unknown=metadata\S+)", RECIPES)
    )
    stamp = {"timestamp": "2024-05-31T15:30:45.123456Z"}
    body = "\n".join(json.dumps(record | stamp) for record in RECORDS + LEFT_OUT)
    headers = {"Authorization": TOKEN, "Content-Type": "application/x-ndjson"}
    answer = service.request("POST", f"/v1/drain{query}", body, headers)
    assert (200, len(LEFT_OUT)) == (answer.status, answer.body["rejected"])
    logs = service.logs()
    assert ["30", "info"] == [logs[0]["level"], logs[-1]["level"]]
    assert ["5", "7"] == [logs[1]["service"], logs[1]["project_id"]]
    assert 1577836800 == logs[2]["metadata"]["record_timestamp"]
    texts = ['{"text": "an object"}', '["a list", null]', "5"]
    assert texts == [log["message"] for log in logs[3:6]]
    assert {"record_metadata": "x", "odd": [1.5, "\0"]} == logs[6]["metadata"]
    assert "rejected invalid_batch" in service.log()


@pytest.fixture
def syslog_ng() -> None:
    """Skip a test if the program is missing."""
    if find_syslog_ng() is None:
        pytest.skip("NOT TESTED: syslog-ng or syslog-ng-scl is not installed")


@pytest.mark.usefixtures("syslog_ng")
@pytest.mark.parametrize("driver", DESTINATIONS)
def test_syslog_ng_sends_through_the_recipe(tmp_path: Path, service: Service, driver: str) -> None:
    """Messages to syslog-ng arrive as logs, by each of its destinations."""
    with SyslogNg(tmp_path / "syslog-ng", service.address[1], driver) as sender:
        sender.send(*(make_message(f'order "{number}" \\ ä') for number in range(1000)))
        wait_for(lambda: len(service.logs()) == 1000)
    logs = service.logs()
    assert {f'order "{number}" \\ ä' for number in range(1000)} == {log["message"] for log in logs}
    assert {("org-xyz", "info", "shop")} == {
        (log["project_id"], log["level"], log["service"]) for log in logs
    }
    source = {"source": "syslog-ng"} if driver == "splunk-hec-event" else {}
    assert all(log["metadata"] == {"host": "host-1"} | source for log in logs)


#: Messages that name no program, or hold what JSON, HTTP or a shell would take for its own.
ODD_MESSAGES = [
    b"<13>Nov 29 08:00:00 switch1 : %LINK-3-UPDOWN: Interface up",
    b"<13>1 2026-11-29T08:00:00.123456789Z host - - - - no program",
    b"<13>Nov 29 08:00:00 host -- MARK --",
    b"<13>Nov 29 08:00:00 host shop[7]:",
    b"<13>Nov 29 08:00:00 host shop: control \x01\x1b[2J\x7f\ttab",
    b"<13>Nov 29 08:00:00 host shop: latin \xe4\xff",
    b"<13>Nov 29 08:00:00 h\xe4st sh\xf6p: names",
    b'<13>Nov 29 08:00:00 host shop: quote " back \\ $MSG ${PROGRAM} $(echo x) `id` %s \\n',
    b"<13>Nov 29 08:00:00 host 456: 123",
    b'<13>Nov 29 08:00:00 host shop: {"level":"forged","message":[1,null]}',
    b"<13>Nov 29 08:00:00 host shop: null",
    b"<191>Nov 29 08:00:00 host shop: debug",
    b"<999>no priority",
    b"no header at all",
    b"<13>",
    b" ",
    b"<13>1 2026-11-29T23:59:60Z host shop - - - leap second",
    b"<13>Feb 30 25:61:61 host shop: no date",
    b"<13>Nov 29 08:00:00 host shop: " + b"x" * 60_000,
    b"<13>Nov 29 08:00:00 host " + b"p" * 2000 + b": long program",
]


@pytest.mark.usefixtures("syslog_ng")
@pytest.mark.parametrize("driver", DESTINATIONS)
def test_syslog_ng_loses_no_odd_message(tmp_path: Path, service: Service, driver: str) -> None:
    """Each is one log, none keeps others from being stored, and nothing is rejected."""
    with SyslogNg(tmp_path / "syslog-ng", service.address[1], driver) as sender:
        cut = (make_message("nul\0after"), make_message("y" * 200_000))
        sender.send(*ODD_MESSAGES, *cut, make_message("last"))
        wait_for(lambda: "last" in [log["message"] for log in service.logs()])
        wait_for(lambda: "after" in [log["service"] for log in service.logs()])
        wait_for(lambda: str(service.logs()).count("y") >= 200_000)
        assert "dropped" not in sender.log()
    logs = service.logs()
    assert len(ODD_MESSAGES) + 2 + 4 + 1 == len(logs)  # the cut ones are two and four
    services = {log["message"]: log["service"] for log in logs}
    assert "unknown" == services["%LINK-3-UPDOWN: Interface up"]
    assert "shop" == services["control \x01\x1b[2J\x7f\ttab"] == services["latin \\xe4\\xff"]
    assert r"sh\xf6p" == services["names"]
    assert "shop" == services['quote " back \\ $MSG ${PROGRAM} $(echo x) `id` %s \\n']
    assert "456" == services["123"]
    assert "shop" == services['{"level":"forged","message":[1,null]}']
    assert "shop" == services["x" * 60_000]
    assert "p" * 2000 in services["long program"]
    assert "rejected" not in service.log()


@pytest.mark.usefixtures("syslog_ng")
@pytest.mark.parametrize(
    ("driver", "settings", "code"),
    [
        ("http", {}, ""),
        ("http", {"min_free_bytes": 1 << 60}, "storage_full"),
        ("http", {"tokens": "x"}, "unauthorized"),
        ("elasticsearch-http", {"min_free_bytes": 1 << 60}, "storage_full"),
        ("splunk-hec-event", {"tokens": "x"}, "unauthorized"),
    ],
    ids=["away", "full", "token revoked", "full, bulk", "token revoked, HEC"],
)
def test_syslog_ng_waits_until_its_logs_can_be_stored(
    tmp_path: Path, driver: str, settings: dict[str, object], code: str
) -> None:
    """While the service is down, full, or rejects the token; then each is stored once."""
    port = free_port()
    bind = f"127.0.0.1:{port}"
    with SyslogNg(tmp_path / "syslog-ng", port, driver) as sender:
        with Service(tmp_path, bind=bind, **settings) if code else nullcontext() as first:
            sender.send(*(make_message(f"{number}") for number in range(2000)))
            wait_for(lambda: "error" in sender.log().lower())
            wait_for(lambda: first is None or code in first.log())
        with Service(tmp_path, bind=bind) as service:
            wait_for(lambda: service.content().count(b"\n") >= 2000, 90)
            stored = [log["message"] for log in service.logs()]
    assert sorted(map(str, range(2000))) == sorted(stored)


@pytest.mark.usefixtures("syslog_ng")
@pytest.mark.parametrize("status", [400, 413])
def test_syslog_ng_goes_on_after_a_batch_that_is_rejected(tmp_path: Path, status: int) -> None:
    """A permanently rejected batch is dropped, with a line in its own log."""
    with FakeService() as fake:
        fake.answers.append(reject(status, "invalid_batch"))
        with SyslogNg(tmp_path / "syslog-ng", urlsplit(fake.url).port or 0) as sender:
            sender.send(make_message("rejected"))
            wait_for(lambda: fake.requests)
            sender.send(make_message("after"))
            wait_for(lambda: any(b"after" in sent.body for sent in fake.requests))
            wait_for(lambda: "dropped while sending message" in sender.log())
            assert f"status_code='{status}'" in sender.log()
    assert 1 == sum(b"rejected" in sent.body for sent in fake.requests)


@pytest.mark.skipif(shutil.which("jq") is None, reason="NOT TESTED: jq is not installed")
def test_jq_makes_a_log_of_any_line(tmp_path: Path, service: Service) -> None:
    """The documented command accepts lines that are empty, not UTF-8, or JSON."""
    (commands,) = re.findall(r"```sh\n(printf .*?)```", RECIPES, re.DOTALL)
    lines = [b"", b"latin \xe4", b"nul\0\x1b[2J\t\r", b'"q" \\ $x', b"1e999", b'{"a":1}', b"null"]
    (tmp_path / "odd.log").write_bytes(b"\n".join([*lines, b"z" * 1_000_000]))
    (tmp_path / "data" / "token").write_text(TOKEN)
    _, *pasted = commands.replace("localhost:8080", f"127.0.0.1:{service.address[1]}").splitlines()
    script = "\n".join(pasted).replace("/tmp/app.log", "odd.log").replace("/tmp/", "")
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, check=True)
    messages = [log["message"] for log in service.logs()]
    assert [line.decode(errors="replace") for line in lines] == messages[:-1]
    assert "z" * 1_000_000 == messages[-1]


@pytest.mark.parametrize(
    ("settings", "status"),
    [({"tokens": "x"}, 401), ({"min_free_bytes": 1 << 60}, 503), ({"max_body_bytes": 1024}, 413)],
)
def test_curl_fails_if_logs_are_not_stored(
    tmp_path: Path, settings: dict[str, object], status: int
) -> None:
    """With the documented options a script ends, and shows the status."""
    command = re.findall(r"curl -sSf (.*) http", RECIPES)[-1].replace("--retry 5", "--retry 1")
    (tmp_path / "batch.json").write_text(json.dumps(make_batch("x" * 2000)))
    with Service(tmp_path, **settings) as service:
        url = f"http://127.0.0.1:{service.address[1]}/v1/drain"
        options = [
            *command.replace("--retry 5", "--retry 1").split(),
            "-H",
            f"Authorization: {TOKEN}",
        ]
        line = ["curl", "-sSf", *options, url, "--data-binary", "@batch.json"]
        result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 22 == result.returncode
    assert f"error: {status}" in result.stderr
