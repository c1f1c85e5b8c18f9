import hashlib
import logging
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import gevent
import pytest

from astralog.api import rejection_log
from astralog.api.rejection_log import MAX_CLIENTS, Rejected, RejectionLog, client_address
from astralog.auth import Tokens
from astralog.errors import Rejection
from astralog.settings import Settings
from astralog.telemetry.counters import Counters
from tests.support.greenlets import wait_until
from tests.support.service import TOKEN

NAME = hashlib.sha256(TOKEN.encode()).hexdigest()[:8]


@pytest.fixture
def counters() -> Counters:
    """Return counters that have counted nothing."""
    return Counters()


@pytest.fixture
def rejections(counters: Counters) -> Iterator[RejectionLog]:
    """Return a log of rejections that knows TOKEN."""
    rejections = RejectionLog(Tokens(Settings(tokens=TOKEN)).name_of, counters)
    yield rejections
    rejections.flush()  # so that no line of it comes in a later test


def note(rejections: RejectionLog, code: str = "invalid_json", **environ: str) -> None:
    """Record a rejection."""
    defaults = {
        "REQUEST_METHOD": "POST",
        "REMOTE_ADDR": "192.0.2.7",
        "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    }
    rejections.note(Rejection(code, "A sentence."), {**defaults, **environ})


def test_line_identifies_client_and_error(
    rejections: RejectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    """It has the code, the peer, the token's name and the error."""
    note(rejections)
    line = f"rejected invalid_json from 192.0.2.7, token {NAME}: A sentence."
    assert [line] == caplog.messages
    assert {logging.WARNING} == {record.levelno for record in caplog.records}


def test_line_has_the_first_error(
    rejections: RejectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a batch with many errors, the first one is named by log and field."""
    errors = {"logs": {3: {"level": ["Must not be empty.", "Other."]}, 4: {"x": ["Another."]}}}
    rejection = Rejection("invalid_batch", "2 of 5 logs are invalid", errors)
    rejections.note(rejection, {"REQUEST_METHOD": "POST", "REMOTE_ADDR": "::1"})
    (line,) = caplog.messages
    assert line.endswith(": 2 of 5 logs are invalid; logs.3.level: Must not be empty.")


@pytest.mark.parametrize(
    ("code", "authorization", "expected"),
    [
        ("unauthorized", None, "no token"),
        ("unauthorized", "hunter2", "an unknown token"),
        ("unauthorized", "Basic hunter2", "an unknown token"),
        ("not_found", None, "no token"),
        ("not_found", "hunter2", "an unknown token"),
        ("not_found", TOKEN, f"token {NAME}"),
    ],
)
def test_unknown_token_has_no_name_in_the_log(
    rejections: RejectionLog,
    caplog: pytest.LogCaptureFixture,
    code: str,
    authorization: str | None,
    expected: str,
) -> None:
    """It may be a password: neither it nor its digest is logged."""
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "REMOTE_ADDR": "192.0.2.7"}
    if authorization is not None:
        environ["HTTP_AUTHORIZATION"] = authorization
    rejections.note(Rejection(code, "No."), environ)
    assert [f"rejected {code} from 192.0.2.7, {expected}: No."] == caplog.messages


def test_a_local_socket_has_no_address(
    rejections: RejectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    """A client on a unix socket is logged as such."""
    note(rejections, REMOTE_ADDR="")
    assert "from a local socket, " in caplog.text


def test_forwarded_address_is_logged(
    rejections: RejectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    """The last address is the one that the proxy saw itself; it does not get its own line."""
    note(rejections, HTTP_X_FORWARDED_FOR="forged, 198.51.100.3")
    note(rejections, HTTP_X_FORWARDED_FOR="198.51.100.4")
    (line,) = caplog.messages
    assert line.endswith(": A sentence. (X-Forwarded-For: 198.51.100.3)")


@pytest.mark.parametrize("forwarded", ["s3cret", "198.51.100.3, s3cret", "::1%s3cret", "s3cret:80"])
def test_malformed_forwarded_address_is_not_logged(
    rejections: RejectionLog, caplog: pytest.LogCaptureFixture, forwarded: str
) -> None:
    """It may be a token in the wrong header."""
    note(rejections, HTTP_X_FORWARDED_FOR=forwarded)
    (line,) = caplog.messages
    assert line.endswith(": A sentence.")


def test_repeated_rejections_are_counted(
    rejections: RejectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is logged at once, later ones as a count; clients that stop are forgotten."""
    for _ in range(1000):
        note(rejections)
    note(rejections, "queue_full")
    assert 2 == len(caplog.messages)
    rejections.flush()
    source = f"from 192.0.2.7, token {NAME}"
    line = f"rejected invalid_json {source}: 999 more, the last: A sentence."
    assert [line] == caplog.messages[2:]
    note(rejections)
    note(rejections, "queue_full")
    assert [f"rejected queue_full {source}: A sentence."] == caplog.messages[3:]
    rejections.flush()
    rejections.flush()
    assert [f"rejected invalid_json {source}: 1 more, the last: A sentence."] == caplog.messages[4:]
    note(rejections)
    assert [f"rejected invalid_json {source}: A sentence."] == caplog.messages[5:]


def test_count_is_logged_without_another_rejection(
    rejections: RejectionLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is logged after a while, even if no more rejections come; then nothing."""
    monkeypatch.setattr(rejection_log, "LINE_SECONDS", 0.02)
    note(rejections)
    note(rejections)
    wait_until(lambda: "1 more" in caplog.text)
    gevent.sleep(0.1)
    assert 2 == len(caplog.messages)
    note(rejections)
    note(rejections)
    wait_until(lambda: caplog.text.count("1 more") == 2)


def test_many_clients_share_a_line(
    rejections: RejectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory and lines are bounded per code, and many clients of one code hide no other code."""
    for number in range(1000):
        note(rejections, "unauthorized", REMOTE_ADDR=f"192.0.2.{number}")
    assert MAX_CLIENTS + 1 == len(caplog.messages)
    others = f"(192.0.2.{MAX_CLIENTS}, an unknown token)"
    assert f"from other clients, any token: A sentence. {others}" in caplog.messages[-1]
    note(rejections, "invalid_batch")
    assert "from 192.0.2.7, " in caplog.messages[-1]
    rejections.flush()
    (line,) = caplog.messages[MAX_CLIENTS + 2 :]
    assert f"{1000 - MAX_CLIENTS - 1} more, the last: A sentence. (192.0.2.999, " in line


def test_text_of_a_client_cannot_imitate_the_log(
    rejections: RejectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Line breaks, escape sequences and marks that reverse text are escaped; all is shortened."""
    words = "a\n2026 INFO forged\r\x1b[2J\u202e\ud83d" + "\0" * 300
    rejections.note(Rejection("bad_request", words), {"REQUEST_METHOD": "POST"})
    rejections.add(Rejected("bad_request", "192.0.2.9", "no token"), "x\ny")
    for line in caplog.messages:
        assert line.isprintable()
        assert len(line) < 1200
    assert r"a\n2026 INFO forged\r\x1b[2J\u202e\ud83d\x00" in caplog.messages[0]


@pytest.mark.parametrize("code", ["not_found", "method_not_allowed"])
def test_a_batch_for_another_path_is_counted(
    rejections: RejectionLog,
    counters: Counters,
    caplog: pytest.LogCaptureFixture,
    code: str,
) -> None:
    """A request that only reads loses no logs, so it is neither counted nor logged."""
    for method in ("GET", "HEAD", "OPTIONS"):
        note(rejections, code, REQUEST_METHOD=method)
    assert ([], 0) == (caplog.messages, counters.received.batches)
    for method in ("POST", "PUT"):
        note(rejections, code, REQUEST_METHOD=method)
    assert 1 == len(caplog.messages)
    assert (2, 2) == (counters.received.batches, counters.rejected[code].batches)
    note(rejections, code, REQUEST_METHOD="POST", HTTP_AUTHORIZATION="wrong")
    assert {(NAME, code): 2, ("unknown", code): 1} == counters.rejected_by_token


def test_a_rejected_batch_is_not_counted_twice(
    rejections: RejectionLog, counters: Counters
) -> None:
    """The path that accepts batches counts its own."""
    note(rejections, "invalid_batch")
    assert 0 == counters.received.batches


TRUSTED = (ip_network("10.0.0.0/24"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1", "198.51.100.3", "198.51.100.3"),
        ("10.0.0.1", "198.51.100.3, 10.0.0.2", "198.51.100.3"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "198.51.100.3", "198.51.100.3"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
    ],
)
def test_a_trusted_proxy_names_its_client(peer: str, forwarded: str, expected: str) -> None:
    """The last address that is not a trusted proxy's counts, also through several proxies."""
    environ = {"REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": forwarded}
    assert expected == client_address(environ, TRUSTED)


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.7", "198.51.100.3", "192.0.2.7"),
        ("192.0.2.7", "198.51.100.3, 10.0.0.1", "192.0.2.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.3", "198.51.100.3"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.9, 198.51.100.3", "198.51.100.3"),
        ("10.0.0.1", "203.0.113.9, x y\x1b[2J", "10.0.0.1"),
        ("10.0.0.1", "fe80::1%forged", "10.0.0.1"),
        ("10.0.0.1", "," * 100_000, "10.0.0.1"),
        ("", "198.51.100.3", ""),
    ],
)
def test_client_cannot_forge_its_address(peer: str, forwarded: str, expected: str) -> None:
    """Its own text in the header precedes the address that the proxy saw."""
    environ = {"REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": forwarded}
    assert expected == client_address(environ, TRUSTED)


def test_without_a_trusted_proxy_the_peer_counts() -> None:
    """By default no proxy is trusted."""
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "198.51.100.3"}
    assert "127.0.0.1" == client_address(environ, ())
    assert "127.0.0.1" == client_address({"REMOTE_ADDR": "127.0.0.1"}, TRUSTED)
