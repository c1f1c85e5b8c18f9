"""A start of the service in this process: cheaper than a real one, so that there may be thousands.

Without gunicorn, and with one worker; the store is the same.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path

from flask.testing import FlaskClient

from astralog.app import create_app, services_of
from astralog.settings import Settings
from astralog.store import recovery
from tests.faults.table import Row
from tests.support.keyed_client import make_headers
from tests.support.numbered_batches import make_body
from tests.support.service import TOKEN, Service, wait_for

#: Seconds in which it stops.
STOP_SECONDS = 10.0


def send_again(row: Row, data_dir: Path, batches: Iterable[tuple[int, int]]) -> None:
    """Start on the files of a data directory, send batches by their numbers and sizes, and stop."""
    with _started(data_dir) as client:
        for number, size in batches:
            _send_until_accepted(row, partial(_post, client, number, size))


def send_again_for_real(row: Row, service: Service, batches: Iterable[tuple[int, int]]) -> None:
    """Send batches to a running service, as `send_again` does."""
    for number, size in batches:
        _send_until_accepted(row, partial(_drain, service, number, size))


def _post(client: FlaskClient, number: int, size: int) -> int:
    body, headers = make_body(number, size), make_headers(number)
    return client.post("/v1/drain", data=body, headers=headers).status_code


def _drain(service: Service, number: int, size: int) -> int:
    return service.drain(make_body(number, size), make_headers(number)).status


def _send_until_accepted(row: Row, send: Callable[[], int]) -> None:
    """Send a batch until it is accepted: on a busy machine, it may be answered 503 at first."""
    row.sent_again += 1
    status = 0

    def is_accepted() -> bool:
        nonlocal status
        status = send()
        return status != HTTPStatus.SERVICE_UNAVAILABLE

    with contextlib.suppress(AssertionError):
        wait_for(is_accepted)
    if status != HTTPStatus.OK:
        row.fail(f"a second try was answered {status}")


def recover(data_dir: Path) -> None:
    """Run the service's own recovery on open segments, unless it is about to run."""
    for path in data_dir.glob("*.open"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            recovery.recover_file(path)
    wait_for(lambda: not list(data_dir.glob("*.open")))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the log of recoveries: one line per state would be too many."""
    logger = logging.getLogger("astralog")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _started(data_dir: Path) -> Iterator[FlaskClient]:
    app = create_app(Settings(data_dir=data_dir, tokens=TOKEN, min_free_bytes=0))
    try:
        yield app.test_client()
    finally:
        services_of(app).queue.stop(STOP_SECONDS)
