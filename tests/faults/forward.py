"""Kill and break everything on the way into ClickHouse, and count the rows of its tables."""

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from astralog.store.forward_state import CURSOR_NAME, encode_fact
from bench.measure import peak_mib
from tests.faults import forward_breaks as breaks
from tests.faults import shim
from tests.faults.bench import Bench, tally
from tests.faults.forward_breaks import Break, Node, World
from tests.faults.odd_values import make_odd_log
from tests.faults.table import Row
from tests.support.clickhouse import (
    FAULTS,
    ClickHouse,
    Difference,
    Forward,
    compare,
    make_line,
    stored_lines,
    write_segment,
)
from tests.support.service import Service, wait_for

#: Rounds on one set of data directories and tables, before these are tallied.
ROUNDS_A_CAMPAIGN = 25

#: Longest time between the start of forward, or of a round, and the fault in it.
LONGEST_PEACE_SECONDS = 0.5

#: Seconds in which all must be delivered at the end.
DELIVERY_SECONDS = 300.0

#: Memory that forward may take at most.
LARGEST_MIB = 150


def run(
    bench: Bench,
    kills: int,
    rounds: int,
    mixed_rounds: int,
    logs: int,
    segments: int,
    faults: Sequence[str] = FAULTS,
) -> Iterator[Row]:
    """Kill forward `kills` times, and break each other thing alone for `rounds` rounds.

    Break them together for `mixed_rounds` rounds, and calls on forward's own files. Then deliver
    this number of odd `logs`, and a log among this number of delivered `segments`.
    """
    yield from _run(bench, "kill -9 of forward", kills, breaks.kill_forward)
    yield from _run(bench, "kill -9 of the engine in an insert", rounds, breaks.kill_engine)
    yield from _run(bench, "kill -9 of the service before forward", rounds, breaks.kill_service)
    for fault in faults:
        break_it = partial(breaks.break_inserts, fault=fault)
        what = f"an insert is answered: {fault}"
        yield from _run(bench, what, max(1, rounds // 4), break_it)
    yield from _run(bench, "cursor lost or damaged", rounds, breaks.damage_cursor)
    yield from _run(bench, "everything at once", 2 * mixed_rounds, breaks.break_something)
    if shim.is_available():
        what = "calls on its own files fail, no token remembered"
        yield from _run(bench, what, 2 * mixed_rounds, breaks.break_own_files, 0, is_shimmed=True)
    else:
        bench.say("NOT TESTED: calls on forward's own files that fail; it takes gcc")
    what = "everything at once, no token remembered"
    yield from _run(bench, what, mixed_rounds, breaks.break_and_wait, window=0)
    if bench.has_time:
        yield _deliver_odd_values(bench, logs)
        yield _deliver_beside(bench, segments)


def _run(
    bench: Bench,
    what: str,
    rounds: int,
    break_it: Break,
    window: int | None = None,
    is_shimmed: bool = False,
) -> Iterator[Row]:
    """Yield the row of one kind of fault, while there is time."""
    row = Row(f"forward: {what}")
    while row.tried < rounds and bench.has_time:
        count = min(ROUNDS_A_CAMPAIGN, rounds - row.tried)
        _campaign(bench, row, count, break_it, window, is_shimmed)
    if row.tried:
        bench.say(f"{row.what}: {row.tried} rounds, {row.acknowledged} acknowledged")
        yield row


def _campaign(
    bench: Bench,
    row: Row,
    rounds: int,
    break_it: Break,
    window: int | None,
    is_shimmed: bool,
) -> None:
    directory = bench.make_directory()
    with ClickHouse(directory / "clickhouse") as clickhouse, contextlib.ExitStack() as stack:
        world = World(bench, directory, clickhouse, is_shimmed)
        if window is not None:
            world.set_window(window)
        for node in world.nodes:
            stack.enter_context(node)
            wait_for(lambda: "delivering from" in node.forward.log())  # noqa: B023 (called at once)
        for _ in range(rounds):
            time.sleep(bench.random.uniform(0, LONGEST_PEACE_SECONDS))
            break_it(world)
            row.tried += 1
        if is_shimmed and not world.failed_calls():
            row.fail("no call came to fail")
        _finish(row, world)
    bench.remove(directory)


def _finish(row: Row, world: World) -> None:
    """Deliver all acknowledged logs, and compare the tables with them."""
    world.clickhouse.break_inserts("full", times=0)
    stored: dict[Any, bytes] = {}
    with ThreadPoolExecutor() as threads:
        for ended in [threads.submit(_end, row, node) for node in world.nodes]:
            ended.result()
    for node in world.nodes:
        stored.update(stored_lines(node.name, node.service.files()))
    _note(row, compare(world.clickhouse, stored))
    _tally_acknowledged(row, world)


def _note(row: Row, difference: Difference) -> None:
    """Add the errors in the tables to the row."""
    row.lost += len(difference.lost)
    row.doubled += len(difference.doubled)
    row.forged += len(difference.foreign)
    row.half += len(difference.changed)
    if any(difference):
        row.remark(str(difference)[:500])


def _end(row: Row, node: Node) -> None:
    """Stop a node, and deliver its last logs."""
    node.load.stop()
    wait_for(lambda: not node.service.has_orphans())
    node.service.stop()
    if node.forward.stop() != 0:
        row.fail("forward did not stop with status 0")
    if "Traceback" in node.forward.all_logs():
        row.fail("forward wrote a traceback")
    deadline = time.monotonic() + DELIVERY_SECONDS
    try:
        while node.forward.run_once(DELIVERY_SECONDS) != 0:
            assert time.monotonic() < deadline, "it gave up again and again"
    except (AssertionError, subprocess.TimeoutExpired) as error:
        row.fail(f"forward did not come to its end: {error}\n{node.forward.log()[-1000:]}")


def _tally_acknowledged(row: Row, world: World) -> None:
    """Search the tables for each acknowledged batch."""
    for node in world.nodes:
        path = node.service.data_dir / "rows"
        rows = world.clickhouse.rows(f"logs WHERE node = '{node.name}'", "metadata")
        lines = [f'{{"metadata":{row["metadata"]}}}\n' for row in rows]
        lines += [
            row["raw"] + "\n"
            for row in world.clickhouse.rows(f"logs_dead_letter WHERE node = '{node.name}'", "raw")
        ]
        path.write_text("".join(lines))
        tally(row, node.load, [path])


def _deliver_odd_values(bench: Bench, logs: int) -> Row:
    """Send odd logs, one per batch, and compare the rows with the stored lines."""
    row = Row("forward: odd values")
    directory = bench.make_directory()
    with ClickHouse(directory / "clickhouse") as clickhouse:
        service = Service(directory, workers=1)
        forward = Forward(directory, clickhouse.url, service.data_dir)
        with service:
            for number in range(logs):
                answer = service.drain({"logs": [make_odd_log(bench.random, number)]})
                if answer.status != 200:
                    row.fail(f"a log was answered {answer.status}: {answer.raw[:200]!r}")
                row.acknowledged += answer.status == 200
                row.tried += 1
            service.stop()
        if forward.run_once(DELIVERY_SECONDS) != 0:
            row.fail("forward did not come to its end")
        _note(row, compare(clickhouse, dict(stored_lines("node-1", service.files()))))
        row.lost += row.acknowledged - clickhouse.count()
    bench.remove(directory)
    return row


def _deliver_beside(bench: Bench, segments: int) -> Row:
    """Start with a number of delivered segments, and deliver one more in time."""
    row = Row(f"forward: among {segments:,} delivered segments", tried=1)
    directory = bench.make_directory()
    data_dir = directory / "data"
    data_dir.mkdir()
    with ClickHouse(directory / "clickhouse") as clickhouse:
        forward = Forward(directory, clickhouse.url, data_dir)
        content = write_segment(data_dir, [make_line(0)]).read_bytes()
        assert forward.run_once() == 0
        names = [f"20250101T000000.{number:06d}Z-1" for number in range(segments)]
        for name in names:
            (data_dir / f"{name}.ndjson").write_bytes(content)
        with (data_dir / CURSOR_NAME).open("ab") as file:
            file.writelines(encode_fact(f"done {name}") for name in names)
        with forward.start():
            wait_for(lambda: "delivering from" in forward.log())
            write_segment(data_dir, [make_line(1)], 1)
            started = time.monotonic()
            wait_for(lambda: clickhouse.count() > 1)
            row.was_back_after(time.monotonic() - started)
            if clickhouse.count() != 2:
                row.doubled += clickhouse.count() - 2
            if peak_mib(forward.process.pid) > LARGEST_MIB:
                row.fail(f"forward took {peak_mib(forward.process.pid):.0f} MiB")
    bench.remove(directory)
    return row
