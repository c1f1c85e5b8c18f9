"""Odd header values on every path: no 500, redirect or traceback, and a JSON response."""

import http.client
import io
import json
from collections.abc import Iterator

import pytest

from tests.support.service import TOKEN, Service

#: A run of characters that a quadratic parser takes seconds for; a header may have 8 KiB.
RUN = 7500

#: Values that any header may have, whatever it is for.
VALUES = [
    b"",
    b"0",
    b"-1",
    b"9" * 5000,
    b"1e999999999",
    b"NaN",
    b"a/b;q=" + b" " * RUN + b"b",
    b"," * RUN,
    b";" * RUN,
    b'"' * 1001,
    b'"\\',
    b"*",
    b"\xff\xfe\x80 \xc3\xa9\xf0\x9f\x98\x80",
    b"%00%ff%zz",
    b"=?utf-8?b?AAAA?=",
    b"text/html; version=abc; charset=\xff; q=9" + b"9" * 400,
    b"application/json; charset=" + b"x" * 1000,
    b"Mon, 31 Feb 99999999999 99:99:99 +" + b"9" * 3000,
    b"W/" + b'"a", ' * 1000,
    b"bytes=0-,9999999999999999999999-" + b",1-2" * 1500,
    b"[::1%25", b"x:99999999999",
]  # fmt: skip

#: Headers that the service, Flask or gunicorn reads anywhere, with further values of their own.
HEADERS: dict[bytes, list[bytes]] = {
    b"Accept": [
        b"text/html",
        b"application/openmetrics-text; version=abc",
        b"application/openmetrics-text; version=" + b"1." * 2000,
        b"a/b<" + b" " * RUN + b"b",
    ],
    b"Accept-Encoding": [b"gzip;q=abc"],
    b"Accept-Language": [],
    b"Access-Control-Request-Method": [b"POST"],
    b"Access-Control-Request-Headers": [b"x" * RUN],
    b"Authorization": [
        b"Basic",
        b"Basic ====",
        b"Basic /w==",
        b"ApiKey /w==",
        b"Bearer " + b" " * RUN,
        b"Splunk \xff",
        b"Digest " + b'a="b",' * 1000,
    ],
    b"Content-Encoding": [b"gzip", b"gzip, gzip", b"zstd", b"snappy", b"br", b"deflate"],
    b"Content-Type": [
        b"application/x-protobuf",
        b"application/json; charset=utf-16",
        b"multipart/form-data; boundary=" + b"-" * 7000,
        b"multipart/form-data",
        b"application/x-www-form-urlencoded",
    ],
    b"Cookie": [b"a=" + b'"\\' * 3000, b"=;" * 3000],
    b"Forwarded": [b"for=" * 1000],
    b"Host": [b"[", b"a b", b"localhost:abc", b"metadata\xff"],
    b"Idempotency-Key": [b'"' + b"a" * RUN + b'"', b"?1", b"a, b"],
    b"If-Match": [b"*"],
    b"If-Modified-Since": [
        b"1 Jan 9999999999 0:0:0",
        b"Mon, 1 Jan 2024 00:00:00 +" + b"9" * 3000,
        b"Sun, 06 Nov 0000 08:49:37 GMT",
    ],
    b"If-None-Match": [b"*", b'"' * 3000],
    b"If-Range": [],
    b"If-Unmodified-Since": [b"1 Jan 9999999999 0:0:0"],
    b"Origin": [b"null", b"https://a.example"],
    b"Range": [b"bytes=0-0", b"bytes=-1", b"lines=1-2"],
    b"Referer": [],
    b"Sec-Fetch-Site": [b"cross-site"],
    b"User-Agent": [],
    b"Via": [],
    b"X-Forwarded-For": [b"1.2.3.4, " * 800, b"::ffff:1.2.3.4, [::1]:99"],
    b"X-Forwarded-Host": [],
    b"X-Forwarded-Prefix": [b"//a.example"],
    b"X-Forwarded-Proto": [b"https, http"],
    b"X-HTTP-Method-Override": [b"DELETE"],
    b"X-Scope-OrgID": [b"../..", b"a|b"],
    # The framing of the request itself.
    b"Connection": [b"close, keep-alive", b"Upgrade, HTTP2-Settings"],
    b"Content-Length": [b"+14", b"14, 14", b"1_4", b"0x0e", b"\xb2"],
    b"Expect": [b"100-continue", b"200-ok"],
    b"TE": [b"trailers"],
    b"Trailer": [b"Content-Length"],
    b"Transfer-Encoding": [b"chunked", b"gzip, chunked", b"chunked, chunked", b"xchunked"],
    b"Upgrade": [b"h2c", b"websocket"],
}

#: Each path, and whether it serves browsers a page or an asset, or answers in a form of its own.
JSON_PATHS = [
    *("/v1/drain", "/v1/logs", "/v1/traces", "/v1/metrics", "/v1/search"),
    *("/health", "/ready", "/openapi.json", "/status/data", "/status/history", "/status/logs"),
    *("/status/log", "/no/such/path", "//v1//drain", "/docs/////x", "/status/%2e%2e/x", "/%ff"),
]
OTHER_PATHS = [
    *("/", "/docs", "/docs/docs.css", "/status", "/status/status.js", "/metrics"),
    *("/services/collector", "/services/collector/raw", "/services/collector/health"),
    *("/loki/api/v1/push", "/elasticsearch/", "/elasticsearch/_bulk", "/elasticsearch/i/_bulk"),
]

BODY = b'{"logs": [{}]}'

OTHER_METHODS = ["HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "BREW"]

#: Each header with each of its values.
ODD_HEADERS = [(name, value) for name, own in HEADERS.items() for value in (*VALUES, *own)]

#: A path gets each header in so many with GET and POST, and with other methods, which routing alone
#: distinguishes; the next path gets the next headers.
STEP = 5
OTHER_STEP = 25


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return one service for all requests; at its end, no hub was blocked."""
    made = Service(tmp_path_factory.mktemp("odd"), body_timeout_seconds=1)
    with made:
        yield made
        assert made.request("GET", "/health").status == 200
        assert "Traceback" not in made.log()
        assert "request failed" not in made.log()
        assert made.stop() == 0


def send(service: Service, method: str, path: str, name: bytes, value: bytes) -> bytes:
    """Send a request with one odd header, and return the response."""
    headers = {b"Host": b"localhost", b"Authorization": TOKEN.encode(), b"Connection": b"close"}
    if method == "POST":
        headers[b"Content-Length"] = b"%d" % len(BODY)
    headers[name] = value
    lines = [b"%b: %b\r\n" % header for header in headers.items()]
    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode(), path.encode(), b"".join(lines))
    with service.connect() as connection:
        connection.sendall(head + (BODY if method == "POST" else b""))
        connection.shutdown(1)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


class _Bytes:
    """The object that http.client reads from in place of a socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._content)


def find_fault(answer: bytes, method: str, path: str) -> str:
    """Return the error of a response, or nothing."""
    response = http.client.HTTPResponse(_Bytes(answer), method=method)  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
    except http.client.HTTPException as error:
        return f"no answer: {error!r}"
    if response.status >= 500:
        return f"status {response.status}"
    location = response.headers.get("Location")
    if (location or 300 <= response.status < 400) and response.status != 304:
        is_home = path == "/" and location in ("/docs", "/status")
        return "" if is_home else f"redirected to {location}"
    is_protobuf = response.headers.get("Content-Type") == "application/x-protobuf"  # OTLP's errors
    if path in OTHER_PATHS or method == "HEAD" or is_protobuf or not body:
        return ""
    try:
        json.loads(body)
    except ValueError:
        return f"not JSON: {body[:80]!r}"
    return ""


def faults(service: Service, method: str, path: str) -> Iterator[str]:
    """Yield a description of each wrong answer to the odd headers that a path gets."""
    step = STEP if method in ("GET", "POST") else OTHER_STEP
    first = [*JSON_PATHS, *OTHER_PATHS].index(path) % step
    for name, value in ODD_HEADERS[first::step]:
        if fault := find_fault(send(service, method, path, name, value), method, path):
            yield f"{name.decode()}: {value[:60]!r}: {fault}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", [*JSON_PATHS, *OTHER_PATHS])
def test_odd_header_is_never_an_error_of_the_service(
    service: Service, method: str, path: str
) -> None:
    assert list(faults(service, method, path)) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", OTHER_METHODS)
def test_odd_header_of_another_method(service: Service, method: str) -> None:
    assert [fault for path in JSON_PATHS for fault in faults(service, method, path)] == []
