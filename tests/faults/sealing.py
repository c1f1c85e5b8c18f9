"""Obstacles to a seal, and background syncs that fail."""

import contextlib
import errno
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.bench import Bench, finish, under_load, wait_for_more
from tests.faults.shim import ShimmedService
from tests.faults.table import Row
from tests.support.load import Load
from tests.support.metrics import read_samples
from tests.support.service import Service, wait_for

FOREIGN = b"somebody else's\n"


def run(bench: Bench, rounds: int) -> Iterator[Row]:
    """Try each fault `rounds` times."""
    yield _take_directory(bench, rounds)
    yield _take_names(bench, rounds)
    yield _fail_background_sync(bench, rounds)


def _take_directory(bench: Bench, rounds: int) -> Row:
    """Take the data directory away while its segments are to be sealed, and put it back."""
    row = Row("data directory away at a seal")
    service = Service(bench.make_directory(), workers=2, segment_seconds=1)
    away = service.data_dir.with_name("away")
    with under_load(bench, row, service) as load:
        for _ in range(rounds):
            load.wait_for_acknowledged(20)
            load.wait_for_every_worker()  # so that each has an open segment
            service.data_dir.rename(away)
            time.sleep(bench.random.uniform(0.5, 2))
            away.rename(service.data_dir)
            row.tried += 1
            wait_for_more(load, 5, row)
    return row


def _take_names(bench: Bench, rounds: int) -> Row:
    """Put a file at the name of a segment that is about to be sealed."""
    row = Row("a sealed segment's name is taken")
    service = Service(bench.make_directory(), workers=2, segment_seconds=1)
    with under_load(bench, row, service) as load:
        for _ in range(rounds):
            load.wait_for_acknowledged(20)
            load.wait_for_every_worker()
            for path in service.files("*.open"):
                with contextlib.suppress(FileExistsError):  # it was sealed just now
                    _take_name(row, path)
            wait_for_more(load, 5, row)
    return row


def _take_name(row: Row, path: Path) -> None:
    """Put a file at the sealed name of an open segment, and check that it is not replaced."""
    target = path.with_suffix("")
    with target.open("xb") as file:
        file.write(FOREIGN)
    wait_for(lambda: not path.exists())
    row.tried += 1
    if target.read_bytes() == FOREIGN:
        target.unlink()
    else:
        row.fail(f"{target.name} was replaced")


def _fail_background_sync(bench: Bench, rounds: int) -> Row:
    """Lose batches acknowledged since the last good sync: no more than are logged and counted."""
    row = Row("everysec: EIO on sync, pages lost")
    service = ShimmedService(bench.make_directory(), sync="everysec", segment_bytes=200_000)
    with service:
        with Load(service) as load:
            for _ in range(rounds):
                load.wait_for_acknowledged(50)
                service.control.fail("sync", errno.EIO, times=bench.random.choice((1, 2, 4)))
                service.control.wait_for_hits("sync", 10)
                service.control.end_faults()
                row.tried += 1
                wait_for_more(load, 5, row)
        metrics = service.request("GET", "/metrics").raw.decode()
        counted = read_samples(metrics)["possibly_lost_batches_total"]
        told = service.log().count("acknowledged batches that may be lost")
        finish(bench, row, service, load)
    row.undecided, row.lost = row.lost, 0
    if not 0 < row.undecided <= counted or not 0 < told <= row.tried:
        row.fail(f"{row.undecided} lost, {counted:g} counted, told {told} times")
    return row
