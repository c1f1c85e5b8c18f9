"""The formats of a JSON body with options: a batch, an array, a log, or logs one after another."""

import json
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.errors import Rejection
from astralog.intake import batch, formats
from astralog.intake.batch import decode_json
from astralog.intake.formats import OBJECTS, PIECE_BYTES, find_objects
from astralog.intake.options import NO_OPTIONS, OnInvalid, Options
from tests.support.decoding import Room, make_context, marshmallow_alone
from tests.support.processes import MIB
from tests.support.service import make_log

MOVING = Options(moves_unknown=True)

#: Texts that look like the boundary of two objects, or hide one.
TRAPS = ["}{", '"}{"', "\\", '\\\\"}\n{', "a } { b", "{}{}", '\\"', "é}{\U0001f600", ""]


def stored(body: bytes, options: Options = MOVING) -> list[Any]:
    batch, invalid = decode_json(body, make_context(options=options))
    assert invalid is None
    lines = [json.loads(line) for line in batch.lines.splitlines()]
    assert batch.logs == len(lines)
    return lines


def rejection_of(body: bytes, options: Options = MOVING) -> Rejection:
    with pytest.raises(Rejection) as rejected:
        decode_json(body, make_context(options=options))
    return rejected.value


def bodies(logs: list[Any]) -> list[bytes]:
    """Return some logs in every form of a JSON body."""
    texts = [json.dumps(log).encode() for log in logs]
    wide = [json.dumps(log, indent=2, ensure_ascii=False).encode() for log in logs]
    return [
        b'{"logs":[%s]}' % b",".join(texts),
        b' \n{ "logs" : [%s] }\r\n' % b" , ".join(wide),
        b"[%s]" % b",".join(texts),
        b"\t[ %s\n]" % b",\n".join(wide),
        b"".join(texts),
        b"\n".join(texts) + b"\n",
        b" \r\n".join(wide),
    ]


@pytest.mark.parametrize(
    "options",
    [
        MOVING,
        Options(sources={"message": ("msg", "message")}),
        Options(stamps_arrival=True),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_body_may_have_any_form(options: Options, count: int) -> None:
    """A batch, an array, a log, and consecutive logs store the same lines."""
    logs: list[Any] = [
        make_log(message=trap, metadata={trap: [{}, {"a": {}}]}) for trap in TRAPS[:count]
    ]
    for body in bodies(logs):
        assert logs == stored(body, options)
        with marshmallow_alone():
            assert logs == stored(body, options)


def test_other_forms_are_rejected_without_options() -> None:
    """Also with options that change no log, the documented form is required."""
    body = json.dumps(make_log()).encode()
    for options in (NO_OPTIONS, Options({"level": "l"}), Options(on_invalid=OnInvalid.LEAVE_OUT)):
        assert "invalid_batch" == rejection_of(body, options).code
        assert "invalid_batch" == rejection_of(b"[%s]" % body, options).code
        assert "invalid_json" == rejection_of(body + body, options).code


def test_object_with_other_members_than_logs_is_a_log() -> None:
    """Only an object whose single member is the array `logs` is a batch."""
    logs: Any
    for logs in ([], [1], {}, "text"):
        log = make_log() | {"logs": logs}
        expected = make_log(metadata={**make_log().get("metadata", {}), "logs": logs})
        assert [expected] == stored(json.dumps(log).encode())
        moved = {"logs": logs, **make_log()}
        assert [expected] == stored(json.dumps(moved).encode())
    assert [] == stored(b'{"logs": []}')
    assert "invalid_batch" == rejection_of(b'{"logs": {}}').code


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[",
        b"[{}",
        b"[{}]]",
        b"[{},]",
        b"nonsense",
        b'{"a": 1},{"b": 2}',
        b'{"a": "}{"',
        b'{"a": 1}{"b"',
        b'{"a": 1} x {"b": 2}',
        b'[{"a": 1}][{"a": 1}]',
        b'{"a": NaN}',
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_malformed_json_is_rejected_whole(body: bytes) -> None:
    valid = json.dumps(make_log()).encode()
    for text in (body, valid + b"\n" + body) if body.strip() else (body,):
        if not text.startswith(valid) or body.lstrip().startswith(b"{"):
            assert "invalid_json" == rejection_of(text).code


@pytest.mark.parametrize("body", [b"1", b'"text"', b"null", b"[1]", b"[[]]", b'{"a": 1}{"b": 2}'])
def test_json_that_holds_no_log_is_an_invalid_batch(body: bytes) -> None:
    rejection = rejection_of(body)
    assert "invalid_batch" == rejection.code
    assert 0 in (rejection.errors or {})["logs"]


def test_lone_surrogates_are_replaced_in_every_form() -> None:
    log = json.dumps(make_log()).encode().replace(b'"message": "', b'"message": "\\ud83d')
    for body in (log, log + log, b"[%s]" % log):
        assert {"\ufffd" + make_log()["message"]} == {line["message"] for line in stored(body)}


def test_long_body_is_decoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any form in several pieces is stored in order, and errors have the number of the log."""
    monkeypatch.setattr(formats, "PIECE_BYTES", 1000)
    logs = [make_log(message=f'{number} }}{{ "\\ {"x" * (number % 300)}') for number in range(300)]
    for body in bodies(logs):
        assert logs == stored(body)
    logs[250] = make_log(level="")
    for body in bodies(logs):
        rejection = rejection_of(body)
        assert [250] == list((rejection.errors or {})["logs"])
        assert "1 of 300 logs" in rejection.message


@pytest.mark.slow
def test_boundary_in_strings_costs_linear_time_and_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A string of boundaries and escapes is decoded in one piece."""
    size = PIECE_BYTES // 8  # tracemalloc makes the whole of one take ten seconds
    monkeypatch.setattr(formats, "PIECE_BYTES", size)
    monkeypatch.setattr(batch, "FAST_BYTES", size)
    text = json.dumps('}{"\\' * (size // 4)).encode()
    body = json.dumps(make_log()).encode().replace(json.dumps(make_log()["message"]).encode(), text)
    room = Room()
    tracemalloc.start()
    try:
        decoded = decode_json(body, make_context(options=MOVING, reservation=room))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1 == decoded.batch.logs
    assert max(room.sizes) >= 3 * len(body)
    assert peak < 12 * len(body) + MIB  # of other tests' threads


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(TRAPS) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(TRAPS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from(TRAPS) | st.text(max_size=3), values, max_size=3)


@given(
    st.lists(st.tuples(objects, st.booleans(), st.text(" \t\r\n", max_size=3)), min_size=1),
    st.booleans(),
)
def test_objects_are_found_as_a_parser_finds_them(
    parts: list[tuple[Any, bool, str]], is_ascii: bool
) -> None:
    """Whatever their strings contain, and however they are written and separated."""
    texts = [
        json.dumps(value, indent=1 if is_wide else None, ensure_ascii=is_ascii) + blank
        for value, is_wide, blank in parts
    ]
    body = "".join(texts).encode("utf-8", "surrogatepass")
    found = [json.loads(body[start:end]) for start, end in find_objects(body)]
    assert [value for value, _, _ in parts] == found
    assert len(parts) == OBJECTS.count(body)


@given(st.binary(max_size=40) | st.text('{}[]"\\ ,:1a', max_size=30).map(str.encode))
def test_any_body_is_stored_or_rejected(body: bytes) -> None:
    """Any bytes raise only a Rejection, and the parts found add up to the body."""
    parts = [body[start:end] for start, end in find_objects(body)]
    assert b"".join(body.split()) == b"".join(b"".join(parts).split())
    with suppress(Rejection):
        decode_json(body, make_context(options=MOVING))
