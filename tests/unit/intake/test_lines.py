"""The memory of a batch's lines during its decode, for every protocol."""

import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.errors import Rejection
from astralog.intake import lines, otlp
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.decoder import Decoded
from astralog.intake.lines import STEP_BYTES, LineWriter, escaped_size
from astralog.intake.options import NO_OPTIONS, Options
from astralog.intake.otlp_protobuf import Protobuf
from astralog.intake.schema import Log
from tests.support.decoding import Room, make_context
from tests.support.otlp import make_export, make_record
from tests.support.service import make_log

MIB = 1024 * 1024


def make_logs(count: int, message: str = "m") -> list[Any]:
    return [Log("p", "2024-05-31T00:00:00Z", "info", "s", message) for _ in range(count)]


def test_lines_are_charged_in_addition_to_the_body() -> None:
    """The body is held until the last of its logs is encoded."""
    room = Room()
    writer = LineWriter(make_context(reservation=room), body_bytes=1000, spare_bytes=MIB)
    writer.add(make_logs(10))
    writer.hold(50)
    writer.add(make_logs(10))
    writer.hold(-50)
    batch = writer.finish().batch
    half = len(batch.lines) // 2
    assert [1000 + half, 1050 + half, 1050 + 2 * half, 1000 + 2 * half] == room.sizes
    assert (msgspec.json.Encoder().encode_lines(make_logs(20)), 20) == batch


@pytest.mark.parametrize("logs", [1, 3])
def test_long_lines_are_held_once(logs: int) -> None:
    """Neither the encoder nor the batch has a second copy."""
    long = make_logs(1, "\1" * MIB)[0]
    writer = LineWriter(make_context(reservation=Room()), 0, 64 * MIB)
    tracemalloc.start()
    try:
        for _ in range(logs):
            writer.add([long])
        batch = writer.finish().batch
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.6 * len(batch.lines)  # an encoder's buffer grows by half at a time


def test_lines_without_room_are_rejected() -> None:
    """The lines encoded so far stay within the memory."""
    writer = LineWriter(make_context(reservation=Room(1500)), body_bytes=1000, spare_bytes=MIB)
    writer.add(make_logs(4))
    with pytest.raises(Rejection) as rejected:
        writer.add(make_logs(4))
    assert "queue_full" == rejected.value.code


def test_expected_lines_need_room_too() -> None:
    """They are rejected before they are encoded."""
    writer = LineWriter(make_context(reservation=Room(1500)), body_bytes=1000, spare_bytes=MIB)
    writer.expect(500)
    with pytest.raises(Rejection, match="No room"):
        writer.expect(501)


def test_repeated_values_are_encoded_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one step is encoded before it is charged."""
    sizes: list[int] = []
    encode = lines.encode_lines

    def note(logs: list[Any]) -> bytes:
        encoded = encode(logs)
        sizes.append(len(encoded))
        return encoded

    monkeypatch.setattr(lines, "encode_lines", note)
    writer = LineWriter(make_context(reservation=Room()), 0, 64 * MIB)
    writer.add(make_logs(200, "x" * 50_000), repeated_bytes=50_000)
    writer.add(make_logs(2, "x" * 2 * MIB), repeated_bytes=2 * MIB)
    assert max(sizes[:-2]) < 1.1 * STEP_BYTES
    assert 202 == writer.finish().batch.lines.count(b"\n")


@given(st.text() | st.text(st.characters(max_codepoint=0x80)))
def test_no_text_takes_more_than_its_estimate(text: str) -> None:
    """Control characters take six bytes each, and quotes two."""
    assert len(msgspec.json.encode(text)) <= escaped_size(text.encode()) + 2


def test_estimate_of_a_text_is_not_too_high() -> None:
    assert [3, 4, 12] == [escaped_size(text) for text in (b"abc", b'"\\', b"\x01\x1f")]


# --- The decoders

#: The longest values that a query gives to each log: 4.6 KB in all.
LONG = Options(dict.fromkeys(("project_id", "service", "level"), "\x01" * 255))


def tiny_logs(count: int) -> list[dict[str, Any]]:
    return [{"timestamp": "20240531", "message": ""}] * count


def json_body(logs: list[Any]) -> bytes:
    return json.dumps({"logs": logs}).encode()


def lines_body(logs: list[Any]) -> bytes:
    return b"\n".join(json.dumps(log).encode() for log in logs)


def export_body(message: str, records: int, service: str = "s") -> bytes:
    resource = {"service.name": service, "project_id": "p"}
    made = make_export(*[make_record(message)] * records, resource=resource)
    return bytes(made.SerializeToString())


decode_export = partial(otlp.decode, Protobuf)

Case = tuple[Callable[..., Decoded], bytes, Options]

#: Bodies whose lines are far longer, of one piece and of several.
GROWING: dict[str, Callable[[], Case]] = {
    "JSON, long defaults": lambda: (decode_json, json_body(tiny_logs(1000)), LONG),
    "NDJSON, long defaults": lambda: (decode_lines, lines_body(tiny_logs(1000)), LONG),
    "JSON, long defaults, long": lambda: (decode_json, json_body(tiny_logs(30_000)), LONG),
    "NDJSON, long defaults, long": lambda: (decode_lines, lines_body(tiny_logs(30_000)), LONG),
    "OTLP, control characters": lambda: (
        decode_export,
        export_body("\x01" * 7 * MIB, 1),
        NO_OPTIONS,
    ),
    "OTLP, records of control characters": lambda: (
        decode_export,
        export_body("\x01" * 100_000, 70),
        NO_OPTIONS,
    ),
    "OTLP, a long resource": lambda: (decode_export, export_body("m", 100, "s" * MIB), NO_OPTIONS),
}


@pytest.mark.parametrize("name", GROWING)
def test_a_body_that_grows_is_rejected_before_it_takes_memory(name: str) -> None:
    """Memory beyond the reservation is bounded, however much a few bytes may grow."""
    decode, body, options = GROWING[name]()
    room = Room(len(body) + 4 * MIB)
    context = make_context(options=options, reservation=room)
    tracemalloc.start()
    try:
        with pytest.raises(Rejection) as rejected:
            decode(body, context)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rejected.value.code in ("queue_full", "body_too_large")
    assert peak < room.limit + 2 * len(body) + 12 * MIB


@pytest.mark.parametrize("decode", [decode_json, decode_lines])
def test_memory_between_pieces_of_a_long_body_is_charged(decode: Any) -> None:
    """The body, the current piece, the waiting texts, and the lines so far."""
    logs = [make_log(message="x" * 1000)] * 3000
    body = (json_body if decode is decode_json else lines_body)(logs)
    room = Room()
    batch = decode(body, make_context(reservation=room)).batch
    assert 3000 == batch.logs
    assert max(room.sizes) >= len(body) + len(batch.lines)
    assert max(room.sizes) <= len(body) + len(batch.lines) + 2 * MIB
