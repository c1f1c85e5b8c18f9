"""GET /v1/search?follow=true: which logs it streams, to whom, and for how long."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from astralog.api import search
from astralog.app import services_of
from astralog.settings import Settings
from tests.support.service import TOKEN, write_tokens
from tests.support.tail import make_line, make_name, make_segment

MakeApp = Callable[[Settings], Flask]


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "STREAM_POLL_SECONDS", 0.01)


@pytest.fixture
def app(make_app: MakeApp, settings: Settings, tmp_path: Path) -> Flask:
    """Return an app whose token `bound` is bound to the project a."""
    path = tmp_path / "tokens"
    write_tokens(path, "bound a\n")
    return make_app(replace(settings, tokens_file=str(path)))


def follow(app: Flask, query: str = "", token: str = TOKEN) -> TestResponse:
    return app.test_client().get(
        f"/v1/search?follow=true{query}", headers={"Authorization": token}, buffered=False
    )


def messages(response: TestResponse) -> Iterator[str]:
    assert (response.status_code, response.content_type) == (200, "application/x-ndjson")
    for item in response.iter_encoded():
        for line in item.split(b"\n"):
            if line.strip():
                yield json.loads(line)["message"]


def add(settings: Settings, number: int, **fields: object) -> None:
    """Store a log in a separate segment."""
    line = make_line(f"m{number}", number, **fields)
    make_segment(settings.data_dir, make_name(number), line, suffix=".ndjson.open")


def test_new_logs_are_streamed(app: Flask, settings: Settings) -> None:
    """No log that was stored before, and none that does not match."""
    add(settings, 1)
    response = follow(app, "&q=m")
    found = messages(response)
    add(settings, 2)
    assert next(found) == "m2"
    add(settings, 3, level="debug")
    assert next(found) == "m3"
    response.close()


def test_filters_and_bounds_of_tokens_hold(app: Flask, settings: Settings) -> None:
    bound, filtered = follow(app, "", "bound"), follow(app, "&level=error")
    add(settings, 1, project_id="b")
    add(settings, 2, project_id="a")
    add(settings, 3, project_id="b", level="error")
    assert next(messages(bound)) == "m2"
    assert next(messages(filtered)) == "m3"
    bound.close()
    filtered.close()


def test_streams_are_bounded_in_number(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a stream makes room, even if it was never read."""
    monkeypatch.setattr(search, "MAX_STREAMS", 1)
    first = follow(app)
    rejected = follow(app)
    assert (rejected.status_code, rejected.get_json()["code"]) == (503, "search_busy")
    first.close()
    url, headers = "/v1/search?follow=true", {"Authorization": TOKEN}
    app.test_client().head(url, headers=headers).close()
    assert services_of(app).streams.count == 0
    assert follow(app).status_code == 200


def test_streams_end_after_their_time(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "STREAM_SECONDS", 0)
    response = follow(app)
    assert response.data == search.HEARTBEAT
    response.close()
    assert services_of(app).streams.count == 0


def test_heartbeats_show_that_a_stream_lives(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "HEARTBEAT_SECONDS", 0)
    response = follow(app)
    items = response.iter_encoded()
    assert [next(items) for _ in range(3)] == [b" \n"] * 3
    response.close()


@pytest.mark.parametrize("content", ["other a\n", "bound b\n", "bound a allow=write\n"])
def test_change_of_a_token_ends_its_streams(
    app: Flask, settings: Settings, tmp_path: Path, content: str
) -> None:
    """Not those of others; none sends a log that its token may no longer read."""
    changed, other = follow(app, "", "bound"), follow(app)
    write_tokens(tmp_path / "tokens", content)
    services_of(app).tokens.check()
    add(settings, 1, project_id="a")
    assert changed.data == search.HEARTBEAT
    assert next(messages(other)) == "m1"
    changed.close()
    other.close()


def test_stop_ends_streams(app: Flask) -> None:
    response = follow(app)
    services_of(app).streams.stop()
    assert response.data == search.HEARTBEAT
    response.close()


@pytest.mark.parametrize("query", ["&n=1", "&before=x", "&follow=true", "&level="])
def test_malformed_queries_are_rejected(app: Flask, query: str) -> None:
    response = follow(app, query)
    assert (response.status_code, response.get_json()["code"]) == (400, "bad_request")


def test_a_directory_that_is_away_is_a_failure(app: Flask, settings: Settings) -> None:
    settings.data_dir.rename(settings.data_dir.with_name("away"))
    response = follow(app)
    settings.data_dir.with_name("away").rename(settings.data_dir)
    assert (response.status_code, response.get_json()["code"]) == (503, "storage_failed")
    assert services_of(app).streams.count == 0


def test_follow_is_true_or_false(client: FlaskClient) -> None:
    for value, status in (("false", 200), ("1", 400)):
        response = client.get(f"/v1/search?follow={value}", headers={"Authorization": TOKEN})
        assert response.status_code == status
