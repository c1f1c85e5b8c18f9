"""Other clients are served while a large body is decoded."""

import json
from typing import Any

import gevent
import pytest

from astralog.deadlines import ITEMS_PER_CHECK, PAUSE_SECONDS, hub_time
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.formats import PIECE_BYTES
from astralog.intake.options import NO_OPTIONS, Options
from astralog.intake.strict_json import UTF8_STEP_BYTES, replace_lone_surrogates, to_utf8
from tests.support.decoding import encode_batch, encode_lines, make_context
from tests.support.service import make_log


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that receives the seconds of each pause; all work exceeds its slice."""
    taken: list[float] = []
    monkeypatch.setattr(gevent, "sleep", taken.append)
    monkeypatch.setattr(hub_time, "work_seconds", -1)
    return taken


@pytest.mark.parametrize("encode", [encode_batch, encode_lines])
def test_others_are_served_after_each_piece_of_a_long_body(
    pauses: list[float], encode: Any
) -> None:
    """Others wait for one piece at most, in either form of a batch."""
    logs = [json.dumps(make_log(message="x" * 10_000)).encode()] * 400
    body = b'{"logs":[%s]}' % b",".join(logs) if encode is encode_batch else b"\n".join(logs)
    assert 400 == encode(body).logs
    assert len(body) // PIECE_BYTES <= len(pauses)
    assert {PAUSE_SECONDS} == set(pauses)


@pytest.mark.parametrize("encode", [encode_batch, encode_lines])
def test_others_are_served_while_logs_are_checked_one_by_one(
    pauses: list[float], encode: Any
) -> None:
    """Others do not wait for the end of a batch that marshmallow checks."""
    logs = [json.dumps(make_log()).encode().replace(b"{", b'{"level": 5, ', 1)] * 500
    body = b'{"logs":[%s]}' % b",".join(logs) if encode is encode_batch else b"\n".join(logs)
    assert 500 == encode(body).logs
    assert len(pauses) >= 500


def test_others_are_served_while_surrogates_are_replaced(pauses: list[float]) -> None:
    """Others do not wait for the end of a body of only escapes, of any kind."""
    for escape in (rb"\ud83d", rb"\n", rb"\u0041"):
        pauses.clear()
        replace_lone_surrogates(escape * (5 * ITEMS_PER_CHECK) + rb"\ud83d")
        assert len(pauses) >= 5


def test_others_are_served_while_a_long_text_is_made_utf8(pauses: list[float]) -> None:
    """Others do not wait for the end of a long text of invalid bytes only."""
    to_utf8(b"\xff" * (3 * UTF8_STEP_BYTES))
    assert 3 == len(pauses)


def test_others_are_served_while_blank_lines_are_skipped(pauses: list[float]) -> None:
    """They contain no log at which decoding would pause."""
    assert 0 == encode_lines(b"\n" * (5 * ITEMS_PER_CHECK)).logs
    assert len(pauses) >= 5


@pytest.mark.parametrize(
    ("changes", "options"),
    [({"timestamp": "2024-05-31 15:30"}, NO_OPTIONS), ({}, Options(moves_unknown=True))],
    ids=["timestamps", "options"],
)
@pytest.mark.parametrize("is_lines", [False, True])
def test_others_are_served_while_many_logs_are_changed(
    pauses: list[float], changes: dict[str, str], options: Options, is_lines: bool
) -> None:
    """Others do not wait until all logs of a piece are changed."""
    logs = [json.dumps(make_log(**changes)).encode()] * (3 * ITEMS_PER_CHECK)
    body = b"\n".join(logs) if is_lines else b'{"logs":[%s]}' % b",".join(logs)
    context = make_context(options=options)
    assert len(logs) == (decode_lines if is_lines else decode_json)(body, context).batch.logs
    assert len(pauses) >= 3
