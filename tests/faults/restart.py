"""A start of the service in this process: cheaper than a real one, so that there may be thousands.

Without gunicorn, and with one worker; the store is the same.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from flask.testing import FlaskClient

from astralog.app import create_app, services_of
from astralog.settings import Settings
from astralog.store import segment
from tests.faults.table import Row
from tests.support.keyed_client import make_headers
from tests.support.numbered_batches import make_body
from tests.support.service import TOKEN, Service, wait_for

#: Seconds in which it stops.
STOP_SECONDS = 10.0


class _LastError(logging.Handler):
    """Keeps the last error that the service logged."""

    text = "none"

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def send_again(row: Row, data_dir: Path, batches: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Start on the files of a data directory, send batches by their numbers and sizes, and stop.

    Return those that are acknowledged.
    """
    with _started(data_dir) as (client, error):

        def post(body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
            answer = client.post("/v1/drain", data=body, headers=headers)
            return answer.status_code, answer.get_data()

        return _send(row, batches, post, lambda: error.text)


def send_again_for_real(
    row: Row, service: Service, batches: Iterable[tuple[int, int]]
) -> dict[int, int]:
    """Send batches to a running service, as `send_again` does."""

    def post(body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        answer = service.drain(body, headers)
        return answer.status, answer.raw

    return _send(row, batches, post, lambda: service.log()[-1000:])


def _send(
    row: Row,
    batches: Iterable[tuple[int, int]],
    post: Callable[[bytes, dict[str, str]], tuple[int, bytes]],
    log: Callable[[], str],
) -> dict[int, int]:
    """Post batches, and return the acknowledged ones; the row gets the others with the log."""
    acknowledged = {}
    for number, size in batches:
        status, response = post(make_body(number, size), make_headers(number))
        row.sent_again += 1
        if status == 200:
            acknowledged[number] = size
        else:
            row.fail(f"a second try was answered {status} {response!r}; logged: {log()}")
    return acknowledged


def recover(data_dir: Path) -> None:
    """Run the service's own recovery on open segments, unless it is about to run."""
    for path in data_dir.glob("*.open"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            segment.recover_file(path)
    wait_for(lambda: not list(data_dir.glob("*.open")))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the service's log: the lines of one recovery per state would be too many."""
    logger = logging.getLogger("astralog")
    nowhere = logging.NullHandler()
    logger.addHandler(nowhere)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(nowhere)


@contextlib.contextmanager
def _started(data_dir: Path) -> Iterator[tuple[FlaskClient, _LastError]]:
    app = create_app(Settings(data_dir=data_dir, tokens=TOKEN, min_free_bytes=0))
    error = _LastError(logging.ERROR)
    logging.getLogger("astralog").addHandler(error)
    try:
        yield app.test_client(), error
    finally:
        services_of(app).queue.stop(STOP_SECONDS)
        logging.getLogger("astralog").removeHandler(error)
