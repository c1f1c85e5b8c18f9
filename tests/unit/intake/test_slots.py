"""Decode slots: which bodies wait for one, in which order, and for how long."""

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
from astralog.intake.decoder import UNQUEUED_BYTES, Slot, Slots
from astralog.intake.options import parse_options
from tests.support.decoding import make_context
from tests.support.service import make_log

LONG = UNQUEUED_BYTES + 1


def code_of(action: Callable[[], Any]) -> str:
    with pytest.raises(Rejection) as rejected:
        action()
    return rejected.value.code


def use_slot(slot: Slot, size: int = LONG, deadline: float = inf) -> None:
    with slot.use(size, deadline):
        pass


def test_greenlets_get_a_slot_one_at_a_time_in_order_of_arrival() -> None:
    """A greenlet keeps the slot in a pause, and queues behind all others for its next use."""
    slot = Slot()
    events: list[str] = []

    def decode(name: str) -> None:
        for number in range(2):
            with slot.use(LONG, inf):
                events.append(f"{name}{number} starts")
                gevent.sleep(0.001)
                events.append(f"{name}{number} ends")

    gevent.joinall([gevent.spawn(decode, name) for name in "abc"], raise_error=True)
    order = ["a0", "b0", "c0", "a1", "b1", "c1"]
    assert [f"{name} {what}" for name in order for what in ("starts", "ends")] == events


def test_short_text_needs_no_slot() -> None:
    """A short text is decoded while the user of the slot pauses."""
    slot = Slot()
    with slot.use(LONG, inf):
        gevent.spawn(use_slot, slot, UNQUEUED_BYTES, 0).get(timeout=1)
        with pytest.raises(Rejection):
            gevent.spawn(use_slot, slot, LONG, 0).get(timeout=1)


def test_slot_that_is_not_free_in_time_is_queue_full() -> None:
    """A body waits until its deadline, and then leaves the queue."""
    slot = Slot()
    with slot.use(LONG, inf):
        assert "queue_full" == code_of(lambda: use_slot(slot, deadline=time.monotonic() + 0.01))
        assert "queue_full" == code_of(lambda: use_slot(slot, deadline=time.monotonic() - 1))
    use_slot(slot, deadline=time.monotonic())


def test_error_releases_the_slot() -> None:
    """The slot is free after a rejected body, and after a greenlet was killed."""
    slot = Slot()
    with pytest.raises(ValueError, match="invalid"), slot.use(LONG, inf):
        raise ValueError("invalid")

    def decode() -> None:
        with slot.use(LONG, inf):
            gevent.sleep(10)

    taken = gevent.spawn(decode)
    waiting = gevent.spawn(decode)
    gevent.sleep(0)
    waiting.kill()
    taken.kill()
    use_slot(slot, deadline=time.monotonic())


def test_garbage_collector_is_off_within_a_slot() -> None:
    """It is on again afterwards, also if two slots overlap or end with an error."""
    slots = Slots()
    with slots.slow.use(LONG, inf):
        assert not gc.isenabled()
        with pytest.raises(ValueError, match="invalid"), slots.fast.use(LONG, inf):
            raise ValueError("invalid")
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.parametrize("query", ["", "partial=true", "project_id=a&invalid=keep"])
@pytest.mark.parametrize("change", [{"timestamp": "x"}, {"level": None}, {"metadata": 7}])
def test_invalid_logs_leave_no_work_for_the_garbage_collector(
    query: str, change: dict[str, Any]
) -> None:
    """It would block the worker once the slot ends, and until then their garbage takes memory."""
    logs = [make_log(), *[make_log(**change)] * 100]
    body = b"\n".join(json.dumps(log).encode() for log in logs)
    context = make_context(options=parse_options(query))
    gc.collect()
    gc.freeze()  # the next collection is of the decode alone
    gc.disable()
    try:
        with suppress(Rejection):
            decode_lines(body, context)
        assert gc.collect() < len(logs)
    finally:
        gc.enable()


@pytest.mark.parametrize("is_valid", [True, False])
def test_sockets_are_polled_between_long_decodes(is_valid: bool) -> None:
    """They are polled after each time slice of heavy work, also if decodes fail."""
    slot = Slot()
    reader, writer = gevent.socket.socketpair()
    uses = 0

    def decode() -> None:
        nonlocal uses
        with suppress(ValueError), slot.use(LONG, inf):
            uses += 1
            if uses == 1:
                writer.send(b"x")
            end = time.perf_counter() + 1.5 * TIME_SLICE_SECONDS
            while time.perf_counter() < end:
                pass
            if not is_valid:
                raise ValueError("invalid")

    with reader, writer:
        greenlets = [gevent.spawn(decode) for _ in range(20)]
        reader.recv(1)
        assert uses < 3
        gevent.joinall(greenlets, raise_error=True)


def body_of(count: int, is_lines: bool, **fields: Any) -> bytes:
    logs = [json.dumps(make_log(**fields)).encode()] * count
    return b"\n".join(logs) if is_lines else b'{"logs":[%s]}' % b",".join(logs)


@pytest.mark.parametrize("decode", [decode_json, decode_lines])
def test_body_waits_for_the_slot_that_it_needs(decode: Any) -> None:
    """A long valid body needs the fast slot, a long invalid one both, and a short one none."""
    is_lines = decode is decode_lines
    slots = Slots()
    context = make_context(slots=slots, deadline=0)
    valid, invalid = body_of(100, is_lines), body_of(100, is_lines, level="")
    with slots.slow.use(LONG, inf):
        assert 100 == decode(valid, context).batch.logs
        assert "queue_full" == code_of(lambda: decode(invalid, context))
        short = body_of(1, is_lines, level="")
        assert "invalid_batch" == code_of(lambda: decode(short, context))
    with slots.fast.use(LONG, inf):
        assert "queue_full" == code_of(lambda: decode(valid, context))
        assert 1 == decode(body_of(1, is_lines), context).batch.logs
    assert "invalid_batch" == code_of(lambda: decode(invalid, context))


def test_longer_body_waits_before_it_is_split() -> None:
    """Splitting a body into its logs is heavy work, too."""
    slots = Slots()
    body = body_of(1, is_lines=False) + b" " * 2 * 1024 * 1024
    with slots.fast.use(LONG, inf):
        assert "queue_full" == code_of(
            lambda: decode_json(body, make_context(slots=slots, deadline=0))
        )
    assert (
        1 == decode_json(body, make_context(slots=slots, deadline=time.monotonic() + 1)).batch.logs
    )
