import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest

from astralog.errors import Rejection
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.formats import PIECE_BYTES
from astralog.intake.options import OnInvalid, Options
from astralog.intake.schema import FIELDS, LogSchema
from astralog.intake.value_limits import LONG_LOG_COMMAS, MAX_VALUES
from astralog.store.queue import Batch
from tests.support.decoding import encode_batch, make_context, marshmallow_alone
from tests.support.service import make_log


def body_of(*logs: Any) -> bytes:
    return json.dumps({"logs": logs}, ensure_ascii=False).encode()


def log_with(fields: bytes) -> bytes:
    """Return a batch of one log that ends with the given JSON text."""
    head = json.dumps(make_log())[:-1].encode()
    return b'{"logs": [%s, %s}]}' % (head, fields)


def stored(body: bytes) -> list[Any]:
    """Return the logs in the stored lines of a body."""
    batch = encode_batch(body)
    assert not batch.lines or batch.lines.endswith(b"\n")
    logs = [json.loads(line) for line in batch.lines.decode("utf-8").split("\n")[:-1]]
    assert batch.logs == len(logs)
    return logs


def rejection_of(body: bytes) -> Rejection:
    with pytest.raises(Rejection) as rejected:
        encode_batch(body)
    return rejected.value


def test_a_batch_becomes_a_line_for_each_log() -> None:
    """The lines are NDJSON with the fields in their order, metadata byte for byte."""
    line = (
        b'{"project_id":"org-xyz","timestamp":"2024-05-31T15:30:45Z","level":"info",'
        b'"service":"api-gateway","message":"User logged in",'
        b'"metadata":{"user_id": 123, "ip": "1.1.1.1"}}\n'
    )
    assert Batch(line * 2, 2) == encode_batch(body_of(make_log(), make_log()))


def test_an_empty_batch_has_no_lines() -> None:
    """A batch without logs is valid, and nothing is stored for it."""
    assert Batch(b"", 0) == encode_batch(b'{"logs": []}')


def test_no_value_breaks_a_line() -> None:
    """Line breaks and zero bytes in values are escaped, so each line is one log."""
    text = "a\nb\rc\0d\x1f\x7f\x85\u2028\u2029"
    logs = [make_log(message=text, metadata={text: text})] * 3
    batch = encode_batch(json.dumps({"logs": logs}).encode())
    assert 3 == batch.lines.count(b"\n")
    assert b"\0" not in batch.lines
    assert b"\r" not in batch.lines
    assert logs == [json.loads(line) for line in batch.lines.split(b"\n")[:-1]]


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        (rb'"message": "cut \ud83d"', "message", "cut \ufffd"),
        (rb'"message": "\ude00\ud83d\ude00"', "message", "\ufffd\U0001f600"),
        (rb'"message": "C:\\ud83d"', "message", "C:\\ud83d"),
        (rb'"metadata": {"\ud83d": ["\ude00"]}', "metadata", {"\ufffd": ["\ufffd"]}),
        (b'"level": "a", "level": "b"', "level", "b"),
        (b'"level": 5, "level": "b"', "level", "b"),
        (b'"metadata": {"a": 1, "a": 2}', "metadata", {"a": 2}),
        (b'"metadata": null, "metadata": {}', "metadata", {}),
        (b'"metadata": {"n": %d}' % 10**30, "metadata", {"n": 10**30}),
        (b'"metadata": {"n": %s}' % (b"9" * 4300), "metadata", {"n": int("9" * 4300)}),
        (b'"metadata": {"n": 18446744073709551616}', "metadata", {"n": 2**64}),
        (b'"metadata": {"n": 1e-400}', "metadata", {"n": 0}),
        (b'"metadata": {"n": 1.7976931348623157e308}', "metadata", {"n": 1.7976931348623157e308}),
        (rb'"m\u0065ssage": "escaped"', "message", "escaped"),
        ('"message": "\ufeff\u2028\U0010ffff"'.encode(), "message", "\ufeff\u2028\U0010ffff"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hard_case_is_stored(fields: bytes, name: str, expected: Any) -> None:
    """All valid JSON is stored, with the last of equal keys and U+FFFD for half an emoji."""
    (log,) = stored(log_with(fields))
    assert expected == log[name]


def test_deep_metadata_is_stored() -> None:
    """Metadata may be nested as deep as in any real log."""
    deep = b'{"a":' * 100 + b"1" + b"}" * 100
    assert json.loads(deep) == stored(log_with(b'"metadata": ' + deep))[0]["metadata"]


@pytest.mark.parametrize("padding", [0, 2 * PIECE_BYTES], ids=["short", "long"])
@pytest.mark.parametrize(
    "fields",
    [
        b'"metadata": {"n": NaN}',
        b'"metadata": {"n": Infinity}',
        b'"metadata": {"n": -Infinity}',
        b'"message": 1e400',
        b'"message": %s' % (b"9" * 4301),
        b'"metadata": {"n": 01}',
        b'"metadata": {"a": }',
        b'"metadata": {"a": 1,}',
        b'"metadata": {"a": "\xff"}',
        *(b'"%b": "\xff"' % name.encode() for name in FIELDS if name != "metadata"),
        b'"metadata": {"\xc3\x28": 1}',
        b'"metadata": {"a": ["\xed\xa0\x80"]}',
        b'"message": "\xc0\xaf"',
        b'"message": "a\nb"',
        b'"message": "a\0b"',
        rb'"message": "\x41"',
        b'"\xff": 1',
        b'"metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'"metadata": ' + b'{"a":' * 50_000,
        b'"metadata": {"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'"unknown": ' + b"[" * 50_000 + b"]" * 50_000,
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_strict_json_is_rejected(fields: bytes, padding: int) -> None:
    """Numbers, text or nesting beyond strict JSON reject the batch, short or long."""
    body = log_with(fields)
    rejection = rejection_of(body[:-1] + b" " * padding + body[-1:])
    assert "invalid_json" == rejection.code
    assert rejection.message.startswith("The body is not valid JSON: ")
    assert rejection.errors is None


@pytest.mark.parametrize("padding", [0, 2 * PIECE_BYTES], ids=["short", "long"])
@pytest.mark.parametrize("is_slow", [False, True], ids=["compiled", "schema"])
@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b'{"b":1e400,"a":%s}' % (b"9" * 4301), None),
        (b'{"z" : 1.50, "a":\t-0.0e+05, "a": [ ]}', None),
        (rb'{"\u0061":"\u00e9\/\ud83d\ude00"}', None),
        (b'{"metadata":5,"a":{"metadata":null}}', None),
        ('{"\u00e9":"\U0001f600\u2028"}'.encode(), None),
        (b'{"a":1,\r\n  "b":\n[2,\r3]}', b'{"a":1,  "b":[2,3]}'),
        (rb'{"a":"\ud83d\u0041","\ude00":"\n"}', rb'{"a":"\ufffd\u0041","\ufffd":"\n"}'),
        (b"{}", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_metadata_is_stored_byte_for_byte(
    sent: bytes, kept: bytes | None, padding: int, *, is_slow: bool
) -> None:
    """Except line breaks between its tokens, and half a surrogate pair."""
    body = log_with(b'"metadata": ' + sent)
    body = body[:-1] + b" " * padding + body[-1:]
    with marshmallow_alone() if is_slow else contextlib.nullcontext():
        lines = encode_batch(body).lines
    assert bytes(lines).endswith(b'"message":"User logged in","metadata":%b}\n' % (kept or sent))


@pytest.mark.parametrize("decode", [decode_json, decode_lines])
def test_defaults_leave_metadata_byte_for_byte(decode: Any) -> None:
    """Missing fields and null are filled in, whether or not the schema decides."""
    log = b'{"service":null,"timestamp":"2024-05-31 15:30","message":"m","metadata":{"a": 1e999}}'
    invalid = b'{"service":"s","level":"","timestamp":"2024-05-31","message":"m"}'
    options = Options(
        {"project_id": "p", "level": "i", "service": "d"}, on_invalid=OnInvalid.LEAVE_OUT
    )
    expected = (
        b'{"project_id":"p","timestamp":"2024-05-31T15:30:00Z","level":"i","service":"d",'
        b'"message":"m","metadata":{"a": 1e999}}\n'
    )
    for logs in ([log], [log, invalid]):
        body = b"\n".join(logs) if decode is decode_lines else b'{"logs":[%b]}' % b",".join(logs)
        assert expected == decode(body, make_context(options=options)).batch.lines
    missing = log.replace(b'"message":"m",', b"")
    context = make_context(options=replace(options, on_invalid=OnInvalid.REJECT))
    with pytest.raises(Rejection, match="invalid"):
        decode(missing if decode is decode_lines else b'{"logs":[%b]}' % missing, context)


@pytest.mark.parametrize(
    "metadata", [b"[1]", b'"{}"', b"5", b"true", b'[{"metadata":{}}]', rb'"\\"']
)
def test_metadata_that_is_no_object_is_rejected(metadata: bytes) -> None:
    """Also if it contains the text of an object, or a key of this name."""
    rejection = rejection_of(log_with(b'"metadata": ' + metadata))
    assert {"logs": {0: {"metadata": ["Not an object."]}}} == rejection.errors


@pytest.mark.parametrize("padding", [0, 2 * PIECE_BYTES], ids=["short", "long"])
@pytest.mark.parametrize(
    ("head", "tail"),
    [
        (b"\xef\xbb\xbf", b""),
        (b"", b"x"),
        (b"", b"{}"),
        (b"", b","),
        (b"", b"\0"),
        (b"", b"\xff"),
        (b"\0", b""),
    ],
)
def test_text_around_a_batch_is_rejected(head: bytes, tail: bytes, padding: int) -> None:
    """A byte order mark before the batch or text after it is not JSON."""
    body = head + body_of(make_log()) + b" " * padding + tail
    assert "invalid_json" == rejection_of(body).code


@pytest.mark.parametrize(
    "body", [b"", b" ", b"[", b'[{"logs": []}', b'{"logs": [', b'{"logs": [}', b"{'logs': []}"]
)
def test_half_a_batch_is_rejected(body: bytes) -> None:
    """A truncated body, or one that is not JSON, is rejected."""
    assert "invalid_json" == rejection_of(body).code


def test_white_space_around_a_batch_is_accepted() -> None:
    """JSON allows white space around a text."""
    assert [make_log()] == stored(b"\r\n\t " + body_of(make_log()) + b"\n")


def test_invalid_log_rejects_the_whole_batch() -> None:
    """It is described by index and field, and none of the batch is encoded."""
    rejection = rejection_of(body_of(make_log(), make_log(level=""), make_log(), make_log(host=1)))
    assert "invalid_batch" == rejection.code
    assert "2 of 4 logs are invalid; nothing was stored" == rejection.message
    assert rejection.errors is not None
    assert [1, 3] == list(rejection.errors["logs"])


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"logs": 5}', b'{"logs": [], "a": 1}', b"null"])
def test_json_that_is_no_batch_is_rejected(body: bytes) -> None:
    """It is an invalid batch, not invalid JSON."""
    rejection = rejection_of(body)
    assert "invalid_batch" == rejection.code
    assert rejection.message.endswith("; nothing was stored")
    assert rejection.errors


LOG = json.dumps(make_log()).encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            LOG,
            'is a log, not a batch: send {"logs": [LOG]}, or one log per line as application/x-nd',
        ),
        (b'{"message": "m"}', "is a log, not a batch"),
        (b"[%s]" % LOG, 'A batch is an object with a list: {"logs": [LOG, ...]}'),
        (b'{"resourceLogs": []}', "an export of OpenTelemetry, which goes to POST /v1/logs"),
        (b'{"resource_logs": []}', "an export of OpenTelemetry, which goes to POST /v1/logs"),
        (b"{}", "The batch is invalid"),
        (b'{"logs": [], "message": "m"}', "The batch is invalid"),
    ],
)
def test_body_of_another_kind_is_explained(body: bytes, words: str) -> None:
    """The message names the path for such a body, or the form of a batch."""
    rejection = rejection_of(body)
    assert "invalid_batch" == rejection.code
    assert words in rejection.message


@pytest.mark.parametrize("separator", [b"", b" ", b"  "])
@pytest.mark.parametrize("is_lines", [False, True])
def test_lines_joined_by_curl_are_explained(separator: bytes, is_lines: bool) -> None:
    """Its -d removes line breaks, for any content type."""
    decode = decode_lines if is_lines else decode_json
    with pytest.raises(Rejection) as rejected:
        decode(separator.join([LOG, LOG, LOG]), make_context())
    assert "invalid_json" == rejected.value.code
    assert "with curl, use --data-binary" in rejected.value.message


@pytest.mark.parametrize("size", [100, 2_000_000])
@pytest.mark.parametrize("is_lines", [False, True])
@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-8-sig", "begins with a byte order mark"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-32", "UTF-32"),
    ],
)
def test_body_that_is_not_utf8_is_explained(
    encoding: str, words: str, is_lines: bool, size: int
) -> None:
    """Short and long bodies get the same message."""
    log = json.dumps(make_log(message="x" * size))
    body = (log if is_lines else f'{{"logs": [{log}]}}').encode(encoding)
    with pytest.raises(Rejection) as rejected:
        (decode_lines if is_lines else decode_json)(body, make_context())
    assert "invalid_json" == rejected.value.code
    assert words in rejected.value.message


# --- Bodies longer than a piece


def long_logs(count: int, size: int = 10_000) -> list[dict[str, Any]]:
    return [make_log(message=f"{index:06}" + "x" * size) for index in range(count)]


def test_a_long_body_is_stored_log_by_log_in_order() -> None:
    """A body of several pieces is stored as the same lines as its logs one by one."""
    logs = long_logs(400)
    logs[7] = make_log(message="", metadata=None)
    logs[350] = make_log(timestamp="2024-05-31 15:30:45+02:00")
    body = body_of(*logs)
    assert len(body) > 3 * PIECE_BYTES
    batch = encode_batch(body)
    assert b"".join(encode_batch(body_of(log)).lines for log in logs) == batch.lines
    assert 400 == batch.logs


@pytest.mark.parametrize("size", [PIECE_BYTES - 300, PIECE_BYTES, PIECE_BYTES + 300])
def test_no_log_is_lost_at_the_end_of_a_piece(size: int) -> None:
    """Pieces of any length contain all logs once, the last one too."""
    logs = [make_log(message="x" * size), make_log(message="b"), make_log(message="y" * size)]
    assert logs == stored(body_of(*logs, make_log(message="z")))[:3]
    assert logs[:1] == stored(body_of(*logs[:1]))


def test_empty_batch_in_a_long_body_is_accepted() -> None:
    """White space alone may make a body long."""
    assert Batch(b"", 0) == encode_batch(b'{"logs": [' + b" " * PIECE_BYTES + b"]}")


def test_lone_surrogates_in_a_long_body_are_replaced() -> None:
    """Short and long bodies are treated the same."""
    logs = long_logs(200)
    logs[150]["message"] = "SURROGATE"
    body = body_of(*logs).replace(b"SURROGATE", rb"\ud83d")
    assert "\ufffd" == stored(body)[150]["message"]


@pytest.mark.parametrize(
    ("index", "log", "errors"),
    [
        (0, make_log(level=""), {"level": ["Must not be empty."]}),
        (299, make_log(message=5), {"message": ["Not a valid string."]}),
        (150, 5, {"_schema": ["Not an object."]}),
        (150, None, {"_schema": ["Not an object."]}),
        (299, {}, None),
    ],
)
def test_invalid_log_in_a_long_body_has_its_index(index: int, log: Any, errors: Any) -> None:
    """It rejects the whole body, and is described by its index in the body."""
    logs: list[Any] = long_logs(300)
    logs[index] = log
    rejection = rejection_of(body_of(*logs))
    assert "invalid_batch" == rejection.code
    least = "" if index == 299 else "At least "  # what comes behind its piece is not checked
    assert f"{least}1 of 300 logs are invalid; nothing was stored" == rejection.message
    assert rejection.errors is not None
    assert [index] == list(rejection.errors["logs"])
    assert errors is None or errors == rejection.errors["logs"][index]


@pytest.mark.parametrize(
    "body", [b"[%s]", b'{"logs": 5, "a": "%s"}', b'{"logs": "%s"}', b'"%s"', b'{"a": "%s"}']
)
def test_long_json_that_is_no_batch_is_rejected(body: bytes) -> None:
    """Long JSON that is not a batch is an invalid batch."""
    rejection = rejection_of(body % (b" " * 2 * PIECE_BYTES))
    assert "invalid_batch" == rejection.code
    assert rejection.errors


def test_a_body_of_too_many_values_is_rejected() -> None:
    """The limit bounds the memory for the values of a long body."""
    logs = [make_log(metadata={"a": [0] * 9_000})] * 90
    rejection = rejection_of(body_of(*logs))
    assert "body_too_large" == rejection.code
    assert str(MAX_VALUES) in rejection.message


def test_rejection_states_that_counting_stopped() -> None:
    """Counting stops at a number of invalid logs, also within one piece of a body."""
    rejection = rejection_of(body_of(*[make_log(level="")] * 2000) + b" " * PIECE_BYTES)
    assert "At least 1000 of 2000 logs are invalid; nothing was stored" == rejection.message


def test_a_long_log_of_too_many_values_is_rejected() -> None:
    """The limit bounds the memory for values; long texts are allowed."""
    values = [0.123456789] * (LONG_LOG_COMMAS + 10)
    rejection = rejection_of(body_of(make_log(), make_log(metadata={"a": values})))
    assert "invalid_batch" == rejection.code
    assert rejection.errors is not None
    assert [1] == list(rejection.errors["logs"])
    assert 2 == len(stored(body_of(make_log(), make_log(message="," * 90_000 + "x" * 10**6))))


@pytest.mark.parametrize("separator", [b"\n", b"\r\n"])
def test_ndjson_without_its_content_type_is_explained(separator: bytes) -> None:
    """A sender that forgot the header gets a hint; others do not."""
    log = json.dumps(make_log()).encode()
    assert rejection_of(separator.join([log, log])).message.endswith(
        "; send one log per line as application/x-ndjson"
    )
    for other in (
        b"{\n" + log,
        b"x\n" + log,
        log + b"x",
        b'{"logs": [%s]}\n}' % log[:-1],
        b"[]\n[]",
    ):
        assert "ndjson" not in rejection_of(other).message


def test_a_fault_within_a_log_is_named_by_its_index() -> None:
    """If the rest of the body is readable, the message names the unreadable log."""
    log = json.dumps(make_log()).encode()
    for body in (b'{"logs":[%s,{"a":"\xff"}]}' % log, b'{"logs":[%s,{"a":1e999}]}' % log):
        assert "The body is not valid JSON: log 1: " in rejection_of(body).message


def test_half_an_emoji_affects_only_its_own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs next to one that the decoder rejects are not passed to marshmallow."""
    monkeypatch.setattr(LogSchema, "load", None)
    logs = [make_log(message=str(number)) for number in range(9)]
    body = json.dumps({"logs": [*logs, make_log(message="cut \ud83d")]}).encode()
    assert [*logs, make_log(message="cut \ufffd")] == stored(body)
