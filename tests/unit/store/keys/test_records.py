"""The lines of the journal."""

import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.store.keys.records import BEGINNING, Entry, Key, Sealed, decode, encode, make_key

SEGMENT = "20261123T062500.123456Z-4711"
KEY = Key("1f0e9a3c", "8f14e45fceea167a5a36dedd4bea2543", "2d268-9b1f03c2")
ENTRY = Entry(1764034071, KEY, SEGMENT, 0, 184940)
SEALED = Sealed(SEGMENT, 184940)


@pytest.mark.parametrize("record", [ENTRY, SEALED, ENTRY._replace(time=1)])
def test_a_record_reads_back_as_it_was(record: Entry | Sealed) -> None:
    """A line is text that an operator can read, with its checksum at the end."""
    line = encode(record)
    assert record == decode(line)
    assert b"%08x" % zlib.crc32(line[:-9]) == line[-8:]
    assert line.decode().isprintable()


@given(st.sampled_from([ENTRY, SEALED]), st.data())
def test_a_damaged_line_is_no_record(record: Entry | Sealed, data: st.DataObject) -> None:
    """Cut anywhere, or with any byte of what is checked changed, it is known for what it is."""
    line = encode(record)
    place = data.draw(st.integers(0, len(line) - len(b" 01234567") - 1))
    byte = data.draw(st.integers(1, 255))
    assert decode(line[:place]) is None
    assert decode(line[:place] + bytes([line[place] ^ byte]) + line[place + 1 :]) is None


def test_a_line_of_another_layout_is_no_record() -> None:
    """Its checksum may be right, as that of the line with which a file begins."""
    assert decode(BEGINNING) is None
    assert decode(b"") is None


def test_a_key_is_found_with_the_tools_of_any_system() -> None:
    """Its digest is a SHA-256 of two texts, so that an operator can look for it."""
    token = hashlib.sha256(b"secret").digest()
    key = make_key(token, "00000000", "my-key", b"body", "/v1/drain")
    text = hashlib.sha256(b"secret").hexdigest() + ":my-key"
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == key.digest
    assert key.body.startswith("4-")


def test_what_differs_makes_another_digest() -> None:
    """The token and the key say which batch it is; body and context, whether it is the same."""
    same = make_key(b"t", "n", "k", b"body", "/a")
    assert same == make_key(b"t", "n", "k", b"body", "/a")
    for token, key in ((b"T", "k"), (b"t", "K")):
        assert same.digest != make_key(token, "n", key, b"body", "/a").digest
    for body, context in ((b"Body", "/a"), (b"body", "/b"), (b"body2", "/a")):
        assert same.body != make_key(b"t", "n", "k", body, context).body
