"""The compiled schema, and the properties that tie it to marshmallow's."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import (
    EXCLUDE,
    INCLUDE,
    RAISE,
    Schema,
    fields,
    post_load,
    pre_load,
    validate,
    validates,
    validates_schema,
)

from astralog.errors import Rejection
from astralog.intake.formats import BATCH
from astralog.intake.lines import encode_lines
from astralog.intake.logs import COMPILED_ERRORS, load
from astralog.intake.options import NO_OPTIONS
from astralog.intake.schema import (
    BatchSchema,
    Log,
    LogSchema,
    compile_struct,
)
from tests.support.decoding import encode_batch, marshmallow_alone
from tests.support.service import make_log


class Strict(Schema):
    class Meta:
        unknown = RAISE


class Checked(fields.String):
    """A string field with a check that nobody repeats after decoding."""


def compile_field(field: fields.Field[Any]) -> type[msgspec.Struct]:
    """Compile a schema of one field."""
    schema = Strict.from_dict({"field": field})(unknown=RAISE)
    return compile_struct(schema, {})


def test_the_struct_of_a_log_has_exactly_the_fields_of_its_schema() -> None:
    """It has them in the schema's order."""
    expected = ["project_id", "timestamp", "level", "service", "message", "metadata"]
    assert expected == list(LogSchema().fields)
    assert expected == [field.name for field in msgspec.structs.fields(Log)]


def test_required_fields_of_the_struct_are_those_of_the_schema() -> None:
    """The struct requires only the fields that the schema requires."""
    expected = {name for name, field in LogSchema().fields.items() if field.required}
    structs = msgspec.structs.fields(Log)
    assert expected == {field.name for field in structs if field.required}


@pytest.mark.parametrize(
    ("field", "json_value", "is_taken"),
    [
        (fields.String(required=True), b'""', True),
        (fields.String(required=True), b"1", False),
        (fields.String(required=True), b"null", False),
        (fields.String(required=True, validate=validate.Length(min=2)), b'"ab"', True),
        (fields.String(required=True, validate=validate.Length(min=2)), b'"a"', False),
        (fields.String(allow_none=True), b"null", True),
        (fields.Dict(required=True), b'{"a": [1]}', True),
        (fields.Dict(required=True), b"[]", False),
        (fields.Dict(allow_none=True), b"null", True),
    ],
)
def test_field_with_an_equivalent_is_compiled(
    field: fields.Field[Any], json_value: bytes, is_taken: bool
) -> None:
    """The struct accepts a value if and only if the schema does."""
    struct = compile_field(field)
    body = b'{"field": %s}' % json_value
    schema = Strict.from_dict({"field": field})(unknown=RAISE)
    assert is_taken is not bool(schema.validate(json.loads(body)))
    if is_taken:
        msgspec.json.decode(body, type=struct)
    else:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(body, type=struct)


@pytest.mark.parametrize(
    "field",
    [
        # types
        fields.Integer(required=True),
        fields.Boolean(required=True),
        fields.Raw(required=True),
        fields.DateTime(required=True),
        fields.Nested(LogSchema, required=True),
        fields.List(fields.Nested(LogSchema), required=True),
        fields.Dict(keys=fields.String(), required=True),
        fields.Dict(values=fields.String(), required=True),
        # validators
        fields.String(required=True, validate=validate.OneOf(["a"])),
        fields.String(required=True, validate=validate.Regexp("a")),
        fields.String(required=True, validate=validate.Length(max=5)),
        fields.String(required=True, validate=validate.Length(equal=5)),
        fields.String(required=True, validate=validate.Length(min=1, max=5)),
        fields.String(
            required=True, validate=[validate.Length(min=1), validate.ContainsOnly("ab")]
        ),
        fields.Dict(required=True, validate=validate.Length(min=1)),
        # strings that marshmallow looks at more closely
        fields.UUID(required=True),
        fields.Email(required=True),
        fields.Url(required=True),
        Checked(required=True),
        # options
        fields.String(required=True, attribute="other"),
        fields.String(required=True, dump_only=True),
        fields.String(required=True, data_key="other"),
        fields.String(load_default="a"),
        fields.Dict(allow_none=True, load_default=None),
        fields.String(required=True, allow_none=True),
        fields.String(),
    ],
    ids=lambda field: type(field).__name__,
)
def test_field_without_an_equivalent_is_rejected_by_name(field: fields.Field[Any]) -> None:
    """A check that msgspec lacks does not compile, so the two cannot differ unnoticed."""
    with pytest.raises(TypeError, match="field"):
        compile_field(field)


@pytest.mark.parametrize(
    "decorator",
    [pre_load, post_load, validates("field"), validates_schema],
    ids=["pre_load", "post_load", "validates", "validates_schema"],
)
def test_a_schema_with_a_hook_does_not_compile(decorator: Callable[..., Any]) -> None:
    """Only marshmallow would run the hook."""

    class Hooked(Strict):
        field = fields.String(required=True)

        @decorator
        def hook(self, data: Any, **kwargs: Any) -> Any:
            return data

    with pytest.raises(TypeError):
        compile_struct(Hooked(), {})


@pytest.mark.parametrize("unknown", [EXCLUDE, INCLUDE])
def test_schema_that_accepts_unknown_fields_does_not_compile(unknown: str) -> None:
    """The struct rejects unknown fields, so the schema must too."""
    schema: Any = Schema.from_dict({"field": fields.String(required=True)})
    with pytest.raises(TypeError, match="unknown"):
        compile_struct(schema(unknown=unknown), {})


def test_a_dict_field_is_raw_only_if_it_is_named() -> None:
    """Nobody checks the text of another one, which may be no object."""
    schema: Any = Strict.from_dict(
        {"raw": fields.Dict(allow_none=True), "dict": fields.Dict(allow_none=True)}
    )
    decoder: Any = msgspec.json.Decoder(compile_struct(schema(), {"raw": msgspec.Raw}))
    log = decoder.decode(b'{"raw": [1], "dict": {"n": 1}}')
    assert (b"[1]", {"n": 1}) == (bytes(log.raw), log.dict)
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(b'{"dict": [1]}')


def test_a_batch_has_logs_alone() -> None:
    """The compiled decoder of a batch accepts this member and no other."""
    assert ["logs"] == list(BatchSchema().fields)


# --- The properties: what the fast lane takes, marshmallow takes, with the same stored lines.


def fast_lines(body: bytes) -> bytes | None:
    """Return the lines of the compiled decoder, or None if it leaves the body to marshmallow."""
    try:
        return encode_lines(load(body, BATCH, NO_OPTIONS))
    except COMPILED_ERRORS:
        return None


def slow_lines(body: bytes) -> bytes | Rejection:
    """Return the lines of marshmallow's decoder, or its rejection."""
    try:
        with marshmallow_alone():
            return bytes(encode_batch(body).lines)
    except Rejection as rejection:
        return rejection


# Strings as JSON text: with every kind of escape, control characters, and what must be rejected.
characters = st.one_of(
    st.characters(codec="utf-8").map(lambda char: json.dumps(char)[1:-1]),
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters='"\\'),
    st.sampled_from(
        [r"\u0000", r"\u001f", r"\u007f", r"\u2028", r"\/", r"\b", "\x7f", "\u2028", "\ufeff"]
        + [r"\ud83d\ude00", r"\ud83d", r"\ude00", r"\\ud83d", r"\\", r"\"", r"\u00E9", "\U0010ffff"]
        + ["\x00", "\t", "\n", r"\x", "\\", '"']
    ),
)
strings = st.lists(characters, max_size=6).map(lambda parts: f'"{"".join(parts)}"')

numbers = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        ["0", "-0", "-0.0", "1e400", "-1e400", "1e-400", "1E5", "1e+5", "01", "1.", ".5", "+1"]
        + ["9223372036854775807", "9223372036854775808", "18446744073709551615"]
        + ["18446744073709551616", "-9223372036854775809", "1" * 40, "1" * 400, "1" * 4300]
        + ["9" * 4301, "1" * 400 + ".0", "0." + "1" * 400, "2.2250738585072011e-308", "5e-324"]
        + ["1.7976931348623157e308", "1.7976931348623159e308", "9007199254740993.0"]
        + ["NaN", "Infinity", "-Infinity", "1_000", "0x10", "true", "false", "null", "nul"]
    ),
    st.tuples(st.integers(0, 10**25), st.integers(0, 10**25), st.integers(-330, 310)).map(
        lambda parts: f"{parts[0]}.{parts[1]}e{parts[2]}"
    ),
)


def json_object(pairs: list[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"


values = st.recursive(
    strings | numbers,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(strings, inner), max_size=3).map(json_object)
    ),
    max_leaves=6,
)

timestamp_texts = st.sampled_from(
    ["2024-05-31T15:30:45Z", "2024-05-31T15:30:45.123456789Z", "2024-05-31 15:30:45+02:00"]
    + ["2024-05-31T15:30:45.0000000000001Z", "2024-W22-5", "2024152T1530", "2016-12-31T23:59:60Z"]
    + ["2024-05-31T24:00:00Z", "9999-12-31T23:59:59.9999999999Z", "0001-01-01T00:00:00Z"]
    + ["2024-05-31T15:30:45.Z", "2024-05-31_15:30:45Z", "1717120112345", "2023-02-29T00:00:00Z"]
    + ["2024-05-31T15:30:45,5Z", "0001-01-01T00:00:00+01:00", "2024-W53-1", "Monday", "10", ""]
    + ["9999-W52-7", "2024-05-31T15:30:60Z", "2024-05-31T15:30:45z", "2024-05-31T15:30:45+00:00"]
    + [r"2024-05-31T15:30:45\u005a", r"2024-05-31T15:30:45Z\n", "२०२४-05-31T15:30:45Z"]
).map(lambda text: f'"{text}"')

good_fields: dict[str, st.SearchStrategy[str]] = {
    "project_id": strings.filter(lambda text: text != '""'),
    "timestamp": timestamp_texts,
    "level": st.sampled_from(['"info"', '"error"', r'"\u0069nfo"']),
    "service": strings,
    "message": strings,
}
good_metadata = st.one_of(
    st.just("null"), st.lists(st.tuples(strings, values), max_size=3).map(json_object)
)


@st.composite
def logs(draw: st.DrawFn) -> str:
    """Draw the JSON text of a log: valid, or with a few errors."""
    pairs = [(f'"{name}"', draw(value)) for name, value in good_fields.items()]
    if draw(st.booleans()):
        pairs.append(('"metadata"', draw(good_metadata)))
    for fault in draw(st.lists(st.sampled_from(["drop", "retype", "add", "repeat"]), max_size=1)):
        index = draw(st.integers(0, len(pairs) - 1))
        match fault:
            case "drop":
                del pairs[index]
            case "retype":
                pairs[index] = (pairs[index][0], draw(values))
            case "add":
                pairs.append((draw(strings | st.just('"Level"')), draw(values)))
            case "repeat":
                pairs.append((pairs[index][0], draw(values)))
    return json_object(draw(st.permutations(pairs)))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw the body of a batch: mostly valid, at least around its logs."""
    items = draw(st.lists(st.one_of(logs(), logs(), logs(), values), max_size=3))
    pairs = [('"logs"', f"[{', '.join(items)}]")]
    if draw(st.integers(0, 9)) == 0:
        pairs.insert(draw(st.integers(0, 1)), draw(st.tuples(strings | st.just('"logs"'), values)))
    body = json_object(pairs).encode()
    match draw(st.integers(0, 19)):
        case 0:
            end = draw(st.integers(0, len(body)))
            return body[:end] + draw(st.binary(max_size=3)) + body[end:]
        case 1:
            return body[: draw(st.integers(0, len(body)))]
        case 2:
            return draw(st.sampled_from([b"\xef\xbb\xbf", b" \n", b"\0", b"[]"])) + body
        case 3:
            return body + draw(st.sampled_from([b"\n", b"{}", b"\0", b"x", b","]))
    return body


def plain_body(**changes: Any) -> bytes:
    return json.dumps({"logs": [make_log(**changes)]}, ensure_ascii=False).encode()


HARD_CASES = [
    plain_body(),
    plain_body(metadata=None),
    plain_body(metadata={}),
    plain_body(metadata={"n": 10**30, "f": 0.1, "u": "\U0001f600\u2028\0"}),
    plain_body(metadata={"n": 2**64, "m": -(2**63) - 1}),
    plain_body(message="", timestamp="2024-05-31 15:30:45.1 +02:00"),
    b'{"logs": []}',
    b'{"logs": [], "logs": []}',
]


@pytest.mark.parametrize("body", HARD_CASES)
def test_compiled_decoder_accepts_a_valid_batch(body: bytes) -> None:
    """Its lines are those of marshmallow's decoder."""
    fast = fast_lines(body)
    assert fast is not None
    assert fast == slow_lines(body)


@pytest.mark.slow
@given(bodies())
def test_both_decoders_accept_the_same_with_the_same_lines(body: bytes) -> None:
    """A batch that the compiled decoder accepts has the same bytes with marshmallow."""
    fast = fast_lines(body)
    if fast is not None:
        assert fast == slow_lines(body)


@pytest.mark.slow
@given(bodies())
def test_any_body_is_either_stored_as_json_lines_or_rejected(body: bytes) -> None:
    """No other exception is raised, and every stored line is one strict JSON object."""
    try:
        batch = encode_batch(body)
    except Rejection:
        return
    lines = batch.lines.decode("utf-8").split("\n")
    assert batch.logs == len(lines) - 1
    assert "" == lines.pop()
    for line in lines:
        log = json.loads(line)
        assert set(log) <= set(LogSchema().fields)
        assert log["timestamp"].endswith("Z")
        assert not any("\ud800" <= char <= "\udfff" for char in json.dumps(log, ensure_ascii=False))


@pytest.mark.slow
@given(st.binary(max_size=40) | bodies().map(lambda body: body.replace(b'"logs"', b'"log"')))
def test_both_decoders_reject_a_body_that_is_no_batch(body: bytes) -> None:
    """The compiled decoder does not accept it, and the other one rejects it."""
    assert fast_lines(body) is None
    assert isinstance(slow_lines(body), Rejection)
