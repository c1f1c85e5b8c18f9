"""Kill and break everything on the way into ClickHouse, and count what its tables hold."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.clickhouse import (
    FAULTS,
    ClickHouse,
    Forward,
    compare,
    damage_cursor,
    stored_lines,
)
from tests.support.load import Load
from tests.support.service import Service, wait_for
from tests.torture.bench import Bench, tally
from tests.torture.table import Row

NODES = 2

#: Rounds on one set of data directories and tables, before these are tallied.
ROUNDS_A_CAMPAIGN = 25

#: Longest time between forward's start, or a round's, and what goes wrong in it.
LONGEST_PEACE_SECONDS = 0.5

#: Seconds that a client waits between two batches, so that what is stored can be checked.
PACE_SECONDS = 0.02

#: Little, so that most moments are in the midst of an insert.
CHUNK_BYTES = 2000
TIMEOUT_SECONDS = 2.0

#: Seconds in which all must be delivered at the end.
DELIVERY_SECONDS = 120.0


class PacedLoad(Load):
    """Clients that do not post all they can."""

    def note_post(self, number: int, port: int) -> None:
        """Take a break."""
        time.sleep(PACE_SECONDS)


class Node:
    """A service under load, and its forward."""

    def __init__(self, directory: Path, number: int, clickhouse: ClickHouse) -> None:
        directory.mkdir()
        self.name = f"node-{number}"
        self.service = Service(directory, workers=2, segment_bytes=40_000, segment_seconds=1)
        self.load = PacedLoad(self.service, threads=2, largest=8, start=number << 32)
        self.forward = Forward(
            directory,
            clickhouse.url,
            self.service.data_dir,
            node=self.name,
            forward_chunk_bytes=CHUNK_BYTES,
            clickhouse_timeout_seconds=TIMEOUT_SECONDS,
        )

    def __enter__(self) -> Self:
        self.service.start()
        self.load.__enter__()
        self.forward.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.load.stop()
        self.service.kill()
        self.forward.kill()

    def restart_forward(self) -> None:
        """Start forward again, and return when it delivers."""
        self.forward.start()
        wait_for(lambda: "delivering from" in self.forward.log())


class World:
    """Some nodes, and the engine that they deliver to."""

    def __init__(self, bench: Bench, directory: Path, clickhouse: ClickHouse) -> None:
        self.random = bench.random
        self.clickhouse = clickhouse
        self.nodes = [Node(directory / f"{n}", n, clickhouse) for n in range(1, NODES + 1)]

    def any_node(self) -> Node:
        """Return one of the nodes."""
        return self.random.choice(self.nodes)

    def set_window(self, blocks: int) -> None:
        """Let the tables remember so many inserts."""
        for table in ("logs", "logs_unfit"):
            self.clickhouse.query(
                f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = {blocks}"
            )


Break = Callable[[World], None]


def torture(bench: Bench, kills: int, rounds: int) -> Iterator[Row]:
    """Kill forward `kills` times, and break everything else `rounds` times each."""
    yield from _run(bench, "kill -9 of forward", kills, _kill_forward)
    yield from _run(bench, "kill -9 of the engine in an insert", rounds, _kill_engine)
    yield from _run(bench, "kill -9 of the service before forward", rounds, _kill_service)
    for fault in FAULTS:
        what = f"an insert is answered: {fault}"
        yield from _run(bench, what, max(1, rounds // 4), partial(_break_inserts, fault=fault))
    yield from _run(bench, "cursor lost or damaged", rounds, _damage_cursor)
    yield from _run(bench, "everything at once", 2 * rounds, _break_something)
    what = "everything at once, no token remembered"
    yield from _run(bench, what, rounds, _break_and_wait, window=0)


def _run(
    bench: Bench, what: str, rounds: int, break_it: Break, window: int | None = None
) -> Iterator[Row]:
    """Yield the row of one kind of fault, while there is time."""
    row = Row(f"forward: {what}")
    while row.tried < rounds and bench.has_time:
        count = min(ROUNDS_A_CAMPAIGN, rounds - row.tried)
        _campaign(bench, row, count, break_it, window)
    if row.tried:
        bench.say(f"{row.what}: {row.tried} rounds, {row.acknowledged} acknowledged")
        yield row


def _campaign(bench: Bench, row: Row, rounds: int, break_it: Break, window: int | None) -> None:
    directory = bench.make_directory()
    with ClickHouse(directory / "clickhouse") as clickhouse, contextlib.ExitStack() as stack:
        world = World(bench, directory, clickhouse)
        if window is not None:
            world.set_window(window)
        for node in world.nodes:
            stack.enter_context(node)
            wait_for(lambda: "delivering from" in node.forward.log())  # noqa: B023
        for _ in range(rounds):
            time.sleep(bench.random.uniform(0, LONGEST_PEACE_SECONDS))
            break_it(world)
            row.tried += 1
        _finish(row, world)
    bench.remove(directory)


def _finish(row: Row, world: World) -> None:
    """Deliver all that was acknowledged, and hold the tables against it."""
    world.clickhouse.break_inserts("full", times=0)
    stored: dict[Any, bytes] = {}
    for node in world.nodes:
        node.load.stop()
        wait_for(lambda: not node.service.has_orphans())  # noqa: B023
        node.service.stop()
        _deliver_the_rest(row, node)
        stored.update(stored_lines(node.name, node.service.files()))
    difference = compare(world.clickhouse, stored)
    row.lost += len(difference.lost)
    row.doubled += len(difference.doubled)
    row.forged += len(difference.foreign)
    row.half += len(difference.changed)
    if difference:
        row.remark(str(difference)[:500])
    _tally_acknowledged(row, world)


def _deliver_the_rest(row: Row, node: Node) -> None:
    if node.forward.stop() != 0:
        row.fail("forward did not stop with status 0")
    if "Traceback" in node.forward.all_logs():
        row.fail("forward wrote a traceback")
    deadline = time.monotonic() + DELIVERY_SECONDS
    while node.forward.run_once(DELIVERY_SECONDS) != 0:
        if time.monotonic() > deadline:
            row.fail("forward did not come to its end")
            return


def _tally_acknowledged(row: Row, world: World) -> None:
    """Look for each acknowledged batch in the tables themselves."""
    for node in world.nodes:
        path = node.service.data_dir / "rows"
        rows = world.clickhouse.rows(f"logs WHERE node = '{node.name}'", "metadata")
        lines = [f'{{"metadata":{row["metadata"]}}}\n' for row in rows]
        lines += [
            row["raw"] + "\n"
            for row in world.clickhouse.rows(f"logs_unfit WHERE node = '{node.name}'", "raw")
        ]
        path.write_text("".join(lines))
        tally(row, node.load, [path])


def _kill_forward(world: World) -> None:
    node = world.any_node()
    node.forward.kill()
    node.restart_forward()


def _kill_engine(world: World) -> None:
    world.clickhouse.kill()
    time.sleep(world.random.uniform(0, 0.3))
    world.clickhouse.start()
    _wait_for_a_delivery(world)


def _kill_service(world: World) -> None:
    service = world.any_node().service
    service.kill()
    service.start()


def _break_inserts(world: World, fault: str) -> None:
    """Let a few inserts go wrong after a few that do not, and wait until that is over."""
    times, after = world.random.randrange(1, 4), world.random.randrange(3)
    seconds = world.random.choice((0.5, 1.5 * TIMEOUT_SECONDS))
    world.clickhouse.break_inserts(fault, times, after, seconds)
    wait_for(lambda: world.clickhouse.faults_left() == 0, DELIVERY_SECONDS)
    _wait_for_a_delivery(world)


def _wait_for_a_delivery(world: World) -> None:
    before = world.clickhouse.count()
    wait_for(lambda: world.clickhouse.count() > before, DELIVERY_SECONDS)


def _damage_cursor(world: World) -> None:
    node = world.any_node()
    node.forward.kill()
    path = node.service.data_dir / "forward.cursor"
    damage_cursor(path, world.random.choice(("lost", "torn", "garbled", "copied", "empty")))
    node.restart_forward()


def _break_something(world: World) -> None:
    """Break one thing or two of those above, at once."""
    breaks: list[Break] = [_kill_forward, _kill_engine, _kill_service, _damage_cursor]
    fault = world.random.choice(FAULTS)
    if world.random.random() < 0.5:
        world.clickhouse.break_inserts(fault, world.random.randrange(1, 4), seconds=1)
    for break_it in world.random.sample(breaks, world.random.choice((1, 2))):
        break_it(world)


def _break_and_wait(world: World) -> None:
    """Break something, but leave no insert under way that a table is asked about too early.

    Without a memory of tokens, a server that still stores what it was sent before a client looks
    for it doubles it; there is no window that short.
    """
    _break_something(world)
    time.sleep(TIMEOUT_SECONDS)
