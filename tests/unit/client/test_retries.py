"""Retries: which requests, how soon, and for how long."""

import email.utils
import socket
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest

from astralog_logging import AstraLogHandler, handler
from tests.support.fake_service import Answer, FakeService, Reply, Request, hang_up, reject
from tests.support.loggers import log
from tests.support.service import wait_for

MakeHandler = Callable[..., AstraLogHandler]


@pytest.mark.parametrize(
    "answer",
    [
        *(reject(status, "later") for status in (408, 409, 429, 500, 502, 503, 504)),
        Answer(200, b"<html>Please log in</html>"),
        Answer(200, {"status": "valid", "logs": []}),
        Answer(204, b""),
        Answer(302, b"", {"Location": "https://localhost/"}),
        Answer(503, b"[]" * 200_000),
        hang_up,
    ],
    ids=lambda answer: str(getattr(answer, "status", "hang up")),
)
def test_batch_is_retried_until_it_is_accepted(
    service: FakeService, make_handler: MakeHandler, answer: Reply
) -> None:
    """After a temporary error the same batch is sent again, with its key."""
    sender = make_handler()
    service.answers += [answer] * 3
    log(sender, "a", "b")
    assert sender.flush(30)
    assert (2, 0, 0) == (sender.stored, sender.rejected, sender.dropped)
    assert 4 == len(service.requests)
    assert 1 == len({(sent.body, sent.headers["Idempotency-Key"]) for sent in service.requests})


def test_logs_wait_for_an_unavailable_service(
    make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """They arrive later; one line reports the error."""
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        sender = make_handler(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        log(sender, "a")
        said = ""
        while not said:  # with the second try
            assert not sender.flush(0.1)
            said = capsys.readouterr().err
    (line,) = said.splitlines()
    assert "AstraLogHandler: the service accepts no logs, retrying" in line
    assert "Connection refused" in line


def test_pauses_grow(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pause is longer than the previous one could have been at least."""
    monkeypatch.setattr(handler, "FIRST_BACKOFF_SECONDS", 0.04)
    sender = make_handler(interval_seconds=0.01)
    service.answers += [reject(503, "stopping")] * 4
    log(sender, "a")
    wait_for(lambda: sender.stored == 1)
    waits = [after.received_at - sent.received_at for sent, after in pairwise(service.requests)]
    assert all(wait >= 0.02 * 2**number for number, wait in enumerate(waits))


def test_pauses_are_bounded(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a service was unavailable, it is retried soon."""
    monkeypatch.setattr(handler, "LONGEST_BACKOFF_SECONDS", 0.01)
    sender = make_handler(interval_seconds=0.01)
    service.answers += [reject(503, "stopping")] * 30  # doubled as often, that were years
    log(sender, "a")
    wait_for(lambda: sender.stored == 1)
    assert 31 == len(service.requests)


def has_stored(sender: AstraLogHandler, logs: int) -> bool:
    return sender.stored == logs


def test_pauses_start_again_with_the_next_batch(
    service: FakeService,
    make_handler: MakeHandler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The next batch starts with a short pause, and its first failure is not reported."""
    monkeypatch.setattr(handler, "REPORT_SECONDS", 0)
    sender = make_handler(interval_seconds=0.01)
    for stored, (failures, lines) in enumerate(((3, 2), (1, 0), (2, 1)), 1):
        service.answers += [reject(503, "stopping")] * failures
        log(sender, "a")
        wait_for(partial(has_stored, sender, stored))
        assert lines == len(capsys.readouterr().err.splitlines())


def test_pauses_start_again_with_a_flush(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a service was unavailable, a flush tries as often as at first."""
    monkeypatch.setattr(handler, "FIRST_BACKOFF_SECONDS", 1e-6)
    monkeypatch.setattr(handler, "LONGEST_BACKOFF_SECONDS", 3600)
    sender = make_handler(interval_seconds=0.01)

    def decide(sent: Request) -> Answer:
        if len(service.requests) == 20:  # the wait that follows the answer is of an hour
            monkeypatch.setattr(handler, "FIRST_BACKOFF_SECONDS", 0.05)
        return Answer() if len(service.requests) == 22 else reject(503, "stopping")

    service.decide = decide
    log(sender, "a")
    wait_for(lambda: len(service.requests) == 21)
    assert sender.flush(30)
    assert 23 == len(service.requests)


@pytest.mark.slow
def test_retry_after_is_respected(service: FakeService, make_handler: MakeHandler) -> None:
    """The service sets the shortest pause, also during a flush."""
    sender = make_handler()
    service.answers.append(reject(503, "queue_full", Retry_After="1"))
    log(sender, "a")
    assert sender.flush(30)
    first, second = service.requests
    assert 1 <= second.received_at - first.received_at


@pytest.mark.slow
def test_retry_after_may_be_a_date(service: FakeService, make_handler: MakeHandler) -> None:
    """A proxy may send the time of the next attempt."""
    sender = make_handler()
    asked = int(time.time()) + 2
    date = email.utils.formatdate(asked, usegmt=True)
    service.answers.append(reject(503, "queue_full", Retry_After=date))
    log(sender, "a")
    assert sender.flush(30)
    assert asked <= time.time()
    assert ["a", "a"] == service.messages


@pytest.mark.parametrize("asked", ["", "soon", "-1", "²", "Fri, 31 May 1024 15:30:45 GMT", "1e9"])
def test_invalid_retry_after_is_ignored(
    service: FakeService, make_handler: MakeHandler, asked: str
) -> None:
    """A value that is no time, or one in the past, causes no pause."""
    sender = make_handler()
    content = b'{"status":"rejected"}'
    headers = {"Retry-After": asked.encode().decode("latin-1")}
    service.answers.append(Answer(503, content, headers))
    log(sender, "a")
    assert sender.flush(30)
    assert (1, 0) == (sender.stored, sender.rejected)


def test_long_retry_after_is_bounded(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong value of a proxy does not stop the sender for good."""
    monkeypatch.setattr(handler, "LONGEST_RETRY_AFTER_SECONDS", 0.1)
    sender = make_handler()
    service.answers.append(reject(503, "stopping", Retry_After="9" * 400))
    log(sender, "a")
    assert sender.flush(30)
    assert (1, 0) == (sender.stored, sender.rejected)
