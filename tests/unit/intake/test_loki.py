"""Streams of Loki become logs, field by field, in either encoding."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import cramjam
import pytest

from astralog.errors import Rejection
from astralog.intake import loki, loki_protobuf
from astralog.intake.options import Options
from tests.support.decoding import Room, make_context
from tests.support.loki import make_json, make_protobuf

TIME = 1717169445123456789
LOG = {
    "project_id": "org",
    "timestamp": "2024-05-31T15:30:45.123456789Z",
    "level": "unspecified",
    "service": "unknown_service",
    "message": "paid",
    "metadata": {"labels": {"a": "b"}},
}
MAX_BYTES = 10_000_000

Streams = list[tuple[dict[str, str], list[tuple[Any, ...]]]]


def decode_json(body: bytes, tenant: str = "org", **context: Any) -> list[dict[str, Any]]:
    batch = loki.decode_json(tenant, body, make_context(**context)).batch
    return [json.loads(line) for line in bytes(batch.lines).splitlines()]


def decode_protobuf(body: bytes, tenant: str = "org", **context: Any) -> list[dict[str, Any]]:
    made = make_context(**context)
    text = loki_protobuf.inflate(MAX_BYTES, body, made.reservation)
    batch = loki_protobuf.decode_protobuf(tenant, text, made).batch
    return [json.loads(line) for line in bytes(batch.lines).splitlines()]


ENCODINGS = [(make_json, decode_json), (make_protobuf, decode_protobuf)]


@pytest.fixture(params=ENCODINGS, ids=["json", "protobuf"])
def logs(request: pytest.FixtureRequest) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that encodes a push of streams and decodes it."""
    make, decode = request.param
    return lambda streams, **more: decode(make(streams), **more)


@pytest.mark.parametrize(
    ("labels", "structured", "expected"),
    [
        ({"a": "b"}, {}, {}),
        ({"service_name": "1", "service": "2"}, {}, {"service": "1"}),
        ({"service": "2", "app": "3"}, {}, {"service": "2"}),
        ({"app": "3", "job": "4"}, {}, {"service": "3"}),
        ({"job": "4", "container": "5"}, {}, {"service": "4"}),
        ({"container": "5"}, {}, {"service": "5"}),
        ({"service_name": "", "job": "4"}, {}, {"service": "4"}),
        ({"level": "1", "detected_level": "2"}, {}, {"level": "1"}),
        ({"detected_level": "2", "severity": "3"}, {}, {"level": "2"}),
        ({"severity": "3"}, {}, {"level": "3"}),
        ({"level": "1"}, {"severity": "4"}, {"level": "4"}),
        ({"a": "b"}, {"level": "5", "trace": "x"}, {"level": "5"}),
    ],
    ids=str,
)
def test_each_label_has_its_field(
    logs: Callable[..., Any],
    labels: dict[str, str],
    structured: dict[str, str],
    expected: dict[str, str],
) -> None:
    """Labels and structured metadata are kept whole under metadata."""
    entry = (TIME, "paid", structured) if structured else (TIME, "paid")
    metadata = {"labels": labels, **({"structured_metadata": structured} if structured else {})}
    assert [LOG | {"metadata": metadata} | expected] == logs([(labels, [entry])])


def test_the_query_and_the_token_decide_the_project(logs: Callable[..., Any]) -> None:
    streams: Streams = [({"a": "b"}, [(TIME, "x")])]
    defaults = Options({"project_id": "p", "service": "s", "level": "l"})
    (log,) = logs(streams, options=defaults)
    assert ("p", "s", "l") == (log["project_id"], log["service"], log["level"])
    assert "only" == logs(streams, projects=["only"])[0]["project_id"]
    for tenant, projects, code in [("", None, "invalid_batch"), ("c", "ab", "forbidden_project")]:
        with pytest.raises(Rejection) as rejected:
            logs(streams, tenant=tenant, projects=projects)
        assert code == rejected.value.code


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_many_entries_keep_their_order(logs: Callable[..., Any], count: int) -> None:
    streams: Streams = [
        ({"job": name}, [(TIME + i, f"{name} {i} é") for i in range(count)]) for name in "ab"
    ]
    expected = [(name, f"{name} {i} é") for name in "ab" for i in range(count)]
    assert expected == [(log["service"], log["message"]) for log in logs(streams)]


def test_a_long_entry_is_stored(logs: Callable[..., Any]) -> None:
    texts = ["x" * 100_000, 'quote " \n\0', "y" * 500_000]
    streams: Streams = [({"job": "a"}, [(TIME, text) for text in texts])]
    assert texts == [log["message"] for log in logs(streams)]


def test_a_push_without_streams_is_rejected_as_by_loki(logs: Callable[..., Any]) -> None:
    with pytest.raises(Rejection, match="at least one valid stream") as rejected:
        logs([])
    assert ("invalid_batch", 422) == (rejected.value.code, rejected.value.status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"streams":{}}',
        b'{"streams":[{}]}',
        b'{"streams":[{"stream":{"a":1},"values":[]}]}',
        b'{"streams":[{"stream":{"a":"b"},"values":[[1,"x"]]}]}',
        b'{"streams":[{"stream":{"a":"b"},"values":[["1"]]}]}',
        b'{"streams":[{"stream":{"a":"b"},"values":[["1","x",{},1]]}]}',
        b'{"streams":[{"stream":{"a":"b"},"values":[["now","x"]]}]}',
        b'{"streams":[{"stream":{"a":"b"},"values":[["-1","x"]]}]}',
        b'{"streams":[{"stream":{"a":"b"},"values":[["1","x",{"a":1}]]}]}',
        b'{"streams":[{"stream":{"a":"b"},"values":' + b"[" * 100_000,
        b'{"streams":[{"stream":{"a":"b"},"values":[["1","x"]]}',
    ],
    ids=lambda body: repr(body)[:60],
)
def test_malformed_push_in_json_is_rejected(body: bytes) -> None:
    with pytest.raises(Rejection) as rejected:
        decode_json(body)
    assert "invalid_json" == rejected.value.code


def test_invalid_utf8_becomes_a_replacement_character() -> None:
    body = b'{"streams":[{"stream":{"a":"\xff"},"values":[["1","a\xffb\\ud83d"]]}]}'
    (log,) = decode_json(body)
    assert ("a\ufffdb\ufffd", {"a": "\ufffd"}) == (log["message"], log["metadata"]["labels"])
    body = make_protobuf([({"a": "X"}, [(TIME, "Y")])], edit=lambda b: b.replace(b"Y", b"\xff"))
    assert "\ufffd" == decode_protobuf(body)[0]["message"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {}),
        ('{a="b"}', {"a": "b"}),
        ('{a="b", c="d",}', {"a": "b", "c": "d"}),
        ('{ a = "b" }', {"a": "b"}),
        (r'{a="q\"\\\n\t\x41\u00e9\U0001F336\101"}', {"a": 'q"\\\n\tAé\U0001f336A'}),
        ('{a=`b\\"`}', {"a": 'b\\"'}),
        ('{service.name="b"}', {"service.name": "b"}),
        ('{a="},{"}', {"a": "},{"}),
        (r'{a="\ud83d\U00ffffff"}', {"a": "\ufffd\ufffd"}),
    ],
)
def test_labels_are_gos_strings(text: str, expected: dict[str, str]) -> None:
    assert expected == loki_protobuf.parse_labels(text)


@pytest.mark.parametrize(
    "text", ["", "a", "{", '{a="b"', "{a=b}", '{a="b" c="d"}', '{="b"}', "{a}"]
)
def test_other_texts_are_no_labels(text: str) -> None:
    with pytest.raises(ValueError, match="error parsing labels"):
        loki_protobuf.parse_labels(text)


@pytest.mark.parametrize(("excess", "stored"), [(0, 1), (1, 0)])
def test_labels_of_a_stream_are_bounded(excess: int, stored: int) -> None:
    """They become a dictionary without a yield."""
    value = "x" * (loki_protobuf.MAX_LABEL_BYTES - len('{app=""}') + excess)
    body = make_protobuf([({"app": value}, [(TIME, "line")])])
    with nullcontext() if stored else pytest.raises(Rejection, match="labels of a stream"):
        assert stored == len(decode_protobuf(body))


PUSH = make_protobuf([({"a": "b"}, [(TIME, "x")])])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_encoding"),
        (b"{}", "invalid_encoding"),
        (b'{"streams":[]}', "invalid_encoding"),
        (PUSH[:-1], "invalid_encoding"),
        (PUSH + b"x", "invalid_encoding"),
        (b"\x01" + PUSH[1:], "invalid_encoding"),
        (b"\xff" * 10, "invalid_encoding"),
        (b"\xff\xff\xff\xff\x0f" + PUSH, "body_too_large"),
        (bytes(cramjam.snappy.compress_raw(b"x" * 11_000_000)), "body_too_large"),
        (bytes(cramjam.snappy.compress_raw(b"\x0a\x7fx")), "invalid_protobuf"),
        (bytes(cramjam.snappy.compress_raw(b"\x0a\x03\x0a\x01x")), "invalid_protobuf"),
        pytest.param(
            bytes(cramjam.snappy.compress_raw(b"\x0a\x00" * 3_000_000)),
            "body_too_large",
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_malformed_push_in_protobuf_is_rejected(body: bytes, code: str) -> None:
    """A false length takes no memory."""
    with pytest.raises(Rejection) as rejected:
        decode_protobuf(body)
    assert code == rejected.value.code


def test_memory_is_reserved_before_snappy_takes_it() -> None:
    room = Room(1_000_000)
    with pytest.raises(Rejection, match="No room"):
        decode_protobuf(bytes(cramjam.snappy.compress_raw(b"x" * 9_000_000)), reservation=room)
    assert [True] == [size > 18_000_000 for size in room.sizes]  # of the output and its copy


def test_push_without_snappy_names_the_package() -> None:
    with patch.object(loki_protobuf, "cramjam", None), pytest.raises(Rejection) as rejected:
        decode_protobuf(PUSH)
    assert "unsupported_encoding" == rejected.value.code
    assert "pip install cramjam" in rejected.value.message
