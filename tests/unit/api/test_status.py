import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from flask import Flask
from flask.testing import FlaskClient

from astralog import __version__, threads
from astralog.api import status
from astralog.api.status import FILES, LEVELS, Kept
from astralog.errors import Rejection
from astralog.settings import Settings
from astralog.telemetry.history import Totals
from astralog.telemetry.prometheus import Metrics
from astralog.threads import OneAtATime
from tests.support.service import TOKEN, make_log, write_tokens

MakeApp = Callable[[Settings], Flask]

PATHS = ("/status/data", "/status/history", "/status/logs", "/status/log?id=x")


@pytest.fixture
def bound_client(make_app: MakeApp, settings: Settings, tmp_path: Path) -> FlaskClient:
    """Return a client of an app whose token `bound` may write the projects b and a."""
    path = tmp_path / "tokens"
    write_tokens(path, "bound b a\n")
    settings = replace(settings, tokens_file=str(path), data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    return make_app(settings).test_client()


def ask(client: FlaskClient, path: str, token: str | None = TOKEN, code: int = 200) -> Any:
    """Return the JSON of a response with a status."""
    headers = {"Authorization": token} if token else {}
    response = client.get(path, headers=headers)
    assert (code, "application/json") == (response.status_code, response.content_type)
    return response.get_json()


def store(client: FlaskClient, *logs: dict[str, Any], token: str = TOKEN) -> None:
    """Store logs."""
    response = client.post("/v1/drain", json={"logs": logs}, headers={"Authorization": token})
    assert 200 == response.status_code


def messages(client: FlaskClient, query: str = "", token: str = TOKEN) -> list[str]:
    """Return the messages of the newest logs."""
    return [log["message"] for log in ask(client, f"/status/logs{query}", token)["logs"]]


# --- The page


def test_page_needs_no_token_and_contains_no_data(client: FlaskClient) -> None:
    """It is the same for everyone, and loads only the service's own files."""
    page = client.get("/status")
    assert (200, "text/html; charset=utf-8") == (page.status_code, page.content_type)
    assert not re.search(r"\bstyle=|\bon\w+=|<script(?! type=\"module\" src=)|https?:", page.text)
    named = set(re.findall(r'(?:src|href)="status/([\w.]+)"', page.text))
    imported = {
        name
        for file in FILES
        if file.endswith(".js")
        for name in re.findall(r'from "\./([\w.]+)"', client.get(f"/status/{file}").text)
    }
    assert {*FILES, LEVELS} == named | imported
    assert __version__ not in page.text


def test_page_may_not_load_other_hosts_or_be_framed(client: FlaskClient) -> None:
    """Nor may its scripts create HTML or scripts from text."""
    headers = client.get("/status").headers
    policy = dict(
        directive.split(" ", 1) for directive in headers["Content-Security-Policy"].split("; ")
    )
    assert {"'none'"} == {
        policy[name]
        for name in ("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types")
    }
    assert {"'self'"} == {policy[name] for name in ("script-src", "style-src", "connect-src")}
    assert "'script'" == policy["require-trusted-types-for"]
    assert ("nosniff", "DENY", "no-referrer") == (
        headers["X-Content-Type-Options"],
        headers["X-Frame-Options"],
        headers["Referrer-Policy"],
    )


@pytest.mark.parametrize("name", [*FILES, LEVELS])
def test_file_of_the_page_is_cached(client: FlaskClient, name: str) -> None:
    """A browser keeps it until it changes."""
    first = client.get(f"/status/{name}")
    assert 200 == first.status_code
    assert "nosniff" == first.headers["X-Content-Type-Options"]
    again = client.get(f"/status/{name}", headers={"If-None-Match": first.headers["ETag"]})
    assert 304 == again.status_code


def test_no_code_of_the_page_makes_html(client: FlaskClient) -> None:
    """The content of a log is shown as text only."""
    for name in FILES:
        if name.endswith(".js"):
            text = client.get(f"/status/{name}").text
            assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_other_methods_and_paths(client: FlaskClient) -> None:
    """HEAD is GET without a body; nothing else is served."""
    head = client.head("/status/data", headers={"Authorization": TOKEN})
    assert (200, b"") == (head.status_code, head.data)
    assert "not_found" == ask(client, "/status/other.js", code=404)["code"]
    assert 405 == client.post("/status").status_code


def test_a_service_without_the_page(make_app: MakeApp, settings: Settings) -> None:
    """It has none of the page's paths, links to none of them, and keeps no history."""
    app = make_app(replace(settings, status="off"))
    client = app.test_client()
    for path in ("/status", "/status/status.js", *PATHS):
        assert 404 == client.get(path, headers={"Authorization": TOKEN}).status_code
    assert "/docs" == client.get("/", headers={"Accept": "text/html"}).location
    assert "status" not in client.get("/").get_json()["links"]
    assert not [
        path for path in client.get("/openapi.json").get_json()["paths"] if "status" in path
    ]
    assert "astralog_overview" not in app.extensions


# --- Its numbers


@pytest.mark.parametrize("path", PATHS)
def test_data_of_the_page_needs_a_token(client: FlaskClient, path: str) -> None:
    """It is rejected as a drain is, and not cached by proxies."""
    for token in (None, "wrong"):
        rejection = ask(client, path, token, code=401)
        assert ("rejected", "unauthorized") == (rejection["status"], rejection["code"])
    response = client.get("/status/data", headers={"Authorization": f"Bearer {TOKEN}"})
    assert ("no-store", 200) == (response.headers["Cache-Control"], response.status_code)


def test_the_numbers_are_those_of_the_metrics(client: FlaskClient) -> None:
    """Reading them does not count as a batch."""
    store(client, make_log(), make_log())
    for _ in range(3):
        ask(client, "/status/data", "wrong", code=401)
        ask(client, "/status/logs")
    numbers = ask(client, "/status/data")
    assert (None, __version__) == (numbers["projects"], numbers["version"])
    assert (1, 2) == (numbers["accepted"]["batches"], numbers["accepted"]["logs"])
    assert 0 == numbers["rejected"]["batches"]
    assert {"ready": 1} == numbers["workers"]
    hour = ask(client, "/status/history")
    assert [] == hour["rejections"]
    (row,) = hour["tokens"]
    assert (numbers["token"], 1, 2, 0) == tuple(
        row[name] for name in ("token", "batches", "logs", "rejected_batches")
    )


def test_numbers_are_added_up_once_per_second(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred pages cost as much as one."""
    made: list[Metrics] = []
    totals = Metrics.totals

    def count(metrics: Metrics) -> Totals:
        made.append(metrics)
        return totals(metrics)

    monkeypatch.setattr(Metrics, "totals", count)
    for _ in range(20):
        ask(client, "/status/data")
    assert 1 == len(made)


def test_old_numbers_are_recalculated(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second they are recalculated."""
    numbers = iter(range(9))
    kept = Kept(lambda: next(numbers))
    assert [0, 0] == [kept.get(), kept.get()]
    monkeypatch.setattr(status, "KEPT_SECONDS", 0.0)
    kept = Kept(lambda: next(numbers))
    assert [1, 2] == [kept.get(), kept.get()]


def test_a_bound_token_sees_its_own(bound_client: FlaskClient) -> None:
    """Of the whole service it sees only the state."""
    store(bound_client, make_log(project_id="a", message="mine"), token="bound")
    store(bound_client, make_log(project_id="c", message="another's"))
    data = ask(bound_client, "/status/data", "bound")
    assert len(data.pop("token")) == 8
    assert data == {
        "projects": ["a", "b"],
        "allow": ["read", "write"],
        "rate": None,
        "version": __version__,
        "is_ready": True,
    }
    assert {"at", "rejections", "tokens"} == ask(bound_client, "/status/history", "bound").keys()
    assert ["mine"] == messages(bound_client, token="bound")
    assert ["mine"] == messages(bound_client, "?project=a", "bound")
    for query in ("?project=c", "?project=b", "?q=another"):
        assert [] == messages(bound_client, query, "bound")
    other = ask(bound_client, "/status/logs?project=c")["logs"][0]["id"]
    assert "another's" == ask(bound_client, f"/status/log?id={other}")["message"]
    assert "not_found" == ask(bound_client, f"/status/log?id={other}", "bound", code=404)["code"]


def test_history_shows_a_bound_token_its_own_volume(bound_client: FlaskClient) -> None:
    """Another token sees all volumes, rejected batches in addition to the accepted ones."""
    store(bound_client, make_log(project_id="a"), token="bound")
    store(bound_client, make_log(project_id="c"))
    ask_for = {"json": {"logs": [make_log(project_id="c")]}, "headers": {"Authorization": "bound"}}
    assert 403 == bound_client.post("/v1/drain", **ask_for).status_code
    name = ask(bound_client, "/status/data", "bound")["token"]
    (own,) = ask(bound_client, "/status/history", "bound")["tokens"]
    assert (name, 1, 1, 1) == tuple(
        own[field] for field in ("token", "batches", "logs", "rejected_batches")
    )
    rows = ask(bound_client, "/status/history")["tokens"]
    assert 2 == len(rows)
    assert own in rows


# --- Its logs


def test_logs_are_filtered(client: FlaskClient) -> None:
    """By project, service, level and text, all at once."""
    store(
        client,
        make_log(message="one", level="error"),
        make_log(message="two", service="db", level="fatal"),
        make_log(message="three", project_id="p"),
    )
    assert ["three", "two", "one"] == messages(client)
    assert ["two", "one"] == messages(client, "?level=error")
    assert ["two"] == messages(client, "?level=error&service=db")
    assert ["three"] == messages(client, "?project=p")
    assert ["two"] == messages(client, "?q=TW&project=org-xyz")
    assert [] == messages(client, "?q=none")


def test_new_logs_are_returned_by_cursor(client: FlaskClient) -> None:
    """Each response has a cursor, and the filter also applies to new logs."""
    store(client, make_log(message="one"))
    after = ask(client, "/status/logs")["after"]
    store(client, make_log(message="two"), make_log(message="three", level="error"))
    assert ["three", "two"] == messages(client, f"?after={after}")
    assert ["three"] == messages(client, f"?after={after}&level=error")
    later = ask(client, f"/status/logs?after={after}")["after"]
    assert [] == messages(client, f"?after={later}")


def test_bound_token_learns_nothing_of_other_projects(bound_client: FlaskClient) -> None:
    """Its responses are the same as without other projects."""
    store(bound_client, make_log(message="mine", project_id="a"), token="bound")
    before = ask(bound_client, "/status/logs", "bound")
    store(bound_client, make_log(message="theirs" * 1000, project_id="c"))
    after = ask(bound_client, "/status/logs", "bound")
    assert before["logs"] == after["logs"]
    assert before | {"after": ""} == after | {"after": ""}
    assert len(before["after"]) == len(after["after"])
    assert set(ask(bound_client, "/status/data", "bound")) == {
        *("version", "is_ready"),
        *("token", "projects", "allow", "rate"),
    }
    assert set(ask(bound_client, "/status/history", "bound")) == {"at", "rejections", "tokens"}


@pytest.mark.parametrize(
    "query", ["?after=x", "?after=", "?x=1", "?q=a&q=b", "?level=", "?q=%ff", "?after=1,../x:1"]
)
def test_malformed_log_query_is_rejected(
    client: FlaskClient, capfd: pytest.CaptureFixture[str], query: str
) -> None:
    """Nothing is printed on stderr."""
    assert "bad_request" == ask(client, f"/status/logs{query}", code=400)["code"]
    assert "" == capfd.readouterr().err


def test_logs_that_cannot_be_read(
    client: FlaskClient, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The disk may be missing; the response contains no path."""
    tmp_path.rename(tmp_path.with_name("away"))
    rejection = ask(client, "/status/logs", code=503)
    assert "storage_failed" == rejection["code"]
    assert "/" not in rejection["message"]
    assert "" == capfd.readouterr().err
    tmp_path.with_name("away").rename(tmp_path)


def test_log_queries_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One runs at a time, some wait, and the others are rejected with Retry-After."""
    monkeypatch.setattr(threads, "MAX_WAITING", 2)
    go_on, disk = threading.Event(), OneAtATime("status_busy")
    outcomes: list[str] = []

    def poll() -> None:
        try:
            outcomes.append(disk.run(lambda: (go_on.wait(10) and "looked") or "late"))
        except Rejection as rejection:
            outcomes.append(rejection.code)

    polls = [gevent.spawn(poll) for _ in range(5)]
    gevent.sleep(0.05)
    assert ["status_busy"] * 2 == outcomes
    go_on.set()
    gevent.joinall(polls, timeout=10)
    assert ["looked"] * 3 == outcomes[2:]


def test_hanging_disk_ends_log_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The running query and the waiting ones are rejected until the disk responds."""
    monkeypatch.setattr(threads, "CALL_SECONDS", 0.05)
    monkeypatch.setattr(threads, "WAIT_SECONDS", 0.05)
    disk, answers = OneAtATime("status_busy"), threading.Event()
    for _ in range(3):
        with pytest.raises(Rejection, match="retry later"):
            disk.run(answers.wait, 10)
    answers.set()
    monkeypatch.setattr(threads, "WAIT_SECONDS", 5)
    monkeypatch.setattr(threads, "CALL_SECONDS", 5)
    assert "looked" == disk.run(lambda: "looked")


def test_exception_of_a_log_query_is_raised(capfd: pytest.CaptureFixture[str]) -> None:
    """The next query is not delayed."""
    disk = OneAtATime("status_busy")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            disk.run(lambda: 1 // 0)
    assert "" == capfd.readouterr().err


def test_a_whole_log(client: FlaskClient) -> None:
    """It is returned complete, however long it is."""
    store(client, make_log(message="x" * 100_000))
    (log,) = ask(client, "/status/logs")["logs"]
    assert log["is_shortened"]
    whole = ask(client, f"/status/log?id={log['id']}")
    assert ("x" * 100_000, False) == (whole["message"], whole["is_shortened"])
    assert log["metadata"] == whole["metadata"]
    assert "not_found" == ask(client, f"/status/log?id={log['id']}0", code=404)["code"]
    assert "not_found" == ask(client, "/status/log", code=404)["code"]
