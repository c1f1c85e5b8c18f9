"""The lines around matching ones, and the memory that they take."""

from collections.abc import Iterator

import pytest

from astralog.store.reader import Block, select_if
from astralog.view import context
from astralog.view.context import groups


def grouped(before: int, after: int, *blocks: bytes) -> list[tuple[bool, list[bytes]]]:
    """Return the groups around lines with an x: whether a gap is before each, and its lines."""
    select = select_if(lambda line: b"x" in line)
    found = groups([Block(0, block) for block in blocks], select, before, after)
    return [(group.has_gap, group.lines) for group in found]


def test_lines_around_are_those_next_to_a_match() -> None:
    """In other blocks too; a gap is marked where lines are left out."""
    blocks = (b"1\n2\n3\n", b"x\n4\n", b"5\n6\nx\n")
    assert grouped(1, 1, *blocks) == [(True, [b"3", b"x", b"4"]), (True, [b"6", b"x"])]
    assert grouped(9, 9, *blocks) == [
        (False, [b"1", b"2", b"3", b"x", b"4", b"5", b"6"]),
        (False, [b"x"]),
    ]
    assert grouped(0, 0, *blocks) == [(True, [b"x"]), (True, [b"x"])]


def test_lines_before_a_damage_are_yielded() -> None:
    def blocks() -> Iterator[Block]:
        yield Block(0, b"1\nx\n2\n")
        raise EOFError

    found = groups(blocks(), select_if(lambda line: b"x" in line), 1, 9)
    assert next(found).lines == [b"1", b"x", b"2"]
    with pytest.raises(EOFError):
        next(found)


def test_lines_around_are_limited_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are farther away are left out, and the gap is marked."""
    monkeypatch.setattr(context, "MAX_BYTES", 5)
    lines = b"11\n22\n33\nx\n44\n55\n66\n7\nx\n"
    assert grouped(9, 9, lines) == [
        (True, [b"22", b"33", b"x", b"44", b"55"]),
        (False, [b"66", b"7", b"x"]),
    ]
    assert grouped(9, 9, b"1\n222222\nx\n333333\n4\nx\n") == [
        (True, [b"x"]),
        (True, [b"4", b"x"]),
    ]
