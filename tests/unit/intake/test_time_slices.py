"""A large body leaves others their turn."""

import json
import time
from typing import Any

import gevent
import pytest

from astralog import time_slice
from astralog.intake.formats import PIECE_BYTES
from astralog.intake.strict_json import ESCAPES_PER_LOOK, replace_lone_surrogates
from tests.support.decoding import encode_batch, encode_lines
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
