"""Signals under load, restarts without a pause, and a start on a directory full of segments."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator

from tests.faults.bench import Bench, finish, under_load, wait_for_more
from tests.faults.table import Row
from tests.support.load import Load
from tests.support.numbered_batches import make_body
from tests.support.service import Service, process_group, running_pids, wait_for

#: Seconds in which a signal that ends the service has ended it.
STOP_SECONDS = 11.0

ORPHANS = 50

#: Seconds from the start on a full directory until it serves, and until its orphans are sealed.
START_SECONDS = 5.0
RECOVER_SECONDS = 15.0

#: How the lives of a service end that is started again and again, and the statuses that this may
#: have: before the service minds a signal, the signal ends its process.
ABRUPT = {
    signal.SIGTERM: (0, -signal.SIGTERM),
    signal.SIGQUIT: (0, -signal.SIGQUIT),
    signal.SIGKILL: (-signal.SIGKILL,),
}

#: Longest time from a start to a signal that is to come while the service boots.
BOOT_SECONDS = 1.0

#: The master ends a worker by force after 9 s, which none needs, whether it serves or boots.
FORCE_SECONDS = 8.5

ENDING = {
    "SIGTERM": [signal.SIGTERM],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGQUIT": [signal.SIGQUIT],
    "SIGTERM, then SIGQUIT": [signal.SIGTERM, signal.SIGQUIT],
}


def run(
    bench: Bench,
    rounds: int,
    starts: int,
    segments: int,
    endings: Iterable[str] = tuple(ENDING),
) -> Iterator[Row]:
    """Try each signal `rounds` times, `starts` without a pause, and one on sealed `segments`."""
    for name in endings:
        if bench.has_time:
            yield _end(bench, Row(f"{name}, start again"), ENDING[name], rounds)
    if bench.has_time:
        yield _reload(bench, rounds)
        yield _resize(bench, rounds)
        yield _restart(bench, starts)
        yield _start_on_many(bench, segments)


def _end(bench: Bench, row: Row, numbers: list[signal.Signals], rounds: int) -> Row:
    service = Service(bench.make_directory(), workers=2)
    with under_load(bench, row, service) as load:
        for _ in range(rounds):
            load.wait_for_acknowledged(10)
            time.sleep(bench.random.uniform(0, 0.2))
            start = time.monotonic()
            for number in numbers:
                service.signal(number)
                time.sleep(bench.random.uniform(0, 0.05))
            status = service.wait()
            if status != 0:
                row.fail(f"ended with status {status}")
            if time.monotonic() > start + STOP_SECONDS:
                row.fail(f"took {time.monotonic() - start:.1f} s to end")
            wait_for(lambda: not service.pids())
            if numbers == [signal.SIGTERM] and service.files("*.open"):
                row.fail("left an open segment")
            service.start()
            wait_for_more(load, 5, row, start)
            row.tried += 1
    return row


def _reload(bench: Bench, rounds: int) -> Row:
    """Replace the workers with SIGHUP: no batch may be rejected for good."""
    row = Row("SIGHUP")
    service = Service(bench.make_directory(), workers=2)
    with under_load(bench, row, service) as load:
        for _ in range(rounds):
            load.wait_for_every_worker()
            service.reload()
            row.tried += 1
            wait_for_more(load, 20, row)
    if set(load.rejected.values()) - {"stopping"}:
        row.fail(f"rejected with {set(load.rejected.values())}")
    if load.keyed.codes.keys() - {"stopping", "key_in_use"}:
        row.fail(f"rejected batches with keys with {set(load.keyed.codes)}")
    return row


def _resize(bench: Bench, rounds: int) -> Row:
    """Add a worker with SIGTTIN and take one away with SIGTTOU."""
    row = Row("SIGTTIN and SIGTTOU")
    service = Service(bench.make_directory(), workers=1)
    with under_load(bench, row, service) as load:
        for _ in range(rounds):
            for number, workers in ((signal.SIGTTIN, 2), (signal.SIGTTOU, 1)):
                service.signal(number)
                service.workers = workers
                load.wait_for_every_worker()
                wait_for_more(load, 5, row)
            row.tried += 1
    return row


def _restart(bench: Bench, starts: int) -> Row:
    """Start and end a service again and again on one port, every other time while it boots.

    While it serves, SIGKILL is for all of it. A master that is killed alone leaves workers that
    hold the port for a while; the next one waits.
    """
    row = Row("started and ended without a pause")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    service = Service(bench.make_directory(), workers=2, bind=f"{address[0]}:{address[1]}").start()
    groups = {service.process.pid}
    load = Load(service, threads=4, keyed=4)
    try:
        with load:
            wait_for_more(load, 10, row)
            for number in range(starts):
                end = list(ABRUPT)[number % len(ABRUPT)]
                _end_abruptly(row, service, end, is_serving=number % 2 == 0)
                service.launch()
                groups.add(service.process.pid)
                row.tried += 1
                if number % 2:
                    service.wait_until_listening()
                    wait_for_more(load, 5, row)
                else:
                    time.sleep(bench.random.uniform(0, BOOT_SECONDS))
            service.wait_until_listening()
            wait_for_more(load, 20, row)
        finish(bench, row, service, load)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not _pids_of(groups))
        if _pids_of(groups):
            row.fail("left processes")
        try:
            socket.create_server(address).close()
        except OSError:
            row.fail("left the port taken")
    finally:
        for pid in _pids_of(groups):
            os.kill(pid, signal.SIGKILL)
    return row


def _end_abruptly(row: Row, service: Service, number: signal.Signals, is_serving: bool) -> None:
    start = time.monotonic()
    if number == signal.SIGKILL and is_serving:
        service.kill()
    else:
        service.signal(number)
    status = service.wait()
    if status not in ABRUPT[number]:
        row.fail(f"{number.name}: ended with status {status}")
    if time.monotonic() > start + FORCE_SECONDS:
        row.fail(f"{number.name}: took {time.monotonic() - start:.1f} s to end")
    if "Traceback" in service.log():
        row.fail(f"{number.name}: wrote a traceback")


def _pids_of(groups: set[int]) -> list[int]:
    return [pid for pid in running_pids() if process_group(pid) in groups]


def _start_on_many(bench: Bench, segments: int) -> Row:
    """Start on many segments, and orphans that end in half a line."""
    row = Row(f"start on {segments:,} segments, {ORPHANS} orphans")
    service = Service(bench.make_directory(), workers=2)
    service.data_dir.mkdir()
    load = Load(service, threads=4, start=1 << 32, keyed=4)
    for number in range(segments + ORPHANS):
        logs = json.loads(make_body(number, 2))["logs"]
        content = "".join(json.dumps(log) + "\n" for log in logs)
        name = f"20240531T153045.{number:06}Z-999999999.ndjson"
        if number < segments:
            (service.data_dir / name).write_text(content)
        else:
            (service.data_dir / f"{name}.open").write_text(content + '{"project_id":"org')
        load.acknowledged[number] = 2
    start = time.monotonic()
    with service:
        if time.monotonic() - start > START_SECONDS:
            row.fail(f"took {time.monotonic() - start:.1f} s to start")
        with load:
            wait_for_more(load, 50, row, start)
        wait_for(lambda: not service.has_orphans())
        if time.monotonic() - start > RECOVER_SECONDS:
            row.fail(f"took {time.monotonic() - start:.1f} s to seal the orphans")
        row.tried += 1
        finish(bench, row, service, load)
    return row
