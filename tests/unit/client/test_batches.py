"""Batches, their requests, tokens and URLs."""

import gzip
import http.client
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astralog_logging import AstraLogHandler, handler
from tests.support.fake_service import FakeService
from tests.support.loggers import log, make_logger
from tests.support.service import wait_for

MakeHandler = Callable[..., AstraLogHandler]


def test_a_batch_is_sent_at_its_size(service: FakeService, make_handler: MakeHandler) -> None:
    """A full batch is sent at once, and fewer logs wait for more."""
    sender = make_handler(batch_logs=3)
    log(sender, *"abcdefg")
    wait_for(lambda: sender.stored == 6)
    assert [["a", "b", "c"], ["d", "e", "f"]] == [sent.messages for sent in service.requests]
    assert sender.flush(30)
    assert list("abcdefg") == service.messages


def test_a_batch_is_sent_at_its_age(service: FakeService, make_handler: MakeHandler) -> None:
    """Fewer logs than a batch are sent once the first of them is old enough."""
    sender = make_handler(interval_seconds=0.3)
    start = time.monotonic()
    log(sender, "a", "b")
    wait_for(lambda: sender.stored == 2)
    (sent,) = service.requests
    assert ["a", "b"] == sent.messages
    assert 0.3 <= sent.received_at - start


def test_a_batch_is_sent_at_its_bytes(service: FakeService, make_handler: MakeHandler) -> None:
    """Large logs are sent in smaller batches, and none is truncated."""
    sender = make_handler()
    big = "x" * (handler.BATCH_BYTES // 2)
    log(sender, big, big, big)
    wait_for(lambda: sender.stored == 2)
    assert sender.flush(30)
    assert all(len(sent.logs) == 1 for sent in service.requests)
    assert [big] * 3 == service.messages


def test_request_has_its_headers(service: FakeService, make_handler: MakeHandler) -> None:
    """Each request has token, content type, encoding and a new key, on one connection."""
    sender = make_handler()
    for message in ("a", "b"):
        log(sender, message)
        assert sender.flush(30)
    for sent in service.requests:
        assert "/v1/drain" == sent.path
        assert "secret" == sent.headers["Authorization"]
        assert "application/json" == sent.headers["Content-Type"]
        assert "gzip" == sent.headers["Content-Encoding"]
    keys = {sent.headers["Idempotency-Key"] for sent in service.requests}
    assert 2 == len(keys)
    assert all(key[0] == key[-1] == '"' and 34 == len(key) for key in keys)
    assert 1 == len({sent.peer for sent in service.requests})


@pytest.mark.parametrize(
    ("tail", "path"),
    [
        ("", "/v1/drain"),
        ("/", "/v1/drain"),
        ("?partial=true", "/v1/drain?partial=true"),
        ("/logs/v1/drain?a=b", "/logs/v1/drain?a=b"),
    ],
)
def test_url_selects_the_path(
    service: FakeService, make_handler: MakeHandler, tail: str, path: str
) -> None:
    """A path in the URL is used; without one, it is that of the API. A query is kept."""
    sender = make_handler(url=service.url + tail)
    log(sender, "a")
    assert sender.flush(30)
    assert [path] == [sent.path for sent in service.requests]


@pytest.mark.parametrize(
    "options",
    [
        {"url": "localhost:8080"},
        {"url": "ftp://localhost"},
        {"url": "http://"},
        {"url": "http://localhost:99999"},
        {"url": "http://localhost/a b"},
        {"token": "two words"},
        {"token": " "},
        {"token": None},
        {"token": "secret", "token_file": "token"},
        {"project_id": ""},
        {"service": ""},
        {"batch_logs": 0},
        {"queue_bytes": 0},
        {"interval_seconds": 0},
    ],
)
def test_invalid_arguments_are_rejected(options: dict[str, Any]) -> None:
    """A handler that could never send is not created."""
    valid: dict[str, Any] = {
        "url": "http://localhost",
        "token": "t",
        "project_id": "p",
        "service": "s",
    }
    AstraLogHandler(**valid).close()
    with pytest.raises(ValueError, match=r"."):
        AstraLogHandler(**valid | options)


def test_the_file_of_the_token_may_change(
    service: FakeService, make_handler: MakeHandler, tmp_path: Path
) -> None:
    """The token is read again for each batch, and a missing file is retried."""
    path = tmp_path / "token"
    sender = make_handler(token_file=path)
    log(sender, "a")
    assert not sender.flush(0.1)
    path.write_text("not yet")
    assert not sender.flush(0.1)
    for number in (1, 2):
        path.write_text(f" token-{number}\n")
        log(sender, "b")
        assert sender.flush(30)
    assert ["token-1", "token-1", "token-2"] == [
        sent.headers["Authorization"] for sent in service.requests
    ]
    assert ["a", "b", "b"] == service.messages


def test_token_may_contain_any_letters(service: FakeService, make_handler: MakeHandler) -> None:
    """A token is sent as UTF-8, the encoding in which the service reads it."""
    sender = make_handler(token="schlüssel")
    log(sender, "a")
    assert sender.flush(30)
    (sent,) = service.requests
    assert "schlüssel" == sent.headers["Authorization"].encode("latin-1").decode()


def test_logs_of_the_sender_are_not_sent(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise sending would never end."""
    sender = make_handler()
    logger = make_logger(sender)
    request: Any = http.client.HTTPConnection.request

    def log_and_request(*args: Any, **kwargs: Any) -> None:
        logger.info("request")
        request(*args, **kwargs)

    monkeypatch.setattr(http.client.HTTPConnection, "request", log_and_request)
    for message in "ab":
        logger.info(message)
        assert sender.flush(30)
    assert ["a", "b"] == service.messages


def test_unexpected_error_loses_one_batch(
    service: FakeService,
    make_handler: MakeHandler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The thread continues; the lost logs are counted and reported."""
    sender = make_handler()
    compress = gzip.compress

    def fail_for_bad(data: bytes, *args: Any, **kwargs: Any) -> bytes:
        if b"bad" in data:
            raise MemoryError("no room")
        return compress(data, *args, **kwargs)

    monkeypatch.setattr(gzip, "compress", fail_for_bad)
    for message in ("bad", "good"):
        log(sender, message)
        assert sender.flush(30)
    assert (1, 1, 0) == (sender.stored, sender.rejected, sender.dropped)
    assert ["good"] == service.messages
    assert "logs given up: 1; MemoryError: no room" in capsys.readouterr().err
