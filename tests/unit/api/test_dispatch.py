"""Hot paths are answered without Flask, and Flask routes by path and method alone."""

from typing import Any

import pytest
from flask import Blueprint, Response, has_request_context, request, session
from flask.testing import FlaskClient
from werkzeug.exceptions import NotFound

from astralog.api.dispatch import Api, Dispatcher, FixedResponse, plain_view
from astralog.browsers import Origins

FIXED = FixedResponse(b'{"status":"fine"}')


@pytest.fixture
def app() -> Api:
    """Return an application with routes of every kind."""
    made = Api(__name__)
    blueprint = Blueprint("routes", __name__)

    @blueprint.get("/plain")
    def plain() -> Response:
        return FIXED

    @blueprint.post("/plain")
    def posted() -> Response:
        return Response(request.get_data())

    @blueprint.get("/files/<name>")
    def file(name: str) -> str:
        if name == "missing":
            raise NotFound
        return name

    @blueprint.get("/error")
    def error() -> str:
        raise ValueError("oops")

    @blueprint.get("/session")
    def show_session() -> str:
        return repr(dict(session))

    def fail(error: Exception, environ: dict[str, Any]) -> Response:
        return Response(f"{environ['PATH_INFO']}: {error}", 418)

    @blueprint.get("/bare")
    @plain_view(fail)
    def bare(environ: dict[str, Any]) -> Response:
        """Return the arguments of the call."""
        if environ["QUERY_STRING"]:
            raise ArithmeticError(environ["QUERY_STRING"])
        return Response(f"{environ['PATH_INFO']} {has_request_context()}")

    made.register_blueprint(blueprint)
    made.wsgi_app = Dispatcher(made, {}, Origins(()))  # type: ignore[method-assign]
    return made


@pytest.fixture
def client(app: Api) -> FlaskClient:
    """Return a client of the application."""
    return app.test_client()


def test_a_plain_path_has_a_view_for_each_method(client: FlaskClient) -> None:
    """Each method has its view, and HEAD is a GET without a body."""
    assert (200, FIXED.data) == (client.get("/plain").status_code, client.get("/plain").data)
    assert b"x" * 1000 == client.post("/plain", data=b"x" * 1000).data
    head = client.head("/plain")
    assert (200, b"", "17") == (head.status_code, head.data, head.headers["Content-Length"])


@pytest.mark.parametrize(("path", "status"), [("/files/a", 200), ("/files/missing", 404)])
def test_a_path_with_an_argument_is_matched(client: FlaskClient, path: str, status: int) -> None:
    """The view receives the argument as it is in the path."""
    assert status == client.get(path).status_code


def test_a_plain_view_is_called_without_a_context(app: Api) -> None:
    """It receives WSGI's environ, also if Flask calls it as a view of another app."""
    client = app.test_client()
    assert (200, b"/bare False") == (client.get("/bare").status_code, client.get("/bare").data)
    assert b"" == client.head("/bare").data
    assert 405 == client.post("/bare").status_code
    with app.test_request_context("/bare"):
        assert b"/bare True" == app.make_response(app.dispatch_request()).data


def test_exception_of_a_plain_view_has_its_response(app: Api) -> None:
    """The view's own function makes the response, not Flask's error handlers."""
    app.register_error_handler(Exception, lambda error: ("another's", 500))
    answer = app.test_client().get("/bare?oops")
    assert (418, b"/bare: oops") == (answer.status_code, answer.data)


def test_unsupported_method_gets_the_supported_ones(client: FlaskClient) -> None:
    """OPTIONS, which Flask would answer itself, is one too."""
    for method in ("PUT", "OPTIONS"):
        answer = client.open("/plain", method=method)
        assert 405 == answer.status_code
        assert {"GET", "HEAD", "POST"} == set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "CONNECT", "BREW"])
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/plain/", "/plaines", "/files/", "/%70lain/x", "//plain", "///plain", "/plain//"),
        *("/files//a", "//files/a", "/files/a/", "/files/////a", "/bare/", "//bare", "", "*", "x"),
    ],
)
def test_no_other_path_is_found(app: Api, method: str, path: str) -> None:
    """No path is redirected, or treated like a similar one."""
    environ = {"PATH_INFO": path}
    answer = app.test_client().open(method=method, environ_overrides=environ)
    assert 404 == answer.status_code
    assert "Location" not in answer.headers


def test_the_host_makes_no_difference(client: FlaskClient) -> None:
    """Routing ignores the Host header."""
    for host in ("other.example", "x" * 500, "[::1]:99"):
        assert 200 == client.get("/plain", headers={"Host": host}).status_code


@pytest.mark.parametrize(("path", "expected"), [("/plain", ["before", "after"]), ("/bare", [])])
def test_hooks_run_for_all_except_plain_views(app: Api, path: str, expected: list[str]) -> None:
    """Flask behaves as usual, except for the paths answered before it."""
    called: list[str] = []
    app.before_request(lambda: called.append("before"))

    @app.after_request
    def after(response: Response) -> Response:
        called.append("after")
        return response

    assert 200 == app.test_client().get(path).status_code
    assert expected == called


def test_an_error_handler_that_fails_is_logged_without_the_path(
    app: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """Flask would log the path, which may contain a token."""

    @app.errorhandler(ValueError)
    def fail(error: ValueError) -> Response:
        raise TypeError("again")

    app.config["PROPAGATE_EXCEPTIONS"] = False
    assert 500 == app.test_client().get("/error?s3cret").status_code
    assert ["a request failed, and its answer too"] == caplog.messages


UPGRADE = {"Connection": "upgrade", "Upgrade": "websocket"}


def test_headers_do_not_affect_routing(client: FlaskClient) -> None:
    """Not even those that werkzeug would treat as another scheme."""
    assert 200 == client.get("/plain", headers=UPGRADE).status_code
    assert 404 == client.get("/missing", headers=UPGRADE).status_code


def test_there_are_no_sessions(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's cookie is not parsed, and no cookie is set."""

    def parse(*args: object) -> None:
        raise AssertionError("the cookies were parsed")

    monkeypatch.setattr("werkzeug.sansio.http.parse_cookie", parse)
    answer = client.get("/session", headers={"Cookie": "session=x"})
    assert b"{}" == answer.data
    assert "Set-Cookie" not in answer.headers


def start_response_into(started: list[Any]) -> Any:
    return lambda status, headers: started.append((status, dict(headers)))


def test_a_fixed_response_is_the_same_every_time() -> None:
    """It is rendered once and may be sent to several clients at once."""
    started: list[Any] = []
    bodies = [
        FIXED({"REQUEST_METHOD": method}, start_response_into(started))
        for method in ("GET", "HEAD", "POST")
    ]
    assert [[FIXED.data], [], [FIXED.data]] == [list(body) for body in bodies]
    expected = ("200 OK", {"Content-Type": "application/json", "Content-Length": "17"})
    assert [expected] * 3 == started


def test_url_outside_of_a_request_has_no_request(app: Api) -> None:
    """Flask builds URLs without a request as usual."""
    assert app.create_url_adapter(None) is None
