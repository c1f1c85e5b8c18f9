"""Connections that are kept, closed, refused, stalled and encrypted."""

import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astralog_logging import AstraLogHandler, handler
from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.fake_service import Answer, FakeService, reject
from tests.support.loggers import log
from tests.support.programs import FORK_BESIDE_THREADS
from tests.support.service import wait_for

pytestmark = pytest.mark.filterwarnings(FORK_BESIDE_THREADS)

MakeHandler = Callable[..., AstraLogHandler]


def test_response_before_the_body_is_read(service: FakeService, make_handler: MakeHandler) -> None:
    """A service that rejects after the head and closes the connection is handled."""
    service.answer_early = reject(413, "body_too_large")
    sender = make_handler()
    noise = "".join(chr(0x4E00 + 7919 * number % 20_000) for number in range(20_000)) * 75
    log(sender, noise)
    assert sender.flush(30)
    assert (0, 1, 0) == (sender.stored, sender.rejected, sender.dropped)


def test_connection_closed_while_idle_is_not_reported(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next batch uses a new connection."""
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


def test_connection_idle_for_long_is_replaced(
    service: FakeService, make_handler: MakeHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is not reused at a time at which the server may close it."""
    monkeypatch.setattr(handler, "IDLE_SECONDS", 0)
    sender = make_handler()
    for message in "ab":
        log(sender, message)
        assert sender.flush(30)
    assert 2 == len({sent.peer for sent in service.requests})


def test_unresponsive_service_times_out(service: FakeService, make_handler: MakeHandler) -> None:
    """After its timeout a request is sent again over another connection."""
    sender = make_handler(timeout_seconds=0.2)

    def stall(request: Any) -> None:
        request.close_connection = True
        time.sleep(1)

    log(sender, "a")
    assert sender.flush(30)
    service.answers.append(stall)
    log(sender, "b")
    assert sender.flush(30)
    assert ["a", "b", "b"] == service.messages
    assert 2 == len({sent.peer for sent in service.requests})


@pytest.mark.slow
def test_a_certificate_is_checked(make_handler: MakeHandler, tmp_path: Path) -> None:
    """Logs are sent only to a service with a known certificate."""
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


def descriptor_of(sender: AstraLogHandler) -> int:
    descriptor: int = sender._sender._connection._http.sock.fileno()
    return descriptor


def test_descriptor_closed_by_the_program_is_replaced(
    service: FakeService, make_handler: MakeHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that closes all open descriptors continues to log over a new connection."""
    sender = make_handler()
    for message in "abc":
        log(sender, message)
        assert sender.flush(30)
        os.close(descriptor_of(sender))
    assert list("abc") == service.messages
    assert "" == capsys.readouterr().err


@pytest.mark.parametrize("idle_seconds", [0, 3600])
def test_reused_descriptor_is_not_touched(
    service: FakeService,
    make_handler: MakeHandler,
    monkeypatch: pytest.MonkeyPatch,
    idle_seconds: float,
) -> None:
    """No log is written to the program's next file, and that file is not closed."""
    monkeypatch.setattr(handler, "IDLE_SECONDS", idle_seconds)
    sender = make_handler()
    log(sender, "a")
    assert sender.flush(30)
    mine, other = socket.socketpair()
    with mine, other:
        number = os.dup2(mine.fileno(), descriptor_of(sender))
        log(sender, "b")
        assert sender.flush(30)
        sender.close()
        os.close(number)  # which is still ours to close
        mine.close()
        assert b"" == other.recv(1000)
    assert ["a", "b"] == service.messages


def test_child_closes_only_the_connection(service: FakeService, make_handler: MakeHandler) -> None:
    """A child closes its parent's connection, and no file that has the same number."""
    sender = make_handler()
    log(sender, "a")
    assert sender.flush(30)
    with open(os.devnull, "rb") as file:
        number = os.dup2(file.fileno(), descriptor_of(sender))
        child = os.fork()
        if not child:
            os._exit(0 if os.path.exists(f"/proc/self/fd/{number}") else 1)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(number)


@pytest.mark.slow
def test_a_connection_that_fails_leaves_no_descriptor(
    make_handler: MakeHandler, tmp_path: Path
) -> None:
    """Also after many attempts, for example with an untrusted certificate."""
    if not can_make_certificate():
        pytest.skip("NOT TESTED: openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    with FakeService(context) as service:
        before = len(os.listdir("/proc/self/fd"))
        sender = make_handler(url=service.url)
        log(sender, "a")
        assert not sender.flush(0.3)
        sender.close()
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)
