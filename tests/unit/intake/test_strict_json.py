from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.intake.strict_json import parse, replace_lone_surrogates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{}", {}),
        (b' \t\r\n["a"] \n', ["a"]),
        (b"null", None),
        (b"-0", 0),
        (b"1e2", 100.0),
        (b"1E-400", 0.0),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b"9" * 4300, int("9" * 4300)),
        ('"\u00e9\U0001f600\u2028"'.encode(), "\u00e9\U0001f600\u2028"),
        (rb'"\u00e9\ud83d\ude00\u0000"', "\u00e9\U0001f600\0"),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"[" * 200 + b"]" * 200, None),
    ],
)
def test_json_is_parsed(text: bytes, expected: Any) -> None:
    """A JSON text is parsed to its value; of several equal keys, the last one counts."""
    actual = parse(text)
    assert expected == actual or text.startswith(b"[[")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value"),
        (b"   ", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a": 1,}', "."),
        (b"{'a': 1}", "Expecting property name"),
        (b"{} {}", "Extra data"),
        (b"{}\0", "Extra data"),
        (b"[01]", "Expecting"),
        (b"[+1]", "Expecting"),
        (b"[.5]", "Expecting"),
        (b"[1.]", "Expecting"),
        (b"[0x1]", "Expecting"),
        (b"True", "Expecting"),
        (b"// comment\n{}", "Expecting"),
        (b'"\n"', "control character"),
        (b'"\t"', "control character"),
        (rb'"\x41"', "escape"),
        (rb'"\u12"', "escape"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark; send it without"),
        *(
            (text.encode(encoding), "is UTF-16 or UTF-32; send UTF-8")
            for text in ('{"a": 1}', "{\n}")
            for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
        ),
        (b'{"a": 1}{"a": 2}', "Extra data.*application/x-ndjson; with curl, use --data-binary"),
        (b'{"a": 1} \t{"a": 2}', "--data-binary"),
        (b"1 2", r"Extra data: line 1 column 3 \(char 2\)$"),
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 7"),
        (b'{"\xc3": 1}', "invalid UTF-8 at byte 2"),
        (b'"\xc0\xaf"', "invalid UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "invalid UTF-8 at byte 1"),
        (b'"\xf5\x80\x80\x80"', "invalid UTF-8 at byte 1"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[Infinity]", "Infinity is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[1e400]", "number out of range: 1e400"),
        (b"[-1e400]", "number out of range: -1e400"),
        (b"[1" + b"0" * 400 + b".0]", "number out of range: 1000"),
        (b"[" + b"9" * 5000 + b"]", "4300 digits"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    ],
)
def test_invalid_json_is_rejected_with_the_reason(text: bytes, reason: str) -> None:
    """The text must be one JSON value of finite numbers in valid UTF-8."""
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_an_endless_number_is_not_repeated_in_the_message() -> None:
    """The reason is short, however long the number is."""
    with pytest.raises(ValueError, match="number out of range") as rejected:
        parse(b"1" * 1_000_000 + b"e400")
    assert len(str(rejected.value)) < 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\ude00"', "\ufffd"),
        (rb'"\uD83D"', "\ufffd"),
        (rb'"a\ud83d\u0041"', "a\ufffdA"),
        (rb'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (rb'"\ud83d\ude00\ude00"', "\U0001f600\ufffd"),
        (rb'"\ude00\ud83d"', "\ufffd\ufffd"),
        (rb'"\ud83d \ude00"', "\ufffd \ufffd"),
        (rb'"\ud83d\\ude00"', "\ufffd\\ude00"),
        (rb'"\\ud83d"', "\\ud83d"),
        (rb'"\\\ud83d"', "\\\ufffd"),
        (rb'"\\\\ud83d"', "\\\\ud83d"),
        (rb'"\\\ud83d\ude00"', "\\\U0001f600"),
        (rb'"\n\"\ud83d\/"', '\n"\ufffd/'),
    ],
)
def test_a_lone_surrogate_becomes_the_replacement_character(text: bytes, expected: str) -> None:
    """Half a pair becomes U+FFFD; whole pairs and escaped backslashes stay."""
    assert expected == parse(replace_lone_surrogates(text))


def test_a_text_without_lone_surrogates_is_not_copied() -> None:
    """A text without surrogates is returned as it is."""
    text = rb'{"a": "\ud83d\ude00 \\ud83d \u00e9"}'
    assert text is replace_lone_surrogates(text)


def test_many_lone_surrogates_are_all_replaced() -> None:
    """The text is corrected to its end, however many halves it contains."""
    text = b'"' + rb"\ud83d." * 25_000 + b'"'
    assert "\ufffd." * 25_000 == parse(replace_lone_surrogates(text))


units = st.lists(st.sampled_from(["\\ud83d", "\\ude00", "\\\\", "\\u0041", "u", "d83d", "\\n"]))


@given(units)
def test_replacement_agrees_with_pythons_parser(parts: list[str]) -> None:
    """Every escape is parsed as Python's own parser does."""
    text = f'"{"".join(parts)}"'.encode()
    halves: str = parse(text)
    expected = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in halves)
    assert expected == parse(replace_lone_surrogates(text))
