"""How batches are made, sent, divided, tried again and given up."""

import email.utils
import gzip
import http.client
import socket
import ssl
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from astralog_logging import AstraLogHandler, handler
from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.fake_service import Answer, FakeService, Reply, Request, hang_up, reject
from tests.support.loggers import make_logger
from tests.support.service import wait_for

MakeHandler = Callable[..., AstraLogHandler]


def log(sender: AstraLogHandler, *messages: str) -> None:
    """Log the messages through the handler."""
    logger = make_logger(sender)
    for message in messages:
        logger.info(message)


def test_a_batch_is_sent_at_its_size(service: FakeService, make_handler: MakeHandler) -> None:
    """Enough logs are sent at once, and fewer wait for more."""
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
    """Large logs are sent before there are many, and none is cut."""
    sender = make_handler()
    big = "x" * (handler.BATCH_BYTES // 2)
    log(sender, big, big, big)
    wait_for(lambda: sender.stored == 2)
    assert sender.flush(30)
    assert all(len(sent.logs) == 1 for sent in service.requests)
    assert [big] * 3 == service.messages


def test_a_request_says_what_it_is(service: FakeService, make_handler: MakeHandler) -> None:
    """Token, content, encoding and a key of its own are in each request, on one connection."""
    sender = make_handler()
    for message in ("a", "b"):
        log(sender, message)
        assert sender.flush(30)
    for sent in service.requests:
        assert "/v1/drain" == sent.path
        assert "secret" == sent.headers["Authorization"]
        assert "application/x-ndjson" == sent.headers["Content-Type"]
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
def test_the_url_says_where_batches_go(
    service: FakeService, make_handler: MakeHandler, tail: str, path: str
) -> None:
    """A path is taken as it is, and is the API's where there is none; a query stays."""
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
def test_what_can_never_work_is_rejected_at_once(options: dict[str, Any]) -> None:
    """A handler that could send nothing is not made."""
    valid: dict[str, Any] = {
        "url": "http://localhost",
        "token": "t",
        "project_id": "p",
        "service": "s",
    }
    AstraLogHandler(**valid).close()
    with pytest.raises(ValueError, match=r"."):
        AstraLogHandler(**valid | options)


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
def test_a_batch_is_tried_until_it_is_accepted(
    service: FakeService, make_handler: MakeHandler, answer: Reply
) -> None:
    """What may pass is waited for: the batch comes again as it was, with its key."""
    sender = make_handler()
    service.answers += [answer] * 3
    log(sender, "a", "b")
    assert sender.flush(30)
    assert (2, 0, 0) == (sender.stored, sender.rejected, sender.dropped)
    assert 4 == len(service.requests)
    assert 1 == len({(sent.body, sent.headers["Idempotency-Key"]) for sent in service.requests})


def test_a_service_that_is_away_is_waited_for(
    make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logs of a time without the service arrive later; one line says what is wrong."""
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        sender = make_handler(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        log(sender, "a")
        assert not sender.flush(0.3)
    (line,) = capsys.readouterr().err.splitlines()
    assert "AstraLogHandler: the service takes no logs, trying again" in line
    assert "Connection refused" in line


def test_waits_grow(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wait is longer than the last could have been short."""
    monkeypatch.setattr(handler, "FIRST_BACKOFF_SECONDS", 0.1)
    sender = make_handler(interval_seconds=0.01)
    service.answers += [reject(503, "stopping")] * 4
    log(sender, "a")
    wait_for(lambda: sender.stored == 1)
    waits = [after.received_at - sent.received_at for sent, after in pairwise(service.requests)]
    assert all(wait >= 0.05 * 2**number for number, wait in enumerate(waits))


def test_waits_end(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a service was away, it is tried again soon."""
    monkeypatch.setattr(handler, "LONGEST_BACKOFF_SECONDS", 0.01)
    sender = make_handler(interval_seconds=0.01)
    service.answers += [reject(503, "stopping")] * 30  # doubled as often, that were years
    log(sender, "a")
    wait_for(lambda: sender.stored == 1)
    assert 31 == len(service.requests)


def test_retry_after_is_kept_to(service: FakeService, make_handler: MakeHandler) -> None:
    """The service says how long to wait at least, also where a flush is in a hurry."""
    sender = make_handler()
    service.answers.append(reject(503, "queue_full", Retry_After="1"))
    log(sender, "a")
    assert sender.flush(30)
    first, second = service.requests
    assert 1 <= second.received_at - first.received_at


def test_retry_after_may_be_a_date(service: FakeService, make_handler: MakeHandler) -> None:
    """What stands before the service may name the time to come again."""
    sender = make_handler()
    asked = int(time.time()) + 2
    date = email.utils.formatdate(asked, usegmt=True)
    service.answers.append(reject(503, "queue_full", Retry_After=date))
    log(sender, "a")
    assert sender.flush(30)
    assert asked <= time.time()
    assert ["a", "a"] == service.messages


@pytest.mark.parametrize("asked", ["", "soon", "-1", "²", "Fri, 31 May 1024 15:30:45 GMT", "1e9"])
def test_a_retry_after_that_says_nothing_is_ignored(
    service: FakeService, make_handler: MakeHandler, asked: str
) -> None:
    """What is no time, or one long gone, is no reason to wait."""
    sender = make_handler()
    content = b'{"status":"rejected"}'
    headers = {"Retry-After": asked.encode().decode("latin-1")}
    service.answers.append(Answer(503, content, headers))
    log(sender, "a")
    assert sender.flush(30)


def test_a_retry_after_without_end_is_bounded(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of a proxy does not stop the sending for good."""
    monkeypatch.setattr(handler, "LONGEST_RETRY_AFTER_SECONDS", 0.1)
    sender = make_handler()
    service.answers.append(reject(503, "stopping", Retry_After="9" * 400))
    log(sender, "a")
    assert sender.flush(30)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 415, 422])
def test_a_rejection_is_final(
    service: FakeService,
    make_handler: MakeHandler,
    capsys: pytest.CaptureFixture[str],
    status: int,
) -> None:
    """A batch that no second try would help is given up, and the reason is said once."""
    sender = make_handler()
    service.answers += [reject(status, "some_code")] * 2
    for messages in ("ab", "cd", "e"):
        log(sender, *messages)
        assert sender.flush(30)
    assert (1, 4, 0) == (sender.stored, sender.rejected, sender.dropped)
    assert [["a", "b"], ["c", "d"], ["e"]] == [sent.messages for sent in service.requests]
    said = f"AstraLogHandler: logs given up: 2; {status} some_code: No.\n"
    assert said == capsys.readouterr().err


def test_a_rejection_that_is_not_the_services_is_final(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stands before the service may reject, too, in whatever words."""
    sender = make_handler()
    service.answers += [Answer(403, b"\x1b[31m<h1>No</h1>"), Answer(404, b'["no"]')]
    for message in "ab":
        log(sender, message)
        assert sender.flush(30)
    assert 2 == sender.rejected
    lines = capsys.readouterr().err.splitlines()
    assert 2 == len(lines)
    assert all("without a reason that AstraLog would give" in line for line in lines)


def test_what_is_said_fits_on_a_line(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer cannot write lines, or without end, to the program's stderr."""
    sender = make_handler()
    service.answers.append(Answer(400, {"code": "a\n\x1b[31mb", "message": "c" * 10_000}))
    log(sender, "a")
    assert sender.flush(30)
    (line,) = capsys.readouterr().err.splitlines()
    assert "400 a  [31mb: ccc" in line
    assert 600 > len(line)


def test_invalid_logs_cost_no_others(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """The logs that the service names are given up, and the rest is a batch with another key."""
    sender = make_handler()
    errors: Any = {"logs": {"1": {"level": ["Must not be empty."]}, "3": {"level": ["…"]}}}
    service.answers.append(reject(400, "invalid_batch", errors))
    log(sender, *"abcde")
    assert sender.flush(30)
    assert (3, 2, 0) == (sender.stored, sender.rejected, sender.dropped)
    first, second = service.requests
    assert ["a", "c", "e"] == second.messages
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]
    assert "logs given up: 2; 400 invalid_batch: No. {'logs': {'1'" in capsys.readouterr().err


def test_more_invalid_logs_than_are_named_cost_no_others(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """A batch is sent again until none of its logs is invalid."""

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
def test_an_invalid_log_that_is_not_named_costs_no_others(
    service: FakeService, make_handler: MakeHandler, errors: Any
) -> None:
    """A batch is divided until the log alone is left that makes it invalid."""

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


def test_a_batch_too_large_is_divided(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts that fit are stored, in order; a log that is too large alone is given up."""

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


def test_an_answer_before_the_body_is_read_is_seen(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """A service that rejects by the head alone, and ends the connection, is understood."""
    service.answer_early = reject(413, "body_too_large")
    sender = make_handler()
    noise = "".join(chr(0x4E00 + 7919 * number % 20_000) for number in range(1_500_000))
    log(sender, noise)
    assert sender.flush(30)
    assert (0, 1, 0) == (sender.stored, sender.rejected, sender.dropped)


def test_a_connection_that_was_closed_while_idle_is_no_news(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next batch goes over a new connection, without a word."""
    sender = make_handler()

    def answer_and_hang_up(request: Any) -> None:
        Answer()(request)
        request.close_connection = True

    service.answers += [answer_and_hang_up] * 3
    for message in "abc":
        log(sender, message)
        assert sender.flush(30)
    assert list("abc") == service.messages
    assert "" == capsys.readouterr().err


def test_a_connection_idle_for_long_is_made_anew(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is not used at the time when others may close it."""
    monkeypatch.setattr(handler, "IDLE_SECONDS", 0)
    sender = make_handler()
    for message in "ab":
        log(sender, message)
        assert sender.flush(30)
    assert 2 == len({sent.peer for sent in service.requests})


def test_a_service_that_does_not_answer_is_given_up(
    service: FakeService, make_handler: MakeHandler
) -> None:
    """After its time, a request is made again over another connection."""
    sender = make_handler(timeout_seconds=0.2)

    def stall(request: Any) -> None:
        request.close_connection = True
        time.sleep(1)

    service.answers.append(stall)
    log(sender, "a")
    assert sender.flush(30)
    assert ["a", "a"] == service.messages
    assert 2 == len({sent.peer for sent in service.requests})


def test_the_file_of_the_token_may_change(
    service: FakeService, make_handler: MakeHandler, tmp_path: Path
) -> None:
    """A token is read anew for each batch, and waited for where there is none."""
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


def test_a_token_may_hold_any_letters(service: FakeService, make_handler: MakeHandler) -> None:
    """A token is sent as UTF-8, as the service reads it."""
    sender = make_handler(token="schlüssel")
    log(sender, "a")
    assert sender.flush(30)
    (sent,) = service.requests
    assert "schlüssel" == sent.headers["Authorization"].encode("latin-1").decode()


def test_a_certificate_is_checked(make_handler: MakeHandler, tmp_path: Path) -> None:
    """A service with a known certificate gets the logs, and no other."""
    if not can_make_certificate():
        pytest.skip("NOT TESTED: openssl is not installed")
    cert, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with FakeService(context) as service:
        known = ssl.create_default_context(cafile=str(cert))
        sender = make_handler(url=service.url, ssl_context=known)
        log(sender, "known")
        assert sender.flush(30)
        doubtful = make_handler(url=service.url)
        log(doubtful, "unknown")
        assert not doubtful.flush(0.3)
        assert ["known"] == service.messages


def test_sending_makes_no_logs(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is logged by the sending itself is not sent, which would never end."""
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


def test_an_error_nobody_foresaw_costs_one_batch(
    service: FakeService,
    make_handler: MakeHandler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The thread goes on, and the logs that are lost are counted and said."""
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
