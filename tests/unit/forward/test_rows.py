"""Lines become rows without being decoded; lines that the table cannot hold are found."""

import json
from typing import Any

import pytest

from astralog.forward.chunks import (
    Chunk,
    DeadLetter,
    Rows,
    as_dead_letters,
    dead_letter_rows,
    find_error,
)
from tests.support.clickhouse import make_line

NAME = "20261123T062500.123456Z-4711"


def make_chunk(*lines: bytes, first_line: int = 11) -> Chunk:
    """Return a chunk of these lines."""
    content = bytearray(b"".join(line + b"\n" for line in lines))
    return Chunk(NAME, 500, first_line, content, 0, len(content))


def decode(rows: Rows) -> list[dict[str, Any]]:
    """Return the rows in the server's interpretation."""
    return [json.loads(line) for line in b"".join(rows).split(b"\n")[:-1]]


def test_row_is_its_line_and_place() -> None:
    """Each row has node, segment and line number in addition to the line's fields."""
    lines = [make_line(1), make_line(2, message="ümläut 😀\u2028", metadata={"a": [1, None]})]
    rows = Rows(make_chunk(*lines), 'no"de')
    expected = [
        {"node": 'no"de', "segment": NAME, "line": number, **json.loads(line)}
        for number, line in enumerate(lines, 11)
    ]
    assert expected == decode(rows)
    assert (rows.lines, rows.dead_letters) == (2, [])


def test_rows_can_be_made_again() -> None:
    """A second attempt makes the same rows and counts from zero."""
    rows = Rows(make_chunk(make_line(1), make_line(2, timestamp="0001-01-01T00:00:00Z")), "n")
    assert decode(rows) == decode(rows)
    assert (rows.lines, len(rows.dead_letters)) == (2, 1)


def test_lines_that_the_table_holds_are_left_out() -> None:
    """Of a chunk that is stored in part, only the rest is sent."""
    lines = [make_line(0), make_line(1), make_line(2, timestamp="9999-01-01T00:00:00Z")]
    rows = Rows(make_chunk(*lines), "n", held={11, 13})
    assert [12] == [row["line"] for row in decode(rows)]
    assert (rows.lines, rows.dead_letters) == (3, [])


TIMES = [
    ("0001-01-01T00:00:00Z", "outside"),
    ("1899-12-31T23:59:59.999Z", "outside"),
    ("1900-01-01T00:00:00Z", None),
    ("1999-12-31T23:59:59.123456789Z", None),
    ("2199-12-31T23:59:59Z", None),
    ("2200-01-01T00:00:00Z", None),
    ("2262-04-11T23:47:15.999999999Z", None),
    ("2262-04-11T23:47:16Z", "outside"),
    ("9999-12-31T23:59:59Z", "outside"),
    ("2024-05-31T15:30:45.1234567890Z", "digits"),
    ("2024-05-31T15:30:45.123456789123456789Z", "digits"),
    ("2024-05-31 15:30:45Z", "not in the stored form"),
]


@pytest.mark.parametrize(("text", "error"), TIMES)
@pytest.mark.parametrize("project", ["p", 'quo"te', "back\\slash", '","timestamp":"2024'])
def test_a_timestamp_that_does_not_fit(text: str, error: str | None, project: str) -> None:
    """A timestamp beyond DateTime64 is found, whatever precedes and follows it."""
    metadata = {"timestamp": "2024-05-31T15:30:45Z"}
    line = make_line(1, project_id=project, timestamp=text, metadata=metadata)
    rows = Rows(make_chunk(make_line(0), line), "n")
    if error is None:
        assert [11, 12] == [row["line"] for row in decode(rows)]
        assert rows.dead_letters == []
    else:
        assert [11] == [row["line"] for row in decode(rows)]
        [(number, raw, text)] = rows.dead_letters
        assert (number, raw) == (12, line)
        assert text.startswith("timestamp: ")
        assert error in text


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"17",
        b'{"project_id":"p"',
        b" " + make_line(0),
        b'{"a":' * 100_000,
        b"\0\0\0",
        b"\xff\xfe",
    ],
)
def test_invalid_logs_are_dead_letters(line: bytes) -> None:
    """Every line of a segment becomes a row or a dead letter."""
    rows = Rows(make_chunk(line), "n")
    assert [] == list(rows)
    assert [(11, line)] == [(number, raw) for number, raw, _ in rows.dead_letters]


def test_a_log_in_another_order_is_a_row() -> None:
    """Only certainly wrong lines are held back; the table decides about the others."""
    fields = {"timestamp": "2024-05-31T15:30:45Z", "project_id": "p"}
    line = json.dumps({**fields, "level": "l", "service": "s", "message": "m"}).encode()
    assert find_error(line) is None
    assert ["p"] == [row["project_id"] for row in decode(Rows(make_chunk(line), "n"))]


def test_dead_letters_keep_every_byte() -> None:
    """No byte of a dead letter is special in the format of the insert."""
    raw = b"tab\tnew\nline\\back\\n\0\xff"
    [row] = dead_letter_rows(NAME, "no\tde", [DeadLetter(7, raw, "be\tcause")])
    fields = row.removesuffix(b"\n").split(b"\t")
    assert len(fields) == 5
    unescape = {b"\\t": b"\t", b"\\n": b"\n", b"\\\\": b"\\"}
    plain, position = b"", 0
    while position < len(fields[3]):
        pair = fields[3][position : position + 2]
        plain += unescape.get(pair, pair[:1])
        position += 2 if pair in unescape else 1
    assert plain == raw
    assert (fields[0], fields[2], fields[4]) == (b"no\\tde", b"7", b"be\\tcause")


def test_all_lines_of_a_chunk_can_be_dead_letters() -> None:
    """For one reason, with their numbers, except those that are stored."""
    chunk = make_chunk(b"a", b"b", b"c")
    assert [DeadLetter(11, b"a", "why"), DeadLetter(13, b"c", "why")] == as_dead_letters(
        chunk, {12}, "why"
    )
