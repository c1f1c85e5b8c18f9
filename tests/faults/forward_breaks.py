"""Faults between the segments and the tables: nodes, an engine, and ways to break them."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.bench import Bench
from tests.faults.shim import OPERATIONS, SHORT, TORN, ShimmedForward
from tests.support.clickhouse import FAULTS, ClickHouse, Forward
from tests.support.clickhouse import damage_cursor as spoil_cursor
from tests.support.load import Load
from tests.support.service import Service, wait_for

NODES = 2

#: Seconds that a client waits between two batches, so that stored lines can be checked.
PACE_SECONDS = 0.04

#: Little, so that many moments are in the midst of an insert.
CHUNK_BYTES = 6000
TIMEOUT_SECONDS = 2.0

#: Longest time in which calls are to fail; some kinds are rare.
HITS_SECONDS = 3.0

#: Seconds in which an insert must succeed again.
RECOVERY_SECONDS = 120.0


class PacedLoad(Load):
    """Clients that post at a limited rate."""

    def note_post(self, number: int, port: int) -> None:
        """Take a break."""
        time.sleep(PACE_SECONDS)


class Node:
    """A service under load, and its forward."""

    def __init__(
        self, directory: Path, number: int, clickhouse: ClickHouse, is_shimmed: bool
    ) -> None:
        directory.mkdir()
        self.name = f"node-{number}"
        self.service = Service(
            directory, workers=2, segment_bytes=40_000, segment_seconds=1, compress="zstd"
        )
        self.load = PacedLoad(self.service, threads=1, largest=8, start=number << 32, keyed=1)
        place = (directory, clickhouse.url, self.service.data_dir)
        self.forward = ShimmedForward(*place) if is_shimmed else Forward(*place)
        self.second_forward = Forward(*place, log_name="second.log")
        for forward in (self.forward, self.second_forward):
            forward.set(
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

    def __init__(
        self, bench: Bench, directory: Path, clickhouse: ClickHouse, is_shimmed: bool = False
    ) -> None:
        self.random = bench.random
        self.clickhouse = clickhouse
        self.nodes = [
            Node(directory / f"{number}", number, clickhouse, is_shimmed)
            for number in range(1, NODES + 1)
        ]

    def any_node(self) -> Node:
        """Return one of the nodes."""
        return self.random.choice(self.nodes)

    def failed_calls(self) -> int:
        """Return how many calls on forward's own files have failed."""
        forwards = [node.forward for node in self.nodes]
        controls = [forward.control for forward in forwards if isinstance(forward, ShimmedForward)]
        return sum(control.hits(name) for control in controls for name in OPERATIONS)

    def set_window(self, blocks: int) -> None:
        """Let the tables remember so many inserts."""
        for table in ("logs", "logs_dead_letter"):
            self.clickhouse.query(
                f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = {blocks}"
            )


Break = Callable[[World], None]


def kill_forward(world: World) -> None:
    node = world.any_node()
    node.forward.kill()
    node.restart_forward()


def kill_engine(world: World) -> None:
    world.clickhouse.kill()
    time.sleep(world.random.uniform(0, 0.3))
    world.clickhouse.start()
    _wait_for_a_delivery(world)


def kill_service(world: World) -> None:
    service = world.any_node().service
    service.kill()
    service.start()


def kill_compressor(world: World) -> None:
    if pid := world.any_node().service.compressor_pid():
        os.kill(pid, signal.SIGKILL)


def break_inserts(world: World, fault: str) -> None:
    """Let a few inserts go wrong after a few that do not, and wait until that is over."""
    times, after = world.random.randrange(1, 4), world.random.randrange(3)
    seconds = world.random.choice((0.5, 1.5 * TIMEOUT_SECONDS, 30.0))
    world.clickhouse.break_inserts(fault, times, after, seconds)
    wait_for(lambda: world.clickhouse.faults_left() == 0, RECOVERY_SECONDS)
    _wait_for_a_delivery(world)


def _wait_for_a_delivery(world: World) -> None:
    before = world.clickhouse.count()
    wait_for(lambda: world.clickhouse.count() > before, RECOVERY_SECONDS)


def damage_cursor(world: World) -> None:
    node = world.any_node()
    path = node.service.data_dir / "forward.cursor"
    wait_for(path.exists, RECOVERY_SECONDS)  # the forward may have just been started
    node.forward.kill()
    spoil_cursor(path, world.random.choice(("lost", "torn", "garbled", "copied", "empty")))
    node.restart_forward()


def break_own_files(world: World) -> None:
    """Let some calls on forward's own files fail: the cursor, the node's name and the status."""
    forward = world.any_node().forward
    assert isinstance(forward, ShimmedForward)
    operation = world.random.choice(("write", "write", "sync", "sync", "rename", "open", "dirsync"))
    outcomes = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT]
    outcome = world.random.choice(outcomes + [SHORT, TORN] * (operation == "write"))
    skip, times = world.random.randrange(4), world.random.randrange(1, 5)
    size = world.random.randrange(1, 80)  # of what a short write writes
    forward.control.fail(operation, outcome, skip=skip, times=times, argument=size)
    if world.random.random() < 0.3:  # a file that is gone is written anew, synced and renamed
        (forward.data_dir / "forward.cursor").unlink(missing_ok=True)
    forward.control.wait_for_hits(operation, HITS_SECONDS)
    forward.control.end_faults()


def start_a_second_forward(world: World) -> None:
    node = world.any_node()
    with node.second_forward.start("--once"):
        assert node.second_forward.wait() == 1, "two forwards deliver from one directory"


def break_something(world: World) -> None:
    """Break one thing or two of those above, at once."""
    breaks: list[Break] = [
        kill_forward,
        kill_engine,
        kill_service,
        kill_compressor,
        damage_cursor,
        start_a_second_forward,
    ]
    fault = world.random.choice(FAULTS)
    if world.random.random() < 0.5:
        world.clickhouse.break_inserts(fault, world.random.randrange(1, 4), seconds=1)
    for break_it in world.random.sample(breaks, world.random.choice((1, 2))):
        break_it(world)


def break_and_wait(world: World) -> None:
    """Break something, but leave no insert under way that a table is asked about too early.

    Without a memory of tokens, a server that still stores what it was sent before a client looks
    for it doubles it; there is no window that short.
    """
    break_something(world)
    time.sleep(TIMEOUT_SECONDS)
