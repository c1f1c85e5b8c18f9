"""The clients of Node.js store each log once, by the recipes of docs/senders.md."""

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.npm import INSTALL_SECONDS, PIPE, RECIPES, find_modules
from tests.support.service import TOKEN, Service, wait_for

#: Logs of each client.
COUNT = 20

#: The recipe of winston-loki, with the transport's own encoding.
PROTOBUF = "winston-loki in protobuf"

#: What is stored for each recipe, which is the one that has this text; apart from timestamps, the
#: numbered message, and the process's own names.
LOGS: dict[str, dict[str, Any]] = {
    "@opentelemetry/sdk-logs": {
        "level": "info",
        "service": "billing",
        "metadata": {
            "attributes": {"order": "A-17"},
            "resource": {"attributes": {"service.name": "billing"}},
            "scope": {"name": "orders"},
        },
    },
    "pino-loki": {
        "level": "info",
        "service": "billing",
        "metadata": {
            "labels": {"app": "billing", "level": "info"},
            "structured_metadata": {"order": "A-17"},
        },
    },
    'pino({ name: "billing" })': {
        "level": "30",
        "service": "billing",
        "metadata": {"order": "A-17"},
    },
    "winston.transports.Http": {
        "level": "info",
        "service": "billing",
        "metadata": {"order": "A-17"},
    },
    "winston-loki": {
        "level": "info",
        "service": "billing",
        "metadata": {
            "labels": {"app": "billing", "level": "info"},
            "structured_metadata": {"level": "info", "order": "A-17"},
        },
    },
    PROTOBUF: {
        "level": "info",
        "service": "billing",
        "metadata": {"labels": {"app": "billing", "level": "info"}},
    },
    "winston-elasticsearch": {
        "level": "info",
        "service": "billing",
        "metadata": {"fields": {"order": "A-17", "service": "billing"}},
    },
    "@elastic/elasticsearch": {
        "level": "unspecified",
        "service": "billing",
        "metadata": {"order": "A-17"},
    },
}


class Client:
    """A program of one of the recipes, which sends to its own project."""

    def __init__(self, directory: Path, recipe: str, port: int, project: str) -> None:
        directory.mkdir()
        self.project = project
        self._errors = directory / "stderr"
        code, replaced = re.subn(
            r'^(.*)"paid 7"',
            rf"for (let n = 0; n < {COUNT}; n++) \1`paid ${{n}}`",
            recipe,
            flags=re.MULTILINE,
        )
        assert 1 == replaced
        (directory / "app.mjs").write_text(_point(code, port, project))
        command = "exec node app.mjs"
        if "pino({ name" in recipe:
            pipe = _point(PIPE, port, project)
            command = f"node app.mjs | ../node_modules/.bin/{pipe}"
        attributes = f"service.name=billing,project_id={project}"
        environ = os.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization={TOKEN}",
            "OTEL_RESOURCE_ATTRIBUTES": attributes,
        }
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                ["bash", "-ec", command], cwd=directory, env=environ, stdout=errors, stderr=errors
            )

    def output(self) -> str:
        """Return the program's output."""
        return self._errors.read_text()

    def stop(self) -> None:
        """End the program, if it does not end by itself."""
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


def _point(text: str, port: int, project: str) -> str:
    """Return a recipe that sends to a port and a project."""
    host = text.replace("localhost:8080", f"127.0.0.1:{port}").replace('"localhost"', '"127.0.0.1"')
    return host.replace("8080", str(port)).replace("TOKEN", TOKEN).replace("org-xyz", project)


def find_recipe(text: str) -> str:
    """Return the only recipe that has a text."""
    if text == PROTOBUF:
        return find_recipe("winston-loki").replace("json: true", "json: false")
    (recipe,) = (recipe for recipe in RECIPES if text in recipe)
    return recipe


def strip(log: dict[str, Any]) -> dict[str, Any]:
    """Return a log without its timestamp and the names of the process that sent it."""
    metadata = log["metadata"]
    for each in (metadata, metadata.get("labels", {})):
        each.pop("hostname", None)
    metadata.pop("pid", None)
    metadata.get("resource", {}).get("attributes", {}).pop("project_id", None)
    return {name: log[name] for name in ("level", "service", "message", "metadata")}


@pytest.mark.timeout(INSTALL_SECONDS + 200)
def test_each_client_stores_each_log_once(tmp_path: Path) -> None:
    """They run at once, print no error, and their logs have the fields of the recipe."""
    (tmp_path / "node_modules").symlink_to(find_modules())
    assert len(LOGS) == len(RECIPES) + 1
    with Service(tmp_path) as service, ExitStack() as stack:
        clients = {}
        for number, name in enumerate(LOGS):
            directory = tmp_path / f"client-{number}"
            recipe = find_recipe(name)
            client = Client(directory, recipe, service.address[1], f"org-{number}")
            stack.callback(client.stop)
            clients[name] = client

        def have_sent() -> bool:
            failed = [client.output() for client in clients.values() if client.process.poll()]
            assert not failed, failed
            return service.content().count(b"\n") >= COUNT * len(clients)

        wait_for(have_sent, 120)
        for client in clients.values():
            client.stop()
        assert dict.fromkeys(LOGS, "") == {name: each.output() for name, each in clients.items()}
        stored = service.logs()
    for name, client in clients.items():
        logs = [strip(log) for log in stored if log["project_id"] == client.project]
        messages = [f"paid {number}" for number in range(COUNT)]
        logs.sort(key=lambda log: messages.index(log["message"]))
        assert [LOGS[name] | {"message": message} for message in messages] == logs, name
