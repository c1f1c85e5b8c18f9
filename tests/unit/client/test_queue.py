"""Logging never blocks: full queues, flushes and closes."""

import logging
import threading
import time
from collections.abc import Callable

import pytest

from astralog_logging import AstraLogHandler
from tests.support.fake_service import FakeService, Stall, reject
from tests.support.loggers import make_logger
from tests.support.service import wait_for

MakeHandler = Callable[..., AstraLogHandler]


def test_a_full_queue_drops_and_counts(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the service stalls, the oldest logs are kept, and the program does not wait."""
    stall = Stall()
    service.answers.append(stall)
    sender = make_handler(queue_bytes=20_000, batch_logs=10, timeout_seconds=60)
    logger = make_logger(sender)
    for number in range(10):
        logger.info("%d", number)
    wait_for(lambda: service.requests)
    for number in range(10, 5000):
        logger.info("%d", number)
    assert 4700 < sender.dropped < 4990
    assert 10 == len(service.messages)
    stall.is_over.set()
    assert sender.flush(30)
    assert 5000 == sender.stored + sender.dropped
    assert [str(number) for number in range(sender.stored)] == service.messages
    said = f"AstraLogHandler: logs dropped so far, the queue is full: {sender.dropped}\n"
    assert said == capsys.readouterr().err


def test_a_log_larger_than_the_queue_is_dropped(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """It is counted, and smaller logs are sent."""
    sender = make_handler(queue_bytes=1000)
    logger = make_logger(sender)
    logger.info("x" * 1000)
    logger.info("a")
    assert sender.flush(30)
    assert (1, 1) == (sender.stored, sender.dropped)


def test_a_sent_queue_has_room_again(service: FakeService, make_handler: MakeHandler) -> None:
    """Only waiting logs count, not the total."""
    sender = make_handler(queue_bytes=1000)
    logger = make_logger(sender)
    for number in range(50):
        logger.info("%d", number)
        assert sender.flush(30)
    assert (50, 0) == (sender.stored, sender.dropped)


def test_a_flush_of_nothing_is_done(make_handler: MakeHandler) -> None:
    """An unused handler has nothing to wait for, and no thread."""
    before = threading.active_count()
    assert make_handler().flush(0)
    assert before == threading.active_count()


def test_flush_sends_all_earlier_logs(service: FakeService, make_handler: MakeHandler) -> None:
    """A flush waits for the logs before it, over many batches, and for no later ones."""
    sender = make_handler(batch_logs=2)
    logger = make_logger(sender)
    stall = Stall()
    for number in range(7):
        logger.info("%d", number)
    assert sender.flush(30)
    assert 7 == sender.stored
    service.answers.append(stall)
    logger.info("later")
    assert not sender.flush(0.05)
    stall.is_over.set()
    assert sender.flush(30)


def test_a_flush_is_bounded(service: FakeService, make_handler: MakeHandler) -> None:
    """A service that does not respond delays a flush only up to its timeout."""
    stall = Stall()
    service.answers.append(stall)
    sender = make_handler(timeout_seconds=60)
    make_logger(sender).info("a")
    start = time.monotonic()
    assert not sender.flush(0.2)
    assert not sender.flush()
    assert 0.4 <= time.monotonic() - start < 30
    stall.is_over.set()


def test_a_flush_tries_at_once(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush ends a long pause between retries."""
    monkeypatch.setattr("astralog_logging.handler.FIRST_BACKOFF_SECONDS", 3600)
    monkeypatch.setattr("astralog_logging.handler.LONGEST_BACKOFF_SECONDS", 3600)
    sender = make_handler(interval_seconds=0.01)
    service.answers.append(reject(503, "stopping"))
    make_logger(sender).info("a")
    wait_for(lambda: service.requests)
    assert sender.flush(30)
    assert ["a", "a"] == service.messages


@pytest.mark.slow
def test_flush_keeps_the_pauses_between_retries(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a flush, the pauses between retries are as usual."""
    monkeypatch.setattr("astralog_logging.handler.FIRST_BACKOFF_SECONDS", 0.2)
    service.answers += [reject(503, "stopping")] * 1000
    sender = make_handler()
    make_logger(sender).info("a")
    assert not sender.flush(1)
    assert len(service.requests) <= 6


def test_close_sends_the_remaining_logs(service: FakeService, make_handler: MakeHandler) -> None:
    """A regular exit loses nothing, and leaves no thread."""
    sender = make_handler(exit_seconds=30)
    make_logger(sender).info("a")
    thread = thread_of(sender)
    sender.close()
    sender.close()
    assert ["a"] == service.messages
    assert not thread.is_alive()
    assert 0 == sender.dropped


def test_a_close_is_bounded(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logs that a stalled service has not accepted are counted and reported, as are later ones."""
    stall = Stall()
    service.answers.append(stall)
    sender = make_handler(exit_seconds=0.1, timeout_seconds=60, batch_logs=2)
    logger = make_logger(sender)
    for message in "abc":
        logger.info(message)
    wait_for(lambda: service.requests)
    start = time.monotonic()
    sender.close()
    assert time.monotonic() - start < 30
    assert 3 == sender.dropped
    logger.info("late")
    assert not sender.flush(0)
    assert 4 == sender.dropped
    assert "AstraLogHandler: logs not stored before the end: 3\n" == capsys.readouterr().err
    stall.is_over.set()
    wait_for(lambda: not thread_of(sender).is_alive())
    assert ["a", "b"] == service.messages


def test_close_after_a_flush_does_not_wait_again(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At exit `logging` flushes and closes, and waits for a stalled service once."""
    stall = Stall()
    service.answers.append(stall)
    sender = make_handler(exit_seconds=0.1, timeout_seconds=3600)
    make_logger(sender).info("a")
    assert not sender.flush()
    sender._exit_seconds = 3600  # the flush counts, however late the close comes
    monkeypatch.setattr(sender, "flush", lambda: pytest.fail("the second wait"))
    sender.close()
    assert 1 == sender.dropped
    stall.is_over.set()


def test_a_close_waits_after_a_shorter_flush(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """If the flush had a shorter timeout, the close still has its own."""
    stall = Stall()
    service.answers.append(stall)
    sender = make_handler(exit_seconds=60, timeout_seconds=60)
    make_logger(sender).info("a")
    assert not sender.flush(0.05)
    threading.Timer(0.3, stall.is_over.set).start()
    sender.close()
    assert (1, 0) == (sender.stored, sender.dropped)


def test_other_threads_may_log_during_close(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """A thread that logs does not wait for the thread that closes."""
    stall = Stall()
    service.answers.append(stall)
    sender = make_handler(exit_seconds=60, timeout_seconds=60)
    logger = make_logger(sender)
    logger.info("a")
    end = threading.Thread(target=logging.shutdown, args=([lambda: sender],))
    end.start()
    wait_for(lambda: service.requests)
    logger.info("b")
    assert end.is_alive()
    stall.is_over.set()
    end.join(30)
    assert not end.is_alive()


def test_log_after_close_is_reported(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is dropped and starts no thread; one line reports any number of them."""
    sender = make_handler()
    sender.close()
    for message in "abc":
        make_logger(sender).info(message)
    assert sender._sender.thread is None
    assert 3 == sender.dropped
    said = "AstraLogHandler: logs dropped: they came after the end\n"
    assert said == capsys.readouterr().err
    assert [] == service.messages


def thread_of(sender: AstraLogHandler) -> threading.Thread:
    """Return the sending thread."""
    thread = sender._sender.thread
    assert thread is not None
    return thread
