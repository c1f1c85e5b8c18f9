"""Pushes of Loki, in both encodings."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import cramjam

from tests.support.otlp import wire_field

#: Labels, and entries: nanoseconds, a line, and maybe structured metadata.
Stream = tuple[dict[str, str], Sequence[tuple[Any, ...]]]


def make_json(streams: Sequence[Stream]) -> bytes:
    """Return a push in JSON."""
    made = [
        {"stream": labels, "values": [[str(time), *rest] for time, *rest in entries]}
        for labels, entries in streams
    ]
    return json.dumps({"streams": made}, ensure_ascii=False).encode()


def make_protobuf(
    streams: Sequence[Stream], edit: Callable[[bytes], bytes] = lambda message: message
) -> bytes:
    """Return a push in protobuf, compressed with Snappy, after its message was edited."""
    message = b"".join(wire_field(1, _stream(*stream)) for stream in streams)
    return bytes(cramjam.snappy.compress_raw(edit(message)))


def _stream(labels: dict[str, str], entries: Sequence[tuple[Any, ...]]) -> bytes:
    selector = ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
    content = wire_field(1, f"{{{selector}}}".encode())
    return content + b"".join(wire_field(2, _entry(*entry)) for entry in entries)


def _entry(time: int, line: str, metadata: dict[str, str] | None = None) -> bytes:
    seconds, nanoseconds = divmod(time, 1_000_000_000)
    stamp = b"\x08" + _varint(seconds) + b"\x10" + _varint(nanoseconds)
    pairs = (metadata or {}).items()
    return (
        wire_field(1, stamp)
        + wire_field(2, line.encode())
        + b"".join(wire_field(3, _pair(*pair)) for pair in pairs)
    )


def _pair(name: str, value: str) -> bytes:
    return wire_field(1, name.encode()) + wire_field(2, value.encode())


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])
