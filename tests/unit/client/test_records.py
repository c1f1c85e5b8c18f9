"""The conversion of records to logs."""

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from astralog_logging import AstraLogHandler
from tests.support.fake_service import FakeService
from tests.support.loggers import make_logger

MakeHandler = Callable[..., AstraLogHandler]


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.fixture
def send(service: FakeService, make_handler: MakeHandler) -> Callable[..., dict[str, Any]]:
    """Return a function that logs with a handler and returns the log that arrives."""

    def log_and_flush(*args: Any, formatter: logging.Formatter | None = None, **kwargs: Any) -> Any:
        handler = make_handler()
        if formatter:
            handler.setFormatter(formatter)
        make_logger(handler).info(*args, **kwargs)
        assert handler.flush(30)
        (log,) = service.requests[-1].logs
        return log

    return log_and_flush


def test_a_record_becomes_a_log(service: FakeService, make_handler: MakeHandler) -> None:
    """All six fields are set, and the place in the code is in the metadata."""
    handler = make_handler()
    before = datetime.now(UTC)
    make_logger(handler).warning("paid %d of %s", 7, "Zoë")
    line = sys._getframe().f_lineno - 1
    handler.flush()
    (log,) = service.requests[0].logs
    assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(log.pop("timestamp"))
    expected = {"project_id": "org-xyz", "service": "billing", "level": "warning"}
    metadata = {"logger": "shop.billing", "file": __file__, "line": line}
    assert expected | {"message": "paid 7 of Zoë", "metadata": metadata} == log


@pytest.mark.parametrize(
    ("created", "timestamp"),
    [
        (1717169445.0, "2024-05-31T15:30:45.000000Z"),
        (1717169445.25, "2024-05-31T15:30:45.250000Z"),
        (1717169445.999999, "2024-05-31T15:30:45.999999Z"),
        (1717169445.9999998, "2024-05-31T15:30:45.999999Z"),
        (0.5, "1970-01-01T00:00:00.500000Z"),
    ],
)
def test_a_timestamp_is_the_records_own(
    service: FakeService, make_handler: MakeHandler, created: float, timestamp: str
) -> None:
    """It is the time of the record in UTC, whenever the record is handled."""
    handler = make_handler()
    handler.handle(logging.makeLogRecord({"msg": "late", "created": created}))
    handler.flush()
    assert [timestamp] == [log["timestamp"] for log in service.requests[0].logs]


def test_extra_fields_become_metadata(send: Callable[..., Any]) -> None:
    """Fields passed as `extra` are kept, and override the handler's own fields."""
    extra = {"user": {"id": 7, "tags": ["a", None, True, 1.5]}, "file": "upload.csv"}
    metadata = send("hello", extra=extra)["metadata"]
    assert extra["user"] == metadata["user"]
    assert "upload.csv" == metadata["file"]
    assert "shop.billing" == metadata["logger"]


def test_attributes_of_formatters_are_not_metadata(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """A formatter writes its results into the record; they are no context."""
    handler = make_handler()
    record = logging.makeLogRecord({"msg": "hello", "taskName": "Task-1"})
    logging.Formatter("%(asctime)s %(message)s").format(record)
    handler.handle(record)
    handler.flush()
    (log,) = service.requests[0].logs
    assert {"logger", "file", "line"} == log["metadata"].keys()


def test_an_exception_becomes_metadata(send: Callable[..., Any]) -> None:
    """The whole traceback is there, in addition to the message."""
    try:
        raise KeyError("lost")
    except KeyError:
        log = send("failed", exc_info=True, stack_info=True)
    assert "failed" == log["message"]
    assert log["metadata"]["exception"].startswith("Traceback (most recent call last):\n")
    assert log["metadata"]["exception"].endswith("KeyError: 'lost'")
    assert log["metadata"]["stack"].startswith("Stack (most recent call last):\n")


def test_an_exception_formatted_before_is_kept(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """A record that lost its exception in a queue still has its text."""
    handler = make_handler()
    handler.handle(logging.makeLogRecord({"msg": "failed", "exc_text": "KeyError: 'lost'"}))
    handler.flush()
    (log,) = service.requests[0].logs
    assert "KeyError: 'lost'" == log["metadata"]["exception"]


def test_a_formatter_makes_the_message(send: Callable[..., Any]) -> None:
    """A formatter is used as with any other handler."""
    log = send("paid", formatter=logging.Formatter("%(levelname)s: %(message)s"))
    assert "INFO: paid" == log["message"]


def test_custom_level_keeps_its_name(service: FakeService, make_handler: MakeHandler) -> None:
    """A level is its name in lower case."""
    handler = make_handler()
    for name in ("Notice", "Level 25"):
        handler.handle(logging.makeLogRecord({"msg": "", "levelname": name}))
    handler.flush()
    assert ["notice", "level 25"] == [log["level"] for log in service.requests[0].logs]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2024, 5, 31, 15, 30), "2024-05-31 15:30:00"),
        (Decimal("1.50"), "1.50"),
        (KeyError("lost"), "KeyError('lost')"),
        (float("nan"), "nan"),
        ({"deep": {"infinite": float("-inf")}}, "{'deep': {'infinite': -inf}}"),
        ({(1, 2): "a key"}, "{(1, 2): 'a key'}"),
        ([Unprintable()], ["<Unprintable>"]),
        (10**5000, "<int>"),
        (b"\xff", "b'\\xff'"),
        ({1: "one", None: "none"}, {"1": "one", "null": "none"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_without_a_json_form_become_text(
    send: Callable[..., Any], value: Any, expected: Any
) -> None:
    """Such a value is readable, and affects no other value."""
    metadata = send("hello", extra={"odd": value, "user_id": 7})["metadata"]
    assert expected == metadata["odd"]
    assert 7 == metadata["user_id"]
    assert "shop.billing" == metadata["logger"]


def test_a_cycle_becomes_text(send: Callable[..., Any]) -> None:
    """A value that contains itself is cut at the repetition."""
    cycle: dict[str, Any] = {"a": 1}
    cycle["self"] = cycle
    assert "{'a': 1, 'self': {...}}" == send("hello", extra={"odd": cycle})["metadata"]["odd"]


def test_deep_nesting_becomes_text(send: Callable[..., Any]) -> None:
    """A value nested too deeply for the interpreter is replaced by the name of its type."""
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    try:
        assert "<list>" == send("hello", extra={"odd": deep})["metadata"]["odd"]
    finally:
        while deep:  # to free it in one go would take as deep a stack
            deep = deep.pop()


@pytest.mark.parametrize("text", ["", "a\nb\r\u2028\0", "half an emoji \ud83d", "ä" * 1000])
def test_any_text_is_sent(send: Callable[..., Any], text: str) -> None:
    """A message may contain anything that a string can."""
    assert text == send(text)["message"]


def test_a_record_that_cannot_be_formatted_raises_nothing(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logging reports the error, as with any handler, and continues."""
    handler = make_handler()
    logger = make_logger(handler)
    logger.info("paid %d", "seven")
    logger.info("paid %d", 8)
    handler.flush()
    assert ["paid 8"] == service.messages
    assert "--- Logging error ---" in capsys.readouterr().err


def test_emit_raises_nothing_if_stderr_fails(
    make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No error of the handler reaches the program."""
    handler = make_handler()
    monkeypatch.setattr(handler, "handleError", lambda record: 1 / 0)
    make_logger(handler).info("paid %d", "seven")
    assert 0 == handler.stored + handler.rejected + handler.dropped


def test_a_filter_may_reject_and_add(service: FakeService, make_handler: MakeHandler) -> None:
    """A handler's filters decide which logs are sent, and may add context."""
    handler = make_handler()

    def keep_paid(record: logging.LogRecord) -> bool:
        record.host = "host-1"
        return record.getMessage().startswith("paid")

    handler.addFilter(keep_paid)
    for message in ("paid 7", "owed 7"):
        make_logger(handler).info(message)
    handler.flush()
    (log,) = service.requests[0].logs
    assert ("paid 7", "host-1") == (log["message"], log["metadata"]["host"])
