"""Loki's push in protobuf, compressed with Snappy, as Promtail, Alloy and Fluent Bit send it.

Sources: https://github.com/grafana/loki/blob/main/pkg/push/push.proto and
https://github.com/google/snappy/blob/main/format_description.txt.

Import it with the first such push only: that takes 50 ms.
"""

import re

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from astralog.deadlines import in_turns
from astralog.errors import Rejection, body_too_large
from astralog.intake.decoder import Context, Decoded
from astralog.intake.foreign import ForeignBatch
from astralog.intake.loki import AT_ONCE_BYTES, Entry, add_stream, check_streams, read_in_runs
from astralog.intake.protobuf import check_size, define, read_varint
from astralog.store.memory_budget import MemoryReservation

try:
    import cramjam
except ImportError:
    cramjam = None  # type: ignore[assignment]  # the extra is not installed

#: Bytes of the labels of a stream. Beyond it: 413 `body_too_large`; Loki's own limit is lower.
MAX_LABEL_BYTES = 64 * 1024

#: Bytes of the length before a compressed block: a number of 32 bits.
MAX_LENGTH_BYTES = 5

NOT_INSTALLED = (
    "Snappy is not installed: pip install cramjam, or send JSON with the Content-Type "
    "application/json"
)
NOT_SNAPPY = "snappy: corrupt input; JSON is sent with the Content-Type application/json"

# Strings and submessages are bytes, to be parsed only when they are reached.
Push = define("LokiPush", "repeated bytes streams = 1;")
PushStream = define("LokiStream", "bytes labels = 1; repeated bytes entries = 2;")
PushEntry = define("LokiEntry", "bytes timestamp = 1; bytes line = 2; repeated bytes metadata = 3;")
LabelPair = define("LokiLabelPair", "bytes name = 1; bytes value = 2;")

_LABEL = re.compile(
    r"""\s*+([^\s={},"]++)\s*+=\s*+(?:"((?:[^"\\]++|\\.)*+)"|`([^`]*+)`)\s*+(,?)""", re.DOTALL
)
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\\"'])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|.?)",
    re.DOTALL,
)
_ESCAPED = dict(zip("abfnrtv\\\"'", "\a\b\f\n\r\t\v\\\"'", strict=True))


def decode_protobuf(tenant: str, body: bytes, context: Context) -> Decoded:
    """Return the batch in a push in protobuf, which `inflate` decompressed; raises Rejection."""
    with context.slot(len(body)):
        batch = ForeignBatch(body, body, context)
        try:
            check_size(body)
            streams = Push.FromString(body).streams
            check_streams(streams)
            for each in in_turns(streams):
                check_size(each)
                found = PushStream.FromString(each)
                runs = read_in_runs(found.entries, _read_entry, batch)
                add_stream(_read_labels(found.labels), tenant, runs, batch)
        except DecodeError:
            raise Rejection("invalid_protobuf", "The body is not a valid push") from None
        except ValueError as error:
            message = f"The body is not a valid push: {error}"
            raise Rejection("invalid_protobuf", message) from None
        return batch.finish()


def inflate(max_bytes: int, body: bytes, reservation: MemoryReservation) -> bytes:
    """Return the message in a block of Snappy, at most `max_bytes`.

    Its memory is reserved first. Raises Rejection.
    """
    if cramjam is None:
        raise Rejection("unsupported_encoding", NOT_INSTALLED)
    length = _read_length(body)
    if length > max_bytes:
        raise Rejection(*body_too_large(max_bytes))
    reservation.resize(len(body) + 2 * length)
    output = bytearray(length)
    try:
        written = cramjam.snappy.decompress_raw_into(body, output)
    except (cramjam.DecompressionError, ValueError):
        written = -1
    if written != length:
        raise Rejection("invalid_encoding", NOT_SNAPPY)
    text = bytes(output)
    del output
    reservation.resize(len(body) + length)
    return text


def _read_length(body: bytes) -> int:
    """Return the declared length of a decompressed block."""
    try:
        return read_varint(body[:MAX_LENGTH_BYTES], 0)[0]
    except IndexError:
        raise Rejection("invalid_encoding", NOT_SNAPPY) from None


def _read_labels(text: bytes) -> dict[str, str]:
    """Return the labels of a stream; raises Rejection for long ones, and ValueError."""
    if len(text) > MAX_LABEL_BYTES:
        message = f"The labels of a stream take more than {MAX_LABEL_BYTES} bytes; send fewer."
        raise Rejection("body_too_large", message)
    return parse_labels(_text(text))


def parse_labels(text: str) -> dict[str, str]:
    """Return the labels in a selector such as `{app="shop"}`; its strings are Go's.

    Raises ValueError, worded for the client.
    """
    inner = text.strip()
    if not (inner.startswith("{") and inner.endswith("}")):
        raise ValueError(f"error parsing labels {text[:100]!r}")
    inner = inner[1:-1].strip()
    labels: dict[str, str] = {}
    place = 0
    while place < len(inner):
        match = _LABEL.match(inner, place)
        if match is None or (not match[4] and match.end() < len(inner)):
            raise ValueError(f"error parsing labels {text[:100]!r}")
        quoted, plain = match[2], match[3]
        labels[match[1]] = plain if quoted is None else _ESCAPE.sub(_unescape, quoted)
        place = match.end()
    return labels


def _unescape(match: re.Match[str]) -> str:
    plain, *hexadecimal, octal = match.groups()
    if plain:
        return _ESCAPED[plain]
    for digits in hexadecimal:
        if digits:
            number = int(digits, 16)
            is_character = number < 0x110000 and not 0xD800 <= number < 0xE000
            return chr(number) if is_character else "\ufffd"
    return chr(int(octal, 8)) if octal else match[0]


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def _read_entry(text: bytes) -> Entry:
    if len(text) > AT_ONCE_BYTES:
        check_size(text)
    entry = PushEntry.FromString(text)
    time = Timestamp.FromString(entry.timestamp)
    nanoseconds = time.seconds * 1_000_000_000 + time.nanos
    pairs = map(LabelPair.FromString, in_turns(entry.metadata))
    metadata = {_text(pair.name): _text(pair.value) for pair in pairs}
    return Entry(str(nanoseconds), _text(entry.line), metadata)
