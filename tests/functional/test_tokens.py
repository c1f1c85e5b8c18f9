"""Tokens over real HTTP: which are accepted, and that none is shown."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Service, make_batch, wait_for, write_tokens

SECRET = "9pVkR0zX4o6s2Yw8-Jm3tQ7uN1bH5cE0d"

#: Tokens that a careless service would decode, split, unquote or cut.
ODD_TOKENS = {
    "latin-1": b"na\xefve",
    "utf-8": "jalapeño-\U0001f336".encode(),
    "no text": b"\xff\xfe\x80",
    "no-break space": b"\xa0x\xa0",
    "quotes": b"\"a\"'b'\\",
    "percent": b"a%20b%00%ff",
    "commas and equals": b"a,b;c=d==",
    "hash": b"a#b",
    "long": b"x" * 4000,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service that knows SECRET and the odd tokens."""
    directory = tmp_path_factory.mktemp("tokens")
    path = directory / "tokens"
    write_tokens(path, b"\n".join([SECRET.encode(), *ODD_TOKENS.values()]))
    with Service(directory, tokens=None, tokens_file=path) as service:
        yield service


def exchange(service: Service, *headers: bytes) -> bytes:
    """Send an empty batch with these headers, and return the response without its date."""
    head = b"\r\n".join(
        [b"POST /v1/drain HTTP/1.1", b"Host: x", b"Connection: close", b"Content-Length: 11"]
    )
    with service.connect() as connection:
        connection.sendall(b"\r\n".join([head, *headers, b"", b'{"logs":[]}']))
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return re.sub(rb"\r\nDate: [^\r]+", b"", answer)


@pytest.mark.parametrize("token", ODD_TOKENS.values(), ids=ODD_TOKENS)
def test_an_odd_token_is_its_bytes(service: Service, token: bytes) -> None:
    """A token is accepted alone or after Bearer, byte for byte."""
    assert exchange(service, b"Authorization: " + token).startswith(b"HTTP/1.1 200 ")
    assert exchange(service, b"Authorization: bearer " + token).startswith(b"HTTP/1.1 200 ")
    for other in (token[:-1], token + b"x", token[::-1] + b"\xc3", b"'" + token + b"'"):
        assert exchange(service, b"Authorization: " + other).startswith(b"HTTP/1.1 401 ")


def test_a_token_that_is_too_long_for_a_header_is_rejected(service: Service) -> None:
    """The head has a limit, whether its token would be right or not."""
    answer = exchange(service, b"Authorization: " + b"x" * 8192)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"bad_request"' in answer


def test_all_wrong_tokens_get_the_same_answer(service: Service) -> None:
    """The response does not depend on the token, not even on its length."""
    wrong = [SECRET[:-1], SECRET[:16], SECRET + "x", SECRET.swapcase(), "y" * len(SECRET), "y"]
    values = [*wrong, "y" * 4000, "\x80", "", " ", "Bearer", f"Bearer {SECRET[:-1]}"]
    (answer,) = {show(service, value) for value in values}
    assert answer.startswith(b"HTTP/1.1 401 ")
    missing = exchange(service)
    assert b"missing" in missing
    assert head_but_length(answer) == head_but_length(missing)


def show(service: Service, value: str) -> bytes:
    """Send an empty batch with an Authorization header of this value, and return the response."""
    return exchange(service, f"Authorization: {value}".encode("latin-1"))


def test_a_header_that_is_sent_twice_is_explained(service: Service) -> None:
    """The message names the repetition, whether a token is right or not."""
    pairs = [(SECRET, SECRET), (SECRET[:-1], SECRET[:-1]), (SECRET, "y"), ("y", SECRET)]
    (answer,) = {show(service, "\r\nAuthorization: ".join(pair)) for pair in pairs}
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"sent twice" in answer


def test_unsupported_scheme_is_explained(service: Service) -> None:
    """The message lists the supported schemes, whether the token is right or not."""
    values = [f"Basic {SECRET}", "Basic ?", f"Bearer Bearer {SECRET}", f"Digest {SECRET[:-1]}"]
    (answer,) = {show(service, value) for value in values}
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"ApiKey with TOKEN after the colon." in answer


def head_but_length(answer: bytes) -> bytes:
    """Return the head of a response without the length of its body."""
    return re.sub(rb"Content-Length: [0-9]+", b"", answer.partition(b"\r\n\r\n")[0])


def provoke(service: Service) -> Iterator[bytes]:
    """Send tokens in every place that the service might repeat, and yield the responses."""
    bound = f"{SECRET}-bound"
    for token in (SECRET, bound, f"Basic {SECRET}", f"{SECRET} {SECRET}"):
        yield service.drain(make_batch("x"), {"Authorization": token}).raw
    for headers in ({"Content-Encoding": SECRET}, {"Content-Type": SECRET}, {"Host": SECRET}):
        yield service.drain(b"no JSON", {"Authorization": SECRET, **headers}).raw
    for path in ("/metrics", "/docs", "/openapi.json", "/", "/health", "/ready", f"/{SECRET}"):
        headers = {"Authorization": SECRET, "Accept": SECRET, "X-Forwarded-For": SECRET}
        yield service.request("GET", f"{path}?token={SECRET}", headers=headers).raw
    yield service.request(SECRET, "/v1/drain").raw
    yield service.request(
        "POST", f"/v1/drain?dry_run={SECRET}", b"{}", {"Authorization": SECRET}
    ).raw
    for head in (
        f"GET / HTTP/1.1\r\nAuthorization {SECRET}",
        f"{SECRET}",
        f"GET {SECRET} {SECRET}",
    ):
        yield service.exchange(f"{head}\r\n\r\n".encode(), half_close=True).raw


def visible_facts(pid: int) -> Iterator[bytes]:
    """Yield what other programs can read about a process, except tokens in its environment."""
    process = Path("/proc", str(pid))
    yield from ((process / name).read_bytes() for name in ("cmdline", "comm", "status"))
    environ = (process / "environ").read_bytes().split(b"\0")
    yield from (entry for entry in environ if not entry.startswith(b"ASTRALOG_TOKENS="))
    for link in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            yield os.readlink(link).encode()


@pytest.mark.parametrize("source", ["file", "environment"])
def test_a_token_is_shown_nowhere(tmp_path: Path, source: str) -> None:
    """Neither responses, log, files nor the process list contain a token."""
    path = tmp_path / "tokens"
    path.write_text(f"other\n{SECRET}-bound other-project\n" + f"{SECRET}\n" * (source == "file"))
    listed = SECRET if source == "environment" else None
    settings = {"tokens": listed, "tokens_file": path, "log_level": "debug", "workers": 2}
    with Service(tmp_path, **settings) as service:
        shown = list(provoke(service))
        path.write_text(f"other\n{SECRET}\x01\n")
        wait_for(lambda: service.drain({}) and "tokens not reloaded" in service.log())
        service.signal(signal.SIGHUP)
        wait_for(lambda: "not reloaded" in service.log())
        assert 200 == service.drain(make_batch("y"), {"Authorization": SECRET}).status
        for pid in service.pids():
            shown += visible_facts(pid)
        links = Path(f"/proc/{service.process.pid}/fd").iterdir()
        (memory,) = (link for link in links if "astralog-metrics" in os.readlink(link))
        shown += [file.read_bytes() for file in [memory, *service.files()]]
        assert b"astralog_received_batches" in shown[-1 - len(service.files())]
        assert 0 == service.stop()
    shown.append(service.log().encode())
    assert not [data for data in shown if SECRET.encode() in data]


# --- What a token permits


def test_workers_share_a_rate(tmp_path: Path) -> None:
    """Two workers accept no more than burst and rate, and a reload grants no new burst."""
    rate, body = 20_000, json.dumps(make_batch("x" * 10_000)).encode()
    path = write_tokens(tmp_path / "tokens", f"slow rate={rate // 1000}KB/s allow=write\nfree\n")
    with Service(tmp_path, tokens=None, tokens_file=path, workers=2) as service:
        times, accepted = [time.monotonic()], 0
        is_reloaded = False
        while not (is_reloaded and times[-1] > times[0] + 8):
            asked_at = time.monotonic()
            answer = service.drain(body, {"Authorization": "slow"})
            times.append(time.monotonic())
            if answer.status == 200:
                accepted += len(body)
                assert accepted < rate * (10 + times[-1] - times[0]) + len(body)
                continue
            assert (answer.status, answer.body["code"]) == (429, "rate_limited")
            assert 1 == int(answer.headers["Retry-After"])
            assert 200 == service.drain(body, {"Authorization": "free"}).status
            if not is_reloaded:
                assert accepted > rate * (10 + asked_at - times[1])
                service.reload()
                is_reloaded = True
        answer = service.request("GET", "/status/data", headers={"Authorization": "slow"})
        assert (answer.status, answer.body["code"]) == (403, "forbidden_scope")
