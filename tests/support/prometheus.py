"""Start a real Prometheus that scrapes services of a test, with the configuration of deploy/."""

import json
import shutil
import urllib.parse
from pathlib import Path
from typing import Any, Self

from tests.support.connections import free_port
from tests.support.service import ROOT, TOKEN, Service, wait_for

DEPLOY = ROOT / "deploy" / "prometheus"

#: The targets that the configuration names; a test puts its own in their place.
TARGETS = '["10.0.0.11:8080", "10.0.0.12:8080"]'


class Prometheus(Service):
    """Prometheus, with the client functions of a service; it scrapes every second."""

    def __init__(self, directory: Path, services: list[Service]) -> None:
        directory.mkdir()
        super().__init__(directory)
        self._directory = directory
        self.address = ("127.0.0.1", free_port())
        (directory / "astralog.token").write_text(TOKEN + "\n")
        targets = json.dumps(["{}:{}".format(*service.address) for service in services])
        replacements = {
            TARGETS: targets,
            "scrape_interval: 15s": "scrape_interval: 1s",
            "/etc/prometheus/astralog.token": str(directory / "astralog.token"),
        }
        text = (DEPLOY / "prometheus.yml").read_text()
        for old, new in replacements.items():
            assert 1 == text.count(old), old
            text = text.replace(old, new)
        (directory / "prometheus.yml").write_text(text)
        shutil.copy(DEPLOY / "alerts.yml", directory)

    def command(self) -> list[str]:
        """Return the command that starts Prometheus."""
        return [
            "prometheus",
            f"--config.file={self._directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._directory / 'tsdb'}",
            "--web.listen-address={}:{}".format(*self.address),
        ]

    def wait_until_listening(self) -> Self:
        """Return when Prometheus answers queries."""
        wait_for(self._is_ready)
        return self

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.request("GET", "/-/ready").status == 200
        except ConnectionRefusedError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the current series of an expression."""
        query = urllib.parse.urlencode({"query": expression})
        answer = self.request("GET", f"/api/v1/query?{query}")
        assert 200 == answer.status, f"{expression}: {answer.raw.decode()}"
        series: list[dict[str, Any]] = answer.body["data"]["result"]
        return series

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules of all groups, with their states."""
        groups = self.request("GET", "/api/v1/rules").body["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]
