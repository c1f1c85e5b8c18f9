"""`invalid=keep`: an invalid log is stored as text, so that nothing a sender sent is lost."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.errors import Rejection
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.decoder import DESCRIBED_LOGS, Decoded
from astralog.intake.formats import PIECE_BYTES
from astralog.intake.options import OnInvalid, Options, parse_options
from astralog.intake.value_limits import LONG_LOG_COMMAS
from tests.support.decoding import Room, make_context, marshmallow_alone
from tests.support.service import make_log

KEEP = Options({"project_id": "org-xyz"}, on_invalid=OnInvalid.KEEP)
VALID = json.dumps(make_log()).encode()


def lines_of(decoded: Decoded) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in decoded.batch.lines.splitlines()]
    assert decoded.batch.logs == len(lines)
    return lines


def kept(decode: Any, body: bytes, options: Options = KEEP) -> list[dict[str, Any]]:
    """Return the kept logs without their arrival times, which both decoders make alike."""
    found = []
    for lines in (
        lines_of(decode(body, make_context(options=options))),
        lines_alone(decode, body, options),
    ):
        logs = [log for log in lines if "invalid" in log.get("metadata", {})]
        assert all(log.pop("timestamp") for log in logs)
        found.append(logs)
    assert found[0] == found[1]
    return found[0]


def lines_alone(decode: Any, body: bytes, options: Options) -> list[dict[str, Any]]:
    with marshmallow_alone():
        return lines_of(decode(body, make_context(options=options)))


def test_invalid_log_is_stored_as_text() -> None:
    text = b'{"level": "info", "message": 5}'
    (log,) = kept(decode_lines, VALID + b"\n" + text + b"\n" + VALID)
    errors = log.pop("metadata")["invalid"]
    assert {"message", "service", "timestamp"} == set(errors)
    assert {
        "project_id": "org-xyz",
        "level": "error",
        "service": "unknown_service",
        "message": text.decode(),
    } == log


def test_level_and_service_are_those_of_the_query() -> None:
    options = Options(
        {"project_id": "p", "level": "warn", "service": "edge"}, on_invalid=OnInvalid.KEEP
    )
    (log,) = kept(decode_lines, b"plain text", options)
    assert ("p", "warn", "edge") == (log["project_id"], log["level"], log["service"])


@pytest.mark.parametrize(
    "line",
    [b"plain text", b"{", b'{"a": 1e999}', b"[" * 1000, b"\xff\xfe text", b'{"a":1}{"b":2}', b"5"],
)
def test_line_that_is_not_json_is_kept(line: bytes) -> None:
    (log,) = kept(decode_lines, VALID + b"\n" + line + b"\n")
    assert line.decode("utf-8", "replace") == log["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"plain text",
        b'{"logs": [%s' % VALID,
        b'{"logs": [%s,{"a": 1e999]}' % VALID,
        b'{"logs": 5}',
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'\xef\xbb\xbf{"logs": []}',
    ],
)
def test_body_that_is_no_batch_is_kept_whole(body: bytes) -> None:
    (log,) = kept(decode_json, body)
    assert body.decode("utf-8", "replace") == log["message"]


@pytest.mark.parametrize("options", [KEEP, replace(KEEP, moves_unknown=True)])
@pytest.mark.parametrize("body", [b"", b" \r\n"])
def test_empty_json_body_is_rejected(body: bytes, options: Options) -> None:
    """It contains nothing to keep."""
    with pytest.raises(Rejection) as rejected:
        decode_json(body, make_context(options=options))
    assert "invalid_json" == rejected.value.code


def test_log_of_a_json_body_is_kept_alone() -> None:
    """Its JSON is kept as it was, and the valid logs are stored as usual."""
    broken = b'{"n": 1e999, "\xc3\xa9": 1}'
    for options, body in (
        (KEEP, b'{"logs": [%s, %s, %s]}' % (VALID, broken, VALID)),
        (replace(KEEP, moves_unknown=True), b"[%s, %s, %s]" % (VALID, broken, VALID)),
        (replace(KEEP, moves_unknown=True), VALID + broken + VALID),
    ):
        (log,) = kept(decode_json, body, options)
        assert broken.decode() == log["message"]
        context = make_context(options=options)
        assert [0, 2] == [
            place
            for place, log in enumerate(lines_of(decode_json(body, context)))
            if log == make_log()
        ]


def test_long_log_of_too_many_values_is_kept() -> None:
    log = json.dumps(make_log(metadata={"a": [0.12345678] * (LONG_LOG_COMMAS + 1)})).encode()
    assert len(log) > PIECE_BYTES
    for decode, body in ((decode_lines, log), (decode_json, b'{"logs":[%s]}' % log)):
        (line,) = kept(decode, body)
        assert log.decode() == line["message"]


def test_all_kept_logs_are_counted_and_the_first_described() -> None:
    body = b"x\n" * 5000
    batch, invalid = decode_lines(body, make_context(options=KEEP))
    assert invalid is not None
    assert invalid.are_kept
    assert (5000, 5000, DESCRIBED_LOGS) == (batch.logs, invalid.count, len(invalid.errors))


def test_forbidden_project_rejects() -> None:
    """In the query, and in a valid log."""
    options = replace(KEEP, defaults={"project_id": "theirs"})
    theirs = json.dumps(make_log(project_id="theirs")).encode()
    mine = json.dumps(make_log(project_id="mine")).encode()
    for body, chosen in ((b"text", options), (mine + b"\nx\n" + theirs, KEEP)):
        with pytest.raises(Rejection) as rejected:
            decode_lines(body, make_context({"mine"}, chosen))
        assert "forbidden_project" == rejected.value.code


def test_project_is_the_tokens_only_one() -> None:
    context = make_context({"mine"}, parse_options("invalid=keep"))
    (log,) = lines_of(decode_lines(b"text", context))
    assert "mine" == log["project_id"]


def test_memory_of_kept_text_is_charged() -> None:
    """A long text is charged before it is decoded."""
    body = b"\xff" * 2 * PIECE_BYTES
    room = Room(5 * len(body))
    with pytest.raises(Rejection) as rejected:
        decode_json(body, make_context(options=KEEP, reservation=room))
    assert "queue_full" == rejected.value.code


@given(
    st.lists(
        st.one_of(st.binary(max_size=20), st.just(VALID), st.text('{}[]"\\:,a1', max_size=9)).map(
            lambda text: text if isinstance(text, bytes) else text.encode()
        )
    )
)
def test_every_line_is_stored(lines: list[bytes]) -> None:
    """As its log or as text: none is lost and none is stored twice."""
    body = b"\n".join(lines)
    stored = lines_of(decode_lines(body, make_context(options=KEEP)))
    sent = [line.strip() for line in body.split(b"\n") if line.strip()]
    assert len(sent) == len(stored)
    for line, log in zip(sent, stored, strict=True):
        if log != make_log():
            assert line.decode("utf-8", "replace").strip() == log["message"].strip()


@pytest.mark.parametrize("more", [0, 1])
def test_only_so_many_logs_with_invalid_fields_are_kept(
    more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their messages take long; text that is not JSON is not counted."""
    monkeypatch.setattr("astralog.intake.batch.MAX_KEPT_LOGS", 3)
    body = b"\n".join([b"text", *[b"{}"] * (3 + more), b"text", VALID])
    if not more:
        assert len(kept(decode_lines, body)) == 5
        return
    with pytest.raises(Rejection) as raised:
        decode_lines(body, make_context(options=KEEP))
    assert raised.value.code == "body_too_large"
    assert "invalid=keep" in raised.value.message
