"""Logs that are alike become the same lines together as one by one.

The first way is faster, and has the rules of the second way a second time.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astralog.errors import Rejection
from astralog.intake import columns, elasticsearch, hec, mapping
from astralog.intake.batch import decode_lines
from astralog.intake.columns import NotAlikeError
from astralog.intake.elasticsearch import Bulk
from astralog.intake.options import OnInvalid, Options, parse_options
from tests.support.decoding import make_context

TEXTS = [
    *(b'"x"', b'"\\u00e9\\ud83d\\ude00"', '"é"'.encode(), b'"warn"', b'" "', b'"x"'),
    *(b'"a\\/b"', b'"\\n\\t\\r\\b\\f\\"\\\\"', b'"\\\\u0041\x7f"'),
]
SECONDS = [b"1717169445", b"1000000000", b"9999999999"]
MILLISECONDS = [b"1717169445123", b"9999999999999"]
FRACTIONS = [b"1717169445.25", b"1717169445.123456789", b"1000000000.0"]
NUMBERS = [b"5", b"-1", b"0", b"2.50", b"1e999", b"9" * 30, b"17171694451.5", b"99999999999.5"]
DATES = [b'"2024-05-31 15:30:45"', b'"2024-05-31T15:30:45Z"', b'"2024-152"']
DIGITS = [b'"1717169445"', b'"1717169445123456"', b'"1717169445.5"']
OBJECTS = [b"{}", b'{"b": "m", "c": 1.50}', b'{"b":1,"b":2}', b'{"b":{"c":"x"}}', b'{"b.c":"x"}']
OTHERS = [
    *(b"null", b"true", b'""', b"[]", b'[1, {"a": 1.0}]', b"1.717169445e9", b"-0", b'{"name":"x"}'),
    *(b"1717169445123456", b"1717169445123456789", b"[1,\r2]", b'"\\ud83d"'),
]
ANY = [*TEXTS, *SECONDS, *MILLISECONDS, *FRACTIONS, *NUMBERS, *DATES, *DIGITS, *OBJECTS, *OTHERS]

#: The values of a member in all logs of a batch: of one kind, as in most batches, or of any.
TIMES = [SECONDS, MILLISECONDS, FRACTIONS, DATES, DIGITS, [b'"20240531"']]
KINDS = [*[TEXTS] * 12, NUMBERS, SECONDS, OBJECTS, [b'""'], ANY]

seeds = st.integers(0, 2**32)


def make_objects(random: Random, names: Sequence[str], times: Sequence[str]) -> list[bytes]:
    """Return objects with the same members, and maybe one with others.

    Most have a member of a time; a name may occur twice in an object.
    """

    def choose() -> list[tuple[str, list[bytes]]]:
        members = [
            *((name, random.choice(KINDS)) for name in names if random.random() < 0.5),
            *((name, random.choice(TIMES)) for name in times if random.random() < 0.8),
        ]
        random.shuffle(members)
        return members + members[: random.random() < 0.1]

    shapes = [choose()] * random.randint(1, 4)
    if random.random() < 0.3:
        shapes.insert(random.randint(0, len(shapes)), choose())
    return [
        b"{%s}"
        % b",".join(b'"%s":%s' % (name.encode(), random.choice(kind)) for name, kind in shape)
        for shape in shapes
    ]


def outcome(decode: Callable[[], Any]) -> tuple[object, ...]:
    """Return the lines of a batch and its invalid logs, or its rejection."""
    try:
        with patch.object(time, "time_ns", return_value=1_717_169_445_000_000_000):
            decoded = decode()
    except Rejection as rejection:
        return rejection.code, rejection.message, rejection.errors
    invalid = decoded.invalid
    return bytes(decoded.batch.lines), invalid and (invalid.errors, invalid.count)


def check(owner: Any, name: str, decode: Callable[[], Any]) -> None:
    """Check that a body has the same outcome without the way for logs that are alike."""
    with patch.object(owner, name, side_effect=NotAlikeError):
        expected = outcome(decode)
    assert expected == outcome(decode)


def parse_lines(lines: bytes) -> list[Any]:
    """Return the logs in lines, with their numbers as they are written."""
    return [json.loads(line, parse_int=str, parse_float=str) for line in lines.splitlines()]


QUERIES = [
    "project_id=p&service=s&level=i&message_field=msg&timestamp_field=time&unknown=metadata",
    "project_id=p&service_field=name,a&level=i&timestamp_field=time,ts&unknown=metadata",
    "project_id=p&service_field=a.b&level_field=level&message_field=a.b.c,msg&unknown=metadata",
    "project_id=p&level_field=service&service_field=level&timestamp_field=ts&unknown=metadata",
    "project_id=p&service=s&level=i&timestamp=now&unknown=metadata",
    "message_field=msg&timestamp_field=time",
]
NAMES = ["level", "service", "message", "message", "msg", "name", "a", "a.b", "metadata", "é"]


@given(seeds, st.sampled_from(QUERIES))
def test_moved_logs(seed: int, query: str) -> None:
    random = Random(seed)
    lines = make_objects(random, NAMES, ["time", random.choice(["ts", "timestamp"])])
    options = replace(parse_options(query), on_invalid=OnInvalid.LEAVE_OUT)
    if options.stamps_arrival:
        options = options.stamp("2024-05-31T15:30:45Z")
    context = make_context(options=options)
    check(mapping, "move_alike", lambda: decode_lines(b"\n".join(lines), context))


def check_text(decode: Callable[[], Any]) -> None:
    """Check that a body has the same logs if the members that are not known stay text."""
    expected = outcome(decode)
    with patch.object(columns, "LEAST_LINES", 1):
        found = outcome(decode)
    if isinstance(found[0], bytes) and isinstance(expected[0], bytes):
        assert (parse_lines(expected[0]), expected[1]) == (parse_lines(found[0]), found[1])
    else:
        assert expected == found


def make_lines(
    random: Random, firsts: Sequence[str], lasts: Sequence[Sequence[str]]
) -> list[bytes]:
    """Return logs whose known members are first or last, and maybe one that differs."""
    unknown = [random.sample(["pid", "a", "é", "x"], random.randint(1, 3))] * 4
    first = random.sample(firsts, random.randint(0, 2))
    last = random.choice(lasts)
    kinds = {
        "@timestamp": DATES,
        "ts": SECONDS,
        "time": MILLISECONDS,
        "pid": ANY,
        "x": [b'{"level":"x"}', b'{"a":",\\"msg\\":"}'],
    }
    shapes = [[*first, *names, *last] for names in unknown]
    if random.random() < 0.3:
        shapes[random.randrange(4)] = random.choice(
            [["level", "pid", "msg"], ["pid", "level", "msg"], ["msg"], unknown[0]]
        )
    comma, colon = random.choice([(b",", b":"), (b", ", b": ")])
    return [
        b"{%b}"
        % comma.join(
            b'"%b"%b%b' % (name.encode(), colon, random.choice(kinds.get(name, TEXTS)))
            for name in shape
        )
        for shape in shapes
    ]


@given(seeds)
def test_logs_whose_rest_stays_text(seed: int) -> None:
    random = Random(seed)
    lines = make_lines(
        random, ["time", "level", "service"], [["msg"], ["message"], ["ts", "msg"], []]
    )
    body = b"\n".join(lines) + random.choice([b"", b"\n"])
    if random.random() < 0.3:
        body = body.replace("é".encode(), b"\xff")
    query = QUERIES[0].replace("=time&", "=time,ts&")
    options = replace(parse_options(query), on_invalid=OnInvalid.LEAVE_OUT)
    context = make_context(options=options.stamp("2024-05-31T15:30:45Z"))
    check_text(lambda: decode_lines(body, context))


INNER_NAMES = ["message", "message", "msg", "line", "level", "severity", "service", "tag", "a"]
OUTER_NAMES = ["host", "source", "sourcetype", "index", "fields", "other"]


@given(seeds)
def test_events(seed: int) -> None:
    random = Random(seed)
    options = Options(
        random.choice([{}, {"project_id": "p"}, {"level": "l"}]), on_invalid=OnInvalid.LEAVE_OUT
    )
    inner = make_objects(random, INNER_NAMES, ())
    outer = make_objects(random, OUTER_NAMES[: random.randint(1, 6)], ["time"])
    pairs = zip(outer * len(inner), inner * len(outer), strict=True)
    body = b"".join(
        b'{"index":"i","event":%s%s%s' % (inside, b"," if len(outside) > 2 else b"", outside[1:])
        for outside, inside in pairs
    )
    context = make_context(options=options)
    check(hec._Events, "_make_alike", lambda: hec.decode_events(body, context))


#: Objects that a dotted name reaches into come last.
DOCUMENT_NAMES = [
    *("message", "message", "level", "severity", "service.name", "service", "log.level", "a"),
    *("msg", "log", "fields", "agent"),
]
ACTIONS = [
    *(b'{"create":{}}', b'{"create":{}}', b'{"index":{"_index":"org"}}', b'{"index":{"_id":"7"}}'),
    b'{"delete":{}}',
]


@given(seeds)
def test_documents(seed: int) -> None:
    random = Random(seed)
    documents = make_objects(random, DOCUMENT_NAMES[: random.randint(6, 12)], ["@timestamp"])
    action = random.choice(ACTIONS)
    body = b"".join(b"%s\n%s\n" % (action, document) for document in documents)
    check(elasticsearch, "_make_alike", lambda: Bulk("shop").decode(body, make_context()))


@given(seeds)
def test_documents_whose_rest_stays_text(seed: int) -> None:
    random = Random(seed)
    firsts = ["@timestamp", "level", "log.level", "service.name", "message"]
    lasts = [["message"], ["msg"], ["service"], ["agent"], ["level", "log"], []]
    body = b"".join(
        b'{"create":{}}\n%s\n' % document for document in make_lines(random, firsts, lasts)
    )
    if random.random() < 0.3:
        body = body.replace("é".encode(), b"\xff")
    check_text(lambda: Bulk("shop").decode(body, make_context()))


def test_rest_of_usual_documents_stays_text() -> None:
    line = b'{"@timestamp":"2024-05-31T15:30:45Z","message":"m","log.level":"i","a":{"message":1}}'
    body = b'{"create":{}}\n%s\n' % line * columns.LEAST_LINES
    with patch.object(elasticsearch, "Columns", side_effect=AssertionError):
        batch = Bulk("shop").decode(body, make_context()).batch
    log = {
        "project_id": "shop",
        "timestamp": "2024-05-31T15:30:45Z",
        "level": "i",
        "service": "unknown_service",
        "message": "m",
        "metadata": {"a": {"message": 1}},
    }
    assert [log] * columns.LEAST_LINES == list(map(json.loads, bytes(batch.lines).splitlines()))


@pytest.mark.parametrize(
    "line",
    [
        b'{"level":30,"time":1717169445123,"pid":7,"msg":"m"}',
        b'{"level": 30, "time": 1717169445123, "pid": 7, "msg": "m"}',
        b'{"level":30,"time":1717169445123,"msg":"m","x":{"msg":"n"}}',
        b'{"pid":",\\"","level":30,"time":1717169445123,"msg":"m"}',
    ],
)
def test_rest_of_usual_lines_stays_text(line: bytes) -> None:
    body = b"\n".join([line] * columns.LEAST_LINES)
    with patch.object(mapping, "Columns", side_effect=AssertionError):
        batch = decode_lines(body, make_context(options=parse_options(QUERIES[0]))).batch
    log = json.loads(line)
    expected = {
        "project_id": "p",
        "timestamp": "2024-05-31T15:30:45.123Z",
        "level": str(log.pop("level")),
        "service": "s",
        "message": log.pop("msg"),
        "metadata": {name: value for name, value in log.items() if name != "time"},
    }
    assert [expected] * columns.LEAST_LINES == list(
        map(json.loads, bytes(batch.lines).splitlines())
    )


@pytest.mark.parametrize("query", QUERIES[:1])
def test_usual_logs_are_changed_together(query: str) -> None:
    body = b'{"level":30,"time":1717169445123,"msg":"m","pid":7}\n' * 2
    with patch.object(mapping, "change_log", side_effect=AssertionError):
        batch = decode_lines(body, make_context(options=parse_options(query))).batch
    assert 2 == batch.logs
