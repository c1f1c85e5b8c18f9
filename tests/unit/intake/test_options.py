"""The query options: how they are parsed, and their effect on a log."""

import itertools
import json
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.api import elasticsearch
from astralog.errors import Rejection
from astralog.intake import batch, decoder
from astralog.intake.batch import SLOW_PIECE_BYTES, decode_json, decode_lines
from astralog.intake.decoder import COUNTED_LOGS, DESCRIBED_LOGS, Decoded
from astralog.intake.formats import LINES, PIECE_BYTES
from astralog.intake.lines import RUN_BYTES
from astralog.intake.options import (
    CONSTANTS,
    NO_OPTIONS,
    PARAMETERS,
    OnInvalid,
    Options,
    parse_options,
)
from tests.support.decoding import make_context, marshmallow_alone
from tests.support.service import make_log
from tests.unit.intake.test_compiled_schema import json_object, strings, timestamp_texts, values

DEFAULTS = {"project_id": "p", "service": "s", "level": "l"}
BARE = {"timestamp": "2024-05-31T15:30:45Z", "message": "m"}
DECODERS = [decode_json, decode_lines]


def body_of(decode: Any, *logs: Any) -> bytes:
    if decode is decode_lines:
        return "\n".join(map(json.dumps, logs)).encode()
    return json.dumps({"logs": logs}).encode()


def stored(decoded: Decoded) -> list[Any]:
    return [json.loads(line) for line in decoded.batch.lines.splitlines()]


def decoded_with(decode: Any, options: Options, *logs: Any) -> Decoded:
    """Return the result of a batch with options, the same with either decoder."""
    body = body_of(decode, *logs)
    decoded: Decoded = decode(body, make_context(options=options))
    with marshmallow_alone():
        again = decode(body, make_context(options=options))
    assert decoded.batch == again.batch
    return decoded


def rejection_of(decode: Any, options: Options, *logs: Any) -> Rejection:
    with pytest.raises(Rejection) as rejected:
        decode(body_of(decode, *logs), make_context(options=options))
    return rejected.value


# --- The query


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("project_id=p&service=s&level=l", Options(DEFAULTS)),
        ("level=a%20b+c", Options({"level": "a b c"})),
        ("service=Gr%C3%B6%C3%9Fe", Options({"service": "Größe"})),
        ("service=Größe".encode().decode("latin-1"), Options({"service": "Größe"})),
        ("unknown=metadata", Options(moves_unknown=True)),
        ("partial=true&dry_run=1", Options(on_invalid=OnInvalid.LEAVE_OUT, is_dry_run=True)),
        ("partial=false&dry_run=0", NO_OPTIONS),
        ("timestamp=now", Options(stamps_arrival=True)),
        ("invalid=keep", Options(on_invalid=OnInvalid.KEEP)),
        ("once=body", Options(keys_body=True)),
        ("message_field=msg,event.text", Options(sources={"message": ("msg", "event.text")})),
        (
            "timestamp_field=%40t&level_field=a%2Cb&service_field=s&project_id_field=p",
            Options(
                sources={
                    "timestamp": ("@t",),
                    "level": ("a", "b"),
                    "service": ("s",),
                    "project_id": ("p",),
                }
            ),
        ),
        ("&", NO_OPTIONS),
        (f"level={'x' * 255}", Options({"level": "x" * 255})),
    ],
)
def test_query_is_parsed(query: str, expected: Options) -> None:
    """Parameters are percent-encoded UTF-8, and may be combined."""
    assert expected == parse_options(query)


def test_parameters_of_elasticsearch_need_no_value() -> None:
    assert Options() == parse_options("pretty&human&refresh=", elasticsearch.PARAMETERS)
    with pytest.raises(Rejection, match="'timeout' is empty"):
        parse_options("timeout", elasticsearch.PARAMETERS)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("dryrun=true", "'dryrun'"),
        ("dry_run=true&Partial=true", "'Partial'"),
        ("=true", "There is no such parameter; there are project_id,"),
        ("x" * 5000, "There is no such parameter; there are project_id,"),
        ("my-secret-token", "There is no such parameter; there are project_id,"),
        ("dry_run=true&s3cret=1", "There is no such parameter; there are project_id,"),
        ("partial", "'partial' is empty"),
        ("level=", "'level' is empty"),
        ("level=a&level=a", "'level' occurs twice"),
        ("dry_run=false&dry_run=true", "'dry_run' occurs twice"),
        ("dry_run=maybe", "'dry_run' must be 'true' or 'false'"),
        ("partial=TRUE", "'partial' must be 'true' or 'false'"),
        ("unknown=drop", "'unknown' must have the value 'metadata'"),
        ("timestamp=today", "'timestamp' must have the value 'now'"),
        ("invalid=drop", "'invalid' must have the value 'keep'"),
        ("once=header", "'once' must have the value 'body'"),
        ("once=body&timestamp=now", "once=body cannot be combined with timestamp=now"),
        ("message_field=a,,b", "'message_field' has an empty name"),
        ("level_field=,", "'level_field' has an empty name"),
        ("metadata_field=a", "'metadata_field'"),
        (f"message_field={'x' * 256}", "'message_field' has more than 255"),
        (f"service={'x' * 256}", "'service' has more than 255"),
        (f"message_field={','.join('a' * 17)}", "'message_field' has more than 16 names"),
        ("level_field=a.b,a" + ".a" * 16, "'level_field' has more than 16 names or 16 dots"),
        ("level=%FF", "UTF-8"),
        ("level=\xff", "UTF-8"),
        ("level=%ED%A0%80", "UTF-8"),
    ],
)
def test_unknown_parameter_is_rejected_by_name(query: str, named: str) -> None:
    """A misspelled parameter must not be ignored."""
    with pytest.raises(Rejection, match=".") as rejected:
        parse_options(query)
    assert "bad_request" == rejected.value.code
    assert named in rejected.value.message
    assert len(rejected.value.message) < 300


def test_protocol_has_its_own_parameters() -> None:
    """Parameters of other protocols are rejected, and the supported ones are listed."""
    assert Options({"project_id": "p"}) == parse_options("project_id=p", ("project_id",))
    assert Options(moves_unknown=True) == parse_options("unknown=metadata")
    with pytest.raises(Rejection, match="there are project_id") as rejected:
        parse_options("unknown=metadata", ("project_id",))
    assert "level" not in rejected.value.message


# --- Defaults


@pytest.mark.parametrize("decode", DECODERS)
def test_missing_fields_are_filled_in(decode: Any) -> None:
    """An absent or null field gets its default, in the order of the fields."""
    logs = [BARE, make_log(), BARE | {"level": None, "service": "mine", "metadata": {"a": 1}}]
    decoded = decoded_with(decode, Options(DEFAULTS), *logs)
    expected = [
        DEFAULTS | BARE,
        make_log(),
        DEFAULTS | BARE | {"service": "mine", "metadata": {"a": 1}},
    ]
    assert expected == stored(decoded)
    assert list(make_log())[:5] == list(stored(decoded)[0])


@pytest.mark.parametrize("decode", DECODERS)
def test_existing_values_are_not_replaced(decode: Any) -> None:
    """A value of the wrong type is an error and gets no default; unknown fields stay unknown."""
    options = Options({"level": "l"})
    wrong: Any
    for wrong in ("", 5, [], {}, False):
        errors = rejection_of(decode, options, make_log(level=wrong)).errors
        assert ["level"] == list(next(iter((errors or {})["logs"].values())))
    assert "1 of 1" in rejection_of(decode, options, BARE).message
    assert "1 of 1" in rejection_of(decode, options, make_log(host=1)).message
    assert "1 of 1" in rejection_of(decode, options, 5).message


@pytest.mark.parametrize("decode", DECODERS)
def test_a_default_project_is_checked_like_any_other(decode: Any) -> None:
    """A token's projects apply, whether the log or the query names the project."""
    context = make_context({"mine"}, Options({"project_id": "theirs"}))
    assert 1 == decode(body_of(decode, make_log(project_id="mine")), context).batch.logs
    log = make_log()
    del log["project_id"]
    with pytest.raises(Rejection, match="'theirs'") as rejected:
        decode(body_of(decode, make_log(project_id="mine"), log), context)
    assert "forbidden_project" == rejected.value.code


# --- Unknown fields


@pytest.mark.parametrize("decode", DECODERS)
def test_unknown_fields_move_under_metadata(decode: Any) -> None:
    """Their values keep type and order, after those that metadata has."""
    nested = {"a": [1, 2.5, None, {"b": True}], "n": 10**30}
    logs = [
        make_log(metadata={"z": 1}) | {"host": "h", "Message": nested, "": None},
        {"pid": 7} | make_log(metadata=None),
        {"pid": 7} | BARE | DEFAULTS,
        make_log(),
    ]
    decoded = decoded_with(decode, Options(moves_unknown=True), *logs)
    expected = [
        make_log(metadata={"z": 1, "host": "h", "Message": nested, "": None}),
        make_log(metadata={"pid": 7}),
        BARE | DEFAULTS | {"metadata": {"pid": 7}},
        make_log(),
    ]
    assert expected == stored(decoded)
    assert ["z", "host", "Message", ""] == list(stored(decoded)[0]["metadata"])


@pytest.mark.parametrize("decode", DECODERS)
def test_a_field_that_metadata_has_already_is_an_error(decode: Any) -> None:
    """Neither of two values for one name is dropped: the log is invalid, and the name is shown."""
    first = decode is decode_lines
    rejection = rejection_of(
        decode,
        Options(moves_unknown=True),
        make_log(metadata={"a": 1, "host": "x"}) | {"host": "x"},
    )
    expected = {"host": ["metadata has a field of this name too."]}
    assert {"logs": {int(first): expected}} == rejection.errors


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("metadata", ["text", 5, [], False])
def test_fields_cannot_move_into_metadata_that_is_no_object(decode: Any, metadata: Any) -> None:
    """The log is invalid."""
    log = make_log(metadata=metadata) | {"host": "x"}
    rejection = rejection_of(decode, Options(moves_unknown=True), log)
    assert {"metadata": ["Not an object."]} == next(iter((rejection.errors or {})["logs"].values()))


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (30, "30"),
        (-1.5, "-1.5"),
        (1e300, "1e+300"),
        (10**30, str(10**30)),
        (0, "0"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_scalar_in_a_text_field_becomes_text(decode: Any, value: Any, text: str) -> None:
    """In its JSON form, regardless of defaults; pino sends numbers as levels."""
    fields = ("project_id", "level", "service", "message")
    options = Options(DEFAULTS, moves_unknown=True)
    (log,) = stored(decoded_with(decode, options, make_log(**dict.fromkeys(fields, value), pid=7)))
    assert [text] * 4 == [log[name] for name in fields]
    assert 7 == log["metadata"]["pid"]


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("message", [{"text": 'a "b"', "n": [1, None]}, [], {}, ["ü\n"]])
def test_a_message_of_any_kind_becomes_text(decode: Any, message: Any) -> None:
    """A list or an object becomes its JSON, as it was written."""
    (log,) = stored(decoded_with(decode, Options(moves_unknown=True), make_log(message=message)))
    assert json.dumps(message) == log["message"]


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(["timestamp"], [1577836800, 20240531, 1717169445.5, True]),
        *itertools.product(["project_id", "level", "service"], [[], {}, ""]),
        ("message", None),
    ],
)
def test_values_without_a_text_form_are_errors(decode: Any, name: str, value: Any) -> None:
    """A number is not a timestamp, since its unit is unknown, and a list is not a name."""
    errors = rejection_of(decode, Options(moves_unknown=True), make_log(**{name: value})).errors
    assert [name] == list(next(iter((errors or {})["logs"].values())))


# --- Partial


@pytest.mark.parametrize("size", [1, 2 * PIECE_BYTES // 100], ids=["short", "long"])
@pytest.mark.parametrize("decode", DECODERS)
def test_the_valid_logs_of_a_batch_are_stored(decode: Any, size: int) -> None:
    """The others are counted and described by number, in bodies of one piece or several."""
    logs: list[Any] = [make_log(message=str(number) + "x" * size) for number in range(100)]
    valid = [log for number, log in enumerate(logs) if number not in (3, 98)]
    logs[3], logs[98] = make_log(level=""), 5
    decoded = decoded_with(decode, Options(on_invalid=OnInvalid.LEAVE_OUT), *logs)
    assert valid == stored(decoded)
    assert decoded.invalid is not None
    assert 2 == decoded.invalid.count
    first = int(decode is decode_lines)
    assert {
        3 + first: {"level": ["Must not be empty."]},
        98 + first: {"_schema": ["Not an object."]},
    } == decoded.invalid.errors


@pytest.mark.parametrize("decode", DECODERS)
def test_valid_batch_has_the_usual_response(decode: Any) -> None:
    """If no log is invalid, the response does not mention any."""
    assert (2, None) == (
        (
            decoded := decoded_with(
                decode, Options(on_invalid=OnInvalid.LEAVE_OUT), make_log(), make_log()
            )
        ).batch.logs,
        decoded.invalid,
    )


@pytest.mark.parametrize("decode", DECODERS)
def test_all_logs_of_a_batch_may_be_invalid(decode: Any) -> None:
    """Then nothing is stored, and all are described."""
    decoded = decoded_with(decode, Options(on_invalid=OnInvalid.LEAVE_OUT), {}, {})
    assert (b"", 0) == decoded.batch
    assert decoded.invalid is not None
    assert 2 == decoded.invalid.count


def test_a_line_that_is_no_json_is_an_invalid_log() -> None:
    """One broken line rejects no other; a JSON body is valid or invalid as a whole."""
    log = json.dumps(make_log()).encode()
    lines = [log, b"{", b"\xff", log + log, b'{"n": 1e999}', b"[" * 100_000, b"", log]
    context = make_context(options=Options(on_invalid=OnInvalid.LEAVE_OUT))
    batch, invalid = decode_lines(b"\n".join(lines), context)
    assert 2 == batch.logs
    assert invalid is not None
    assert [2, 3, 4, 5, 6] == list(invalid.errors)
    assert invalid.errors[3]["_schema"] == ["Not valid JSON: invalid UTF-8 at byte 0"]
    for broken in (b'{"logs":[%s,{]}' % log, b'{"logs":[%s,{"n":"\xff"}]}' % log):
        with pytest.raises(Rejection) as rejected:
            decode_json(broken, context)
        assert "invalid_json" == rejected.value.code


#: Logs, of which only the last is valid, in ways that the decoders notice by different means.
INVALID_LOGS = {
    "no object": 1,
    "empty": {},
    "wrong type": make_log(level=30),
    "no timestamp": make_log(timestamp="yesterday"),
    "unknown field": make_log(host="h"),
}


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("name", INVALID_LOGS)
@pytest.mark.parametrize("count", [COUNTED_LOGS // 10, COUNTED_LOGS // 2])
def test_the_valid_logs_are_stored_however_many_are_invalid(
    monkeypatch: pytest.MonkeyPatch, decode: Any, name: str, count: int
) -> None:
    """All invalid ones are counted and the first ones described, also in a long body."""
    for module, limit in (
        (decoder, "COUNTED_LOGS"),
        (batch, "FAST_BYTES"),
        (decoder, "FAST_BYTES"),
        (batch, "SLOW_PIECE_BYTES"),
    ):
        monkeypatch.setattr(module, limit, getattr(module, limit) // 10)
    valid = [make_log(message=str(number)) for number in range(3)]
    half = [INVALID_LOGS[name]] * (count // 2)
    decoded = decoded_with(
        decode, Options(on_invalid=OnInvalid.LEAVE_OUT), valid[0], *half, valid[1], *half, valid[2]
    )
    assert valid == stored(decoded)
    assert decoded.invalid is not None
    assert (count, DESCRIBED_LOGS) == (decoded.invalid.count, len(decoded.invalid.errors))
    assert all(decoded.invalid.errors.values())


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("number", ["1e999", "9" * 5001], ids=["1e999", "5001 digits"])
def test_a_number_out_of_range_after_many_invalid_logs_is_one_more(
    decode: Any, number: str
) -> None:
    """Where logs are only counted, nothing but invalid JSON rejects the body."""
    invalid = [{"x": 1}] * (DESCRIBED_LOGS + 5)
    last = make_log(metadata=[0])
    body = body_of(decode, *invalid, make_log(), last).replace(b"[0]", b"[%b]" % number.encode())
    decoded = decode(body, make_context(options=Options(on_invalid=OnInvalid.LEAVE_OUT)))
    assert stored(decoded) == [make_log()]
    assert decoded.invalid.count == len(invalid) + 1


def test_the_valid_lines_are_stored_however_many_are_no_json() -> None:
    """Such lines are counted like other invalid logs."""
    lines = [b"{", json.dumps(make_log()).encode(), b"\xff", b'{"a":'] * COUNTED_LOGS
    context = make_context(options=Options(on_invalid=OnInvalid.LEAVE_OUT))
    batch, invalid = decode_lines(b"\n".join(lines), context)
    assert invalid is not None
    assert (COUNTED_LOGS, 3 * COUNTED_LOGS) == (batch.logs, invalid.count)


def test_invalid_json_after_many_invalid_logs_rejects_the_body() -> None:
    """A JSON body is valid or invalid as a whole."""
    logs = b"1," * 2 * COUNTED_LOGS
    for broken in (b'{"n":"\xff"}', b'{"n":1e}'):
        with pytest.raises(Rejection) as rejected:
            decode_json(
                b'{"logs":[%s%s]}' % (logs, broken),
                make_context(options=Options(on_invalid=OnInvalid.LEAVE_OUT)),
            )
        assert "invalid_json" == rejected.value.code


@pytest.mark.parametrize("decode", DECODERS)
def test_a_forbidden_project_rejects_a_partial_batch(decode: Any) -> None:
    """A forbidden project is not an invalid log: it rejects the whole batch."""
    context = make_context({"mine"}, Options(on_invalid=OnInvalid.LEAVE_OUT))
    logs = [make_log(project_id="mine"), make_log(level=""), make_log(project_id="theirs")]
    with pytest.raises(Rejection) as rejected:
        decode(body_of(decode, *logs), context)
    assert "forbidden_project" == rejected.value.code


# --- Together, and by either way of decoding


@pytest.mark.parametrize("decode", DECODERS)
def test_options_work_together(decode: Any) -> None:
    """Fields are moved and filled in before a log is validated."""
    options = Options(DEFAULTS, moves_unknown=True, on_invalid=OnInvalid.LEAVE_OUT)
    logs = [BARE | {"host": "h"}, {"host": "h"}, BARE | {"metadata": {"host": 1}, "host": 2}]
    decoded = decoded_with(decode, options, *logs)
    assert [DEFAULTS | BARE | {"metadata": {"host": "h"}}] == stored(decoded)
    assert decoded.invalid is not None
    assert [["timestamp", "message"], ["host"]] == list(map(list, decoded.invalid.errors.values()))


def test_a_batch_may_not_grow_without_bounds() -> None:
    """Defaults for many short logs could make lines many times as long as the body."""
    context = make_context(options=Options(dict.fromkeys(DEFAULTS, "x" * 255)))
    line = json.dumps(BARE).encode()
    assert 1000 == decode_lines(b"\n".join([line] * 1000), context).batch.logs
    with pytest.raises(Rejection, match="4 times") as rejected:
        decode_lines(b"\n".join([line] * 10_000), context)
    assert "body_too_large" == rejected.value.code


def test_metadata_of_a_moved_log_must_be_an_object() -> None:
    """A log's field is moved, and its metadata stays as it was written."""
    context = make_context(options=Options(DEFAULTS, sources={"message": ("text",)}))
    log = b'{"text":"m","timestamp":"2024-05-31T15:30:45Z","metadata":%s}'
    assert b'"metadata":{"a": 1}}\n' in decode_lines(log % b'{"a": 1}', context).batch.lines
    with pytest.raises(Rejection) as rejected:
        decode_lines(log % b"[1]", context)
    assert {"logs": {1: {"metadata": ["Not an object."]}}} == rejected.value.errors


def test_forbidden_project_rejects_all_logs_of_a_body_in_runs() -> None:
    """The metrics count all of them, not only those of the first run."""
    context = make_context(options=Options(moves_unknown=True), projects=["other"])
    lines = [json.dumps(make_log(message="m" * 1000)).encode()] * (2 * RUN_BYTES // 1000)
    with pytest.raises(Rejection) as rejected:
        decode_lines(b"\n".join(lines), context)
    assert ("forbidden_project", len(lines)) == (rejected.value.code, rejected.value.logs)


@pytest.mark.parametrize("count", [2, 40], ids=["short", "long"])
def test_logs_that_are_changed_are_decoded_in_short_pieces(count: int) -> None:
    """Other clients use the slot between two: a log of few bytes may take long to change."""
    log = json.dumps({"text": "x" * 1000, **BARE}).encode()
    body = b"\n".join([log] * (count * SLOW_PIECE_BYTES // 1000))
    context = make_context(options=Options(DEFAULTS, sources={"message": ("text",)}))
    with patch.object(LINES, "decode", wraps=LINES.decode) as decode_piece:
        assert body.count(b"\n") + 1 == decode_lines(body, context).batch.logs
    decoded = [len(call.args[0]) for call in decode_piece.call_args_list]
    assert max(decoded) <= SLOW_PIECE_BYTES
    assert sum(decoded) == len(body)


names = st.sampled_from([f'"{name}"' for name in make_log()]) | strings
optional_logs = st.lists(
    st.tuples(names, strings | timestamp_texts | values), min_size=2, max_size=9
).map(json_object)
options = st.builds(
    Options,
    st.sampled_from([{}, DEFAULTS, {"level": "l"}]),
    moves_unknown=st.booleans(),
    is_dry_run=st.just(value=False),
    sources=st.sampled_from([{}, {"message": ("msg", "message"), "timestamp": ("ts.a", "level")}]),
    stamps_arrival=st.just(value=False),
    on_invalid=st.sampled_from([OnInvalid.REJECT, OnInvalid.LEAVE_OUT]),
    keys_body=st.just(value=False),
)


@pytest.mark.slow
@given(st.lists(optional_logs, min_size=1, max_size=3), options)
def test_both_decoders_agree_under_any_options(logs: list[str], options: Options) -> None:
    """Marshmallow accepts the logs of the compiled decoder, with the same lines."""
    bodies = [
        (decode_json, f'{{"logs":[{",".join(logs)}]}}'.encode()),
        (decode_lines, "\n".join(logs).encode()),
    ]
    for decode, body in bodies:
        context = make_context(options=options)
        try:
            fast: Any = decode(body, context).batch
        except Rejection as rejection:
            fast = rejection.message
        with marshmallow_alone():
            try:
                slow: Any = decode(body, context).batch
            except Rejection as rejection:
                slow = rejection.message
        assert fast == slow


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_is_known_to_the_query(name: str) -> None:
    """Every listed parameter is supported."""
    value = {**CONSTANTS, "partial": "true", "dry_run": "true"}.get(name, "x")
    assert NO_OPTIONS != parse_options(f"{quote(name)}={value}")


@pytest.mark.parametrize("query", ["unknown=metadata", "timestamp=now", "message_field=msg"])
def test_deep_body_with_options_is_invalid_json(query: str) -> None:
    """Nesting beyond the decoder's limit is the client's error with any option."""
    with pytest.raises(Rejection) as raised:
        decode_json(b'{"logs":[' + b"[" * 100_000, make_context(options=parse_options(query)))
    assert raised.value.code == "invalid_json"
