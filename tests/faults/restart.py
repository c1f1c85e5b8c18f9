"""A start of the service in this process: cheaper than a real one, so that there may be thousands.

Without gunicorn, and with one worker; the store is the same.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
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
            body, headers = make_body(number, size), make_headers(number)
            answer = client.post("/v1/drain", data=body, headers=headers)
            row.sent_again += 1
            if answer.status_code != 200:
                row.fail(f"a second try was answered {answer.status_code} {answer.get_data()!r}")


def send_again_for_real(row: Row, service: Service, batches: Iterable[tuple[int, int]]) -> None:
    """Send batches to a running service, as `send_again` does."""
    for number, size in batches:
        answer = service.drain(make_body(number, size), make_headers(number))
        row.sent_again += 1
        if answer.status != 200:
            row.fail(f"a second try was answered {answer.status} {answer.raw!r}")


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
