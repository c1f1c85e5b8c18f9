"""Changes of tokens in the running service, and TLS."""

import contextlib
import http.client
import json
import os
import signal
import ssl
import time
from pathlib import Path

import pytest

from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.service import (
    TIMEOUT_SECONDS,
    TOKEN,
    Service,
    make_batch,
    make_head,
    make_log,
    read_answer,
    status_for,
    wait_for,
    write_tokens,
)


@pytest.mark.quick
def test_a_token_is_replaced_without_a_restart(tmp_path: Path) -> None:
    """Every worker notices a change of the file; a faulty file is named and ignored."""
    path = tmp_path / "tokens"
    path.write_text("old\n")
    with Service(tmp_path, tokens=None, tokens_file=path, workers=2) as service:
        assert 200 == status_for(service, "old")
        path.write_text("new org-xyz\n")
        for halted in service.worker_pids():  # so that the other one answers
            os.kill(halted, signal.SIGSTOP)
            wait_for(lambda: [401, 200] == [status_for(service, token) for token in ("old", "new")])
            os.kill(halted, signal.SIGCONT)
        path.write_text("# nothing\n")
        wait_for(lambda: status_for(service, "new") and "Holds no token" in service.log())
        assert 200 == status_for(service, "new")


def test_a_half_written_file_grants_nothing_more(tmp_path: Path) -> None:
    """A line without its line break does not count, be it half a token or one without projects."""
    path = tmp_path / "tokens"
    write_tokens(path, "old\n")
    with Service(tmp_path, tokens=None, tokens_file=path, sync="never") as service:
        with path.open("a") as file:
            for piece in ("new", "-token", " other-proj"):
                file.write(piece)
                file.flush()
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    for token in ("new", "new-token"):
                        assert 401 == status_for(service, token)
                    assert 200 == status_for(service, "old")
            file.write("ect\n")
        wait_for(lambda: status_for(service, "new-token") == 403)
        log = make_log(project_id="other-project")
        headers = {"Authorization": "new-token"}
        assert 200 == service.drain({"logs": [log]}, headers).status


def test_hanging_tokens_file_delays_no_client(tmp_path: Path) -> None:
    """While the disk does not respond, the tokens do not change, and a stop does not wait."""
    path = tmp_path / "tokens"
    write_tokens(path, "old\n")
    with Service(tmp_path, tokens=None, tokens_file=path, sync="never") as service:
        os.mkfifo(tmp_path / "hanging")  # whoever opens it to read waits for who writes
        (tmp_path / "hanging").replace(path)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            headers = {"Authorization": "old"}
            assert 200 == service.drain(make_batch("x"), headers).status
        assert 0 == service.stop()


def test_forbidden_project_is_named(tmp_path: Path) -> None:
    """A batch with one log of another project is rejected, and none of it is stored."""
    path = tmp_path / "tokens"
    write_tokens(path, "bound other-project\n")
    with Service(tmp_path, tokens=None, tokens_file=path) as service:
        answer = service.drain(make_batch("x"), {"Authorization": "Bearer bound"})
        assert (403, "forbidden_project") == (answer.status, answer.body["code"])
        assert "'org-xyz'" in answer.body["message"]
        assert [] == service.logs()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Return a certificate for localhost and its key."""
    if not can_make_certificate():
        pytest.skip("NOT TESTED: openssl is not installed")
    return make_certificate(tmp_path)


@pytest.mark.quick
def test_the_service_speaks_https(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """With a certificate, batches are accepted over TLS, while other handshakes hang."""
    cert, key = certificate
    with Service(tmp_path, tls_cert=cert, tls_key=key) as service:
        assert f"listening on https://127.0.0.1:{service.address[1]}" in service.log()
        stalled = [service.connect() for _ in range(20)]
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection(
            *service.address, timeout=TIMEOUT_SECONDS, context=context
        )
        for number in range(3):
            body = json.dumps(make_batch(str(number)))
            connection.request("POST", "/v1/drain", body, {"Authorization": TOKEN})
            response = connection.getresponse()
            assert (200, b'{"status":"accepted"}') == (response.status, response.read())
        connection.close()
        assert ["0", "1", "2"] == [log["message"] for log in service.logs()]
        with service.connect() as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"200" not in plain.recv(1000)
        for client in stalled:
            client.close()
        assert 0 == service.stop()
        assert "Traceback" not in service.log()


def test_request_buffered_by_tls_is_answered(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    """The request follows a body in the same record, and does not make the socket readable."""
    cert, key = certificate
    body = json.dumps(make_batch("x" * 9000)).encode()  # its end is not received with its head
    request = make_head(f"Content-Length: {len(body)}") + body
    context = ssl.create_default_context(cafile=str(cert))
    with (
        Service(tmp_path, tls_cert=cert, tls_key=key) as service,
        context.wrap_socket(service.connect(), server_hostname="127.0.0.1") as client,
    ):
        client.sendall(request + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert [200, 200] == [read_answer(client).status for _ in range(2)]


def test_missing_handshake_ends_the_connection(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    """A client that connects and sends nothing is disconnected."""
    cert, key = certificate
    with Service(tmp_path, tls_cert=cert, tls_key=key) as service, service.connect() as client:
        with contextlib.suppress(ConnectionResetError):
            assert b"" == client.recv(1)
        assert "Traceback" not in service.log()


def test_plain_http_on_a_tls_port_is_explained(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    """For any method, every client can show the response, and the log has a line."""
    cert, key = certificate
    with Service(tmp_path, tls_cert=cert, tls_key=key) as service:
        for method in ("GET", "POST", "DELETE", "OPTIONS", "PATCH", "CONNECT"):
            head = f"{method} /v1/drain HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\n\r\n"
            answer = service.exchange(head.encode())
            assert (400, "close") == (answer.status, answer.headers["Connection"])
            assert "text/plain; charset=utf-8" == answer.headers["Content-Type"]
            assert b"use https://" in answer.raw
        with service.connect() as connection:
            connection.sendall(b"GE")  # a client that is slow, or no HTTP at all
            assert 400 == read_answer(connection).status
        (line,) = (line for line in service.log().splitlines() if "rejected" in line)
        assert "bad_request from 127.0.0.1" in line
        assert "received plain HTTP" in line
        assert TOKEN not in service.log()


def test_tls_on_a_plain_port_is_logged(tmp_path: Path) -> None:
    """The client fails at once, and the log has the reason."""
    with Service(tmp_path) as service, service.connect() as connection:
        with pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(connection, server_hostname="127.0.0.1")
        wait_for(lambda: "received TLS" in service.log())


@pytest.mark.parametrize("name", ["tls_cert", "tls_key"])
def test_one_half_of_a_certificate_stops_the_start(tmp_path: Path, name: str) -> None:
    """A certificate without a key, or a key without a certificate, is an error."""
    service = Service(tmp_path, **{name: tmp_path / "file"})
    assert 1 == service.fail_to_start()
    assert "ASTRALOG_TLS_CERT and ASTRALOG_TLS_KEY: Set both or neither.\n" == service.log()
