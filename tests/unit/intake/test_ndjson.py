import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.errors import Rejection
from astralog.intake import batch, formats, value_limits
from astralog.intake import batch as codec
from astralog.intake.formats import PIECE_BYTES, Lines
from astralog.intake.options import OnInvalid, Options
from astralog.intake.value_limits import LONG_LOG_COMMAS
from tests.support.decoding import encode_batch, encode_lines, make_context, marshmallow_alone
from tests.support.service import make_log


def line(**fields: Any) -> bytes:
    return json.dumps(make_log(**fields)).encode()


def rejection_of(body: bytes) -> Rejection:
    with pytest.raises(Rejection) as rejected:
        encode_lines(body)
    return rejected.value


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n", b"\n \n"])
@pytest.mark.parametrize("between", [b"\n", b"\r\n", b"\n\n"])
def test_ndjson_is_stored_like_the_same_batch_in_json(between: bytes, end: bytes) -> None:
    """Both forms of a batch store the same lines; blank lines are ignored."""
    lines = [line(message=f"line {number}", timestamp="2024-05-31 15:30") for number in range(3)]
    expected = encode_batch(b'{"logs":[%s]}' % b",".join(lines))
    assert expected == encode_lines(between.join(lines) + end)


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n \n"])
def test_no_lines_are_an_empty_batch(body: bytes) -> None:
    """As in JSON, a batch may have no logs."""
    assert (b"", 0) == encode_lines(body)


def test_a_malformed_log_is_named_by_its_line() -> None:
    """Blank lines count, and the first line is number 1."""
    body = b"\n".join([line(), b"", line(level=""), line(), line(extra=1)])
    rejection = rejection_of(body)
    assert "invalid_batch" == rejection.code
    assert "2 of 4 logs are invalid; nothing was stored" == rejection.message
    assert rejection.errors is not None
    assert {3: ["level"], 5: ["extra"]} == {
        number: list(errors) for number, errors in rejection.errors["logs"].items()
    }


@pytest.mark.parametrize(
    "broken",
    [
        b"{",
        line()[:-1],
        line() + b"," + line(),
        line() + b" " + line(),
        b"\xff",
        b'{"message": NaN}',
        b"nonsense",
        b'{"metadata":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    ],
)
def test_a_line_that_is_no_json_is_named(broken: bytes) -> None:
    """A line contains one whole JSON value."""
    rejection = rejection_of(b"\n".join([line(), broken, line()]))
    assert "invalid_json" == rejection.code
    assert "line 2: " in rejection.message


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    """Half an emoji invalidates neither its line nor another one."""
    batch = encode_lines(line(message="cut \ud83d") + b"\n" + line(message="\U0001f600"))
    texts = [json.loads(text)["message"] for text in batch.lines.splitlines()]
    assert ["cut \ufffd", "\U0001f600"] == texts


@pytest.mark.parametrize(
    "body",
    [
        line() + line().replace(b"{", b"{\n", 1),
        line() + b" " + line() + b"\n\n",
        b"\n" + line() + line(),
        line().replace(b": ", b":\n", 1) + line(),
        line() + line()[:-1] + b"\r\n}",
    ],
)
def test_each_line_must_be_one_log(body: bytes) -> None:
    """Two logs in one line are rejected, even if a blank line or half a log evens the count."""
    assert "invalid_json" == rejection_of(body).code


@pytest.mark.parametrize("value", [b"1", b"[]", b"null", b'"x"', b"{}"])
def test_line_that_is_no_log_is_invalid(value: bytes) -> None:
    """A JSON value that is not a log is an invalid log."""
    assert "1 of 2 logs" in rejection_of(line() + b"\n" + value).message


def test_a_long_text_is_read_piece_by_piece() -> None:
    """A body of several pieces is stored whole, in order."""
    lines = [line(message=str(number)) for number in range(3 * PIECE_BYTES // 200)]
    batch = encode_lines(b"\n".join(lines))
    assert len(lines) == batch.logs
    stored = [json.loads(text)["message"] for text in batch.lines.splitlines()]
    assert [str(number) for number in range(len(lines))] == stored


def test_a_fault_in_a_long_text_is_named_by_its_line() -> None:
    """The number is that of the line in the body, not in a piece."""
    lines = [line(message=str(number)) for number in range(3 * PIECE_BYTES // 200)]
    place = len(lines) - 10
    lines[place] = line(level="")
    rejection = rejection_of(b"\n".join(lines))
    assert rejection.errors is not None
    assert [place + 1] == list(rejection.errors["logs"])
    lines[place] = b"{"
    assert f"line {place + 1}: " in rejection_of(b"\n".join(lines)).message


def test_a_long_line_may_not_hold_many_values() -> None:
    """The values of one log are bounded, since each takes memory; earlier lines do not count."""
    values = line(metadata={"values": [0.123456789] * (LONG_LOG_COMMAS + 10)})
    rejection = rejection_of(line() + b"\n" + values)
    assert rejection.errors is not None
    assert [2] == list(rejection.errors["logs"])
    many = [line(metadata={"values": [0] * 2000}) for _ in range(100)]
    text = line(message="x" * (PIECE_BYTES + 1))
    assert 101 == encode_lines(b"\n".join([*many, text])).logs


def test_a_body_of_too_many_values_is_rejected() -> None:
    """As in JSON, the values of a long body are bounded too."""
    body = b"\n".join([line(metadata={"a": [0] * 9_000})] * 90)
    assert "body_too_large" == rejection_of(body).code


def test_a_body_of_too_many_lines_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """With partial=true an invalid line takes 10 µs or more, and may be one byte long."""
    monkeypatch.setattr(formats, "PIECE_BYTES", 100)
    for module in (batch, value_limits):  # the second words the message
        monkeypatch.setattr(module, "MAX_VALUES", 100)
    context = make_context(options=Options(on_invalid=OnInvalid.LEAVE_OUT))
    with pytest.raises(Rejection, match="more than 100 values"):
        codec.decode_lines(b"x\n" * 101, context)
    body = line() + b"\n\n" + b"x\n\n" * 99
    assert 1 == codec.decode_lines(body, context).batch.logs


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_rejection_of_a_long_body_counts_its_lines(end: bytes) -> None:
    """The last line counts with or without its line break; uncounted lines are mentioned."""
    lines = [line(level=""), *[line(message="x" * 8000)] * 200]
    rejection = rejection_of(b"\n".join(lines) + end)
    assert "At least 1 of 201 logs are invalid; nothing was stored" == rejection.message


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize("encode", [encode_batch, encode_lines])
def test_a_batch_may_hold_only_the_projects_of_its_token(encode: Any, is_long: bool) -> None:
    """One log of another project, anywhere, rejects the batch; the message names the project."""
    size = PIECE_BYTES if is_long else 1
    logs = [line(project_id="mine", message="x" * size), line(project_id="theirs")]
    separator = b"\n" if encode is encode_lines else b","
    body = separator.join(logs)
    if encode is encode_batch:
        body = b'{"logs":[%s]}' % body
    assert 2 == encode(body, {"mine", "theirs"}).logs
    assert 2 == encode(body, None).logs
    with pytest.raises(Rejection) as rejected:
        encode(body, {"mine"})
    assert "forbidden_project" == rejected.value.code
    assert "'theirs'" in rejected.value.message


def test_a_long_name_of_a_project_is_shown_in_part() -> None:
    """A rejection is not as long as the batch."""
    with pytest.raises(Rejection) as rejected:
        encode_lines(line(project_id="x" * 5000), {"mine"})
    assert "forbidden_project" == rejected.value.code
    assert len(rejected.value.message) < 200


texts = st.sampled_from(
    [line(), line(message="a\nb"), line(level=""), b"", b" ", b"{}", b"{", b"1", b"\xff", b"\r"]
)


@given(st.lists(st.one_of(texts, st.binary(max_size=20))))
def test_decoder_and_schema_accept_the_same_lines(lines: list[bytes]) -> None:
    """Both ways give the same logs."""
    body = b"\n".join(lines)
    try:
        quick = encode_lines(body)
    except Rejection:
        return
    expected = [json.loads(text) for text in body.split(b"\n") if text.strip()]
    assert len(expected) == quick.logs
    with marshmallow_alone():
        assert quick == encode_lines(body + b"\n\n")


@given(st.text("x\n\n \t\r\v\f\x1c\x85", max_size=20).map(str.encode))
def test_lines_that_are_not_blank_are_counted(body: bytes) -> None:
    """The fast count equals the number of lines that are not white space."""
    assert sum(1 for text in body.split(b"\n") if text.strip()) == Lines().count(body)
