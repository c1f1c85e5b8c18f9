"""Sealed segments are compressed by the running service, each once, without disturbing it."""

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.metrics import read_samples
from tests.support.processes import open_paths
from tests.support.service import Service, make_batch, process_name, size_of, wait_for
from tests.support.upgrade import HeldService

DRAFT, LOCK = ".compressing", "compression.lock"

#: Of linux/sched.h.
SCHED_IDLE = 5


def messages(service: Service) -> list[str]:
    return sorted(log["message"] for log in service.logs())


def send(service: Service, *names: str) -> None:
    for name in names:
        assert 200 == service.drain(make_batch(name)).status


def wait_until_compressed(service: Service) -> list[Path]:
    """Return the files once all are compressed."""
    wait_for(lambda: service.files() and service.files() == service.files("*.ndjson.zst"))
    return service.files()


@pytest.mark.quick
def test_sealed_segments_are_compressed(tmp_path: Path) -> None:
    """Each log is there once, in files for owner and group; the metrics count them."""
    with Service(tmp_path, compress="zstd", segment_seconds=0.5) as service:
        send(service, "a", "b")
        first = wait_until_compressed(service)
        send(service, "c")
        wait_for(lambda: len(service.files("*.zst")) > len(first))
        assert ["a", "b", "c"] == messages(service)
        assert {0o640} == {stat.S_IMODE(path.stat().st_mode) for path in service.files()}
        count = len(wait_until_compressed(service))
        size = sum(path.stat().st_size for path in service.files())

        def is_shown() -> bool:
            samples = read_samples(service.request("GET", "/metrics").raw.decode())
            shown = samples.get("compressed_segments_total"), samples.get("segments_bytes sealed")
            return shown == (count, size)

        wait_for(is_shown)
        samples = read_samples(service.request("GET", "/metrics").raw.decode())
        assert (count, size) == (samples["segments sealed"], samples["compressed_bytes_total"])
        assert samples["stored_bytes_total"] == samples["compressed_plain_bytes_total"]
        assert [0, 0] == [
            samples["compression_failures_total"],
            samples["compression_waiting_segments"],
        ]
        assert 0 == service.stop()
        assert not (service.data_dir / DRAFT).exists()
    assert "WARNING" not in service.log()


def test_nothing_is_compressed_without_the_setting(tmp_path: Path) -> None:
    """There is no process, file or metric for it."""
    with Service(tmp_path, segment_seconds=0.1) as service:
        send(service, "a")
        wait_for(lambda: service.files("*.ndjson"))
        assert service.compressor_pid() is None
        assert b"astralog_compress" not in service.request("GET", "/metrics").raw
        assert not list(service.data_dir.glob("*compress*"))


def test_the_process_has_the_lowest_priority_and_nothing_of_the_service(tmp_path: Path) -> None:
    """It holds no port, and yields the CPU to others."""
    with Service(tmp_path, compress="zstd") as service:
        pid = wait_for(service.compressor_pid)
        wait_for((service.data_dir / LOCK).exists)
        assert SCHED_IDLE == os.sched_getscheduler(pid)
        assert 19 == os.getpriority(os.PRIO_PROCESS, pid)
        assert not [path for path in open_paths(pid) if path.startswith("socket:")]


def test_another_process_takes_the_place_of_one_that_is_killed(tmp_path: Path) -> None:
    """Unfinished work is repeated, and the service is not disturbed."""
    with Service(tmp_path, compress="zstd", segment_seconds=0.5) as service:
        workers = service.worker_pids()
        for number in range(3):
            pid = wait_for(service.compressor_pid)
            os.kill(pid, signal.SIGSTOP)  # before the next one can write a draft
            (service.data_dir / DRAFT).write_bytes(b"half")
            os.kill(pid, signal.SIGKILL)
            send(service, str(number))
            wait_for(lambda: service.compressor_pid() not in (None, pid))  # noqa: B023
        wait_until_compressed(service)
        assert ["0", "1", "2"] == messages(service)
        assert not (service.data_dir / DRAFT).exists()
        assert workers == service.worker_pids()
        assert 3 == service.log().count("the compressor died")
        assert 0 == service.stop()
        assert not service.pids()


def test_the_process_ends_with_a_master_that_is_killed(tmp_path: Path) -> None:
    """It neither runs beside the next start nor holds the lock."""
    with Service(tmp_path, compress="zstd") as service:
        pid = wait_for(service.compressor_pid)
        service.signal(signal.SIGKILL)
        service.wait()
        wait_for(lambda: not process_name(pid))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_the_process_ends_with_the_service(tmp_path: Path, number: signal.Signals) -> None:
    """Also on a terminal, which sends its signal to all processes."""
    with Service(tmp_path, compress="zstd") as service:
        wait_for(service.compressor_pid)
        if number == signal.SIGINT:
            os.killpg(service.process.pid, number)
        else:
            service.signal(number)
        assert 0 == service.wait()
        assert not service.pids()
        assert "Traceback" not in service.log()
        assert "died" not in service.log()


def test_of_two_services_one_compresses(tmp_path: Path) -> None:
    """During an upgrade, for example; the other continues once the first has ended."""
    with Service(tmp_path, compress="zstd") as first:
        lock = first.data_dir / LOCK
        holder = wait_for(first.compressor_pid)
        wait_for(lambda: holder == locking_pid(lock))
        second_path = tmp_path / "second"
        second_path.mkdir()
        with Service(second_path, compress="zstd", data_dir=first.data_dir) as second:
            waiting = wait_for(second.compressor_pid)
            time.sleep(1.5)  # more than a look
            assert holder == locking_pid(lock)
            send(second, "a")
            second.reload()
            wait_until_compressed(second)
            assert 0 == first.stop()
            wait_for(lambda: waiting == locking_pid(lock))
            send(second, "b")
            second.reload()
            wait_until_compressed(second)
            assert ["a", "b"] == messages(second)


def locking_pid(path: Path) -> int | None:
    """Return the process that has locked a file (proc_locks(5)), which others may have open."""
    for line in Path("/proc/locks").read_text().splitlines():
        *_, pid, place, _, _ = line.split()
        if path.exists() and place.endswith(f":{path.stat().st_ino}"):
            return int(pid)
    return None


def test_a_restart_under_load_goes_on_compressing(tmp_path: Path) -> None:
    """Behind a held socket, no log is lost or doubled."""
    service = HeldService(tmp_path, compress="zstd", workers=2, segment_bytes=100_000)
    with service, Load(service) as load:
        load.wait_for_acknowledged(100)
        assert 0 == service.stop()
        service.start()
        load.wait_for_acknowledged(100)
        load.stop()
        service.reload()
        wait_until_compressed(service)
        load.check(service.logs())
        assert 0 == service.stop()


def test_compressed_segments_are_removed_by_the_retention(tmp_path: Path) -> None:
    """By their compressed size, oldest first, and none reappears."""
    settings = {"compress": "zstd", "segment_bytes": 50_000, "retain_bytes": 60_000}
    with Service(tmp_path, workers=2, **settings) as service, Load(service) as load:
        load.wait_for_acknowledged(1000)
        load.stop()
        service.reload()
        wait_until_compressed(service)
        wait_for(lambda: "removed segments up to" in service.log())
        wait_for(lambda: sum(map(size_of, service.files())) <= 60_000)
        last = service.log().rpartition("removed segments up to ")[2].partition(":")[0]
        # The open segment of each worker is not removed, however old it is.
        assert sum(path.name <= last for path in service.files()) <= 2
        assert 0 == service.stop()
