"""Requests from web pages: CORS, and tokens in the query."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from astralog.app import create_app, services_of
from astralog.browsers import is_foreign
from astralog.settings import InvalidSettings, Settings
from tests.support.service import make_batch, write_tokens

PAGE = "https://app.example"
OTHER = "https://evil.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST"}
WRITER, FULL, BOUND = "wr+ter", "full", "bound"
SENDERS = (WRITER, BOUND)
BATCH = json.dumps(make_batch("from a page")).encode()


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """Return an app that accepts requests from the pages of one origin."""
    lines = f"{WRITER} allow=write\n{FULL}\n{BOUND} org-xyz allow=write\n"
    path = write_tokens(settings.data_dir / "tokens", lines)
    origins = f" {PAGE.upper()} , capacitor://localhost"
    made = create_app(replace(settings, tokens="", tokens_file=str(path), cors_origins=origins))
    yield made
    services_of(made).queue.stop(1)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def send(client: FlaskClient, path: str = "/v1/drain", **headers: str) -> TestResponse:
    """POST a batch with headers; their names have underscores here."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(path, data=BATCH, headers=named)


def permitted(answer: TestResponse) -> str | None:
    """Return the origin whose pages may read the response."""
    return answer.headers.get("Access-Control-Allow-Origin")


@pytest.mark.parametrize("path", ["/v1/drain", "/v1/logs", "/services/collector"])
def test_preflight_of_a_listed_origin_is_answered(client: FlaskClient, path: str) -> None:
    """The browser receives the methods, the headers and how long to cache them."""
    answer = client.options(path, headers={"Origin": PAGE, **PREFLIGHT})
    assert (answer.status_code, permitted(answer)) == (204, PAGE)
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", [OTHER, "null", "https://app.example:8443", f"{PAGE}.evil"])
def test_other_origins_are_forbidden(client: FlaskClient, origin: str) -> None:
    """Neither a preflight nor a request is permitted, with any token."""
    answer = client.options("/v1/drain", headers={"Origin": origin, **PREFLIGHT})
    assert (answer.status_code, permitted(answer)) == (405, None)
    for token in (WRITER, FULL):
        answer = send(client, Origin=origin, Authorization=token)
        assert (answer.status_code, permitted(answer)) == (403, None)
        assert answer.get_json()["code"] == "forbidden_scope"


def test_listed_origin_sends_with_a_write_only_token(client: FlaskClient) -> None:
    """The page may read every response, including rejections."""
    for token, status in ((WRITER, 200), (BOUND, 200), (FULL, 403), ("none", 401)):
        answer = send(client, Origin=PAGE, Authorization=token)
        assert (answer.status_code, permitted(answer)) == (status, PAGE)
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost"},
        {"Origin": "https://LOCALHOST"},
        {"Origin": OTHER, "Sec_Fetch_Site": "same-origin"},
    ],
)
def test_own_pages_and_programs_are_not_affected(
    client: FlaskClient, headers: dict[str, str]
) -> None:
    """A request without an Origin or from the service's own page needs no listed origin."""
    answer = send(client, Authorization=FULL, **headers)
    assert (answer.status_code, permitted(answer)) == (200, None)


def test_write_only_token_may_be_in_the_query(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Other parameters work as usual; the token is neither logged nor repeated."""
    query = "token=wr%2Bter"
    for path in (f"/v1/drain?{query}", f"/v1/drain?service=x&{query}&level=info"):
        assert send(client, path).status_code == 200
    assert send(client, f"/v1/logs?{query}").status_code == 400
    answer = send(client, f"/v1/drain?{query}&no_such=1")
    assert (answer.status_code, answer.get_json()["code"]) == (400, "bad_request")
    for token, status in ((FULL, 403), ("guessed", 401), ("", 401)):
        answer = send(client, f"/v1/drain?token={token}")
        assert answer.status_code == status
        assert not token or token not in answer.text
    assert client.get(f"/status/data?{query}").status_code == 403
    assert client.get("/status/data?token=full").status_code == 403
    for secret in ("wr+ter", "wr%2Bter", "guessed", "token=", "full"):
        assert secret not in caplog.text
    assert "bad_request from 127.0.0.1, token " in caplog.text
    assert "an unknown token" in caplog.text


@pytest.mark.parametrize("query", ["token=wr%2Bter&token=wr%2Bter", "token=wr%2Bter&token=x"])
def test_several_tokens_in_the_query_are_rejected(client: FlaskClient, query: str) -> None:
    assert send(client, f"/v1/drain?{query}").status_code == 401
    assert send(client, f"/v1/drain?{query}", Authorization=WRITER).status_code == 400


def test_page_of_another_origin_cannot_read_metrics_over_loopback(client: FlaskClient) -> None:
    """Loopback needs no token for programs, but a page in a browser is not one."""
    assert client.get("/metrics").status_code == 200
    assert client.get("/metrics", headers={"Origin": PAGE}).status_code == 401


def test_sandboxed_page_is_foreign() -> None:
    assert is_foreign({"HTTP_ORIGIN": "null", "HTTP_HOST": ""})


@pytest.mark.parametrize("text", ["*", "app.example", "https://app.example/", "https://*.example"])
def test_faulty_origins_stop_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A browser's Origin has a scheme and a host, and no path."""
    monkeypatch.setenv("ASTRALOG_CORS_ORIGINS", f"https://app.example, {text}")
    with pytest.raises(InvalidSettings, match="ASTRALOG_CORS_ORIGINS: Not origins"):
        Settings.from_environ()
