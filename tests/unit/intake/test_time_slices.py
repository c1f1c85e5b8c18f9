"""A large body leaves others their turn: under gevent, `time.sleep(0)` lets other requests run."""

import json
import time
from typing import Any

import pytest

from astralog.intake.batch import PIECE_BYTES, encode_batch, encode_lines
from astralog.intake.schema import LOGS_PER_TIME_SLICE
from astralog.intake.strict_json import ESCAPES_PER_TIME_SLICE, replace_lone_surrogates
from tests.support.service import make_log


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what grows by a number of seconds whenever other requests may run."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


@pytest.mark.parametrize("encode", [encode_batch, encode_lines])
def test_others_have_a_turn_before_each_piece_of_a_long_body(
    turns: list[float], encode: Any
) -> None:
    """Others wait for a piece of a body at most, in either form of a batch."""
    logs = [json.dumps(make_log(message="x" * 10_000)).encode()] * 400
    body = b'{"logs":[%s]}' % b",".join(logs) if encode is encode_batch else b"\n".join(logs)
    assert 400 == encode(body).logs
    assert len(body) // PIECE_BYTES <= len(turns)
    assert {0} == set(turns)


@pytest.mark.parametrize("encode", [encode_batch, encode_lines])
def test_others_have_a_turn_while_logs_are_checked_one_by_one(
    turns: list[float], encode: Any
) -> None:
    """Others do not wait for the end of a batch that goes marshmallow's slow way."""
    logs = [json.dumps(make_log(message="cut \ud83d")).encode()] * (10 * LOGS_PER_TIME_SLICE)
    body = b'{"logs":[%s]}' % b",".join(logs) if encode is encode_batch else b"\n".join(logs)
    assert 10 * LOGS_PER_TIME_SLICE == encode(body).logs
    assert [0] * 10 == turns


def test_others_have_a_turn_while_surrogates_are_replaced(turns: list[float]) -> None:
    """Others do not wait for the end of a body of nothing but escapes."""
    replace_lone_surrogates(rb"\ud83d" * (5 * ESCAPES_PER_TIME_SLICE))
    assert [0] * 5 == turns
