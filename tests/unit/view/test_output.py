"""The readable form of a log, which cannot control the terminal."""

import json
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.standard_streams import escape
from astralog.view.output import SHOWN_CHARACTERS, format_line
from astralog.view.stored_log import RANKS
from tests.support.tail import make_line

#: What turns the direction of writing.
DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")

CODES = re.compile(r"\x1b\[[0-9;]+m")


def test_a_log_is_one_line() -> None:
    """Time, level, project, service, message and metadata, the level padded."""
    assert (
        "2024-05-31T15:30:45Z info    org-xyz api-gateway User logged in "
        '{"user_id":123,"ip":"1.1.1.1"}'
    ) == format_line(make_line("User logged in"), colored=False)


def test_missing_fields_take_no_space() -> None:
    """Neither an empty message nor missing metadata leaves a blank."""
    line = make_line("", level="long-level").replace(b'"metadata"', b'"other"')
    assert "2024-05-31T15:30:45Z long-level org-xyz api-gateway" == format_line(line, colored=False)


def test_colors_are_added_and_nothing_else() -> None:
    """Metadata is dim, and each color ends with its text."""
    line = make_line("User logged in")
    colored = format_line(line, colored=True)
    assert format_line(line, colored=False) == CODES.sub("", colored)
    assert colored.endswith('\x1b[2m{"user_id":123,"ip":"1.1.1.1"}\x1b[0m')
    assert colored.count("\x1b[0m") * 2 == len(CODES.findall(colored))


def test_worse_levels_stand_out() -> None:
    """Warnings, errors and higher levels differ from each other and from the rest."""
    codes = {names[0]: code_of(names[0]) for names in RANKS}
    mild = {codes.pop(level) for level in ("trace", "debug", "info", "notice")}
    assert codes.pop("alert") == codes.pop("emergency") == codes["critical"]
    assert 3 == len(set(codes.values()) - mild)
    assert code_of("WARN") == codes["warning"]
    assert "" == code_of("audit")


def code_of(level: str) -> str:
    """Return the terminal's codes before a level."""
    _, _, line = format_line(make_line("m", level=level), colored=True).partition("\x1b[0m ")
    return line.partition(level)[0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\u001b[2J"),
        ("a\nb\r\n\tc", r"a\nb\r\n\tc"),
        ("\x9b5m\x7f\0", r"\u009b5m\u007f\u0000"),
        ("\u202eevil\u2066\u2028", r"\u202eevil\u2066\u2028"),
        ("日本 é 👩\u200d👧 \\n", "日本 é 👩\u200d👧 \\n"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    """Other writing is unchanged."""
    assert shown == escape(text)
    assert f" api-gateway {shown} {{" in format_line(make_line(text), colored=False)


@pytest.mark.parametrize("field", ["timestamp", "level", "project_id", "service"])
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "error   tenant-b billing Paid",
            r'"error\u0020\u0020\u0020tenant-b\u0020billing\u0020Paid"',
        ),
        ("a b", r'"a\u0020b"'),
        (" ", r'"\u0020"'),
        ("", '""'),
        ("a\tb\nc\r\x0b", r'"a\tb\nc\r\u000b"'),
        ("\x1b[2J\x9b5m\x7f\0", r'"\u001b[2J\u009b5m\u007f\u0000"'),
        ("\u202eevil\u2066\u2028\u2029\x85", r'"\u202eevil\u2066\u2028\u2029\u0085"'),
        ("a\xa0b\u3000c\u2003d", r'"a\u00a0b\u3000c\u2003d"'),
        ("a\u200bb\ufeff\xad\u2060", r'"a\u200bb\ufeff\u00ad\u2060"'),
        ("a\u2800b\u3164\u115f\uffa0\ufe0f", r'"a\u2800b\u3164\u115f\uffa0\ufe0f"'),
        ("a\U000e0041\U000e0101", r'"a\udb40\udc41\udb40\udd01"'),
        ('"a" b\\', r'"\"a\"\u0020b\\"'),
        ('"tenant-b"', r'"\"tenant-b\""'),
        ("a\\u0020b", r"a\u0020b"),
        ("tenant-b/日本-é_ü:1", "tenant-b/日本-é_ü:1"),
    ],
)
def test_a_name_is_one_column(field: str, name: str, shown: str) -> None:
    """Any other name is a JSON string without blanks, so it cannot be taken for several names."""
    place = ["timestamp", "level", "project_id", "service"].index(field)
    fields: dict[str, Any] = {field: name}
    columns = format_line(make_line("m", **fields), colored=False).split()
    assert shown == columns[place]
    assert ["m", '{"user_id":123,"ip":"1.1.1.1"}'] == columns[4:]
    assert name in (shown, json.loads(shown) if shown.startswith('"') else shown)


def test_levels_are_aligned_by_display_width() -> None:
    """A Chinese or Japanese character takes two columns."""
    line = format_line(make_line("m", level="警告"), colored=False)
    assert "2024-05-31T15:30:45Z 警告    org-xyz" in line


@given(st.text(), st.booleans())
def test_log_content_cannot_control_the_terminal(text: str, colored: bool) -> None:
    """In any field, only the command's own colors remain."""
    text = text.encode(errors="replace").decode()
    line = make_line(text, level=text, service=text, project_id=text, metadata={text: text})
    shown = CODES.sub("", format_line(line, colored=colored))
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp")]
    assert not [c for c in shown if unicodedata.bidirectional(c) in DIRECTIONS]
    _, *names = shown.split()[:4]
    assert [text] * 3 == [json.loads(n) if n.startswith('"') else n for n in names]


@pytest.mark.parametrize("line", [b"no log \x1b[2J", b'{"a":1}', b"\xff\xfe", b"\0" * 5000])
def test_a_line_that_is_no_log_is_shown_as_it_is(line: bytes) -> None:
    """Escaped nevertheless, and shortened to one line."""
    shown = format_line(line, colored=True)
    assert "\x1b" not in shown
    assert shown
    assert len(shown) <= SHOWN_CHARACTERS * len(r"\u0000")
