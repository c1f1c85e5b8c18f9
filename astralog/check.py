"""The command `astralog check`: a black-box check of any deployment, over HTTP.

It writes one log per protocol that the deployment serves and reads it back; `--read-only` writes
nothing and suits a probe. It prints one line per check.
"""

import email.utils
import http.client
import json
import re
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple, TextIO
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import click

from astralog.settings import InvalidSettings
from astralog.standard_streams import escape
from astralog.tokens_file import make_token

SERVICE = "astralog-check"

#: A larger difference between the clocks spoils searches by time.
CLOCK_SECONDS = 5.0

#: The longest --timeout.
MAX_TIMEOUT_SECONDS = 3600

#: Seconds between two attempts to read a log back.
POLL_SECONDS = 0.2

#: Characters of a response that a failure shows.
SHOWN_CHARACTERS = 200

#: Bytes of a response that are read.
MAX_RESPONSE_BYTES = 16 * 1024 * 1024

WRONG_SCHEME = "check the port in the URL, and whether it needs http:// or https://"

#: The remedies for errors of a connection; the first that fits is shown.
REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (ssl.SSLCertVerificationError, "use the host that it names, or --ca-file for a private CA"),
    (ssl.SSLError, "use http://, or a port that speaks TLS"),
    (socket.gaierror, "check the host in the URL"),
    (ConnectionRefusedError, "start the service, or check the port in the URL"),
    (TimeoutError, "check the URL and the firewall, or use a longer --timeout"),
    (ConnectionResetError, WRONG_SCHEME),
    (http.client.BadStatusLine, WRONG_SCHEME),
)

#: The service's own errors: JSON, a code and a message for Loki, or text on a port of TLS.
OWN_ERROR = re.compile(r"\{|[a-z_]+: |This port serves ")

#: A proxy's statuses if it gets no response from the service.
GATEWAY_STATUSES = (
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

FOREIGN = "the response is not AstraLog's; check the URL and the proxy"


class Outcome(Enum):
    """The result of a check, as printed."""

    OK = "ok"
    SKIPPED = "skip"
    FAILED = "FAIL"


class Finding(NamedTuple):
    """A check's line."""

    name: str
    outcome: Outcome
    text: str


class Failure(Exception):
    """A check failed; the message says why."""


class Skip(Exception):
    """A check does not apply; the message says why."""


class Reply(NamedTuple):
    """A response, with its time in milliseconds."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    milliseconds: float

    def expect(self, *statuses: int) -> "Reply":
        """Return the reply; raises Failure unless it has one of the statuses."""
        if self.status in statuses:
            return self
        text = " ".join(self.body.decode(errors="replace").split())
        shown = text[:SHOWN_CHARACTERS]
        if OWN_ERROR.match(text):
            raise Failure(f"{self.status} {shown}")
        if not text or text.startswith("<"):  # a page, whose text says no more than its status
            shown = http.client.responses.get(self.status, "")
        raise Failure(f"{self.status} {shown}; {self._find_remedy(text)}")

    def _find_remedy(self, text: str) -> str:
        """Return the remedy for a failure that another server reported."""
        location = self.headers.get("Location")
        if location:
            return f"use the URL to which it redirects: {location[:SHOWN_CHARACTERS]}"
        if self.status in GATEWAY_STATUSES:
            return "start the service, or correct the address to which the proxy forwards"
        if self.status == HTTPStatus.BAD_REQUEST and "HTTPS" in text:
            return "use https://"
        return FOREIGN


@dataclass(frozen=True)
class Deployment:
    """The service's address, and the token to use, if any; a request may raise Failure."""

    url: SplitResult
    token: bytes
    timeout_seconds: float
    tls: ssl.SSLContext | None = None

    def request(
        self, method: str, path: str, body: bytes | None = None, content_type: str = ""
    ) -> Reply:
        """Send one request on a new connection."""
        started = time.monotonic()
        host, port, timeout = self.url.hostname or "", self.url.port, self.timeout_seconds
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        if self.tls:
            connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=self.tls)
        headers: dict[str, str | bytes] = {"Content-Type": content_type} if body else {}
        if self.token:
            headers["Authorization"] = b"Bearer " + self.token
        try:
            connection.request(method, self.url.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            content = response.read(MAX_RESPONSE_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"no response: {_explain(error)}") from None
        finally:
            connection.close()
        milliseconds = 1000 * (time.monotonic() - started)
        return Reply(response.status, response.headers, content, milliseconds)


def _explain(error: Exception) -> str:
    text = str(error) or type(error).__name__
    remedy = next((remedy for kind, remedy in REMEDIES if isinstance(error, kind)), "")
    return f"{text}; {remedy}" if remedy else text


class Protocol(NamedTuple):
    """A way to send one log; `encode` returns the body for a time and a message."""

    name: str
    path: str
    statuses: tuple[int, ...]
    encode: Callable[[datetime, str, str], bytes]
    content_type: str = "application/json"


def _encode_drain(at: datetime, project: str, message: str) -> bytes:
    log = {
        "project_id": project,
        "timestamp": at.isoformat(),
        "level": "info",
        "service": SERVICE,
        "message": message,
    }
    return json.dumps({"logs": [log]}).encode()


def _encode_otlp(at: datetime, project: str, message: str) -> bytes:
    service = {"key": "service.name", "value": {"stringValue": SERVICE}}
    record = {
        "timeUnixNano": _nanoseconds(at),
        "severityText": "info",
        "body": {"stringValue": message},
    }
    export = {"resource": {"attributes": [service]}, "scopeLogs": [{"logRecords": [record]}]}
    return json.dumps({"resourceLogs": [export]}).encode()


def _encode_hec(at: datetime, project: str, message: str) -> bytes:
    event = {"time": at.timestamp(), "event": message, "sourcetype": SERVICE}
    return json.dumps({**event, "fields": {"level": "info"}}).encode()


def _encode_loki(at: datetime, project: str, message: str) -> bytes:
    labels = {"service_name": SERVICE, "level": "info"}
    stream = {"stream": labels, "values": [[_nanoseconds(at), message]]}
    return json.dumps({"streams": [stream]}).encode()


def _encode_bulk(at: datetime, project: str, message: str) -> bytes:
    document = {"@timestamp": at.isoformat(), "message": message, "level": "info"}
    lines = ({"create": {"_index": project}}, {**document, "service": SERVICE})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _nanoseconds(at: datetime) -> str:
    return f"{int(at.timestamp() * 1_000_000)}000"


PROTOCOLS = (
    Protocol("drain", "/v1/drain", (200,), _encode_drain),
    Protocol("otlp", "/v1/logs", (200,), _encode_otlp),
    Protocol("splunk-hec", "/services/collector/event", (200,), _encode_hec),
    Protocol("loki", "/loki/api/v1/push", (204,), _encode_loki),
    Protocol("elasticsearch", "/elasticsearch/_bulk", (200,), _encode_bulk, "application/x-ndjson"),
)


def run_checks(deployment: Deployment, project: str, read_only: bool) -> Iterator[Finding]:
    """Yield the finding of each check; stop after a failed health check."""
    health = _run("health", _check_json, deployment, "/health", "ok")
    yield health
    if health.outcome is Outcome.FAILED:
        return
    yield _run("ready", _check_json, deployment, "/ready", "ready")
    yield _run("clock", _check_clock, deployment)
    yield _run("metrics", _check_metrics, deployment)
    for protocol in () if read_only else PROTOCOLS:
        message = f"{SERVICE} {protocol.name} {secrets.token_hex(8)}"
        sent = _run(protocol.name, _send, deployment, protocol, project, message)
        yield sent
        if sent.outcome is Outcome.OK:
            yield _run(f"{protocol.name}-read", _read_back, deployment, project, message)


def _run(name: str, check: Callable[..., str], *arguments: object) -> Finding:
    try:
        return Finding(name, Outcome.OK, check(*arguments))
    except Skip as reason:
        return Finding(name, Outcome.SKIPPED, str(reason))
    except Failure as failure:
        return Finding(name, Outcome.FAILED, str(failure))


def _check_json(deployment: Deployment, path: str, status: str) -> str:
    """Check that the response is AstraLog's, and not a proxy's page."""
    reply = deployment.request("GET", path).expect(HTTPStatus.OK)
    try:
        is_expected = json.loads(reply.body) == {"status": status}
    except (ValueError, RecursionError):
        is_expected = False
    if not is_expected:
        raise Failure(FOREIGN)
    return f"{reply.status} in {reply.milliseconds:.0f} ms"


def _check_clock(deployment: Deployment) -> str:
    sent = time.time()
    reply = deployment.request("GET", "/health")
    received = time.time()
    try:
        server = email.utils.parsedate_to_datetime(reply.headers.get("Date", "")).timestamp()
    except ValueError:
        raise Skip("the response has no Date header") from None
    # The server's second began up to a second before it answered.
    difference = max(server - received, sent - (server + 1), 0.0)
    text = f"the server's clock differs by {difference:.0f} s from this machine's"
    if difference > CLOCK_SECONDS:
        raise Failure(f"{text}; synchronise both (NTP)")
    return text


def _check_metrics(deployment: Deployment) -> str:
    reply = deployment.request("GET", "/metrics")
    if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) and not deployment.token:
        raise Skip("needs a token")
    if reply.status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        raise Skip(f"not served to this token or at this address ({reply.status})")
    reply.expect(HTTPStatus.OK)
    families = reply.body.count(b"# TYPE astralog_")
    if not families:
        raise Failure("no metric of AstraLog in the response")
    return f"{families} families in {reply.milliseconds:.0f} ms"


def _send(deployment: Deployment, protocol: Protocol, project: str, message: str) -> str:
    body = protocol.encode(datetime.now(UTC), project, message)
    path = protocol.path
    if protocol.name != "drain":  # whose log names its project
        path += "?" + urlencode({"project_id": project})
    reply = deployment.request("POST", path, body, protocol.content_type)
    if reply.status == HTTPStatus.NOT_FOUND and protocol.name != "drain":
        raise Skip("not served")
    reply.expect(*protocol.statuses)
    if b'"errors":true' in reply.body.replace(b" ", b""):  # a bulk response has a status per item
        raise Failure(reply.body.decode(errors="replace")[:SHOWN_CHARACTERS])
    return f"stored, {reply.status} in {reply.milliseconds:.0f} ms"


def _read_back(deployment: Deployment, project: str, message: str) -> str:
    """Poll for a log, since another node may answer than the one that stored it."""
    deadline = time.monotonic() + deployment.timeout_seconds
    path = "/v1/search?" + urlencode({"q": message, "project": project, "n": 1}, quote_via=quote)
    while True:
        reply = deployment.request("GET", path)
        if reply.status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            raise Skip(f"reading is not served to this token or at this address ({reply.status})")
        if message.encode() in reply.expect(HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE).body:
            return f"found in {reply.milliseconds:.0f} ms"
        if time.monotonic() >= deadline:
            raise Failure(f"the log was not found within {deployment.timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)


def _parse_url(context: click.Context, option: click.Parameter, text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        is_valid = url.scheme in ("http", "https") and url.hostname and url.port != 0
        (url.hostname or "").encode("idna")
    except ValueError:
        is_valid = False
    if not is_valid or not (url.path.isascii() and url.path.isprintable()) or " " in url.path:
        raise click.BadParameter("not a URL like https://logs.example.com.")
    return url


def _check_timeout(context: click.Context, option: click.Parameter, seconds: float) -> float:
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise click.BadParameter(f"more than 0, and at most {MAX_TIMEOUT_SECONDS} seconds.")
    return seconds


def _create_tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise click.UsageError(f"{ca_file} has no certificate in PEM format.") from None
    except OSError as error:
        raise click.UsageError(f"--ca-file: {ca_file}: {error.strerror}.") from None


@click.command()
@click.argument("url", default="http://localhost:8080", callback=_parse_url)
@click.option("--read-only", is_flag=True, help="Write nothing, for probes; needs no token.")
@click.option(
    "--token-file",
    type=click.File(errors="surrogateescape"),
    help="File with the token; without it, the environment variable TOKEN.",
)
@click.option("--project", default=SERVICE, help=f"Project to write to; {SERVICE} by default.")
@click.option(
    "--timeout", default=10.0, callback=_check_timeout, help="Seconds per request; 10 by default."
)
@click.option(
    "--ca-file", type=click.Path(path_type=Path), help="CA certificate to trust, for https."
)
@click.option("--token", envvar="TOKEN", hidden=True)  # in the environment: arguments are public
def check(
    *,
    url: SplitResult,
    read_only: bool,
    token_file: TextIO | None,
    project: str,
    timeout: float,
    ca_file: Path | None,
    token: str | None,
) -> None:
    """Check a deployment over HTTP, and print one line per check.

    URL is http://localhost:8080 by default. Exits with 1 if a check fails. Without --read-only, it
    stores one log per protocol that the deployment serves, and reads each back.
    """
    if token_file:
        token = token_file.read().strip()
    if not (token or read_only):
        raise click.UsageError("needs --token-file, or the token in TOKEN, or --read-only.")
    encoded_token = (token or "").encode(errors="surrogateescape")
    try:
        make_token(encoded_token, "The token")
    except InvalidSettings as error:
        raise click.UsageError(str(error)) from None
    tls = _create_tls(ca_file) if url.scheme == "https" else None
    deployment = Deployment(url, encoded_token, timeout, tls)
    failed = 0
    for name, outcome, text in run_checks(deployment, project, read_only):
        failed += outcome is Outcome.FAILED
        click.echo(f"{outcome.value:<5} {name:<18} {escape(text.strip())}")
    sys.exit(1 if failed else 0)
