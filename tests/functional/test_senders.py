"""What real senders send is stored: the recipes of docs/senders.md, run with their programs."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.otlp import PROTOBUF, encode, make_export, make_record
from tests.support.service import ROOT, TOKEN, Service, make_batch, wait_for

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
    """What a program logs through the Python client is stored as it was logged."""
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


def test_the_queries_of_the_recipes_are_taken(service: Service) -> None:
    """What each program sends is stored as its recipe asks, nothing of it lost."""
    queries = set(re.findall(r"/v1/drain(\?[^\s\"]+)", RECIPES))
    assert 3 == len(queries)
    for query in queries:
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
    assert 3 == len(queries)
    for query in queries:
        body = encode(make_export(make_record(), resource={}), PROTOBUF)
        headers = {"Authorization": TOKEN, "Content-Type": PROTOBUF}
        answer = service.request("POST", f"/v1/logs{query}", body, headers)
        assert (200, b"") == (answer.status, answer.raw)


@pytest.mark.slow
def test_syslog_ng_sends_through_the_recipe(tmp_path: Path, service: Service) -> None:
    """Messages to syslog-ng arrive as logs, those of a time without the service too."""
    program = shutil.which("syslog-ng", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        pytest.skip("NOT TESTED: syslog-ng is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (destination,) = re.findall(r"```\n(destination .*?)```", RECIPES, re.DOTALL)
    destination = destination.replace("localhost:8080", f"127.0.0.1:{service.address[1]}")
    destination = destination.replace("TOKEN", TOKEN)
    (tmp_path / "syslog-ng.conf").write_text(
        "@version: 3.38\noptions { keep-hostname(yes); };\n"
        f'source s_net {{ network(ip("127.0.0.1") port({port}) transport("tcp")); }};\n'
        f"{destination}\nlog {{ source(s_net); destination(d_astralog); }};\n"
    )
    files = [f"--{name}={tmp_path / name}" for name in ("persist-file", "control", "pidfile")]
    command = [program, "-F", "--no-caps", "-f", str(tmp_path / "syslog-ng.conf"), *files]
    sender = subprocess.Popen(command, cwd=tmp_path)
    try:
        wait_for(lambda: is_listening(port))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            for number in range(1000):
                stamp = time.strftime("%b %d %H:%M:%S")
                line = f'<14>{stamp} host-1 shop[7]: order "{number}" \\ ä\n'
                connection.sendall(line.encode())
            wait_for(lambda: len(service.logs()) == 1000)
    finally:
        sender.send_signal(signal.SIGTERM)
        sender.wait(30)
    logs = service.logs()
    assert {f'order "{number}" \\ ä' for number in range(1000)} == {log["message"] for log in logs}
    assert {("org-xyz", "info", "shop")} == {
        (log["project_id"], log["level"], log["service"]) for log in logs
    }
    assert all(log["metadata"] == {"host": "host-1"} for log in logs)


def is_listening(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
