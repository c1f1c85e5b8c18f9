"""The lines of the journal.

    journal 1 <check>
    keyed <time> <token> <key> <body> <segment> <start> <end> <check>
    sealed <segment> <size> <check>

A file begins, and names its layout; a batch with a key goes to the bytes from `start` to `end` of a
segment, named without its suffix; a segment was sealed with so many bytes. `time` is in seconds
since 1970, `token` what stands for a token elsewhere too, and `key` and `body` are digests (see
`Key`). Each line ends in the CRC-32 of what stands before it, as 8 hex digits, so that a torn or
damaged line is known.
"""

import hashlib
import re
import zlib
from typing import NamedTuple

#: Hex digits of a key's digest, and where they stand in a line.
KEY_DIGITS = 32
KEY_START = len("keyed 1234567890 01234567 ")

_KEYED = re.compile(
    rb"keyed (\d{10}) ([0-9a-f]{8}) ([0-9a-f]{32}) ([0-9a-f]+-[0-9a-f]{8}) (\S+) (\d+) (\d+)"
)
_SEALED = re.compile(rb"sealed (\S+) (\d+)")

_CHECK_DIGITS = 8
_CHECK_BYTES = 1 + _CHECK_DIGITS


class Key(NamedTuple):
    """A client's key and what it was sent with, as digests.

    `token` is what stands for the token. `digest` are the first 32 hex digits of the SHA-256 of
    the token's own SHA-256, a colon and the key. `body` is the length of the inflated body and its
    CRC-32, which tell a key that is used for another body by mistake; measured at 185 KB, that
    takes 33 µs where a SHA-256 takes 100.
    """

    token: str
    digest: str
    body: str


class Entry(NamedTuple):
    """Where the lines of a batch with a key are to lie."""

    time: int
    key: Key
    segment: str
    start: int
    end: int


class Sealed(NamedTuple):
    """A segment that was sealed, and its bytes."""

    segment: str
    size: int


def make_key(token: bytes, name: str, key: str, body: bytes, context: str) -> Key:
    """Return the digests of a key and its body.

    `token` is the token's own digest and `name` what stands for it; `context` is what else says
    what becomes of the body.
    """
    digest = hashlib.sha256(f"{token.hex()}:{key}".encode()).hexdigest()[:KEY_DIGITS]
    check = zlib.crc32(body, zlib.crc32(context.encode()))
    return Key(name, digest, f"{len(body):x}-{check:08x}")


def encode(record: Entry | Sealed) -> bytes:
    """Return the line of a record, without its end."""
    if isinstance(record, Sealed):
        text = f"sealed {record.segment} {record.size}"
    else:
        time, key, segment, start, end = record
        names = f"{key.token} {key.digest} {key.body} {segment}"
        text = f"keyed {time:010d} {names} {start} {end}"
    return _checked(text.encode())


def _checked(data: bytes) -> bytes:
    return b"%b %08x" % (data, zlib.crc32(data))


#: How a file begins.
BEGINNING = _checked(b"journal 1")


def is_whole(line: bytes) -> bool:
    """Return whether a line's checksum is right."""
    try:
        return int(line[-_CHECK_DIGITS:], 16) == zlib.crc32(line[:-_CHECK_BYTES])
    except ValueError:
        return False


def before_hole(line: bytes) -> bytes:
    """Return what of a line lies before a hole.

    A page that was lost in a power cut, or with a sync that failed, reads as zeros from where the
    last record that was synced ends; its line break is among what is lost.
    """
    return line.partition(b"\0")[0]


def decode(line: bytes) -> Entry | Sealed | None:
    """Return the record in a line; None where that is damaged, or none of this layout."""
    if not is_whole(line):
        line = before_hole(line)
        if not is_whole(line):
            return None
    text = line[:-_CHECK_BYTES]
    if match := _KEYED.fullmatch(text):
        time, token, digest, body, segment, start, end = map(bytes.decode, match.groups())
        return Entry(int(time), Key(token, digest, body), segment, int(start), int(end))
    if match := _SEALED.fullmatch(text):
        return Sealed(match[1].decode(), int(match[2]))
    return None
