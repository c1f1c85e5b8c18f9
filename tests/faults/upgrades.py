"""Upgrades under load, and a service among the files of another version."""

import signal
from collections.abc import Iterator

from tests.faults.bench import Bench, finish, tally, under_load, wait_for_more
from tests.faults.table import Row
from tests.support.load import Load
from tests.support.service import Service, wait_for
from tests.support.upgrade import HeldService, copy_checkout, set_version

BROKEN = "raise RuntimeError('the code of another version was read')\n"


def run(bench: Bench, rounds: int) -> Iterator[Row]:
    """Upgrade `rounds` times in each way; reload and kill workers as often with broken code."""
    yield _restart_behind_socket(bench, rounds)
    if bench.has_time:
        yield _start_second_masters(bench, rounds)
        yield _reload_beside_broken_code(bench, rounds)


def _restart_behind_socket(bench: Bench, rounds: int) -> Row:
    """Restart with the next version while another process holds the socket."""
    row = Row("restart behind a held socket, next version")
    directory = bench.make_directory()
    root = copy_checkout(directory / "checkout")
    service = HeldService(directory, root, workers=2)
    with service, Load(service, threads=4, keyed=4) as load:
        for number in range(rounds):
            load.wait_for_every_worker()
            set_version(root, f"{number}.0.0")
            if service.stop() != 0:
                row.fail("did not stop with status 0")
            service.start()
            wait_for_more(load, 20, row)
            _check_version(row, service, f"{number}.0.0")
            row.tried += 1
        load.stop()
        _check_requests(row, load)
        finish(bench, row, service, load)
    return row


def _start_second_masters(bench: Bench, rounds: int) -> Row:
    """Start the next version in parallel to the old one with SIGUSR2, and end the old one."""
    row = Row("SIGUSR2, then SIGTERM, next version")
    for number in range(rounds):
        directory = bench.make_directory()
        root = copy_checkout(directory / "checkout")
        service = Service(directory, workers=2)
        service.root = root
        with service, Load(service, threads=4, keyed=4) as load:
            load.wait_for_every_worker()
            processes = len(service.pids())
            set_version(root, f"{number}.0.0")
            service.signal(signal.SIGUSR2)
            _wait_for_processes(service, 2 * processes)
            wait_for_more(load, 20, row)
            if service.stop() != 0:
                row.fail("did not stop with status 0")
            wait_for_more(load, 20, row)
            _check_version(row, service, f"{number}.0.0")
            load.stop()
            _check_requests(row, load)
            tally(row, load, service.files())
            row.tried += 1
    return row


def _reload_beside_broken_code(bench: Bench, rounds: int) -> Row:
    """Reload, and kill workers, after every file of the service was replaced by a broken one."""
    row = Row("SIGHUP and dying workers with broken code on disk")
    directory = bench.make_directory()
    root = copy_checkout(directory / "checkout")
    service = Service(directory, workers=2)
    service.root = root
    with under_load(bench, row, service) as load:
        load.wait_for_every_worker()
        for path in [*root.glob("*.py"), *root.glob("astralog/**/*.py")]:
            path.write_text(BROKEN)
        for _ in range(rounds):
            service.reload()
            wait_for_more(load, 20, row)
            (first, *_) = service.worker_pids()
            service.kill_worker(first)
            service.wait_for_workers(other_than=[first])
            wait_for_more(load, 20, row)
            row.tried += 1
    return row


def _wait_for_processes(service: Service, count: int) -> None:
    wait_for(lambda: len(service.pids()) == count)


def _check_version(row: Row, service: Service, version: str) -> None:
    if service.request("GET", "/").body["version"] != version:
        row.fail("serves another version")


def _check_requests(row: Row, load: Load) -> None:
    """Note every request that was not answered 200."""
    failed = len(load.rejected) + len(load.unanswered)
    if failed:
        row.fail(f"requests failed: {set(load.rejected.values())}", failed)
    if load.keyed.codes.keys() - {"key_in_use"}:
        row.fail(f"requests with keys failed: {set(load.keyed.codes)}")
