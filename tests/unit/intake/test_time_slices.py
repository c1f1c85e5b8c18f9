"""A large body leaves others their turn."""

import json
import time
from typing import Any

import gevent
import pytest

from astralog import time_slice
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.formats import PIECE_BYTES
from astralog.intake.options import NO_OPTIONS, Options
from astralog.intake.strict_json import ESCAPES_PER_LOOK, replace_lone_surrogates
from astralog.time_slice import ITEMS_PER_LOOK, PAUSE_SECONDS, map_in_slices
from tests.support.decoding import encode_batch, encode_lines, make_context
from tests.support.service import make_log


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what grows by a number of seconds whenever greenlets that are ready may run."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what grows by a number of seconds whenever others may run; any work takes too long."""
    taken: list[float] = []
    monkeypatch.setattr(gevent, "sleep", taken.append)
    monkeypatch.setattr(time_slice, "TIME_SLICE_SECONDS", -1)
    return taken


@pytest.mark.parametrize("encode", [encode_batch, encode_lines])
def test_others_have_a_turn_after_each_piece_of_a_long_body(
    yields: list[float], encode: Any
) -> None:
    """Others wait for a piece of a body at most, in either form of a batch."""
    logs = [json.dumps(make_log(message="x" * 10_000)).encode()] * 400
    body = b'{"logs":[%s]}' % b",".join(logs) if encode is encode_batch else b"\n".join(logs)
    assert 400 == encode(body).logs
    assert len(body) // PIECE_BYTES <= len(yields)
    assert {0} == set(yields)


@pytest.mark.parametrize("encode", [encode_batch, encode_lines])
def test_others_have_a_turn_while_logs_are_checked_one_by_one(
    pauses: list[float], encode: Any
) -> None:
    """Others do not wait for the end of a batch that goes the slow way."""
    logs = [json.dumps(make_log()).encode().replace(b"{", b'{"level": 5, ', 1)] * 500
    body = b'{"logs":[%s]}' % b",".join(logs) if encode is encode_batch else b"\n".join(logs)
    assert 500 == encode(body).logs
    assert len(pauses) >= 500
    assert min(pauses) > 0, "others are served only in a pause of some length"


def test_others_have_a_turn_while_surrogates_are_replaced(pauses: list[float]) -> None:
    """Others do not wait for the end of a body of nothing but escapes."""
    replace_lone_surrogates(rb"\ud83d" * (5 * ESCAPES_PER_LOOK))
    assert 5 == len(pauses)
    assert min(pauses) > 0


@pytest.mark.parametrize(
    ("changes", "options"),
    [({"timestamp": "2024-05-31 15:30"}, NO_OPTIONS), ({}, Options(moves_unknown=True))],
    ids=["timestamps", "options"],
)
@pytest.mark.parametrize("is_lines", [False, True])
def test_others_have_a_turn_while_many_logs_are_changed(
    pauses: list[float], changes: dict[str, str], options: Options, is_lines: bool
) -> None:
    """Others do not wait for what is done to each log of a piece, one after another."""
    logs = [json.dumps(make_log(**changes)).encode()] * (3 * ITEMS_PER_LOOK)
    body = b"\n".join(logs) if is_lines else b'{"logs":[%s]}' % b",".join(logs)
    context = make_context(options=options)
    assert len(logs) == (decode_lines if is_lines else decode_json)(body, context).batch.logs
    assert 3 == pauses.count(PAUSE_SECONDS)


def test_items_are_worked_through_in_their_order(pauses: list[float]) -> None:
    """Every item is taken once, also where they are no whole number of slices."""
    for count in (0, 1, ITEMS_PER_LOOK, 2 * ITEMS_PER_LOOK + 1):
        assert list(map(str, range(count))) == map_in_slices(str, range(count))
