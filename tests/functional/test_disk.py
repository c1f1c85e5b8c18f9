"""A full or missing disk: batches are rejected, and accepted again by themselves afterwards."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.metrics import read_samples
from tests.support.service import TOKEN, Answer, Service, make_batch, wait_for
from tests.support.small_disk import small_disk

KIB = 1024
DISK_BYTES = 4096 * KIB

#: A file system that has few inodes: its root and the data directory take two.
INODES = 42
FEW_INODES_BYTES = 64 * 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system and return its directory."""
    with small_disk(tmp_path / "disk", DISK_BYTES) as path:
        yield path


@pytest.fixture
def disk_of_few_inodes(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system with more room than inodes and return its directory."""
    with small_disk(tmp_path / "disk", FEW_INODES_BYTES, inodes=INODES) as path:
        yield path


def check_unavailable(answer: Answer, code: str) -> None:
    """Check the rejection of a batch."""
    assert (503, code) == (answer.status, answer.body["code"])
    assert ["status", "code", "message"] == list(answer.body)
    assert int(answer.headers["Retry-After"]) > 0


def check_not_ready(service: Service, code: str) -> None:
    """Check that /ready is 503, and that the process is healthy nevertheless."""
    ready, health = (service.request("GET", path) for path in ("/ready", "/health"))
    assert (503, {"status": "unavailable", "reason": code}) == (ready.status, ready.body)
    assert int(ready.headers["Retry-After"]) > 0
    assert (200, {"status": "ok"}) == (health.status, health.body)


def is_ready(service: Service) -> bool:
    return service.request("GET", "/ready").status == 200


def wait_until_ready(service: Service) -> None:
    wait_for(lambda: is_ready(service))


def fill(directory: Path, leave_bytes: int = 0) -> Path:
    """Fill the disk up to some bytes, and return the file."""
    path = directory / "ballast"
    with path.open("wb") as file:
        file.write(bytes(free_bytes(directory) - leave_bytes))
    return path


def free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


@pytest.mark.parametrize("sync", ["always", "never"])
def test_a_full_disk_rejects_whole_batches(tmp_path: Path, disk: Path, sync: str) -> None:
    """A batch that does not fit is not written at all; free space is enough to continue."""
    with Service(tmp_path, data_dir=disk / "data", sync=sync) as service:
        service.data_dir = disk / "data"
        assert 200 == service.drain(make_batch("first")).status
        before = service.content()
        ballast = fill(disk, leave_bytes=64 * KIB)
        big = make_batch(*["x" * 1000] * 400)
        for _ in range(5):
            check_unavailable(service.drain(big), "storage_full")
            assert before == service.content()
        # A second later at most, it tries whether a small batch would fit, and is ready again.
        wait_for(lambda: service.drain(big).status == 503 and not is_ready(service))
        ballast.unlink()
        wait_until_ready(service)
        assert 200 == service.drain(big).status
        assert 401 == len(service.logs())
        assert 1 == service.log().count("batches are rejected")
        assert 1 == service.log().count("storage_full is over")
        assert 0 == service.stop()
        assert [] == service.files("*.open")
        assert 401 == len(service.logs())


def test_small_batch_is_accepted_on_a_nearly_full_disk(tmp_path: Path, disk: Path) -> None:
    """A batch that is too large keeps a small one out only briefly."""
    with Service(tmp_path, data_dir=disk / "data") as service:
        service.data_dir = disk / "data"
        fill(disk, leave_bytes=64 * KIB)
        check_unavailable(service.drain(make_batch("x" * 200_000)), "storage_full")
        wait_until_ready(service)
        assert 200 == service.drain(make_batch("small")).status
        assert ["small"] == [log["message"] for log in service.logs()]


@pytest.mark.quick
def test_a_service_on_a_full_disk_is_not_ready(tmp_path: Path, disk: Path) -> None:
    """While no batch would fit, /ready is never 200."""
    with Service(tmp_path, data_dir=disk / "data") as service:
        service.data_dir = disk / "data"
        assert 200 == service.drain(make_batch("first")).status
        ballast = fill(disk)
        check_unavailable(service.drain(make_batch("x" * 10_000)), "storage_full")
        with pytest.raises(AssertionError, match="in vain"):
            wait_for(lambda: is_ready(service), timeout=2.5)
        check_not_ready(service, "storage_full")
        ballast.unlink()
        wait_until_ready(service)
        assert 200 == service.drain(make_batch("last")).status
        assert ["first", "last"] == [log["message"] for log in service.logs()]


def test_the_floor_keeps_some_of_the_disk_free(tmp_path: Path, disk: Path) -> None:
    """Below the limit batches are rejected although they would fit."""
    floor = DISK_BYTES // 2
    with Service(tmp_path, data_dir=disk / "data", min_free_bytes=floor) as service:
        service.data_dir = disk / "data"
        statuses = [service.drain(make_batch("x" * 100_000)).status for _ in range(40)]
        accepted = statuses.index(503)
        assert 10 < accepted < 25
        assert free_bytes(disk) >= floor
        ballast = fill(disk, leave_bytes=floor - KIB)
        wait_for(lambda: not is_ready(service))
        check_unavailable(service.drain(make_batch("small")), "storage_full")
        check_not_ready(service, "storage_full")
        ballast.unlink()
        wait_until_ready(service)
        assert 200 == service.drain(make_batch("small")).status
        assert floor <= free_bytes(disk)


def post_until_rejected(service: Service) -> tuple[list[str], Answer]:
    """Post batches until one is rejected; return the stored ones, and the rejection."""
    stored: list[str] = []
    while (answer := service.drain(make_batch(str(len(stored))))).status == 200:
        stored.append(str(len(stored)))
        assert len(stored) < 1000
    return stored, answer


def test_batches_are_rejected_before_the_inodes_run_out(
    tmp_path: Path, disk_of_few_inodes: Path
) -> None:
    """None of them is stored; the message names inodes; one freed file ends it."""
    data_dir = disk_of_few_inodes / "data"
    # An inode for each 256 KiB is 32; of 42 inodes, the share that 8 of 64 MiB are is 5.
    settings = {"data_dir": data_dir, "segment_bytes": 1, "min_free_bytes": 8 << 20}
    with Service(tmp_path, **settings) as service:
        stored, answer = post_until_rejected(service)
        check_unavailable(answer, "storage_full")
        assert "fewer than 5 inodes free (ASTRALOG_MIN_FREE_BYTES)" in answer.body["message"]
        assert 4 == os.statvfs(data_dir).f_favail
        assert len(stored) == INODES - 2 - 4
        wait_for(lambda: not is_ready(service))
        check_not_ready(service, "storage_full")
        samples = wait_for(lambda: inodes_of(service))
        assert (4, INODES) == samples
        for _ in range(5):
            check_unavailable(service.drain(make_batch("rejected")), "storage_full")
        assert 1 == service.log().count("batches are rejected")
        assert "4 inodes of the disk are free, ASTRALOG_MIN_FREE_BYTES keeps 5" in service.log()
        service.files()[0].unlink()
        wait_until_ready(service)
        assert 200 == service.drain(make_batch("last")).status
        assert [*stored[1:], "last"] == [log["message"] for log in service.logs()]
        assert 0 == service.stop()


def inodes_of(service: Service) -> tuple[float, float] | None:
    """Return the free and the total inodes in the metrics."""
    samples = read_samples(service.request("GET", "/metrics").raw.decode())
    free = samples.get("free_disk_inodes")
    return (free, samples["total_disk_inodes"]) if free == 4 else None


def test_retention_makes_room_for_inodes(tmp_path: Path, disk_of_few_inodes: Path) -> None:
    """The oldest segments are removed, although bytes are free; rejected batches are not stored."""
    data_dir = disk_of_few_inodes / "data"
    settings = {"data_dir": data_dir, "min_free_bytes": 8 << 20, "retain_free_bytes": 16 << 20}
    with Service(tmp_path, segment_bytes=1, **settings) as service:
        stored: list[str] = []
        for number in range(200):
            answer = service.drain(make_batch(str(number)))
            if answer.status == 200:
                stored.append(str(number))
            else:
                check_unavailable(answer, "storage_full")
                assert "inodes" in answer.body["message"]
                wait_until_ready(service)
        assert len(stored) > INODES
        kept = [log["message"] for log in service.logs()]
        assert stored[-len(kept) :] == kept
        assert len(kept) >= INODES - 2 - 20
        assert "by free inodes" in service.log()
        assert 0 == service.stop()


def test_a_floor_above_the_free_space_is_noticed_without_a_batch(tmp_path: Path) -> None:
    """A load balancer learns that batches would be rejected; it is logged once."""
    with Service(tmp_path, min_free_bytes=1 << 60) as service:
        wait_for(lambda: not is_ready(service))
        check_not_ready(service, "storage_full")
        for _ in range(5):
            check_unavailable(service.drain(make_batch("a")), "storage_full")
        assert [] == service.files()
        assert 1 == service.log().count("batches are rejected")
        assert 0 == service.stop()


def test_removed_directory_rejects_until_it_is_back(tmp_path: Path) -> None:
    """Without its directory the service rejects, and continues when it exists again."""
    with Service(tmp_path) as service:
        assert 200 == service.drain(make_batch("lost")).status
        shutil.rmtree(service.data_dir)
        for _ in range(5):
            check_unavailable(service.drain(make_batch("rejected")), "storage_failed")
        check_not_ready(service, "storage_failed")
        assert not service.data_dir.exists()
        service.data_dir.mkdir()
        wait_until_ready(service)
        assert 200 == service.drain(make_batch("stored")).status
        assert ["stored"] == [log["message"] for log in service.logs()]
        assert 1 == service.log().count("batches are rejected")
        assert 1 == service.log().count("storage_failed is over")
        assert 0 == service.stop()
        assert [] == service.files("*.open")
        assert ["stored"] == [log["message"] for log in service.logs()]


@pytest.mark.parametrize("tokens", [TOKEN, ""], ids=["listed token", "made token"])
def test_worker_does_not_create_a_missing_directory(tmp_path: Path, tokens: str) -> None:
    """The disk may not be mounted; the tokens stay valid."""
    with Service(tmp_path, tokens=tokens, workers=1) as service:
        token = tokens or (service.data_dir / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        away = service.data_dir.rename(tmp_path / "away")
        (pid,) = service.worker_pids()
        os.kill(pid, signal.SIGKILL)
        service.wait_for_workers(other_than=[pid])
        wait_for(lambda: service.drain(make_batch("rejected"), headers).status == 503)
        check_unavailable(service.drain(make_batch("rejected"), headers), "storage_failed")
        assert not service.data_dir.exists()
        away.rename(service.data_dir)
        wait_until_ready(service)
        assert 200 == service.drain(make_batch("stored"), headers).status
        assert ["stored"] == [log["message"] for log in service.logs()]


def test_a_removed_directory_is_noticed_without_a_batch(tmp_path: Path) -> None:
    """A load balancer learns that batches would be rejected."""
    with Service(tmp_path) as service:
        wait_until_ready(service)
        shutil.rmtree(service.data_dir)
        wait_for(lambda: not is_ready(service))
        check_not_ready(service, "storage_failed")
        service.data_dir.mkdir()
        wait_until_ready(service)


def test_a_replaced_directory_is_used(tmp_path: Path) -> None:
    """Acknowledged logs are in the directory of that name, not in the one moved away."""
    with Service(tmp_path) as service:
        assert 200 == service.drain(make_batch("before")).status
        moved = service.data_dir.rename(tmp_path / "moved")
        service.data_dir.mkdir()
        for number in range(3):
            assert 200 == service.drain(make_batch(str(number))).status
        assert ["0", "1", "2"] == [log["message"] for log in service.logs()]
        (old,) = moved.glob("*.ndjson*")
        assert 1 == old.read_bytes().count(b"\n")
        assert 0 == service.stop()


def test_a_removed_segment_is_noticed(tmp_path: Path) -> None:
    """No batch is acknowledged that went to a file without a name."""
    with Service(tmp_path) as service:
        assert 200 == service.drain(make_batch("lost")).status
        (path,) = service.files()
        path.unlink()
        assert 200 == service.drain(make_batch("kept")).status
        assert ["kept"] == [log["message"] for log in service.logs()]
        assert 0 == service.stop()
        assert ["kept"] == [log["message"] for log in service.logs()]
