"""Rejected batches: dropped, divided, and reported on stderr."""

from collections.abc import Callable
from typing import Any

import pytest

from astralog_logging import AstraLogHandler
from tests.support.fake_service import Answer, FakeService, Reply, Request, reject
from tests.support.loggers import log

MakeHandler = Callable[..., AstraLogHandler]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 415, 422])
def test_a_rejection_is_final(
    service: FakeService,
    make_handler: MakeHandler,
    capsys: pytest.CaptureFixture[str],
    status: int,
) -> None:
    """A batch with a permanent rejection is dropped, and the reason is reported once."""
    sender = make_handler()
    service.answers += [reject(status, "some_code")] * 2
    for messages in ("ab", "cd", "e"):
        log(sender, *messages)
        assert sender.flush(30)
    assert (1, 4, 0) == (sender.stored, sender.rejected, sender.dropped)
    assert [["a", "b"], ["c", "d"], ["e"]] == [sent.messages for sent in service.requests]
    said = f"AstraLogHandler: logs given up: 2; {status} some_code No.\n"
    assert said == capsys.readouterr().err


def test_rejection_of_a_proxy_is_final(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy may reject too, with any body."""
    sender = make_handler()
    service.answers += [Answer(403, b"\x1b[31m<h1>No</h1>"), Answer(404, b'["no"]')]
    for message in "ab":
        log(sender, message)
        assert sender.flush(30)
    assert 2 == sender.rejected
    lines = capsys.readouterr().err.splitlines()
    assert 2 == len(lines)
    assert all("not a response of AstraLog" in line for line in lines)


def test_report_fits_on_a_line(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """A response can write neither several nor endless lines to the program's stderr."""
    sender = make_handler()
    service.answers.append(Answer(400, {"code": "a\n\x1b[31mb", "message": "c" * 10_000}))
    log(sender, "a")
    assert sender.flush(30)
    (line,) = capsys.readouterr().err.splitlines()
    assert "400 a  [31mb ccc" in line
    assert 600 > len(line)


def test_only_the_invalid_logs_are_dropped(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """The named logs are dropped, and the others are a batch with another key."""
    sender = make_handler()
    errors: Any = {"logs": {"1": {"level": ["Must not be empty."]}, "3": {"level": ["…"]}}}
    service.answers.append(reject(400, "invalid_batch", errors))
    log(sender, *"abcde")
    assert sender.flush(30)
    assert (3, 2, 0) == (sender.stored, sender.rejected, sender.dropped)
    first, second = service.requests
    assert ["a", "c", "e"] == second.messages
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]
    assert "logs given up: 2; 400 invalid_batch No. {'logs': {'1'" in capsys.readouterr().err


def test_batch_is_sent_again_until_no_log_is_invalid(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """A response names only the first invalid logs."""

    def name_two(request: Request) -> Reply:
        invalid = [str(i) for i, message in enumerate(request.messages) if message == "bad"]
        errors: Any = {"logs": {index: {} for index in invalid[:2]}}
        return reject(400, "invalid_batch", errors) if invalid else Answer()

    service.decide = name_two
    sender = make_handler()
    log(sender, "a", *["bad"] * 5, "b")
    assert sender.flush(30)
    assert (2, 5) == (sender.stored, sender.rejected)
    assert ["a", "b"] == service.requests[-1].messages


@pytest.mark.parametrize(
    "errors", [None, [], {"logs": None}, {"logs": {"7": {}, "-1": {}, "x": {}}}, {"_schema": ["?"]}]
)
def test_batch_is_divided_to_find_an_invalid_log(
    service: FakeService, make_handler: MakeHandler, errors: Any
) -> None:
    """A batch is divided until only the invalid log is left."""

    def reject_bad(request: Request) -> Reply:
        is_bad = "bad" in request.messages
        return reject(400, "invalid_json", errors) if is_bad else Answer()

    service.decide = reject_bad
    sender = make_handler()
    log(sender, "a", "b", "bad", "c", "d")
    assert sender.flush(30)
    assert (4, 1, 0) == (sender.stored, sender.rejected, sender.dropped)
    stored = [sent.messages for sent in service.requests if "bad" not in sent.messages]
    assert list("abcd") == [message for messages in stored for message in messages]


def test_logs_rejected_of_an_accepted_batch_are_counted(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `partial=true` in its URL, the service stores the valid logs and names the others."""
    sender = make_handler(url=service.url + "?partial=true")
    errors: Any = {"logs": {"1": {"level": ["Must not be empty."]}}}
    service.answers.append(Answer(200, {"status": "accepted", "rejected": 1, "errors": errors}))
    log(sender, *"abc")
    assert sender.flush(30)
    assert (2, 1) == (sender.stored, sender.rejected)
    assert "logs given up: 1; 200 {'logs': {'1': {'level': [" in capsys.readouterr().err


def test_a_batch_too_large_is_divided(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts that fit are stored in order; a single log that is too large is dropped."""

    def reject_large(request: Request) -> Reply:
        is_large = sum(map(len, request.messages)) > 4
        return reject(413, "body_too_large") if is_large else Answer()

    service.decide = reject_large
    sender = make_handler()
    log(sender, "aa", "bb", "cc", "xxxxx", "dd", "ee")
    assert sender.flush(30)
    assert (5, 1, 0) == (sender.stored, sender.rejected, sender.dropped)
    stored = [sent.messages for sent in service.requests if sum(map(len, sent.messages)) <= 4]
    assert ["aa", "bb", "cc", "dd", "ee"] == [text for texts in stored for text in texts]
    keys = [sent.headers["Idempotency-Key"] for sent in service.requests]
    assert len(keys) == len(set(keys))
    assert "logs given up: 1; 413 body_too_large" in capsys.readouterr().err
