"""`astralog check` with the service, and with other servers."""

import os
import shlex
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.certificate import can_make_certificate, make_certificate
from tests.support.service import ROOT, TIMEOUT_SECONDS, TOKEN, Service


class Result:
    """The exit status of a check, and its findings by name: an outcome and a text."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status = done.returncode
        self.error = done.stderr
        self.findings: dict[str, tuple[str, str]] = {}
        for line in done.stdout.splitlines():
            outcome, name, text = line.split(maxsplit=2)
            self.findings[name] = (outcome, text)

    def names(self, outcome: str) -> set[str]:
        """Return the checks with an outcome."""
        return {name for name, (found, _) in self.findings.items() if found == outcome}


def run_check(*arguments: str, token: str = "") -> Result:
    """Run the command as a user does."""
    environ = {name: value for name, value in os.environ.items() if name != "TOKEN"}
    if token:
        environ["TOKEN"] = token
    command = [str(Path(sys.executable).parent / "astralog"), "check", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=4 * TIMEOUT_SECONDS,
        check=False,
    )
    return Result(done)


def url_of(service: Service) -> str:
    return "http://{}:{}".format(*service.address)


@contextmanager
def fake_server(handler: type[BaseHTTPRequestHandler], *certificate: Path) -> Iterator[str]:
    """Serve with a handler, over TLS with a certificate and its key; yield the URL with http."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            cert, key = certificate
            tls.load_cert_chain(cert, key)
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.quick
def test_check_stores_a_log_per_protocol_and_reads_it_back(tmp_path: Path) -> None:
    """All checks pass or do not apply, and the logs are in the files."""
    with Service(tmp_path) as service:
        result = run_check(url_of(service), token=TOKEN)
        assert service.stop() == 0
        logs = service.logs()
    assert result.status == 0, result.findings
    assert not result.names("FAIL")
    expected = {"health", "ready", "clock", "metrics", "drain", "drain-read", "otlp", "otlp-read"}
    assert result.names("ok") >= expected
    sent = {name for name in result.names("ok") if f"{name}-read" in result.findings}
    assert {log["message"].split()[1] for log in logs} == sent
    assert {log["project_id"] for log in logs} == {"astralog-check"}
    assert {log["service"] for log in logs} == {"astralog-check"}


def test_make_smoke_checks_a_deployment(tmp_path: Path) -> None:
    """The token is passed in the environment, which other users cannot see."""
    with Service(tmp_path) as service:
        arguments = [
            f"URL={url_of(service)}",
            f"TOKEN={TOKEN}",
            f"BIN={shlex.quote(str(Path(sys.executable).parent))}",
        ]
        command = ["make", "--no-print-directory", "-o", "install", "smoke", *arguments]
        output = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    assert "\nok    drain-read " in output
    assert TOKEN not in output


def test_read_only_check_writes_nothing_and_needs_no_token(tmp_path: Path) -> None:
    """It can be a probe in the container or on the service's machine."""
    with Service(tmp_path) as service:
        result = run_check(url_of(service), "--read-only")
        assert service.stop() == 0
        assert service.logs() == []
    assert result.status == 0
    assert result.names("ok") == {"health", "ready", "clock", "metrics"}


def test_wrong_token_fails(tmp_path: Path) -> None:
    """The line has the service's own message."""
    token = tmp_path / "wrong"
    token.write_text("another\n")
    with Service(tmp_path) as service:
        result = run_check(url_of(service), "--token-file", str(token))
    assert result.status == 1
    assert result.findings["drain"][0] == "FAIL"
    assert result.findings["drain"][1].startswith("401 ")
    assert "drain-read" not in result.findings


def test_bound_token_needs_its_project(tmp_path: Path) -> None:
    """With --project it sends, and skips the metrics of the whole service."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN} mine\n")
    with Service(tmp_path, tokens=None, tokens_file=tokens) as service:
        result = run_check(url_of(service), token=TOKEN)
        assert result.status == 1
        assert result.findings["drain"][1].startswith("403 ")
        result = run_check(url_of(service), "--project", "mine", token=TOKEN)
    assert result.status == 0, result.findings
    assert {"drain", "drain-read"} <= result.names("ok")


def test_unready_service_fails() -> None:
    """A service that would reject batches is healthy but not ready; the reason is shown."""

    class Full(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if self.path == "/ready" else 200)
            self.end_headers()
            status = b"storage_full" if self.path == "/ready" else b"ok"
            self.wfile.write(b'{"status":"%b"}' % status)

    with fake_server(Full) as url:
        result = run_check(url, "--read-only")
    assert result.status == 1
    assert result.findings["health"][0] == "ok"
    assert result.findings["ready"] == ("FAIL", '503 {"status":"storage_full"}')


def test_unreachable_service_has_one_line() -> None:
    """If nothing listens, no other check is made."""
    result = run_check("http://127.0.0.1:1", "--read-only")
    assert result.status == 1
    assert list(result.findings) == ["health"]
    assert "refused; start the service" in result.findings["health"][1]


class Healthy(BaseHTTPRequestHandler):
    """A server that responds only to the health check."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}')


class PageServer(BaseHTTPRequestHandler):
    """A proxy that has a page in place of the service's response."""

    status = 502
    location = ""
    page = b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        if self.location:
            self.send_header("Location", self.location)
        self.end_headers()
        self.wfile.write(self.page)


@pytest.mark.parametrize(
    ("attributes", "line"),
    [
        (
            {"page": b"<html>\r\n<head><title>502 Bad Gateway</title></head>"},
            "502 Bad Gateway; start the service, or correct the address to which the proxy "
            "forwards",
        ),
        (
            {"status": 503, "page": b"no available server\n"},
            "503 no available server; start the service, or correct the address to which the proxy "
            "forwards",
        ),
        (
            {"status": 400, "page": b"<html>The plain HTTP request was sent to HTTPS port</html>"},
            "400 Bad Request; use https://",
        ),
        (
            {"status": 301, "location": "https://logs.example.com/health"},
            "301 Moved Permanently; use the URL to which it redirects: "
            "https://logs.example.com/health",
        ),
        (
            {"status": 404, "page": b"<!DOCTYPE html><h1>Not Found</h1>"},
            "404 Not Found; the response is not AstraLog's; check the URL and the proxy",
        ),
    ],
)
def test_page_of_a_proxy_has_its_status_and_a_remedy(
    attributes: dict[str, object], line: str
) -> None:
    """The page itself is not shown."""
    with fake_server(type("Page", (PageServer,), attributes)) as url:
        result = run_check(url, "--read-only")
    assert result.status == 1
    assert result.findings == {"health": ("FAIL", line)}


@pytest.mark.skipif(not can_make_certificate(), reason="NOT TESTED: openssl is not installed")
def test_plain_http_to_a_port_of_tls_names_https(tmp_path: Path) -> None:
    """The service answers such a request itself; others end the connection."""
    cert, key = make_certificate(tmp_path)
    with fake_server(Healthy, cert, key) as url:
        other = run_check(url, "--read-only")
    with Service(tmp_path, tls_cert=cert, tls_key=key) as service:
        own = run_check(url_of(service), "--read-only")
    assert list(other.findings) == list(own.findings) == ["health"]
    assert other.findings["health"][1].endswith("and whether it needs http:// or https://")
    assert own.findings["health"][1].endswith("received plain HTTP; use https:// in its address.")


@pytest.mark.skipif(not can_make_certificate(), reason="NOT TESTED: openssl is not installed")
def test_untrusted_certificate_names_the_option(tmp_path: Path) -> None:
    """With --ca-file, the same deployment is healthy."""
    cert, key = make_certificate(tmp_path)
    with fake_server(Healthy, cert, key) as http_url:
        url = http_url.replace("http:", "https:")
        untrusted = run_check(url, "--read-only")
        trusted = run_check(url, "--read-only", "--ca-file", str(cert))
    assert (list(untrusted.findings), untrusted.error) == (["health"], "")
    assert "self-signed" in untrusted.findings["health"][1]
    assert "--ca-file" in untrusted.findings["health"][1]
    assert trusted.findings["health"][0] == "ok"


def test_https_to_a_plain_port_names_http() -> None:
    """The error of the TLS library alone does not."""
    with fake_server(Healthy) as url:
        result = run_check(url.replace("http:", "https:"), "--read-only")
    assert "use http://" in result.findings["health"][1]


def test_page_in_place_of_the_service_fails() -> None:
    """A proxy's 200 is not healthy."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>ok</html>")

    with fake_server(Page) as url:
        result = run_check(url, "--read-only")
    assert result.status == 1
    assert list(result.findings) == ["health"]
    assert "not AstraLog's" in result.findings["health"][1]


@pytest.mark.parametrize(
    ("response", "shown"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + 100_000 * b"[", "not AstraLog's"),
        (b"HTTP/1.1 500 Error\r\n\r\n\x1b[31mred", r"500 \u001b[31mred"),
        (b"220 mail.example.com\r\n\r\n", "no response: 220 mail.example.com"),
        (b"", "no response: Remote end closed"),
    ],
)
def test_other_server_has_one_line(response: bytes, shown: str) -> None:
    """Whatever it responds, neither a traceback nor a control character is printed."""

    class Other(BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(response)

    with fake_server(Other) as url:
        result = run_check(url, "--read-only")
    assert result.status == 1
    assert not result.error
    assert list(result.findings) == ["health"]
    assert shown in result.findings["health"][1]


def test_clock_difference_fails() -> None:
    """A server's clock that is an hour off is named."""

    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"status":"ready"}' if self.path == "/ready" else b'{"status":"ok"}'
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return "Thu, 01 Jan 2026 00:00:00 GMT"

    with fake_server(Late) as url:
        result = run_check(url, "--read-only")
    assert result.status == 1
    assert result.findings["clock"][0] == "FAIL"
    assert "synchronise" in result.findings["clock"][1]
    assert result.findings["metrics"] == ("FAIL", "no metric of AstraLog in the response")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["ftp://host"], "not a URL"),
        (["http://127.0.0.1:1"], "needs --token-file"),
        (["--read-only", "--token-file", "/missing"], "No such file"),
        (["--read-only", "--token-file", "/"], "Is a directory"),
        (["--read-only", "--ca-file", "/missing", "https://127.0.0.1:1"], "No such file"),
        (["--read-only", f"http://{64 * 'a'}.example"], "not a URL"),
        (["--read-only", "http://127.0.0.1:1/é"], "not a URL"),
        (["--read-only", "--timeout", "nan"], "at most 3600 seconds"),
        (["--read-only", "--timeout", "-1"], "at most 3600 seconds"),
        (["--read-only", "--ca-file", __file__, "https://127.0.0.1:1"], "no certificate"),
        (["--token-file", __file__], "a space or a control"),
        (["--token-file", sys.executable], "a space or a control"),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], text: str) -> None:
    """The exit status is 2, as for any command, before anything is sent."""
    result = run_check(*arguments)
    assert result.status == 2
    assert text in result.error
