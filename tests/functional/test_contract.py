"""The API's contract, case by case, over real HTTP."""

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.service import (
    ROOT,
    TOKEN,
    Answer,
    Service,
    make_batch,
    make_head,
    make_log,
    read_answer,
)

MAX_BODY_BYTES = 1_000_000
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all cases; it must still be in order after the last one."""
    settings = {"max_body_bytes": MAX_BODY_BYTES}
    with Service(tmp_path_factory.mktemp("contract"), **settings) as service:
        yield service
        assert {"status": "ready"} == service.request("GET", "/ready").body
        assert "Traceback" not in service.log()
        assert TOKEN not in service.log()
        assert 0 == service.stop()


def check_rejection(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """Check the form of a rejection and return its body."""
    body: dict[str, Any] = answer.body
    assert (status, code) == (answer.status, body["code"])
    keys = ["status", "code", "message"] + ["errors"] * (code == "invalid_batch")
    assert keys == list(body)
    assert "rejected" == body["status"]
    assert body["message"]
    assert "application/json" == answer.headers["Content-Type"]
    assert ("Bearer" if status == 401 else None) == answer.headers["WWW-Authenticate"]
    assert (status == 503) == ("Retry-After" in answer.headers)
    assert (status == 405) == ("Allow" in answer.headers)
    for secret in (TOKEN, str(ROOT), ".py", "/tmp", "Traceback"):
        assert secret not in answer.raw.decode()
    return body


def reject(
    service: Service,
    body: Any,
    status: int,
    code: str,
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Post a batch that must be rejected, and return the rejection."""
    before = service.content()
    rejection = check_rejection(service.drain(body, headers), status, code)
    assert before == service.content()
    return rejection


def accept(
    service: Service, body: Any, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Post a batch that must be accepted, and return its stored logs."""
    before = service.logs()
    check_accepted(service.drain(body, headers))
    after = service.logs()
    assert before == after[: len(before)]
    return after[len(before) :]


def check_accepted(answer: Answer) -> None:
    assert (200, b'{"status":"accepted"}') == (answer.status, answer.raw)
    assert "application/json" == answer.headers["Content-Type"]


# What is accepted


@pytest.mark.quick
def test_the_example_of_the_api_page_is_stored_as_sent(service: Service) -> None:
    """At the 200, the page's log is one line with its fields in order."""
    before = service.content()
    check_accepted(
        service.drain(json.dumps({"logs": [make_log()]}, separators=(",", ":")).encode())
    )
    line = service.content().removeprefix(before)
    assert json.dumps(make_log(), separators=(",", ":")) + "\n" == line.decode()


@pytest.mark.quick
def test_a_batch_is_stored_in_its_order(service: Service) -> None:
    """The 500 logs of a batch are 500 lines in the batch's order."""
    batch = make_batch(*(str(number) for number in range(500)))
    assert batch["logs"] == accept(service, batch)


def test_an_empty_batch_is_accepted(service: Service) -> None:
    """A batch without logs is valid, and stores nothing."""
    assert [] == accept(service, {"logs": []})


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"message": ""}, {"message": ""}),
        ({"message": "two\nlines\r\n\u2028\x00\x7f"}, {"message": "two\nlines\r\n\u2028\x00\x7f"}),
        ({"message": "Grüße 👋 \U0010ffff"}, {"message": "Grüße 👋 \U0010ffff"}),
        ({"message": "cut \ud83d"}, {"message": "cut \ufffd"}),
        ({"message": "\\ud83d"}, {"message": "\\ud83d"}),
        ({"level": " ", "service": "\t"}, {"level": " ", "service": "\t"}),
        ({"metadata": {}}, {"metadata": {}}),
        ({"metadata": {"": [None, True, {"a": [1.5, -0.1, "x"]}]}},) * 2,
        ({"metadata": {"big": 2**70, "small": -(2**70)}},) * 2,
        (
            {"metadata": {"cut \ude00": "\ud83d\ud83d"}},
            {"metadata": {"cut \ufffd": "\ufffd\ufffd"}},
        ),
    ],
)
def test_values_are_stored_as_sent(
    service: Service, fields: dict[str, Any], stored: dict[str, Any]
) -> None:
    """Every value is unchanged, except halves of surrogate pairs."""
    assert [make_log(**stored)] == accept(service, {"logs": [make_log(**fields)]})


def test_metadata_may_be_null_or_absent(service: Service) -> None:
    """Null metadata is stored as absent."""
    without = make_log()
    del without["metadata"]
    assert [without, without] == accept(service, {"logs": [without, make_log(metadata=None)]})


def test_nested_metadata_is_stored(service: Service) -> None:
    """A hundred levels are stored."""
    metadata = json.loads('{"a":[' * 100 + "]}" * 100)
    assert [make_log(metadata=metadata)] == accept(service, {"logs": [make_log(metadata=metadata)]})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "nonsense"},
    ],
)
def test_content_type_is_optional(service: Service, headers: dict[str, str]) -> None:
    """A request without the header is accepted, as users of curl often forget it."""
    assert [make_log()] == accept(service, {"logs": [make_log()]}, headers)


@pytest.mark.quick
@pytest.mark.parametrize("prefix", ["", "Bearer ", "bearer ", "BEARER   ", "  "])
def test_token_is_accepted_alone_or_after_bearer(service: Service, prefix: str) -> None:
    """The scheme may be missing, and its case is ignored."""
    headers = {"Authorization": prefix + TOKEN}
    assert [make_log()] == accept(service, {"logs": [make_log()]}, headers)


TIMESTAMPS = {
    # RFC 3339
    "2024-05-31T15:30:45Z": "2024-05-31T15:30:45Z",
    "2024-05-31t15:30:45z": "2024-05-31T15:30:45Z",
    "2024-05-31T15:30:45+00:00": "2024-05-31T15:30:45Z",
    "2024-05-31T15:30:45-00:00": "2024-05-31T15:30:45Z",
    "2024-05-31T15:30:45+05:30": "2024-05-31T10:00:45Z",
    "2024-12-31T23:30:45-01:00": "2025-01-01T00:30:45Z",
    "2024-05-31T15:30:45.1Z": "2024-05-31T15:30:45.1Z",
    "2024-05-31T15:30:45.123456789Z": "2024-05-31T15:30:45.123456789Z",
    "2024-05-31T15:30:45.000Z": "2024-05-31T15:30:45.000Z",
    "2024-05-31T15:30:45.12345678901234567890+02:00": "2024-05-31T13:30:45.12345678901234567890Z",
    "2016-12-31T23:59:60Z": "2017-01-01T00:00:00Z",
    "2016-12-31T23:59:60.5Z": "2017-01-01T00:00:00.5Z",
    "2017-01-01T00:59:60+01:00": "2017-01-01T00:00:00Z",
    "2024-02-29T00:00:00Z": "2024-02-29T00:00:00Z",
    "0001-01-01T00:00:00Z": "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z": "9999-12-31T23:59:59.999999999Z",
    # ISO 8601
    "2024-05-31": "2024-05-31T00:00:00Z",
    "20240531": "2024-05-31T00:00:00Z",
    "2024-152": "2024-05-31T00:00:00Z",
    "2024152": "2024-05-31T00:00:00Z",
    "2024-W22-5": "2024-05-31T00:00:00Z",
    "2024W225": "2024-05-31T00:00:00Z",
    "2020-W53-7": "2021-01-03T00:00:00Z",
    "2024-05-31T15": "2024-05-31T15:00:00Z",
    "2024-05-31T15:30": "2024-05-31T15:30:00Z",
    "2024-05-31T15:30+02": "2024-05-31T13:30:00Z",
    "2024-05-31T15:30:45": "2024-05-31T15:30:45Z",
    "2024-05-31T15:30:45,25": "2024-05-31T15:30:45.25Z",
    "2024-05-31T24:00:00": "2024-06-01T00:00:00Z",
    "2024-12-31T24:00:00Z": "2025-01-01T00:00:00Z",
    "20240531T153045Z": "2024-05-31T15:30:45Z",
    "20240531T153045.5+0200": "2024-05-31T13:30:45.5Z",
    "20240531T1530": "2024-05-31T15:30:00Z",
    "2024-152T15:30:45Z": "2024-05-31T15:30:45Z",
    "2024-W22-5T15:30:45+0200": "2024-05-31T13:30:45Z",
    # SQL
    "2024-05-31 15:30": "2024-05-31T15:30:00Z",
    "2024-05-31 15:30:45": "2024-05-31T15:30:45Z",
    "2024-05-31 15:30:45.123456": "2024-05-31T15:30:45.123456Z",
    "2024-05-31 15:30:45.1234567 +02:00": "2024-05-31T13:30:45.1234567Z",
    "2024-05-31 15:30:45+02": "2024-05-31T13:30:45Z",
    "2024-05-31 15:30:45-0930": "2024-06-01T01:00:45Z",
    "2024-05-31 15:30:45 UTC": "2024-05-31T15:30:45Z",
    "2024-05-31 15:30:45UTC": "2024-05-31T15:30:45Z",
    "2024-05-31 15:30:45Z": "2024-05-31T15:30:45Z",
}


@pytest.mark.parametrize("sent", TIMESTAMPS)
def test_each_timestamp_form_is_stored_as_rfc_3339_in_utc(service: Service, sent: str) -> None:
    """Every accepted form has one stored form, with the digits of its fraction."""
    (log,) = accept(service, {"logs": [make_log(timestamp=sent)]})
    assert make_log(timestamp=TIMESTAMPS[sent]) == log


@pytest.mark.quick
def test_timestamp_forms_may_differ_within_a_batch(service: Service) -> None:
    """Each log may have another form."""
    logs = accept(service, {"logs": [make_log(timestamp=sent) for sent in TIMESTAMPS]})
    assert list(TIMESTAMPS.values()) == [log["timestamp"] for log in logs]


# Bodies


@pytest.mark.quick
def test_a_body_of_exactly_the_limit_is_accepted(service: Service) -> None:
    """The limit itself is allowed."""
    body = json.dumps(make_batch("big")).encode()
    assert 1 == len(accept(service, body.ljust(MAX_BODY_BYTES)))


@pytest.mark.quick
def test_a_body_over_the_limit_is_rejected(service: Service) -> None:
    """One byte more than the limit is rejected, with or without a declared length."""
    body = json.dumps(make_batch("big")).encode().ljust(MAX_BODY_BYTES + 1)
    reject(service, body, 413, "body_too_large")
    reject(service, iter([body[:500_000], body[500_000:]]), 413, "body_too_large")


def test_declared_oversize_body_is_rejected_before_it_is_sent(service: Service) -> None:
    """Its length is reason enough."""
    head = make_head(f"Content-Length: {MAX_BODY_BYTES + 1}")
    check_rejection(service.exchange(head), 413, "body_too_large")


def test_an_unannounced_oversize_body_is_rejected_before_its_end(service: Service) -> None:
    """A chunked body is rejected once it exceeds the limit, before its end."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    data = make_head(CHUNKED) + chunk * (MAX_BODY_BYTES // 0x10000 + 8)
    check_rejection(service.exchange(data), 413, "body_too_large")


@pytest.mark.quick
def test_a_chunked_body_is_accepted(service: Service) -> None:
    """A body may arrive in any number of chunks of any length."""
    body = json.dumps(make_batch("grüße")).encode()
    pieces = (body[i : i + 7] for i in range(0, len(body), 7))
    assert make_batch("grüße")["logs"] == accept(service, pieces)


@pytest.mark.quick
@pytest.mark.parametrize(
    "chunks",
    [
        b"ZZ\r\nabc",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcXX",
        b"fffffffffffffffffff\r\nabc",
        b"2\r\n{}\r\n0\r\nno trailer\r\n\r\n",
        b'b\r\n{"logs":[]}\r\n',
        b'b\r\n{"logs":[]}\r\n0\r\n',
        b'b\r\n{"logs":[',
        b"",
    ],
)
def test_malformed_chunks_are_rejected(service: Service, chunks: bytes) -> None:
    """Malformed or truncated chunks are the client's error."""
    answer = service.exchange(make_head(CHUNKED) + chunks, half_close=True)
    check_rejection(answer, 400, "invalid_json")


def test_a_body_that_ends_early_is_rejected(service: Service) -> None:
    """A body shorter than declared is rejected, even if it is JSON so far."""
    before = service.content()
    body = json.dumps(make_batch("short")).encode()
    head = make_head(f"Content-Length: {len(body) + 1}")
    check_rejection(service.exchange(head + body, half_close=True), 400, "invalid_json")
    assert before == service.content()


def test_an_empty_body_is_rejected(service: Service) -> None:
    """An empty body is not JSON."""
    check_rejection(service.exchange(make_head("Content-Length: 0")), 400, "invalid_json")


@pytest.mark.parametrize("body", [b"", b'{"logs":[]}', b"{" * 100_000])
def test_a_body_without_a_length_is_rejected(service: Service, body: bytes) -> None:
    """It is not read, and not parsed as another request."""
    with service.connect() as connection:
        connection.sendall(make_head() + body)
        answer = read_answer(connection)
        check_rejection(answer, 411, "length_required")
        assert "close" == answer.headers["Connection"]
        connection.shutdown(socket.SHUT_WR)
        assert b"" == connection.recv(1)
    check_rejection(service.exchange(make_head(token="wrong")), 401, "unauthorized")


@pytest.mark.parametrize("declared", ["iso-8859-1", '"utf-16"', "windows-1252; x=y"])
def test_a_body_of_another_charset_is_rejected(service: Service, declared: str) -> None:
    """The declaration counts, whatever the bytes are."""
    headers = {"Content-Type": f"application/json; charset={declared}"}
    reject(service, make_batch("x"), 415, "unsupported_charset", headers)


def deflate_bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("gzip", lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:])),
        ("deflate", zlib.compress),
        ("deflate", deflate_bare),
        ("identity", bytes),
    ],
)
def test_compressed_body_is_decompressed(service: Service, coding: str, pack: Any) -> None:
    """With each supported encoding, with a length and in chunks."""
    headers = {"Content-Encoding": coding}
    batch = make_batch(*"packed")
    body = pack(json.dumps(batch).encode())
    assert batch["logs"] == accept(service, body, headers)
    assert batch["logs"] == accept(service, (bytes([byte]) for byte in body), headers)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"not gzip at all"),
        ("gzip", b""),
        ("gzip", gzip.compress(b'{"logs":[]}', mtime=0)[:-1]),
        ("gzip", gzip.compress(b'{"logs":[]}', mtime=0) + b"more"),
        ("gzip", gzip.compress(b'{"logs":[]}', mtime=0)[:-8] + bytes(8)),
        ("deflate", b"\xff" * 100),
        ("deflate", zlib.compress(b'{"logs":[]}')[:-4]),
    ],
)
def test_body_that_is_not_gzip_is_rejected(service: Service, coding: str, body: bytes) -> None:
    """Damaged, truncated or extended compressed data is rejected."""
    reject(service, body, 400, "invalid_encoding", {"Content-Encoding": coding})


@pytest.mark.parametrize("coding", ["br", "lz4", "gzip, gzip", "x"])
def test_an_unknown_coding_is_rejected(service: Service, coding: str) -> None:
    """The rejection names the supported encodings."""
    rejection = reject(
        service, {"logs": []}, 415, "unsupported_encoding", {"Content-Encoding": coding}
    )
    assert "gzip" in rejection["message"]


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_decompression_bomb_is_rejected(service: Service, coding: str, pack: Any) -> None:
    """A small body counts with its decompressed size."""
    bomb = pack(b'{"logs":[' + b" " * 64_000_000 + b"]}")
    assert len(bomb) < 100_000
    reject(service, bomb, 413, "body_too_large", {"Content-Encoding": coding})


@pytest.mark.quick
def test_client_that_expects_100_continue_receives_it(service: Service) -> None:
    """For example curl, before it sends a large body."""
    body = json.dumps(make_batch("expected")).encode()
    head = make_head(f"Content-Length: {len(body)}", "Expect: 100-continue")
    with service.connect() as connection:
        connection.sendall(head)
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == connection.recv(25)
        connection.sendall(body)
        check_accepted(read_answer(connection))
    assert "expected" == service.logs()[-1]["message"]


@pytest.mark.parametrize("is_sent", [False, True])
def test_client_rejected_by_its_head_gets_no_100_continue(service: Service, is_sent: bool) -> None:
    """A wrong token is rejected first; a body that is sent nevertheless is ignored."""
    body = json.dumps(make_batch("unwanted")).encode() + b" " * 1_000_000
    head = make_head(f"Content-Length: {len(body)}", "Expect: 100-continue", token="wrong")
    with service.connect() as connection:
        connection.sendall(head + body * is_sent)
        answer = read_answer(connection)
        check_rejection(answer, 401, "unauthorized")
        assert "close" == answer.headers["Connection"]
        connection.shutdown(socket.SHUT_WR)
        assert b"" == connection.recv(1)
    assert service.drain(make_batch("next")).status == 200
    assert "next" == service.logs()[-1]["message"]


@pytest.mark.quick
def test_a_connection_serves_many_requests(service: Service) -> None:
    """A rejection does not affect the next request on the connection."""
    body = json.dumps(make_batch("kept")).encode()
    request = make_head(f"Content-Length: {len(body)}") + body
    with service.connect() as connection:
        connection.sendall(request)
        check_accepted(read_answer(connection))
        connection.sendall(make_head("Content-Length: 7", token="wrong") + b"no json")
        check_rejection(read_answer(connection), 401, "unauthorized")
        connection.sendall(make_head("Content-Length: 7") + b"no json")
        check_rejection(read_answer(connection), 400, "invalid_json")
        connection.sendall(request)
        check_accepted(read_answer(connection))


# Authorization


@pytest.mark.quick
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer Bearer {TOKEN}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN[:-1]},
        {"Authorization": TOKEN + "x"},
        {"Authorization": TOKEN.upper()},
        {"Authorization": f"{TOKEN},{TOKEN}"},
        {"Authorization": "grün"},
    ],
)
def test_a_wrong_token_is_rejected(service: Service, headers: dict[str, str]) -> None:
    """Anything but the token, alone or after Bearer, is rejected."""
    reject(service, {"logs": [make_log()]}, 401, "unauthorized", headers)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/drain", 401, "unauthorized"),
        ("/v1/drain?token=wrong", 401, "unauthorized"),
        (f"/v1/drain?token={TOKEN}", 403, "forbidden_scope"),
    ],
)
def test_request_without_the_header_is_rejected(
    service: Service, path: str, status: int, code: str
) -> None:
    """Also with a token in the query, unless it is write-only."""
    answer = service.request("POST", path, json.dumps({"logs": [make_log()]}))
    check_rejection(answer, status, code)


def test_a_wrong_token_is_rejected_before_the_body_is_read(service: Service) -> None:
    """401 precedes any byte of the body and any other rejection."""
    for headers in (["Content-Length: 100000000000"], [CHUNKED], ["Content-Encoding: br"]):
        answer = service.exchange(make_head(*headers, token="wrong"))
        check_rejection(answer, 401, "unauthorized")


# Malformed JSON

VALID = json.dumps({"logs": [make_log()]})


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "{",
        '{"logs":[}',
        "{'logs':[]}",
        '{"logs":[],}',
        VALID + "x",
        VALID + VALID,
        VALID.replace("123", "NaN"),
        VALID.replace("123", "Infinity"),
        VALID.replace("123", "-Infinity"),
        VALID.replace('"User logged in"', "1e999"),
        VALID.replace("123", "0x1"),
        VALID.replace("123", "01"),
        VALID.replace('"User logged in"', "9" * 5000),
        VALID.replace("logged", "log\nged"),
        VALID.replace("logged", r"\x"),
        VALID.replace("logged", r"\u12"),
        VALID.replace("123", "[" * 100_000 + "]" * 100_000),
        VALID.replace("123", '{"a":' * 50_000 + "1" + "}" * 50_000),
        "[" * 400_000,
    ],
)
def test_json_beyond_rfc_8259_is_rejected(service: Service, body: str) -> None:
    """Python's extensions to JSON are not accepted."""
    reject(service, body.encode(), 400, "invalid_json")


@pytest.mark.parametrize(
    "bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80"]
)
@pytest.mark.parametrize("place", ["org-xyz", "logged", "user_id", "1.1.1.1"])
def test_invalid_utf_8_is_rejected(service: Service, bad: bytes, place: str) -> None:
    """In fields, metadata keys and metadata values."""
    reject(service, VALID.encode().replace(place.encode(), bad), 400, "invalid_json")


@pytest.mark.parametrize("coding", ["utf-16", "utf-32"])
def test_other_encodings_are_rejected(service: Service, coding: str) -> None:
    """JSON over HTTP is UTF-8."""
    reject(service, VALID.encode(coding), 400, "invalid_json")


# Invalid batches


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("null", "_schema"),
        ("[]", "_schema"),
        ('"logs"', "_schema"),
        ("1", "_schema"),
        (json.dumps([make_log()]), "_schema"),
        (json.dumps(make_log()), "logs"),
        ("{}", "logs"),
        ('{"logs":null}', "logs"),
        ('{"logs":{}}', "logs"),
        ('{"logs":"x"}', "logs"),
        ('{"logs":[],"more":1}', "more"),
    ],
)
def test_json_that_is_no_batch_is_rejected(service: Service, body: str, field: str) -> None:
    """The errors are about the batch itself."""
    assert field in reject(service, body.encode(), 400, "invalid_batch")["errors"]


WRONG_VALUES: dict[str, list[Any]] = {
    "project_id": ["", None, 1],
    "level": ["", None, 1],
    "service": ["", None, 1],
    "message": [None, 1, True, [], {}],
    "metadata": ["", 1, [], False],
    "timestamp": [None, 1717120112, 1717120112.5, True, []],
    "extra": [1, None],
}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("field", "value"), [(name, value) for name, values in WRONG_VALUES.items() for value in values]
)
def test_a_malformed_field_is_named(service: Service, field: str, value: Any) -> None:
    """The errors have the index of the log and the field."""
    batch = {"logs": [make_log(), make_log(**{field: value})]}
    errors = reject(service, batch, 400, "invalid_batch")["errors"]
    assert [("1", [field])] == [(index, list(fields)) for index, fields in errors["logs"].items()]


@pytest.mark.parametrize("field", ["project_id", "timestamp", "level", "service", "message"])
def test_a_missing_field_is_named(service: Service, field: str) -> None:
    """All fields except metadata are required."""
    log = make_log()
    del log[field]
    errors = reject(service, {"logs": [log]}, 400, "invalid_batch")["errors"]
    assert {"logs": {"0": {field: ["Missing data for required field."]}}} == errors


def test_an_unknown_field_is_rejected_with_advice(service: Service) -> None:
    """Dropping it would lose data, so the message names `metadata` as the place for it."""
    errors = reject(service, {"logs": [make_log(host="a")]}, 400, "invalid_batch")["errors"]
    assert "put extra context under metadata" in errors["logs"]["0"]["host"][0]


@pytest.mark.parametrize("log", [None, 1, "x", [], [make_log()]])
def test_a_log_that_is_no_object_is_rejected(service: Service, log: Any) -> None:
    """The errors have the index of the log."""
    errors = reject(service, {"logs": [make_log(), log]}, 400, "invalid_batch")["errors"]
    assert ["1"] == list(errors["logs"])


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        " ",
        "now",
        "10",
        "Monday",
        "31 May 2024",
        "05/31/2024",
        "31.05.2024",
        "1717120112",
        "1717120112345",
        "1717120112.5",
        "2024",
        "2024-05",
        "202405",
        "15:30:45",
        "2024-5-31",
        "24-05-31",
        "2024-05-31_15:30:45",
        "2024-05-31  15:30:45",
        "2024-05-31T15:30:45.Z",
        "2024-05-31T15:30:45 Z",
        "2024-05-31T15:30:45ZZ",
        " 2024-05-31T15:30:45Z",
        "2024-05-31T15:30:45Z\n",
        "2024-05-31T1530:45Z",
        "2024-05-31T15:30:45+2",
        "2024-05-31T15:30:45+24:00",
        "2024-05-31T15:30:45+02:60",
        "2024-05-31T15:30:45 CEST",
        "2024-05-31T15:30:45[Europe/Berlin]",
        "2024-02-30T00:00:00Z",
        "2023-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "2024-00-01T00:00:00Z",
        "2023-366",
        "2024-000",
        "2024-W53-1",
        "2024-W22-8",
        "2024-05-31T24:00:01Z",
        "2024-05-31T25:00:00Z",
        "2024-05-31T15:60:00Z",
        "2024-05-31T15:30:61Z",
        "2024-05-31T15:30:60Z",
        "2024-05-31T23:59:60+01:00",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "-2024-05-31T15:30:45Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T24:00:00Z",
        "9999-12-31T23:59:60Z",
        "\uff12\uff10\uff12\uff14-05-31T15:30:45Z",
        "2024-05-31T15:30:4\u0665Z",
        "2024-05-31T15:30:45.\u0665Z",
        "2024-05-31T15:30:45\u221202:00",
        "2024-05-31T15:30:45Z\x00",
    ],
)
def test_invalid_timestamps_are_rejected(service: Service, timestamp: str) -> None:
    """Epochs, and spelled, ambiguous, incomplete or impossible timestamps."""
    errors = reject(service, {"logs": [make_log(timestamp=timestamp)]}, 400, "invalid_batch")
    assert ["timestamp"] == list(errors["errors"]["logs"]["0"])


@pytest.mark.quick
def test_one_malformed_log_rejects_the_whole_batch(service: Service) -> None:
    """None of 500 logs is stored, and the rejection states that."""
    batch = make_batch(*(str(number) for number in range(500)))
    batch["logs"][457]["timestamp"] = "yesterday"
    rejection = reject(service, batch, 400, "invalid_batch")
    assert "1 of 500 logs are invalid; nothing was stored" == rejection["message"]
    (text,) = rejection["errors"]["logs"].pop("457").pop("timestamp")
    assert "Not a timestamp" in text
    assert {"logs": {}} == rejection["errors"]


def test_at_most_20_malformed_logs_are_described(service: Service) -> None:
    """All are counted."""
    batch = make_batch(*(str(number) for number in range(500)))
    for log in batch["logs"][100:150]:
        log["level"] = ""
    rejection = reject(service, batch, 400, "invalid_batch")
    assert "50 of 500 logs are invalid; nothing was stored" == rejection["message"]
    assert [str(index) for index in range(100, 120)] == list(rejection["errors"]["logs"])


# Routes, methods and heads


@pytest.mark.quick
def test_health_needs_no_token(service: Service) -> None:
    """GET /health responds 200 while the process serves."""
    answer = service.request("GET", "/health")
    assert (200, b'{"status":"ok"}') == (answer.status, answer.raw)
    assert "application/json" == answer.headers["Content-Type"]


@pytest.mark.quick
def test_ready_needs_no_token(service: Service) -> None:
    """GET /ready is 200 while batches are accepted."""
    answer = service.request("GET", "/ready")
    assert (200, b'{"status":"ready"}') == (answer.status, answer.raw)
    assert "application/json" == answer.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probe_may_use_head(service: Service, path: str) -> None:
    """HEAD has the status and headers of GET, and no body."""
    get, head = (service.request(method, path) for method in ("GET", "HEAD"))
    assert (200, b"") == (head.status, head.raw)
    for name in ("Content-Type", "Content-Length"):
        assert get.headers[name] == head.headers[name]


@pytest.mark.quick
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "BREW"])
@pytest.mark.parametrize(
    "path",
    ["/docs/", "/v1", "/v1/drain/", "/v1/Drain", "/v2/drain", "/health/", "/%ff%00", "/../x"],
)
def test_an_unknown_path_is_rejected_as_json(service: Service, method: str, path: str) -> None:
    """404 has the usual form, for any method."""
    check_rejection(service.request(method, path), 404, "not_found")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *((method, "/v1/drain", "POST") for method in ("GET", "PUT", "PATCH", "DELETE", "BREW")),
        *((method, "/health", "GET") for method in ("POST", "PUT", "PATCH", "DELETE", "BREW")),
        ("POST", "/ready", "GET"),
    ],
)
def test_a_wrong_method_is_rejected_as_json(
    service: Service, method: str, path: str, allowed: str
) -> None:
    """405 has the usual form, and names the supported methods."""
    answer = service.request(method, path, headers={"Authorization": TOKEN})
    check_rejection(answer, 405, "method_not_allowed")
    assert allowed in answer.headers["Allow"].split(", ")
    assert allowed in answer.body["message"]


@pytest.mark.quick
@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        b"get /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        make_head("no colon"),
        make_head("X: " + "a" * 10_000),
        make_head(*(f"X-{number}: 1" for number in range(200))),
        make_head("Content-Length: -1"),
        make_head("Content-Length: ten"),
        make_head("Content-Length: 1", "Content-Length: 2"),
        make_head("Content-Length: 1", CHUNKED),
        make_head("Content-Length : 0"),
        make_head("Content-Length\t: 0"),
        make_head("Transfer-Encoding : chunked"),
        make_head("Transfer-Encoding:", " chunked"),
        make_head("X: a", "\tContent-Length: 0"),
        make_head("Expect: miracles"),
    ],
)
def test_a_malformed_head_is_rejected(service: Service, request_: bytes) -> None:
    """Invalid or ambiguous HTTP ends its connection with 400."""
    answer = service.exchange(request_ + make_head(CHUNKED, token="wrong"))
    check_rejection(answer, 400, "bad_request")
    assert "close" == answer.headers["Connection"]


@pytest.mark.parametrize(
    ("fits", "does_not_fit"),
    [
        ([f"X-{number}: 1" for number in range(97)], ["X: 1"]),  # 100 with those that all have
        ([f"X-{number}: 1" for number in range(97)], ["X_Y: 1"]),  # which is dropped, but counts
        (["X: " + "a" * 8185], ["Y: " + "a" * 8186]),  # 8,190 bytes with its line's end
    ],
)
def test_a_head_is_bounded(service: Service, fits: list[str], does_not_fit: list[str]) -> None:
    """The number and the size of fields are limited before a token is shown."""
    head = make_head("Content-Length: 11", *fits) + b'{"logs":[]}'
    check_accepted(service.exchange(head))
    head = make_head("Content-Length: 11", *fits, *does_not_fit) + b'{"logs":[]}'
    check_rejection(service.exchange(head), 400, "bad_request")


@pytest.mark.parametrize("length", [4094, 4095])
def test_a_request_line_is_bounded(service: Service, length: int) -> None:
    """It may be 4,094 bytes long, with method and version."""
    line = b"GET /health?".ljust(length - len(b" HTTP/1.1"), b"a") + b" HTTP/1.1"
    answer = service.exchange(line + b"\r\nHost: localhost\r\n\r\n")
    assert (200 if length == 4094 else 400) == answer.status


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Encoding": "br"},
        {"Content_Type": "application/x-ndjson"},
        {"SCRIPT_NAME": "/v1"},
        {"SCRIPT_NAME": "/elsewhere"},
        {"PATH_INFO": "/health"},
        {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "off"},
    ],
)
def test_similar_header_names_are_ignored(service: Service, headers: dict[str, str]) -> None:
    """Names with an underscore and headers for proxies are ignored."""
    assert [make_log()] == accept(service, {"logs": [make_log()]}, headers)


@pytest.mark.parametrize(
    "request_",
    [
        make_head(CHUNKED, token="wrong") + b"{the patient's name}\r\n",
        make_head(CHUNKED) + b"{the patient's name}\r\n",
        make_head(CHUNKED, token="wrong") + b"0\r\nthe patient's name\r\n\r\n",
        make_head("Content-Length: 2") + b"{}the-patient's-name\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization {TOKEN}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nAuthorization\r\n {TOKEN}\r\n\r\n".encode(),
        f"{TOKEN}\r\n\r\n".encode(),
    ],
)
def test_malformed_http_is_not_repeated_in_the_log(service: Service, request_: bytes) -> None:
    """After wrong framing, neither a token nor a log gets into the service's log."""
    before = service.log()
    with service.connect() as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        assert read_answer(connection).status in (400, 401)
        while connection.recv(65536):
            pass
    log = service.log().removeprefix(before)
    assert "patient" not in log
    assert TOKEN not in log
