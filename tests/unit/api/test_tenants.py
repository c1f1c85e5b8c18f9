"""A bound token's answers are the same whatever the token of another project does."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
from flask import Flask
from flask.testing import FlaskClient

from astralog.settings import Settings
from tests.support.service import make_log, write_tokens

MakeApp = Callable[[Settings], Flask]

#: Tokens of the other tenant, which together are rejected with many codes.
LOUD_TOKENS = 9
TOKENS = "".join(f"loud-{number} org-loud\n" for number in range(LOUD_TOKENS))
TOKENS += "quiet org-quiet\n"

EVENT = b'{"time": 1, "event": "text"}'
PUSH = b'{"streams": [{"stream": {}, "values": [["1", "text"]]}]}'
DOCUMENT = b'{"create": {}}\n{"@timestamp": "2024-05-31T15:30:45Z", "message": "text"}\n'
RECORD = {"timeUnixNano": "1", "body": {"stringValue": "text"}}
EXPORT = msgspec.json.encode({"resourceLogs": [{"scopeLogs": [{"logRecords": [RECORD]}]}]})

#: Requests that store, in each protocol; those with `once=body` store the same body once.
BATCHES = (
    ("/services/collector", EVENT),
    ("/services/collector?once=body", EVENT),
    ("/loki/api/v1/push?once=body", PUSH),
    ("/elasticsearch/_bulk?once=body", DOCUMENT),
    ("/v1/logs?once=body", EXPORT),
)


class Tenant:
    """A token of a project, and the answers to it."""

    def __init__(self, client: FlaskClient, token: str, project: str) -> None:
        #: Of each answer: its path, its status, its headers except those that vary, and its body.
        self.answers: list[tuple[str, str, dict[str, str], Any]] = []
        self._client = client
        self._token = token
        self._project = project

    def ask(self, method: str, path: str, data: Any = None, **headers: str) -> Any:
        """Send a request, and keep its answer; return the response."""
        response = self._client.open(
            path,
            method=method,
            data=data,
            content_type="application/json",
            headers={"Authorization": self._token, **headers},
            environ_base={"REMOTE_ADDR": "192.0.2.1"},
        )
        shown = {name: "" if name == "Link" else text for name, text in response.headers}
        shown.pop("Content-Length", None)
        self.answers.append((path.partition("before=")[0], response.status, shown, _body(response)))
        return response

    def send(self, *messages: str, **headers: str) -> None:
        """Send a batch."""
        logs = [make_log(project_id=self._project, message=message) for message in messages]
        self.ask("POST", "/v1/drain", msgspec.json.encode({"logs": logs}), **headers)

    def search(self, query: str) -> None:
        """Follow all links of a search."""
        url: str | None = f"/v1/search?{query}"
        while url:
            link = self.ask("GET", url).headers.get("Link")
            url = link and link[1:].partition(">")[0]

    def write(self) -> Iterator[None]:
        """Send batches of every kind, with pauses for another tenant."""
        key = {"Idempotency-Key": '"same"'}
        for message in ("first", "first", "other"):
            self.send(message, **key)
            yield
        for path, body in chain(BATCHES, BATCHES):
            self.ask("POST", path, body)
            yield
        for project, message in (("org-quiet", ""), ("org-loud", "m"), ("org-none", "m")):
            log = make_log(project_id=project, message=message)
            self.ask("POST", "/v1/drain", msgspec.json.encode({"logs": [log]}))
        for method, path in (("POST", "/none"), ("PUT", "/v1/drain"), ("POST", "/v1/drain?x=1")):
            self.ask(method, path, b"{}")
        yield

    def read(self) -> Iterator[None]:
        """Send every other request, with pauses for another tenant."""
        for query in ("n=1", "n=3", "n=13", "q=first", "q=loud", "project=org-loud", "level=fatal"):
            self.search(query)
            yield
        for path in ("/status/data", "/status/history", "/metrics", "/ready", "/status/log?id=x"):
            self.ask("GET", path)
            yield


def _body(response: Any) -> Any:
    """Return the body of a response without the parts that vary."""
    text = response.get_data(as_text=True)
    if not response.is_json:
        return text
    body = json.loads(text)
    if isinstance(body, dict):
        for name in ("at", "took", "items"):
            body.pop(name, None)
        for row in [*body.get("tokens", ()), *body.get("rejections", ())]:
            del row["per_minute"]
    return body


@pytest.fixture
def quiet_app(make_app: MakeApp, settings: Settings, tmp_path: Path) -> Callable[[str], Flask]:
    """Return a function that makes an app with both tenants' tokens and a new directory."""
    path = write_tokens(tmp_path / "tokens", TOKENS)

    def make(name: str) -> Flask:
        directory = tmp_path / name
        directory.mkdir()
        return make_app(replace(settings, data_dir=directory, tokens="", tokens_file=str(path)))

    return make


@pytest.mark.slow
def test_answers_do_not_depend_on_another_tenant(quiet_app: Callable[[str], Flask]) -> None:
    """Neither its keys, bodies, logs, rejections nor searches show in any of them."""
    alone = Tenant(quiet_app("alone").test_client(), "quiet", "org-quiet")
    for _ in chain(alone.write(), alone.read()):
        pass
    client = quiet_app("shared").test_client()
    shared = Tenant(client, "quiet", "org-quiet")
    others = [Tenant(client, f"loud-{number}", "org-loud") for number in range(LOUD_TOKENS)]
    for _ in chain.from_iterable(other.write() for other in others):
        pass
    for number, _ in enumerate(chain(shared.write(), shared.read())):
        others[0].send(f"loud {number}")
    for one, other in zip(shared.answers, alone.answers, strict=True):
        assert one == other
    statuses = {status.split()[0] for _, status, _, _ in alone.answers}
    assert statuses == {"200", "204", "400", "403", "404", "405", "422"}
