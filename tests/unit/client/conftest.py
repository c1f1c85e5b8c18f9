"""A fake service with prepared responses, and handlers that send to it."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from astralog_logging import AstraLogHandler, handler
from tests.support.fake_service import FakeService
from tests.support.service import TIMEOUT_SECONDS


@pytest.fixture(autouse=True)
def fast_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between retries."""
    monkeypatch.setattr(handler, "FIRST_BACKOFF_SECONDS", 0.02)


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService() as running:
        yield running


@pytest.fixture
def make_handler(service: FakeService) -> Iterator[Callable[..., AstraLogHandler]]:
    """Return a factory of handlers that send to the service at 500 logs or at a flush."""
    handlers: list[AstraLogHandler] = []

    def make(url: str = service.url, **options: Any) -> AstraLogHandler:
        defaults = {"token": "secret", "interval_seconds": 3600, "exit_seconds": 0.2}
        options = {"project_id": "org-xyz", "service": "billing", **defaults, **options}
        if "token_file" in options:
            del options["token"]
        handlers.append(AstraLogHandler(url, **options))
        return handlers[-1]

    yield make
    for made in handlers:  # by a thread that cannot keep the tests from ending
        closing = threading.Thread(target=made.close, daemon=True)
        closing.start()
        closing.join(TIMEOUT_SECONDS)
        assert not closing.is_alive()
