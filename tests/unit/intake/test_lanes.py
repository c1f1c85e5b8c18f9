"""Heavy decodes take turns: what waits for a turn, in which order, and for how long."""

import gc
import json
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any

import gevent
import gevent.socket
import pytest

from astralog.deadlines import TIME_SLICE_SECONDS
from astralog.errors import Rejection
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.lanes import UNQUEUED_BYTES, Lane, Lanes
from tests.support.decoding import make_context
from tests.support.service import make_log

LONG = UNQUEUED_BYTES + 1


def code_of(action: Callable[[], Any]) -> str:
    with pytest.raises(Rejection) as rejected:
        action()
    return rejected.value.code


def take_turn(lane: Lane, size: int = LONG, deadline: float = inf) -> None:
    with lane.turn(size, deadline):
        pass


def test_turns_come_one_at_a_time_in_the_order_of_arrival() -> None:
    """A greenlet keeps its turn in a pause, and asks for its next one behind all who wait."""
    lane = Lane()
    events: list[str] = []

    def decode(name: str) -> None:
        for number in range(2):
            with lane.turn(LONG, inf):
                events.append(f"{name}{number} starts")
                gevent.sleep(0.001)
                events.append(f"{name}{number} ends")

    gevent.joinall([gevent.spawn(decode, name) for name in "abc"], raise_error=True)
    order = ["a0", "b0", "c0", "a1", "b1", "c1"]
    assert [f"{name} {what}" for name in order for what in ("starts", "ends")] == events


def test_a_short_text_waits_for_no_turn() -> None:
    """What takes no time is decoded while a long turn pauses."""
    lane = Lane()
    with lane.turn(LONG, inf):
        gevent.spawn(take_turn, lane, UNQUEUED_BYTES, 0).get(timeout=1)
        with pytest.raises(Rejection):
            gevent.spawn(take_turn, lane, LONG, 0).get(timeout=1)


def test_a_turn_that_does_not_come_in_time_is_a_rejection() -> None:
    """A body waits for its turn until its deadline, and the lane goes on without it."""
    lane = Lane()
    with lane.turn(LONG, inf):
        assert "queue_full" == code_of(lambda: take_turn(lane, deadline=time.monotonic() + 0.01))
        assert "queue_full" == code_of(lambda: take_turn(lane, deadline=time.monotonic() - 1))
    take_turn(lane, deadline=time.monotonic())


def test_an_error_ends_a_turn() -> None:
    """A body that is rejected in its turn leaves the lane to the next, as does one that is gone."""
    lane = Lane()
    with pytest.raises(ValueError, match="invalid"), lane.turn(LONG, inf):
        raise ValueError("invalid")

    def decode() -> None:
        with lane.turn(LONG, inf):
            gevent.sleep(10)

    taken = gevent.spawn(decode)
    waiting = gevent.spawn(decode)
    gevent.sleep(0)
    waiting.kill()
    taken.kill()
    take_turn(lane, deadline=time.monotonic())


def test_no_garbage_is_collected_within_a_turn() -> None:
    """Collections go on behind it, also if turns overlap or end with an error."""
    lanes = Lanes()
    with lanes.slow.turn(LONG, inf):
        assert not gc.isenabled()
        with pytest.raises(ValueError, match="invalid"), lanes.fast.turn(LONG, inf):
            raise ValueError("invalid")
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.parametrize("is_valid", [True, False])
def test_others_are_served_between_long_turns(is_valid: bool) -> None:
    """Sockets are polled after each time slice of heavy work, also if its turns end in errors."""
    lane = Lane()
    reader, writer = gevent.socket.socketpair()
    turns = 0

    def decode() -> None:
        nonlocal turns
        with suppress(ValueError), lane.turn(LONG, inf):
            turns += 1
            if turns == 1:
                writer.send(b"x")
            end = time.perf_counter() + 1.5 * TIME_SLICE_SECONDS
            while time.perf_counter() < end:
                pass
            if not is_valid:
                raise ValueError("invalid")

    with reader, writer:
        greenlets = [gevent.spawn(decode) for _ in range(20)]
        reader.recv(1)
        assert turns < 10
        gevent.joinall(greenlets, raise_error=True)


def body_of(count: int, is_lines: bool, **fields: Any) -> bytes:
    logs = [json.dumps(make_log(**fields)).encode()] * count
    return b"\n".join(logs) if is_lines else b'{"logs":[%s]}' % b",".join(logs)


@pytest.mark.parametrize("decode", [decode_json, decode_lines])
def test_a_body_waits_for_the_lane_that_it_needs(decode: Any) -> None:
    """A long valid body takes a fast turn, a long invalid one a slow turn too, a short one none."""
    is_lines = decode is decode_lines
    lanes = Lanes()
    context = make_context(lanes=lanes, deadline=0)
    valid, invalid = body_of(100, is_lines), body_of(100, is_lines, level="")
    with lanes.slow.turn(LONG, inf):
        assert 100 == decode(valid, context).batch.logs
        assert "queue_full" == code_of(lambda: decode(invalid, context))
        short = body_of(1, is_lines, level="")
        assert "invalid_batch" == code_of(lambda: decode(short, context))
    with lanes.fast.turn(LONG, inf):
        assert "queue_full" == code_of(lambda: decode(valid, context))
        assert 1 == decode(body_of(1, is_lines), context).batch.logs
    assert "invalid_batch" == code_of(lambda: decode(invalid, context))


def test_a_longer_body_waits_before_it_is_split() -> None:
    """Cutting a body into its logs is heavy, too."""
    lanes = Lanes()
    body = body_of(1, is_lines=False) + b" " * 2 * 1024 * 1024
    with lanes.fast.turn(LONG, inf):
        assert "queue_full" == code_of(
            lambda: decode_json(body, make_context(lanes=lanes, deadline=0))
        )
    assert (
        1 == decode_json(body, make_context(lanes=lanes, deadline=time.monotonic() + 1)).batch.logs
    )
