"""Events of Splunk's HTTP Event Collector become logs, field by field."""

import json
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest

from astralog.errors import Rejection
from astralog.intake import hec
from astralog.intake.formats import PIECE_BYTES
from astralog.intake.hec import HecRejection
from astralog.intake.lines import RUN_BYTES
from astralog.intake.options import OnInvalid, Options
from tests.support.decoding import Room, make_context

EVENT: dict[str, Any] = {"time": 1717169445, "index": "org", "sourcetype": "shop", "event": "paid"}
LOG = {
    "project_id": "org",
    "timestamp": "2024-05-31T15:30:45Z",
    "level": "unspecified",
    "service": "shop",
    "message": "paid",
}


def decode(body: bytes, **context: Any) -> list[dict[str, Any]]:
    """Return the logs of a body of events."""
    batch = hec.decode_events(body, make_context(**context)).batch
    logs = [json.loads(line) for line in batch.lines.splitlines()]
    assert batch.logs == len(logs) == batch.lines.count(b"\n")
    return logs


def decode_one(event: dict[str, Any], **context: Any) -> dict[str, Any]:
    (log,) = decode(json.dumps(event).encode(), **context)
    return log


def reject(body: bytes, **context: Any) -> HecRejection:
    with pytest.raises(HecRejection) as rejected:
        decode(body, **context)
    return rejected.value


def inner(**members: Any) -> dict[str, Any]:
    """Return an event that is an object."""
    return {"event": {"message": "paid", **members}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"time": "1717169445.123456789"}, {"timestamp": "2024-05-31T15:30:45.123456789Z"}),
        ({"time": 1717169445123}, {"timestamp": "2024-05-31T15:30:45.123Z"}),
        # Service: fields.service, event.service, event.tag, sourcetype, source
        ({"fields": {"service": "a"}, **inner(service="b")}, {"service": "a", "metadata": ...}),
        (inner(service="b", tag="c"), {"service": "b", "metadata": ...}),
        (inner(tag="c"), {"service": "c", "metadata": {"sourcetype": "shop"}}),
        ({"source": "d"}, {"service": "shop", "metadata": {"source": "d"}}),
        ({"sourcetype": None, "source": "d"}, {"service": "d"}),
        ({"sourcetype": "", "source": "d"}, {"service": "d"}),
        ({"sourcetype": None}, {"service": "unknown_service"}),
        (inner(service={"a": 1}), {"metadata": {"event": {"service": {"a": 1}}}}),
        # Level: fields.level, event.level, event.severity
        ({"fields": {"level": "a"}, **inner(level="b")}, {"level": "a", "metadata": ...}),
        (inner(level="b", severity="c"), {"level": "b", "metadata": ...}),
        (inner(severity=3), {"level": "3"}),
        # Message: event, its line, message, msg or log, else its JSON
        ({"event": 5}, {"message": "5"}),
        ({"event": [1, "a"]}, {"message": '[1, "a"]'}),
        ({"event": True}, {"message": "true"}),
        ({"event": {"line": "a", "msg": "b"}}, {"message": "a", "metadata": ...}),
        ({"event": {"line": None, "msg": "b"}}, {"message": "b", "metadata": ...}),
        ({"event": {"log": "a"}}, {"message": "a"}),
        ({"event": {"line": {"a": 1}}}, {"message": '{"a": 1}'}),
        ({"event": {"line": ""}}, {"message": ""}),
        ({"event": {"a": 1, "level": "b"}}, {"message": '{"a":1,"level":"b"}', "level": "b"}),
        ({"event": {}}, {"message": "{}"}),
        # Everything else is metadata
        ({"host": "h"}, {"metadata": {"host": "h"}}),
        ({"fields": {"a": [1]}}, {"metadata": {"fields": {"a": [1]}}}),
        (inner(a=1), {"metadata": {"event": {"a": 1}}}),
        ({"entity": {"a": 1}}, {"metadata": {"entity": {"a": 1}}}),
        ({"fields": None, "host": None, "time": None}, {"timestamp": ...}),
    ],
    ids=str,
)
def test_each_member_of_an_event_has_its_field(
    change: dict[str, Any], expected: dict[str, Any]
) -> None:
    """As in docs/api.md; `...` means any value."""
    log = decode_one(EVENT | change)
    for name in [name for name, value in expected.items() if value is ...]:
        del log[name]
    expected = {name: value for name, value in expected.items() if value is not ...}
    assert {name: LOG[name] for name in LOG if name in log} | expected == log


def test_the_query_and_the_token_decide_the_project() -> None:
    """The event's own index is kept in the metadata."""
    defaults = Options({"project_id": "a", "service": "b", "level": "c"})
    log = decode_one({"event": "x", "index": "i"}, options=defaults)
    assert ("a", "b", "c", {"index": "i"}) == (
        log["project_id"],
        log["service"],
        log["level"],
        log["metadata"],
    )
    assert "only" == decode_one(EVENT, projects=["only"])["project_id"]
    for body in (json.dumps(EVENT), json.dumps([EVENT])):
        with pytest.raises(Rejection, match="may not write to the project 'org'") as rejected:
            decode(body.encode(), projects=["a", "b"])
        assert "forbidden_project" == rejected.value.code


def test_values_are_stored_as_they_were_written() -> None:
    """Digits, escapes and order are the client's; line breaks between tokens are removed."""
    body = b'{"event":{"message":"m","a":1.50,\n"b":1e999,"c":"\\u00e9 \\/"},"index":"i"}'
    line = hec.decode_events(body, make_context()).batch.lines
    assert b'{"event":{"a":1.50,"b":1e999,"c":"\\u00e9 \\/"}}' in line
    assert [{"a\r": [1, 2]}] == [
        log["metadata"]["fields"]
        for log in decode(b'{"event":"m","index":"i","fields":{"a\\r":[1,\r\n2]}}')
    ]


@pytest.mark.parametrize("separator", [b"", b"\n", b" \r\n\t ", b" " * 1000])
@pytest.mark.parametrize(
    "text", ["plain", "a}{b", 'quote"}{"event":"x"}', "back\\", "\\}{", '\\"}{', "}\n{" * 100]
)
def test_events_follow_one_another(separator: bytes, text: str) -> None:
    """A string may contain the text of a boundary between two events."""
    events = [json.dumps(EVENT | {"event": f"{text} {i}"}).encode() for i in range(9)]
    assert [f"{text} {i}" for i in range(9)] == [
        log["message"] for log in decode(separator + separator.join(events) + separator)
    ]
    assert 9 == len(decode(b"[" + b",\n".join(events) + b"]"))


@pytest.mark.parametrize("size", [RUN_BYTES, PIECE_BYTES // 2, PIECE_BYTES, 1_200_000])
def test_long_events_follow_one_another(size: int) -> None:
    """Their boundaries are beyond the bytes searched at once, or across their end."""
    rest = len(json.dumps(EVENT | {"event": ""}))
    for length in range(size - 2, size + 3):
        event = json.dumps(EVENT | {"event": "x" * (length - rest)}).encode()
        assert length == len(event)
        assert 3 == len(decode(event * 3))


@pytest.mark.parametrize("separator", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("odd", [b'{"event":["}{\n{"],\n"index":"i","a":1.50}', b'{"event":'])
def test_runs_of_events_become_the_same_logs_as_single_ones(separator: bytes, odd: bytes) -> None:
    """One of another form, or an invalid one, changes nothing for those before and after it."""
    texts = ["a}{b" * 50, 'quote"}{"', "é\n", ""]
    events = [
        json.dumps(EVENT | {"event": {"message": texts[n % 4], "n": n}, "time": n}).encode()
        for n in range(3 * RUN_BYTES // 100)
    ]
    events[len(events) // 2] = odd
    body = separator.join(events)
    context = make_context(options=Options({"level": "info"}, on_invalid=OnInvalid.LEAVE_OUT))
    decoded = hec.decode_events(body, context)
    with patch.object(hec._Events, "_add_run", return_value=False):
        expected = hec.decode_events(body, context)
    assert expected.batch == decoded.batch
    assert (expected.invalid and expected.invalid.errors) == (
        decoded.invalid and decoded.invalid.errors
    )


def test_invalid_utf8_becomes_a_replacement_character() -> None:
    assert "a\ufffdb" == decode(b'{"event":"a\xffb","index":"i"}')[0]["message"]


@pytest.mark.parametrize("form", [b"%s", b"%s{}", b"[%s]", b'[{"event":"a","index":"i"},%s]'])
def test_lone_surrogate_becomes_a_replacement_character(form: bytes) -> None:
    body = form.replace(b"{}", b'{"event":"a","index":"i"}') % b'{"event":"\\ud83d","index":"i"}'
    assert "\ufffd" in [log["message"] for log in decode(body)]


@pytest.mark.parametrize(
    ("text", "code", "reply", "event"),
    [
        (b"", "invalid_json", hec.NO_DATA, None),
        (b" \n", "invalid_json", hec.NO_DATA, None),
        (b"[]", "invalid_json", hec.NO_DATA, None),
        (b"{}", "invalid_batch", hec.NO_EVENT, 1),
        (b'{"event":null}', "invalid_batch", hec.NO_EVENT, 1),
        (b'{"event":"","index":"i"}', "invalid_batch", hec.BLANK_EVENT, 1),
        (b'{"event":"x"}', "invalid_batch", hec.INCORRECT_INDEX, 1),
        (b'{"event":"x","index":"i","time":"now"}', "invalid_batch", hec.INVALID_FORMAT, 1),
        (b'{"event":"x","index":"i","fields":[]}', "invalid_batch", hec.INVALID_FIELDS, 1),
        (b'{"event":"x","index":"i"', "invalid_json", hec.INVALID_FORMAT, 1),
        (b'{"event":"x","index":5}', "invalid_batch", hec.INCORRECT_INDEX, 1),
        (b"5", "invalid_json", hec.INVALID_FORMAT, 0),
        (b',{"event":"x","index":"i"}', "invalid_json", hec.INVALID_FORMAT, 0),
        (b"{" * 100_000, "invalid_json", hec.INVALID_FORMAT, 1),
        (b'{"event":' + b"[" * 100_000, "invalid_json", hec.INVALID_FORMAT, 1),
        (b'{"event":"' + b'\\"' * 100_000, "invalid_json", hec.INVALID_FORMAT, 1),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_invalid_event_rejects_its_batch(
    text: bytes, code: str, reply: hec.Reply, event: int | None
) -> None:
    """With HEC's text and its number; with `partial=true` only the event is rejected."""
    valid = json.dumps(EVENT).encode() if event is not None else b""
    rejection = reject(valid + text)
    assert (code, reply, event) == (rejection.code, rejection.reply, rejection.event)
    if event:
        decoded = hec.decode_events(
            valid + text, make_context(options=Options(on_invalid=OnInvalid.LEAVE_OUT))
        )
        assert (1, 1) == (decoded.batch.logs, decoded.invalid and decoded.invalid.count)


def test_a_valid_event_after_an_invalid_one_is_stored_with_partial() -> None:
    valid = json.dumps(EVENT).encode()
    body = valid + b'{"event":"x","index":"i","time":"}{"}' + valid + b'{"a":}' + valid
    decoded = hec.decode_events(body, make_context(options=Options(on_invalid=OnInvalid.LEAVE_OUT)))
    assert (3, {1, 3}) == (
        decoded.batch.logs,
        set(decoded.invalid.errors if decoded.invalid else ()),
    )


@pytest.mark.parametrize("is_raw", [False, True])
def test_the_lines_are_charged_as_they_grow(is_raw: bool) -> None:
    """A body is rejected when memory runs out, not once all its lines are encoded."""
    body = b"paid\n" * 10_000 if is_raw else json.dumps(EVENT).encode() * 10_000
    decode_body = hec.decode_raw if is_raw else hec.decode_events
    room = Room(len(body) + 100_000)
    with pytest.raises(Rejection, match="No room"):
        decode_body(body, make_context(reservation=room), {"index": "org"})
    assert len(room.sizes) < 20


def test_an_array_of_too_many_values_is_not_decoded() -> None:
    with pytest.raises(Rejection) as rejected:
        decode(b"[" + b"0," * 1_000_000 + b"0]")
    assert "body_too_large" == rejected.value.code


@pytest.mark.parametrize("separator", [b"", b","], ids=["in a row", "in an array"])
@pytest.mark.parametrize("event", [json.dumps(EVENT).encode(), b"{}"], ids=["valid", "invalid"])
def test_events_of_a_body_are_bounded(
    monkeypatch: pytest.MonkeyPatch, separator: bytes, event: bytes
) -> None:
    """Invalid ones count too: they take as long, and an event may have two bytes."""
    monkeypatch.setattr(hec, "MAX_EVENTS", 10)
    context = make_context(options=Options(on_invalid=OnInvalid.LEAVE_OUT))
    events = [json.dumps(EVENT).encode(), *[event] * 9]
    for count, is_accepted in ((10, True), (11, False)):
        body = separator.join((events + [event])[:count])
        text = b"[%s]" % body if separator else body
        with nullcontext() if is_accepted else pytest.raises(Rejection, match="more than 10 ev"):
            assert hec.decode_events(text, context).batch.logs


def test_query_fills_in_missing_members() -> None:
    """For example syslog-ng sends index, source and sourcetype in the query."""
    defaults = {"index": "org", "source": "syslog-ng", "sourcetype": "nix", "time": "1717169445"}
    body = b'{"event": "a"}\n{"event": "b", "index": "org-2", "sourcetype": "shop", "time": 1}'
    body += b'{"event": {"a": [1]},\n"source": null, "host": "h"}'
    batch = hec.decode_events(body, make_context(), defaults).batch
    logs = [json.loads(line) for line in batch.lines.splitlines()]
    metadata = {"source": "syslog-ng"}
    nix = LOG | {"service": "nix"}
    assert [
        nix | {"message": "a", "metadata": metadata},
        LOG
        | {"project_id": "org-2", "timestamp": "1970-01-01T00:00:01Z"}
        | {"message": "b", "metadata": metadata},
        nix | {"message": '{"a":[1]}', "metadata": {"host": "h"} | metadata},
    ] == logs


def test_each_raw_line_is_a_message() -> None:
    """The other fields come from the query."""
    defaults = {"index": "org", "host": "h", "sourcetype": "shop", "time": "1717169445"}
    body = b'a\r\n\n{"b": 1}\nc\xff'
    batch = hec.decode_raw(body, make_context(), defaults).batch
    logs = [json.loads(line) for line in batch.lines.splitlines()]
    messages = ["a", '{"b": 1}', "c\ufffd"]
    assert [LOG | {"message": m, "metadata": {"host": "h"}} for m in messages] == logs
    with pytest.raises(HecRejection) as rejected:
        hec.decode_raw(body, make_context(), {})
    assert (hec.INCORRECT_INDEX, 0) == (rejected.value.reply, rejected.value.event)
