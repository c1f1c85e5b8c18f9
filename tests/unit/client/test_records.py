"""What a record becomes."""

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
    """Return what logs with a handler and returns the one log that arrives."""

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
    """All six fields are there, with the place in the code as metadata."""
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
    """The time is that of the record, in UTC, whenever it is handled."""
    handler = make_handler()
    handler.handle(logging.makeLogRecord({"msg": "late", "created": created}))
    handler.flush()
    assert [timestamp] == [log["timestamp"] for log in service.requests[0].logs]


def test_extra_fields_become_metadata(send: Callable[..., Any]) -> None:
    """What is passed as `extra` is kept as it is, and goes before the handler's own fields."""
    extra = {"user": {"id": 7, "tags": ["a", None, True, 1.5]}, "file": "upload.csv"}
    metadata = send("hello", extra=extra)["metadata"]
    assert extra["user"] == metadata["user"]
    assert "upload.csv" == metadata["file"]
    assert "shop.billing" == metadata["logger"]


def test_what_other_handlers_add_is_no_metadata(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """A formatter writes its results into the record, where they are no context."""
    handler = make_handler()
    record = logging.makeLogRecord({"msg": "hello", "taskName": "Task-1"})
    logging.Formatter("%(asctime)s %(message)s").format(record)
    handler.handle(record)
    handler.flush()
    (log,) = service.requests[0].logs
    assert {"logger", "file", "line"} == log["metadata"].keys()


def test_an_exception_becomes_metadata(send: Callable[..., Any]) -> None:
    """The traceback stands beside the message, whole."""
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
    """A record that lost its exception on its way through a queue still has the text."""
    handler = make_handler()
    handler.handle(logging.makeLogRecord({"msg": "failed", "exc_text": "KeyError: 'lost'"}))
    handler.flush()
    (log,) = service.requests[0].logs
    assert "KeyError: 'lost'" == log["metadata"]["exception"]


def test_a_formatter_makes_the_message(send: Callable[..., Any]) -> None:
    """A handler's formatter is used as with any other handler."""
    log = send("paid", formatter=logging.Formatter("%(levelname)s: %(message)s"))
    assert "INFO: paid" == log["message"]


def test_a_level_of_the_programs_own_keeps_its_name(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """A level is its name in lower case, whatever the program calls it."""
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
def test_what_json_does_not_have_becomes_text(
    send: Callable[..., Any], value: Any, expected: Any
) -> None:
    """A value that JSON does not have is readable, and costs no other."""
    metadata = send("hello", extra={"odd": value, "user_id": 7})["metadata"]
    assert expected == metadata["odd"]
    assert 7 == metadata["user_id"]
    assert "shop.billing" == metadata["logger"]


def test_a_cycle_becomes_text(send: Callable[..., Any]) -> None:
    """A value that holds itself is cut where it does so."""
    cycle: dict[str, Any] = {"a": 1}
    cycle["self"] = cycle
    assert "{'a': 1, 'self': {...}}" == send("hello", extra={"odd": cycle})["metadata"]["odd"]


def test_nesting_without_end_becomes_text(send: Callable[..., Any]) -> None:
    """A value nested deeper than the interpreter takes is named by its type."""
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
    """A message may hold anything that a string can."""
    assert text == send(text)["message"]


def test_a_record_that_cannot_be_formatted_raises_nothing(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logging shows what is wrong, as with any handler, and goes on."""
    handler = make_handler()
    logger = make_logger(handler)
    logger.info("paid %d", "seven")
    logger.info("paid %d", 8)
    handler.flush()
    assert ["paid 8"] == service.messages
    assert "--- Logging error ---" in capsys.readouterr().err


def test_emit_raises_nothing_where_even_stderr_fails(
    make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that goes wrong reaches the program."""
    handler = make_handler()
    monkeypatch.setattr(handler, "handleError", lambda record: 1 / 0)
    make_logger(handler).info("paid %d", "seven")
    assert 0 == handler.stored + handler.rejected + handler.dropped


def test_a_filter_may_reject_and_add(service: FakeService, make_handler: MakeHandler) -> None:
    """A handler's filters decide what is sent, and with what context."""
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
