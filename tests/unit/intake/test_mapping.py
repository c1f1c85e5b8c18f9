"""The changes that a query makes to a log: moved fields, text for scalars, Unix time, defaults."""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from astralog.errors import Rejection
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.options import OnInvalid, Options, parse_options
from astralog.intake.schema import FIELDS, LogSchema
from tests.support.decoding import make_context, marshmallow_alone

BARE = {"project_id": "p", "timestamp": "2024-05-31T15:30:45Z", "level": "info", "service": "s"}


def changed(query: str, log: Any) -> dict[str, Any]:
    """Return the stored log for a log sent with a query, the same in either format."""
    context = make_context(options=parse_options(query))
    text = json.dumps(log).encode()
    (stored,) = decode_lines(text, context).batch.lines.splitlines()
    for body in (text, b"[%s]" % text, b'{"logs":[%s]}' % text):
        assert [stored] == decode_json(body, context).batch.lines.splitlines()
    with marshmallow_alone():
        assert [stored] == decode_lines(text, context).batch.lines.splitlines()
    found: dict[str, Any] = json.loads(stored)
    return found


def errors_of(query: str, log: Any) -> Any:
    with pytest.raises(Rejection) as rejected:
        decode_lines(json.dumps(log).encode(), make_context(options=parse_options(query)))
    assert "invalid_batch" == rejected.value.code
    return (rejected.value.errors or {})["logs"][1]


def test_field_is_moved_and_replaces_the_logs_own() -> None:
    log = {**BARE, "message": "own", "msg": "moved"}
    assert {**BARE, "message": "moved"} == changed("message_field=msg", log)


def test_first_name_that_a_log_has_counts() -> None:
    """Later names stay unknown fields; null is no value."""
    query = "message_field=a,b,c&unknown=metadata"
    log = {**BARE, "a": None, "b": "second", "c": "third"}
    expected = {**BARE, "message": "second", "metadata": {"a": None, "c": "third"}}
    assert expected == changed(query, log)


def test_own_field_counts_if_no_name_is_found() -> None:
    assert {**BARE, "message": "own"} == changed("message_field=msg", {**BARE, "message": "own"})


def test_dots_reach_into_objects_that_go_if_they_become_empty() -> None:
    log = {**BARE, "event": {"text": "m", "id": 7}, "log": {"level": "warn"}}
    query = "message_field=event.text&level_field=log.level&unknown=metadata"
    expected = {**BARE, "message": "m", "level": "warn", "metadata": {"event": {"id": 7}}}
    assert expected == changed(query, log)


@pytest.mark.parametrize(
    "log",
    [
        {"a.b.c": "m", "a": {"b": {"c": "x"}}},
        {"a.b": {"c": "m"}, "a": {"b.c": "x"}},
        {"a": {"b.c": "m", "b": {"c": "x"}}},
        {"a.b.c": None, "a.b": "text", "a": {"b": {"c": "m"}}},
    ],
)
def test_member_with_a_literal_dot_wins(log: dict[str, Any]) -> None:
    """The longest literal name wins at each level."""
    stored = changed("message_field=a.b.c&unknown=metadata", {**BARE, **log})
    assert "m" == stored["message"]


def test_fields_may_trade_places() -> None:
    """All values are found before the first one is moved."""
    log = {**BARE, "level": "m", "service": "warn", "message": "svc"}
    query = "message_field=level&level_field=service&service_field=message"
    expected = {**BARE, "message": "m", "level": "warn", "service": "svc"}
    assert expected == changed(query, log)


def test_two_fields_may_have_one_source() -> None:
    query = "service_field=app&project_id_field=app&message_field=msg"
    log = {"timestamp": BARE["timestamp"], "level": "info", "app": "shop", "msg": "m"}
    expected = {**BARE, "project_id": "shop", "service": "shop", "message": "m"}
    assert expected == changed(query, log)


def test_scalars_become_text() -> None:
    """Pino's level 30 is stored as `30`, and an object as message as its JSON, as written."""
    query = "level_field=level&message_field=msg&service_field=pid"
    log = {**BARE, "level": 30, "msg": {"a": [1, None]}, "pid": True}
    stored = changed(query, log)
    assert ("30", '{"a": [1, null]}', "true") == tuple(
        stored[name] for name in ("level", "message", "service")
    )
    assert {"level": ["Not a valid string."]} == errors_of(
        "timestamp=now", {**BARE, "level": 30, "message": ""}
    )


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (1717169445, "2024-05-31T15:30:45Z"),
        (1717169445.25, "2024-05-31T15:30:45.25Z"),
        (1717169445123, "2024-05-31T15:30:45.123Z"),
        (1717169445123456, "2024-05-31T15:30:45.123456Z"),
        (1717169445123456789, "2024-05-31T15:30:45.123456789Z"),
        (1.717169445e9, "2024-05-31T15:30:45.0Z"),
        (0, "1970-01-01T00:00:00Z"),
        ("1717169445", "2024-05-31T15:30:45Z"),
        ("1717169445.123456789", "2024-05-31T15:30:45.123456789Z"),
        ("1717169445123456", "2024-05-31T15:30:45.123456Z"),
        ("20240531", "2024-05-31T00:00:00Z"),
        ("2024-05-31 15:30:45", "2024-05-31T15:30:45Z"),
    ],
)
def test_unix_time_is_read_with_timestamp_field(sent: Any, stored: str) -> None:
    """It may be the log's own timestamp; a short string of digits is a date."""
    for query, name in (("timestamp_field=ts", "ts"), ("timestamp_field=ts", "timestamp")):
        log = {**BARE, "message": "m"}
        del log["timestamp"]
        assert stored == changed(query, {**log, name: sent})["timestamp"]


@pytest.mark.parametrize("sent", [-1, 1e30, 10**25, 10**4000, "9" * 20, True, [], "12345"])
def test_other_numbers_are_no_timestamps(sent: Any) -> None:
    assert ["timestamp"] == list(
        errors_of("timestamp_field=ts", {**BARE, "message": "", "ts": sent})
    )


@pytest.mark.parametrize("query", ["unknown=metadata", "message_field=msg", "timestamp=now"])
def test_number_is_no_timestamp_without_timestamp_field(query: str) -> None:
    """Its unit is unknown."""
    log = {**BARE, "message": "", "timestamp": 1717169445}
    assert ["timestamp"] == list(errors_of(query, log))


@pytest.mark.parametrize("query", ["unknown=metadata", "unknown=metadata&message_field=a.b"])
def test_values_that_do_not_move_stay_as_they_were_written(query: str) -> None:
    """Digits, escapes, order and repeated names; only line breaks between tokens are removed."""
    values = b'"n":1.50,"e":1e999,"d":%s,"o":{"y":-0.0,\r\n"x":1,"x":2},"t":"\\u00e9\\/"' % (
        b"9" * 30
    )
    bare = json.dumps({**BARE, "message": "m"}).encode()[:-1]
    log = bare + b',"a":{"b":"m","c":1.0},%s}' % values
    lines = decode_lines(log.replace(b"\r\n", b"\r"), make_context(options=parse_options(query)))
    context = make_context(options=parse_options(query))
    for batch in (
        lines.batch,
        decode_json(log, context).batch,
        decode_json(log + log, context).batch,
    ):
        left = b'{"c":1.0}' if "a.b" in query else b'{"b":"m","c":1.0}'
        expected = b'"metadata":{"a":%s,%s}}' % (left, values.replace(b"\r\n", b""))
        assert all(line.endswith(expected) for line in bytes(batch.lines).splitlines())


def test_arrival_is_the_timestamp_of_a_log_that_lacks_one() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    query = "timestamp=now"
    with_one = {**BARE, "message": "m"}
    assert with_one == changed(query, with_one)
    for log in ({**with_one, "timestamp": None}, {**with_one}):
        log.pop("timestamp") if log["timestamp"] else None
        batch = decode_lines(
            json.dumps(log).encode(), make_context(options=parse_options(query))
        ).batch
        arrived = datetime.fromisoformat(json.loads(batch.lines)["timestamp"])
        assert before < arrived < datetime.now(UTC) + timedelta(seconds=1)


# --- A slow model


def splits(name: str) -> Iterator[list[str]]:
    """Yield the ways to read a name with dots, the longest literal names first."""
    yield [name]
    words = name.split(".")
    for count in range(len(words) - 1, 0, -1):
        if head := ".".join(words[:count]):
            for rest in splits(".".join(words[count:])):
                yield [head, *rest]


def lookup(node: Any, path: Sequence[str]) -> Any:
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def without(node: Any, paths: Sequence[Sequence[str]]) -> Any:
    """Return a copy of an object without some members and without objects that become empty."""
    if not isinstance(node, dict):
        return node
    kept = {}
    for name, member in node.items():
        below = [path[1:] for path in paths if path and path[0] == name]
        if [] in below:
            continue
        left = without(member, below)
        if below and left == {}:
            continue
        kept[name] = left
    return kept


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def modelled(log: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return the log after the changes, step by step; raises ValueError for an invalid log."""
    paths: dict[str, list[str]] = {}
    for field, names in options.sources.items():
        ways = [path for name in names for path in splits(name) if lookup(log, path) is not None]
        if ways:
            paths[field] = ways[0]
    moved = {}
    for field, path in paths.items():
        below = [other[len(path) :] for other in paths.values() if other[: len(path)] == path]
        moved[field] = without(lookup(log, path), [other for other in below if other])
    log = {**without(log, list(paths.values())), **moved}
    if options.moves_unknown:
        unknown = {name: value for name, value in log.items() if name not in FIELDS}
        log = {name: value for name, value in log.items() if name in FIELDS}
        metadata = log.get("metadata")
        if unknown and (metadata is None or isinstance(metadata, dict)):
            if set(metadata or {}) & set(unknown):
                raise ValueError("twice")
            log["metadata"] = {**(metadata or {}), **unknown}
    if options.moves_unknown or options.sources:
        for name in ("project_id", "level", "service", "message"):
            value = log.get(name)
            if isinstance(value, bool | int | float) or (
                name == "message" and isinstance(value, list | dict)
            ):
                log[name] = compact(value)
    if "timestamp" in options.sources:
        log["timestamp"] = modelled_time(log.get("timestamp"))
    for name, value in options.defaults.items():
        log[name] = value if log.get(name) is None else log[name]
    return {name: value for name, value in log.items() if name != "timestamp" or value is not None}


def modelled_time(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    if isinstance(value, str) and not (value.isdecimal() and len(value) >= 10):
        return value
    number = Decimal(str(value))
    unit = next(
        (u for u, least in ((9, 17), (6, 14), (3, 11)) if number >= Decimal(10) ** least), 0
    )
    seconds = number.scaleb(-unit)
    if not 0 <= seconds < 253_402_300_800:
        raise ValueError("no time")
    moment = datetime.fromtimestamp(int(seconds), UTC).replace(tzinfo=None)
    digits = len(str(value).partition(".")[2]) + unit
    fraction = f"{seconds - int(seconds):.{digits}f}"[1:] if digits else ""
    return f"{moment.isoformat()}{fraction}Z"


NAMES = ["a", "b", "a.b", "a.b.c", "level", "message", "timestamp", "service", "metadata", "m.a"]
leaves: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        5,
        2.5,
        "",
        "x",
        "2024-05-31",
        1717169445,
        1717169445123,
        "1717169445",
        [],
        [1],
        {},
    ]
)
objects = st.recursive(
    st.dictionaries(st.sampled_from([*NAMES, "c"]), leaves, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from([*NAMES, "c"]), leaves | inner, max_size=4),
    max_leaves=8,
)
logs = st.tuples(
    st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, leaves) | {"message": objects}),
    objects,
).map(lambda pair: {**BARE, "message": "m", **pair[1], **pair[0]})
sources = st.dictionaries(
    st.sampled_from(["message", "timestamp", "level", "service", "project_id"]),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple),
    max_size=5,
)
options = st.builds(
    Options,
    st.sampled_from([{}, {"level": "l"}, {"project_id": "p", "service": "s", "level": "l"}]),
    moves_unknown=st.booleans(),
    is_dry_run=st.just(value=False),
    sources=sources,
    stamps_arrival=st.just(value=False),
    on_invalid=st.just(OnInvalid.LEAVE_OUT),
    keys_body=st.just(value=False),
)


@pytest.mark.slow
@given(st.lists(logs, min_size=1, max_size=3), options)
def test_logs_change_like_those_of_the_slow_model(
    logs: list[dict[str, Any]], options: Options
) -> None:
    """A log is stored if and only if the schema accepts the model's log, and with its values."""
    body = b"\n".join(compact(log).encode() for log in logs)
    context = make_context(options=options)
    expected: list[Mapping[str, Any]] = []
    for log in logs:
        try:
            made = LogSchema().load(modelled(deepcopy(log), options))
            expected.append({name: value for name, value in made.items() if value is not None})
        except (ValidationError, ValueError):
            pass
    batch, invalid = decode_lines(body, context)
    assert expected == [json.loads(line) for line in batch.lines.splitlines()]
    assert len(logs) - len(expected) == (invalid.count if invalid else 0)
