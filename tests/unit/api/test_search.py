"""GET /v1/search: which logs it returns, and to whom."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from astralog.api import search
from astralog.errors import Rejection
from astralog.settings import Settings
from astralog.store import merge, reader
from astralog.threads import OneAtATime
from astralog.view import log_search
from tests.support.service import TOKEN, make_log, write_tokens
from tests.support.tail import compress, make_line, make_name, make_segment

MakeApp = Callable[[Settings], Flask]


@pytest.fixture
def data_dir(settings: Settings) -> Path:
    """Return a data directory with 30 logs in segments of each form."""
    for number, suffix in enumerate((".ndjson.zst", ".ndjson", ".ndjson.open")):
        lines = [
            make_line(
                f"m{10 * number + at}",
                1000 * number + at,
                project_id="ab"[at % 2],
                metadata={"at": at},
            )
            for at in range(10)
        ]
        make_segment(settings.data_dir, make_name(1000 * number), *lines, suffix=suffix)
    return settings.data_dir


@pytest.fixture
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second pass between two looks of a reader at the clock, so that its time is short."""
    monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=count().__next__))


@pytest.fixture
def bound_client(make_app: MakeApp, settings: Settings, tmp_path: Path) -> FlaskClient:
    """Return a client of an app; its token `bound` is bound to the project a."""
    path = tmp_path / "tokens"
    write_tokens(path, "bound a\nwriter allow=write\n")
    return make_app(replace(settings, tokens_file=str(path))).test_client()


def ask(client: FlaskClient, query: str = "", token: str = TOKEN) -> TestResponse:
    url = query if query.startswith("/") else f"/v1/search{query}"
    return client.get(url, headers={"Authorization": token})


def messages(response: TestResponse) -> list[str]:
    assert (response.status_code, response.content_type) == (200, "application/x-ndjson")
    return [json.loads(line)["message"] for line in response.data.splitlines()]


def next_url(response: TestResponse) -> str | None:
    found = re.fullmatch(r'<(/v1/search\?[^>]+)>; rel="next"', response.headers.get("Link", ""))
    return found[1] if found else None


def pages(client: FlaskClient, query: str, token: str = TOKEN) -> list[list[str]]:
    """Return the messages of a response and of all responses that its links lead to."""
    found: list[list[str]] = []
    url: str | None = query
    while url is not None and len(found) < 100:
        response = ask(client, url, token)
        found.append(messages(response))
        url = next_url(response)
    return found


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?n=3", ["m29", "m28", "m27"]),
        ("?q=M2&n=2", ["m29", "m28"]),
        ("?field=at%3D7", ["m27", "m17", "m7"]),
        ("?project=b&since=1970-01-01T00:33:25Z", ["m29", "m27", "m25"]),
        ("?until=1970-01-01T00:00:01Z", ["m1", "m0"]),
        ("?level=fatal", []),
        ("?service=nothing", []),
    ],
)
def test_filters_select_logs(client: FlaskClient, query: str, expected: list[str]) -> None:
    assert messages(ask(client, query)) == expected


def test_logs_are_returned_as_they_are_stored(client: FlaskClient) -> None:
    response = client.post(
        "/v1/drain", json={"logs": [make_log()]}, headers={"Authorization": TOKEN}
    )
    assert response.status_code == 200
    found = ask(client)
    assert json.loads(found.data) == make_log()
    assert (found.headers["Cache-Control"], next_url(found)) == ("no-store", None)


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize("limit", [1, 3, 7, 10, 29, 30])
def test_links_lead_through_all_logs(client: FlaskClient, limit: int) -> None:
    """Each is returned once, newest first."""
    found = pages(client, f"?n={limit}")
    assert list(chain(*found)) == [f"m{number}" for number in reversed(range(30))]
    assert all(len(page) == limit for page in found[:-1])


@pytest.mark.parametrize("limit", [4, 14])
def test_links_lead_on_while_segments_change(
    client: FlaskClient, data_dir: Path, limit: int
) -> None:
    """They are appended to, sealed, compressed and removed, and new ones begin."""
    first = ask(client, f"?n={limit}")
    opened = data_dir / f"{make_name(2000)}.ndjson.open"
    with opened.open("ab") as file:
        file.write(make_line("appended", 2500))
    compress(opened.rename(data_dir / f"{make_name(2000)}.ndjson"))
    compress(data_dir / f"{make_name(1000)}.ndjson")
    (data_dir / f"{make_name(0)}.ndjson.zst").unlink()
    make_segment(data_dir, make_name(3000), make_line("new", 3000))
    url = next_url(first)
    assert url
    found = [*messages(first), *chain(*pages(client, url))]
    assert found == [f"m{number}" for number in reversed(range(10, 30))]


@pytest.mark.parametrize("limit", [4, 5, 6])
def test_links_of_a_bound_token_do_not_depend_on_other_projects(
    bound_client: FlaskClient, settings: Settings, limit: int
) -> None:
    """An answer with `limit` logs has a link, whether older logs are those of others or none."""
    own = [make_line(f"m{at}", 2000 + at, project_id="a") for at in range(5)]
    make_segment(settings.data_dir, make_name(2000), *own, changed=2010)
    alone = pages(bound_client, f"?n={limit}", "bound")
    assert list(chain(*alone)) == [f"m{at}" for at in reversed(range(5))]
    others = make_line("older", 1000, project_id="b")
    make_segment(settings.data_dir, make_name(1000), others, changed=1000)
    assert pages(bound_client, f"?n={limit}", "bound") == alone


def test_links_do_not_lead_back_to_older_segments_with_newer_logs(
    client: FlaskClient, settings: Settings
) -> None:
    """As that of a worker that has written its segment for long, beside short ones of others."""
    for start, lines in ((0, range(10, 20)), (1000, range(10))):
        make_segment(
            settings.data_dir,
            make_name(start),
            *[make_line(f"m{at}", 2000 + 100 * (at // 10) + at) for at in lines],
            changed=2200 - start / 10,
        )
    found = pages(client, "?n=10")
    assert list(chain(*found)) == [f"m{number}" for number in reversed(range(20))]


def test_searched_bytes_add_up_to_the_files(client: FlaskClient, data_dir: Path) -> None:
    """Over all responses; compressed segments count with the size of their files."""
    size = sum(path.stat().st_size for path in data_dir.glob("*.ndjson*"))
    response = ask(client, "?q=nothing")
    assert (messages(response), next_url(response)) == ([], None)
    assert int(response.headers["Searched-Bytes"]) == size


@pytest.mark.parametrize("limit", [3, 20, 30, 1000])
def test_unreadable_segments_are_counted(client: FlaskClient, data_dir: Path, limit: int) -> None:
    """Once over all responses; their lines before the damage are found."""
    assert "Unreadable-Segments" not in ask(client).headers
    (path,) = data_dir.glob("*.ndjson.zst")
    path.write_bytes(path.read_bytes() + b"no frame")
    url: str | None = f"?n={limit}"
    found: list[str] = []
    counts: list[str] = []
    while url:
        response = ask(client, url)
        found += messages(response)
        counts += response.headers.getlist("Unreadable-Segments")
        url = next_url(response)
    assert found == [f"m{number}" for number in reversed(range(30))]
    assert counts == ["1"]


@pytest.mark.usefixtures("data_dir")
def test_bound_token_learns_no_bytes_of_others(bound_client: FlaskClient) -> None:
    response = ask(bound_client, "?q=nothing", "bound")
    assert messages(response) == []
    assert "Searched-Bytes" not in response.headers


@pytest.mark.usefixtures("data_dir", "fast_clock")
def test_busy_slot_ends_a_partial_response(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response has a cursor for its position, even without results."""
    monkeypatch.setattr(search, "TURN_SECONDS", 0)
    turns = iter([True])
    run = OneAtATime.run

    def run_once(self: OneAtATime, *arguments: Any) -> Any:
        if not next(turns, False):
            raise Rejection("search_busy")
        return run(self, *arguments)

    monkeypatch.setattr(OneAtATime, "run", run_once)
    response = ask(client, "?q=nothing")
    assert messages(response) == []
    assert next_url(response)
    response = ask(client, "?q=nothing")
    assert (response.status_code, response.json["code"]) == (503, "search_busy")  # type: ignore[index]


@pytest.mark.usefixtures("data_dir", "fast_clock")
def test_a_search_without_time_ends_with_a_link(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each response makes progress, and no log is lost between two."""
    monkeypatch.setattr(search, "ANSWER_SECONDS", 0)
    monkeypatch.setattr(search, "TURN_SECONDS", 0)
    monkeypatch.setattr(log_search, "_sleep", lambda seconds: None)
    found = pages(client, "?q=m7")
    assert list(chain(*found)) == ["m7"]
    assert len(found) > 1


@pytest.mark.usefixtures("data_dir")
def test_many_segments_are_listed_slowly(
    client: FlaskClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long list takes the interpreter for no longer than a search of blocks does."""
    for number in range(100):
        make_segment(settings.data_dir, make_name(10_000 + number))
    sleeps: list[float] = []
    monkeypatch.setattr(log_search, "WORK_SECONDS", -1)
    monkeypatch.setattr(log_search, "_sleep", sleeps.append)
    monkeypatch.setattr(log_search, "paced", lambda select: select)
    assert messages(ask(client, "?q=m29"))
    assert len(sleeps) >= 100


@pytest.mark.usefixtures("data_dir")
def test_a_page_has_a_bounded_size(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "MAX_HELD_BYTES", 600)
    monkeypatch.setattr(search, "MAX_PAGE_BYTES", 300)
    monkeypatch.setattr(log_search, "MAX_PAGE_BYTES", 300)
    found = pages(client, "")
    assert list(chain(*found)) == [f"m{number}" for number in reversed(range(30))]
    assert max(map(len, found)) <= 3


@pytest.mark.usefixtures("data_dir")
def test_a_bound_token_reads_its_projects_alone(bound_client: FlaskClient) -> None:
    """With any filter; another token's cursor leads to its own logs too."""
    mine = [f"m{number}" for number in reversed(range(0, 30, 2))]
    assert messages(ask(bound_client, token="bound")) == mine
    assert messages(ask(bound_client, "?project=a", "bound")) == mine
    assert messages(ask(bound_client, "?project=b", "bound")) == []
    url = next_url(ask(bound_client, "?n=10")) or ""
    assert messages(ask(bound_client, url, "bound")) == mine[5:]


@pytest.mark.usefixtures("data_dir")
def test_cursors_have_one_length(client: FlaskClient) -> None:
    """Neither names nor offsets of segments can be guessed from them."""
    first, second = (next_url(ask(client, f"?n={limit}")) or "" for limit in (1, 19))
    assert len(first) == len(second) + len("n=1") - len("n=19")
    assert not re.search("1970|ndjson", first)


@pytest.mark.parametrize(
    "query",
    ["?n=0", "?n=1001", "?n=x", "?n=%C2%B2", "?field=x", "?field=%3Dx", "?since=soon", "?x=1"]
    + [
        "?since=1h&until=2h",
        "?before=x",
        "?before=%C3%A9",
        "?q=",
        f"?field={'x.' * 16}y%3D1",
        f"?field={'x' * 201}%3D1",
    ],
)
def test_malformed_queries_are_rejected(client: FlaskClient, query: str) -> None:
    response = ask(client, query)
    assert (response.status_code, response.get_json()["code"]) == (400, "bad_request")


def test_a_plus_in_a_time_is_explained(client: FlaskClient) -> None:
    response = ask(client, "?since=2024-05-31T15:30:45+02:00")
    assert response.get_json()["message"].endswith("In a URL, + is written as %2B.")


def test_a_token_is_needed(client: FlaskClient) -> None:
    assert ask(client, token="other").status_code == 401
    assert client.get("/v1/search").status_code == 401


def test_a_token_that_may_only_write_is_forbidden(bound_client: FlaskClient) -> None:
    response = ask(bound_client, token="writer")
    assert (response.status_code, response.get_json()["code"]) == (403, "forbidden_scope")


def test_a_directory_that_is_away_is_a_failure(client: FlaskClient, settings: Settings) -> None:
    settings.data_dir.rename(settings.data_dir.with_name("away"))
    response = ask(client)
    settings.data_dir.with_name("away").rename(settings.data_dir)
    assert (response.status_code, response.get_json()["code"]) == (503, "storage_failed")


def test_searches_beyond_those_that_wait_are_busy(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("astralog.threads.MAX_WAITING", -1)  # not even one runs
    response = ask(client)
    assert (response.status_code, response.get_json()["code"]) == (503, "search_busy")
    assert response.headers["Retry-After"] == "1"
