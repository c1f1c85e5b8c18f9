"""Lines found in whole blocks are exactly those that a parse of every line finds."""

import json
import re
from typing import Any
from unittest.mock import patch

import hypothesis
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from astralog.store.reader import every_line
from astralog.view import prefilter
from astralog.view.log_filter import LogFilter

#: Letters with several forms, characters that are escaped, and parts of escapes.
ALPHABET = (
    "abkKsSf\u00df\u1e9e\u017f\u212a\u0130iI\ufb01\u00e9\u00c9\u03c3\u03c2\u03a3"
    '\u2028\U0001f600"\\/\n\x1b\x7fu0 6.1'
)
LEVELS = [
    "info",
    "error",
    "ERR",
    " Warn",
    "warning2",
    "critical",
    "audit",
    "\u212aey",
    "key",
    "",
    "\u2028err",
    "e",
]

texts = st.text(ALPHABET, max_size=6)
names = st.sampled_from(["a", "b", "a.b", "k\u00e9", "k", "/"])


class Line(msgspec.Struct, omit_defaults=True):
    """A log as the service encodes it."""

    project_id: str
    timestamp: str
    level: str
    service: str
    message: str
    metadata: msgspec.Raw = msgspec.Raw()


@st.composite
def encoded(draw: st.DrawFn, text: str) -> str:
    """Return a JSON string in the form of one of several encoders."""
    way = draw(st.sampled_from(["ascii", "utf-8", "slashes", "all"]))
    if way == "all":
        units = text.encode("utf-16-be")
        pairs = [units[at : at + 2].hex() for at in range(0, len(units), 2)]
        return (
            '"'
            + "".join(f"\\u{draw(st.sampled_from([pair, pair.upper()]))}" for pair in pairs)
            + '"'
        )
    encoded = json.dumps(text, ensure_ascii=way == "ascii")
    return encoded.replace("/", "\\/") if way == "slashes" else encoded


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    """Return the JSON text of a value."""
    kind = draw(
        st.sampled_from(["text", "number", "word", "object", "array"][: None if depth else 3])
    )
    if kind == "text":
        return draw(encoded(draw(texts)))
    if kind == "number":
        return draw(st.sampled_from(["1", "6", "1.0", "-1", "1e999", "61"]))
    if kind == "word":
        return draw(st.sampled_from(["true", "null"]))
    if kind == "array":
        return f"[{', '.join(draw(st.lists(values(depth - 1), max_size=2)))}]"
    return draw(objects(depth - 1))


@st.composite
def objects(draw: st.DrawFn, depth: int = 2) -> str:
    """Return the JSON text of an object."""
    members = draw(st.lists(st.tuples(names, values(depth)), max_size=3))
    blank = draw(st.sampled_from(["", " "]))
    return "{" + ",".join(f"{draw(encoded(name))}:{blank}{value}" for name, value in members) + "}"


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Return a stored line."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([b"", b"no log", b'{"level":"error', b"\xff", b"{}"]))
    line = Line(
        draw(st.sampled_from(["shop", "blog", 'a"', "\u00e9"])),
        draw(
            st.sampled_from(
                ["2024-05-31T15:30:45Z", "2024-05-31T15:30:45.5Z", "2025-01-01T00:00:00Z"]
            )
        ),
        draw(st.sampled_from(LEVELS)),
        draw(st.sampled_from(["api", "web", 'a"', "\u00e9"])),
        draw(texts),
        msgspec.Raw(draw(objects()).encode()) if draw(st.booleans()) else msgspec.Raw(),
    )
    if not line.metadata:
        return msgspec.json.encode(line).replace(b',"metadata":', b"")
    return msgspec.json.encode(line)


some = st.none() | st.lists(st.sampled_from(["shop", "api", 'a"', "\u00e9", "x"]), max_size=2)
filters = st.builds(
    LogFilter,
    projects=some,
    services=some,
    level=st.none() | st.sampled_from([*LEVELS, "fatal", "debug"]),
    text=st.none() | texts,
    since=st.none() | st.just("2024-05-31T15:30:45.5Z"),
    until=st.none() | st.just("2024-05-31T15:30:45.500Z"),
    fields=st.lists(st.tuples(names, texts | st.sampled_from(["1", "61", "true"])), max_size=1).map(
        tuple
    ),
    match_case=st.booleans(),
)
text_filters = st.builds(LogFilter, text=texts, match_case=st.booleans())


#: Pieces of regular expressions, most of which match parts of the texts.
PIECES = [
    *"abkKsSiIuf6",
    *("\u00df", "\u017f", "\u0130", "\u00e9", "\\.", "\\/", r"\d", r"\b", "[^a]", "[]b|]", "[k-s]"),
    *("(ab)", "(?:k|S)", "(", ")", "|", "*", "+", "?", "{2}", "{", "}", "??", ".", "^", "$"),
    *(r"\x61", r"\1", '"', r"\\"),
]


@st.composite
def regexes(draw: st.DrawFn) -> re.Pattern[str]:
    """Return a regular expression."""
    text = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=6)))
    try:
        return re.compile(text, draw(st.sampled_from([0, re.IGNORECASE])))
    except re.error:
        hypothesis.reject()


regex_filters = st.builds(LogFilter, pattern=regexes())


def expected(wanted: LogFilter, block: bytes) -> list[tuple[int, bytes]]:
    """Return the result of parsing every line."""
    return [(offset, line) for offset, line in every_line(block) if wanted.matches(line)]


def line_of(level: bytes = b"info", message: bytes = b"m", metadata: bytes = b"{}") -> bytes:
    """Return a stored line of these encoded texts."""
    head = b'{"project_id":"p","timestamp":"2024-05-31T15:30:45Z","level":"%b","service":"s",'
    return head % level + b'"message":"%b","metadata":%b}' % (message, metadata)


@pytest.mark.slow
@given(st.lists(lines(), min_size=1, max_size=8), filters | text_filters | regex_filters)
@example([line_of(message="\u212a".encode())], LogFilter(text="k"))
@example([line_of(level=b" error")], LogFilter(level="warn"))
@example([line_of(level="\u2028err".encode())], LogFilter(level="warn"))
@example([line_of(level="\u212aey".encode())], LogFilter(level="key"))
@example([line_of(level="o\u212a".encode())], LogFilter(level="ok"))
@example([line_of(metadata=rb'{"a":"b\/c"}')], LogFilter(text="B/c"))
@example([line_of(metadata=rb'{"a":"b\/c"}')], LogFilter(fields=(("a", "b/c"),)))
@example([line_of(message=b"Ab6.66 ab")], LogFilter(text="AB6.66 ab"))
@example([line_of(metadata=rb'{"a":"\u0062"}')], LogFilter(text="b"))
@example([line_of(metadata=rb'{"aa":"\u0062"}')], LogFilter(text="b"))
@example([line_of(metadata=rb'{"\u0061":"\u00e9"}')], LogFilter(text="\u00c9"))
@example([line_of(metadata=rb'{"\u0061":""}')], LogFilter(fields=(("a", ""),)))
def test_blocks_are_searched_as_lines_are(found: list[bytes], wanted: LogFilter) -> None:
    """With escapes, letters of any case, and lines that are no logs."""
    block = b"\n".join(found) + b"\n"
    assert expected(wanted, block) == list(wanted.select(block))


@given(lines(), st.data())
def test_each_part_of_a_text_is_found(line: bytes, data: st.DataObject) -> None:
    """In the message and in the metadata, in lower and in upper case."""
    try:
        log: dict[str, Any] = json.loads(line)
        message = log["message"]
    except (ValueError, KeyError):
        return
    begin = data.draw(st.integers(0, len(message)))
    end = data.draw(st.integers(begin, len(message)))
    for text in (message[begin:end], message[begin:end].upper(), message[begin:end].casefold()):
        assert [(len(line) + 1, line)] == list(LogFilter(text=text).select(line + b"\n"))
    exact = LogFilter(text=message[begin:end], match_case=True)
    assert [(len(line) + 1, line)] == list(exact.select(line + b"\n"))


@given(st.dictionaries(names, texts, min_size=1))
def test_each_member_of_the_metadata_is_found(metadata: dict[str, str]) -> None:
    """It is found by its name and its value, also inside an object."""
    raw = msgspec.Raw(json.dumps({"in": [metadata]}).encode())
    line = msgspec.json.encode(Line("p", "2024-05-31T15:30:45Z", "i", "s", "m", raw))
    for name, value in metadata.items():
        assert list(LogFilter(fields=((f"in.{name}", value),)).select(line + b"\n"))
        assert not list(LogFilter(fields=((f"in.{name}", value + "x"),)).select(line + b"\n"))


def test_a_rare_text_costs_no_parse(monkeypatch: Any) -> None:
    """Nor does a text in a line with colors, which are escaped control characters."""
    line = (
        b'{"project_id":"p","timestamp":"","level":"%b","service":"%b","message":"\\u001b[31m"}\n'
    )
    block = 100 * (line % (b"info", b"api")) + line % (b"error", b"web")
    parsed: list[bytes] = []
    matches = LogFilter.matches

    def count(self: LogFilter, line: bytes) -> bool:
        parsed.append(line)
        return matches(self, line)

    monkeypatch.setattr(LogFilter, "matches", count)
    for wanted in (LogFilter(text="WEB"), LogFilter(level="warn"), LogFilter(services={"web"})):
        list(wanted.select(block))
        assert 1 == len(parsed)
        parsed.clear()


@pytest.mark.parametrize(
    ("regex", "texts"),
    [
        (r"order \d+ not paid\.", ["order ", " not paid."]),
        (r"ab?cd{2}e+f", ["a", "c", "e", "f"]),
        (r"a(bc)*d[e]f]^g$", ["a", "d", "f]", "g"]),
        (r"a*?b{1,2}?c", ["c"]),
        ("a|b", []),
        ("(?i)a", []),
        (r"\x41", []),
        (r"(a)\1", []),
    ],
)
def test_texts_of_a_regular_expression_are_found(regex: str, texts: list[str]) -> None:
    """Those that each of its matches has."""
    assert texts == [text for text in prefilter._required_runs(regex) if text]
    assert not re.compile(regex).search("x".join(texts)[:-1])


def test_letters_of_a_regular_expression_are_folded() -> None:
    """Its matches of these letters, ignoring case, are those of a search that ignores case."""
    every = "".join(map(chr, range(0x110000)))
    found = re.findall(prefilter._FOLDED_RUN.pattern.removesuffix("+"), every, re.IGNORECASE)
    assert all(one.casefold().isascii() and 1 == len(one.casefold()) for one in found)


def test_all_letters_that_fold_to_ascii_are_known() -> None:
    """They are those of Python's Unicode tables."""
    letters = map(chr, range(128, 0x110000))
    folded = [(one, other) for one in letters if (other := one.casefold()) != one]
    found = [one for one, other in folded if re.search("[\0-\x7f]", other)]
    assert "".join(found) == prefilter.FOLDED_TO_ASCII


@given(st.lists(st.sampled_from([b"\\", b"u", b"/", b"a", b"\xc3\xa9", b"\0"])))
def test_a_pair_of_bytes_in_a_block_is_noticed(pieces: list[bytes]) -> None:
    """At even and at odd offsets, between two parts, and next to others with one of its bytes."""
    block = b"".join(pieces)
    with patch.object(prefilter, "_PAIR_BYTES", 4):
        for pairs in ((rb"\u",), (rb"\/",), (rb"\u", rb"\/")):
            assert prefilter._has_pair(block, pairs) == any(pair in block for pair in pairs)


@given(st.binary(), st.binary(max_size=3))
def test_a_text_in_a_block_is_noticed(block: bytes, text: bytes) -> None:
    """By the C library, also next to zeros, at both ends, and if it is empty."""
    assert prefilter._contains(block, text) == (text in block)
    assert prefilter._contains(text + block + text, text)
