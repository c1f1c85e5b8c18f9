"""The application routes by path and method alone, and does nothing else that Flask would do."""

from typing import Any

import pytest
from flask import Blueprint, Response, has_request_context, request, session
from flask.testing import FlaskClient
from werkzeug.exceptions import NotFound

from astralog.api.flask_app import App, FixedResponse, PlainView

FIXED = FixedResponse(b'{"status":"fine"}')


@pytest.fixture
def app() -> App:
    """Return an application with routes of every kind."""
    made = App(__name__, static_folder=None)
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

    @blueprint.get("/bare")
    @PlainView
    def bare(environ: dict[str, Any]) -> Response:
        """Show what it was called with."""
        if environ["QUERY_STRING"]:
            raise ArithmeticError(environ["QUERY_STRING"])
        return Response(f"{environ['PATH_INFO']} {has_request_context()}")

    @blueprint.errorhandler(ArithmeticError)
    def fail(error: ArithmeticError) -> tuple[str, int]:
        return f"{request.path}: {error}", 418

    made.register_blueprint(blueprint)
    return made


@pytest.fixture
def client(app: App) -> FlaskClient:
    """Return a client of the application."""
    return app.test_client()


def test_a_plain_path_has_a_view_for_each_method(client: FlaskClient) -> None:
    """Each is found at once, and HEAD is a GET without a body."""
    assert (200, FIXED.data) == (client.get("/plain").status_code, client.get("/plain").data)
    assert b"x" * 1000 == client.post("/plain", data=b"x" * 1000).data
    head = client.head("/plain")
    assert (200, b"", "17") == (head.status_code, head.data, head.headers["Content-Length"])


@pytest.mark.parametrize(("path", "status"), [("/files/a", 200), ("/files/missing", 404)])
def test_a_path_with_an_argument_is_matched(client: FlaskClient, path: str, status: int) -> None:
    """What the view makes of the argument is its own affair."""
    assert status == client.get(path).status_code


def test_a_plain_view_is_called_without_a_context(app: App) -> None:
    """It takes WSGI's environ; called by Flask, as a view of any other app, it takes the same."""
    client = app.test_client()
    assert (200, b"/bare False") == (client.get("/bare").status_code, client.get("/bare").data)
    assert b"" == client.head("/bare").data
    assert 405 == client.post("/bare").status_code
    with app.test_request_context("/bare"):
        assert b"/bare True" == app.make_response(app.dispatch_request()).data


def test_an_error_of_a_plain_view_has_its_answer(app: App) -> None:
    """The handlers of its own blueprint come first, and know the request."""
    app.register_error_handler(Exception, lambda error: ("another's", 500))
    answer = app.test_client().get("/bare?oops")
    assert (418, b"/bare: oops") == (answer.status_code, answer.data)


def test_a_method_that_a_path_does_not_take_is_told_the_others(client: FlaskClient) -> None:
    """OPTIONS, which Flask would answer, is such a method too."""
    for method in ("PUT", "OPTIONS"):
        answer = client.open("/plain", method=method)
        assert 405 == answer.status_code
        assert {"GET", "HEAD", "POST"} == set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize("path", ["/", "/plain/", "/plaines", "/files/", "/%70lain/x"])
def test_no_other_path_is_found(client: FlaskClient, path: str) -> None:
    """None is led elsewhere, nor taken for one that is a little different."""
    assert 404 == client.get(path).status_code


def test_the_host_makes_no_difference(client: FlaskClient) -> None:
    """Whatever a client calls the service, the path says what it wants."""
    for host in ("other.example", "x" * 500, "[::1]:99"):
        assert 200 == client.get("/plain", headers={"Host": host}).status_code


def test_an_error_handler_is_all_that_runs_beside_a_view(app: App) -> None:
    """Hooks cost time and are not called; an error has its answer."""
    called: list[str] = []
    app.before_request(lambda: called.append("before"))
    app.after_request(lambda response: called.append("after"))
    app.teardown_request(lambda error: called.append("teardown"))
    app.register_error_handler(ValueError, lambda error: (str(error), 418))
    answer = app.test_client().get("/error")
    assert (418, b"oops") == (answer.status_code, answer.data)
    assert 200 == app.test_client().get("/plain").status_code
    assert [] == called


def test_there_are_no_sessions(client: FlaskClient) -> None:
    """A client's cookie is not looked at, and it gets none."""
    answer = client.get("/session", headers={"Cookie": "session=x"})
    assert b"{}" == answer.data
    assert "Set-Cookie" not in answer.headers


def start_response_into(started: list[Any]) -> Any:
    return lambda status, headers: started.append((status, dict(headers)))


def test_a_fixed_response_is_the_same_every_time() -> None:
    """It is rendered once, for any number of clients at once."""
    started: list[Any] = []
    bodies = [
        FIXED({"REQUEST_METHOD": method}, start_response_into(started))
        for method in ("GET", "HEAD", "POST")
    ]
    assert [[FIXED.data], [], [FIXED.data]] == [list(body) for body in bodies]
    expected = ("200 OK", {"Content-Type": "application/json", "Content-Length": "17"})
    assert [expected] * 3 == started


def test_a_request_outside_of_one_is_bound_to_none(app: App) -> None:
    """What Flask asks for without a request, as for a URL, is Flask's own affair."""
    assert app.create_url_adapter(None) is None
