"""Web servers with the Python client: no log is lost when their processes exit."""

import http.client
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.connections import free_port
from tests.support.programs import CLIENT, messages, url_of
from tests.support.service import TIMEOUT_SECONDS, TOKEN, Service, wait_for

#: An application for either kind of server, which logs each path.
WSGI = """
import logging, logging_of_app

def app(environ, start_response):
    logging.getLogger("shop").info(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

ASGI = """
import logging, logging_of_app

async def app(scope, receive, send):
    if scope["type"] == "http":
        logging.getLogger("shop").info(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
"""

#: What FastAPI and Starlette do with a `lifespan`.
LIFESPAN = """
    if scope["type"] == "lifespan":
        await receive()
        async with lifespan(app):
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
"""

README = (CLIENT / "README.md").read_text()

LOGGING = """
import logging
from astralog_logging import AstraLogHandler

handler = AstraLogHandler(
    %r, token=%r, project_id="org-xyz", service="shop", interval_seconds=60, exit_seconds=20
)
logger = logging.getLogger("shop")
logger.setLevel(logging.INFO)
logger.addHandler(handler)
"""

#: uvicorn's own description of its logs, for its command line: `--log-config`.
LOG_CONFIG = """
{"version": 1, "disable_existing_loggers": false,
 "loggers": {"shop": {"level": "INFO", "handlers": ["astralog"]}},
 "handlers": {"astralog": {"class": "astralog_logging.AstraLogHandler", "interval_seconds": 60,
  "url": "%s", "token": "%s", "project_id": "org-xyz", "service": "shop"}}}
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as running:
        yield running


class Server:
    """A web server that runs the application in a directory."""

    def __init__(self, directory: Path, service: Service, module: str, *options: str) -> None:
        self._port = free_port()
        (directory / "logging_of_app.py").write_text(LOGGING % (url_of(service), TOKEN))
        (directory / "log.json").write_text(LOG_CONFIG % (url_of(service), TOKEN))
        self._log_path = directory / "server.log"
        words = [word.format(port=self._port) for word in options]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=directory,
                env=os.environ | {"PYTHONPATH": str(CLIENT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def get(self, path: str) -> int:
        """Return the status of a request, or 0 while the server does not listen."""
        assert self._process.poll() is None, self.log()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except ConnectionRefusedError:
            return 0
        finally:
            connection.close()

    def log(self) -> str:
        """Return the server's log."""
        return self._log_path.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to the server's first process, and return its status."""
        self._process.send_signal(number)
        return self._process.wait(TIMEOUT_SECONDS)

    def kill(self) -> None:
        """End all processes of the server."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Return a list of servers that are killed at the end of the test."""
    running: list[Server] = []
    yield running
    for server in running:
        server.kill()


#: A worker of gevent's now and then takes the whole time for which it may finish its requests.
GUNICORN = ("--bind", "127.0.0.1:{port}", "--no-control-socket", "--graceful-timeout=5", "app:app")


@pytest.mark.parametrize("options", [(), ("-k", "gthread"), ("-k", "gevent"), ("--preload",)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_gunicorn_loses_nothing(
    tmp_path: Path,
    service: Service,
    servers: list[Server],
    options: tuple[str, ...],
    number: signal.Signals,
) -> None:
    """Its workers exit regularly at any kind of stop, and flush."""
    (tmp_path / "app.py").write_text(WSGI)
    servers.append(server := Server(tmp_path, service, "gunicorn", "-w", "2", *options, *GUNICORN))
    wait_for(lambda: server.get("/first"))
    for count in range(20):
        assert 200 == server.get(f"/{count}")
    assert 0 == server.stop(number)
    assert sorted(["/first", *(f"/{count}" for count in range(20))]) == sorted(messages(service))


def test_workers_of_gunicorn_that_are_replaced_lose_nothing(
    tmp_path: Path, service: Service, servers: list[Server]
) -> None:
    """For example with `max_requests`, after which a worker exits."""
    (tmp_path / "app.py").write_text(WSGI)
    servers.append(
        server := Server(tmp_path, service, "gunicorn", "--max-requests", "5", *GUNICORN)
    )
    wait_for(lambda: server.get("/first"))
    paths = [f"/{count}" for count in range(14)]
    for path in paths:
        wait_for(lambda path=path: server.get(path) == 200)  # type: ignore[misc]
    wait_for(lambda: len(messages(service)) == 15)  # three workers have ended
    assert {"/first", *paths} == set(messages(service))


@pytest.fixture
def uvicorn() -> None:
    """Skip a test if the server is missing."""
    if importlib.util.find_spec("uvicorn") is None:
        pytest.skip("NOT TESTED: uvicorn is not installed")


UVICORN = ("app:app", "--port", "{port}", "--log-config", "log.json")


@pytest.mark.usefixtures("uvicorn")
@pytest.mark.parametrize(
    ("options", "status"), [((), -signal.SIGTERM), (("--workers", "2"), 0)], ids=["one", "workers"]
)
def test_a_stop_of_uvicorn_loses_nothing(
    tmp_path: Path,
    service: Service,
    servers: list[Server],
    options: tuple[str, ...],
    status: int,
) -> None:
    """The handler in uvicorn's own log configuration is enough."""
    (tmp_path / "app.py").write_text(ASGI.replace(", logging_of_app", ""))
    servers.append(server := Server(tmp_path, service, "uvicorn", *UVICORN, *options))
    wait_for(lambda: server.get("/first"))
    for count in range(20):
        assert 200 == server.get(f"/{count}")
    assert status == server.stop()
    assert sorted(["/first", *(f"/{count}" for count in range(20))]) == sorted(messages(service))


@pytest.mark.usefixtures("uvicorn")
def test_the_recipe_for_an_application_of_uvicorn_loses_nothing(
    tmp_path: Path, service: Service, servers: list[Server]
) -> None:
    """An application that configures its own logging flushes at its shutdown."""
    (recipe,) = re.findall(r"```python\n(import asyncio\n.*?)```", README, re.DOTALL)
    (tmp_path / "app.py").write_text(
        "from logging_of_app import handler\n" + recipe + ASGI + LIFESPAN
    )
    servers.append(server := Server(tmp_path, service, "uvicorn", "app:app", "--port", "{port}"))
    wait_for(lambda: server.get("/first"))
    assert -signal.SIGTERM == server.stop()
    assert ["/first"] == messages(service)
