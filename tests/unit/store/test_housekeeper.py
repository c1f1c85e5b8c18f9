import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from astralog.settings import Settings
from astralog.store import files, housekeeper
from astralog.store.housekeeper import (
    POLL_SECONDS,
    SLICE_SECONDS,
    STALE_SECONDS,
    STEP_SEGMENTS,
    DiskUsage,
    Housekeeper,
)
from astralog.store.keys.database import LOCK_SECONDS
from tests.support import foreign
from tests.support.fake_system import BreakOs, Disk
from tests.unit.store.segments import opened, plain

Make = Callable[..., Housekeeper]

LINE = b'{"message":"a"}\n'

#: Steps after which work that should have ended is endless.
MOST_STEPS = 10_000


@pytest.fixture
def make(settings: Settings) -> Iterator[Make]:
    """Return a factory of housekeepers of one directory; they are closed at the end."""
    made: list[Housekeeper] = []

    def make_one(**changes: object) -> Housekeeper:
        made.append(Housekeeper(replace(settings, **changes)))  # type: ignore[arg-type]
        return made[-1]

    yield make_one
    for one in made:
        one.close()


def settle(one: Housekeeper) -> None:
    """Run a housekeeper until it has processed all changes."""
    for _ in range(MOST_STEPS):
        if one.step() >= POLL_SECONDS:
            return
    raise AssertionError("the work does not end")


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, or of a directory, as another process does."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


# --- One for all


def test_one_of_many_is_the_housekeeper(make: Make, tmp_path: Path) -> None:
    """The others wait, and one of them takes over when it ends."""
    (tmp_path / plain("a")).write_bytes(LINE)
    first, second = make(), make()
    settle(first)
    settle(second)
    assert first.disk_usage is not None
    assert second.disk_usage is None
    first.close()
    assert first.disk_usage is None
    settle(second)
    assert second.disk_usage is not None
    assert 1 == second.disk_usage.sealed_segments


def test_killed_housekeeper_is_replaced(make: Make, tmp_path: Path) -> None:
    """The kernel releases the lock however a process ends."""
    program = """
import sys
from pathlib import Path
from astralog.settings import Settings
from astralog.store.housekeeper import Housekeeper
one = Housekeeper(Settings(data_dir=Path(sys.argv[1]), tokens="x"))
while one.disk_usage is None:
    one.step()
print("looks", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    pipe = subprocess.PIPE
    second = make()
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert "looks\n" == process.stdout.readline()
        settle(second)
        assert second.disk_usage is None
        process.kill()
    settle(second)
    assert second.disk_usage is not None


def test_housekeeper_leaves_no_file(make: Make, tmp_path: Path) -> None:
    """The directory contains only segments, and no descriptor stays open."""
    before = os.listdir("/proc/self/fd")
    one = make()
    settle(one)
    assert [] == names(tmp_path)
    one.close()
    assert len(before) == len(os.listdir("/proc/self/fd"))


def test_housekeeper_creates_no_directory(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for a missing directory, and starts once it exists."""
    path = tmp_path / "data"
    one = make(data_dir=path)
    for _ in range(3):
        settle(one)
    assert [] == names(tmp_path)
    assert 1 == len(caplog.messages)
    assert "No such file or directory" in caplog.messages[0]
    path.mkdir()
    settle(one)
    assert one.disk_usage is not None


def test_replaced_directory_is_kept(make: Make, tmp_path: Path) -> None:
    """The state of the old one is dropped, and its segments are not touched."""
    path = tmp_path / "data"
    path.mkdir()
    (path / plain("a")).write_bytes(LINE)
    one = make(data_dir=path, retain_bytes=1)
    settle(one)
    moved = path.rename(tmp_path / "moved")
    (moved / plain("b")).write_bytes(LINE)
    path.mkdir()
    (path / opened("c")).write_bytes(LINE + LINE + b"torn")
    settle(one)
    settle(one)
    assert [plain("b")] == names(moved)
    assert one.disk_usage is not None
    assert (1, 2 * len(LINE)) == (one.disk_usage.sealed_segments, one.disk_usage.sealed_bytes)


def test_read_only_disk_is_released(make: Make, tmp_path: Path, disk: Disk) -> None:
    """It could not be unmounted for a repair while its directory is open."""
    one = make()
    settle(one)
    disk.flags = os.ST_RDONLY
    settle(one)
    settle(one)
    held = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    assert str(tmp_path) not in held
    assert one.disk_usage is None
    disk.flags = 0
    settle(one)
    assert one.disk_usage is not None


def test_failing_disk_is_released(make: Make, tmp_path: Path) -> None:
    """The housekeeper closes everything for a while, and then continues."""
    (tmp_path / plain("a")).write_bytes(LINE)
    before = os.listdir("/proc/self/fd")
    one = make()
    settle(one)
    assert POLL_SECONDS == one.stand_aside()
    assert len(before) == len(os.listdir("/proc/self/fd"))
    assert one.disk_usage is None
    settle(one)
    assert one.disk_usage is not None
    assert 1 == one.disk_usage.sealed_segments


# --- Recovery


def test_orphaned_segments_are_sealed_first(make: Make, tmp_path: Path) -> None:
    """Before the sizes of all segments are read."""
    for number in range(1000):
        (tmp_path / plain(1000 + number)).touch()
    for name in (opened("0"), opened("2")):
        (tmp_path / name).write_bytes(LINE + b"torn")
    one = make()
    while one.disk_usage is None:
        one.step()
        if not list(tmp_path.glob("*.open")):
            break
    assert one.disk_usage is None
    for name in (plain("0"), plain("2")):
        assert LINE == (tmp_path / name).read_bytes()
    settle(one)
    assert one.disk_usage is not None
    assert (1002, 0) == (one.disk_usage.sealed_segments, one.disk_usage.open_segments)


def test_segment_of_a_later_dead_worker_is_sealed(make: Make, tmp_path: Path) -> None:
    """Without another start; segments with a writer are not touched."""
    one = make()
    settle(one)
    for name in ("a", "b"):
        (tmp_path / opened(name)).write_bytes(LINE + b"torn")
    with locked(tmp_path / opened("a")):
        settle(one)
        settle(one)
        assert [opened("a"), plain("b")] == names(tmp_path)
        assert one.disk_usage is not None
        assert (1, len(LINE) + 4) == (one.disk_usage.open_segments, one.disk_usage.open_bytes)
    settle(one)
    assert [plain("a"), plain("b")] == names(tmp_path)


def test_a_file_that_is_just_being_made_is_left_to_its_writer(make: Make, tmp_path: Path) -> None:
    """A new file may not be locked yet; one that stays unlocked is an orphan."""
    one = make()
    settle(one)
    (tmp_path / opened("a")).touch()
    settle(one)
    assert [opened("a")] == names(tmp_path)
    settle(one)
    assert [] == names(tmp_path)


def test_a_recovery_that_fails_is_tried_again(
    make: Make, tmp_path: Path, break_os: BreakOs, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once; other segments are recovered meanwhile."""
    for name in ("a", "b"):
        (tmp_path / opened(name)).write_bytes(LINE + b"torn")
    truncate = os.ftruncate
    cuts = break_os("ftruncate", errno.EIO)
    one = make()
    for _ in range(3):
        settle(one)
    assert [opened("a"), opened("b")] == names(tmp_path)
    lines = [r.getMessage() for r in caplog.records if r.name == housekeeper.__name__]
    failed = [f"cannot recover {opened(name)} yet: Input/output error" for name in "ab"]
    assert failed == lines
    assert truncate is not os.ftruncate
    cuts.times = 0
    settle(one)
    assert [plain("a"), plain("b")] == names(tmp_path)


def test_recovery_waits_for_the_keys_like_a_batch(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No batch waits for it, unlike for a seal."""
    path = tmp_path / opened("a")
    path.write_bytes(LINE)
    recovered = []
    monkeypatch.setattr(housekeeper, "recover_file", lambda *arguments: recovered.append(arguments))
    settle(make())
    assert (path, LOCK_SECONDS) in recovered


def test_disk_that_became_read_only_is_released(
    make: Make, tmp_path: Path, break_os: BreakOs
) -> None:
    """A failed recovery shows this, even if the disk's own state does not."""
    one = make()
    settle(one)
    (tmp_path / opened("a")).write_bytes(LINE + b"torn")
    settle(one)
    cuts = break_os("ftruncate", errno.EROFS)
    settle(one)
    held = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    assert str(tmp_path) not in held
    cuts.times = 0
    settle(one)
    assert [plain("a")] == names(tmp_path)


def test_other_files_are_not_touched(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are not counted, recovered, removed, waited for or logged."""
    before = foreign.make_all(tmp_path)
    (tmp_path / plain("a")).write_bytes(LINE)
    one = make(retain_bytes=len(LINE), retain_seconds=1e9, retain_free_bytes=1)
    for _ in range(3):
        settle(one)
    assert one.disk_usage is not None
    assert (0, 0) == (one.disk_usage.open_segments, one.disk_usage.open_bytes)
    assert (1, len(LINE)) == (one.disk_usage.sealed_segments, one.disk_usage.sealed_bytes)
    (tmp_path / plain("b")).write_bytes(LINE)
    settle(one)
    after = foreign.seen(tmp_path)
    assert before.items() <= after.items()
    assert {plain("b")} == after.keys() - before.keys()
    assert [] == caplog.messages


def test_later_other_files_are_not_touched(make: Make, tmp_path: Path) -> None:
    """The system's watch reports them as it does segments."""
    one = make(retain_bytes=1)
    settle(one)
    before = foreign.make_all(tmp_path)
    for _ in range(3):
        settle(one)
    assert before == foreign.seen(tmp_path)
    assert one.disk_usage is not None
    assert (0, 0) == (one.disk_usage.open_segments, one.disk_usage.sealed_segments)


# --- Retention


def test_retention_is_applied(make: Make, tmp_path: Path) -> None:
    """Sealed segments beyond the limits are removed; open ones count and stay."""
    one = make(retain_bytes=3 * len(LINE))
    for name in (plain("a"), plain("b"), plain("c"), opened("0")):
        (tmp_path / name).write_bytes(LINE)
    with locked(tmp_path / opened("0")):
        settle(one)
        assert [opened("0"), plain("b"), plain("c")] == names(tmp_path)
        (tmp_path / plain("d")).write_bytes(LINE)
        settle(one)
        assert [opened("0"), plain("c"), plain("d")] == names(tmp_path)
        assert 2 == one.retention.removed_segments


def test_nothing_is_removed_before_all_segments_are_known(make: Make, tmp_path: Path) -> None:
    """The oldest are removed first, though a directory may list them last."""
    count = 5 * STEP_SEGMENTS
    for number in range(count):
        (tmp_path / plain(number)).write_bytes(b"x")
    one = make(retain_bytes=count - 10)
    settle(one)
    assert [plain(number) for number in range(10, count)] == names(tmp_path)


def test_only_the_housekeeper_removes(make: Make, tmp_path: Path) -> None:
    """While another process has the lock, this one's settings remove nothing."""
    (tmp_path / plain("a")).write_bytes(LINE)
    one = make(retain_bytes=1)
    with locked(tmp_path):
        settle(one)
        assert [plain("a")] == names(tmp_path)
    settle(one)
    assert [] == names(tmp_path)


def test_everything_is_kept_by_default(make: Make, tmp_path: Path) -> None:
    """Without retention no segment is removed, however old."""
    for name in "abc":
        (tmp_path / plain(name)).write_bytes(LINE)
        os.utime(tmp_path / plain(name), (0, 0))
    one = make()
    settle(one)
    settle(one)
    assert [plain("a"), plain("b"), plain("c")] == names(tmp_path)


# --- Numbers


def test_the_usage_of_the_disk_is_known(make: Make, tmp_path: Path, disk: Disk) -> None:
    """Segments and bytes by state, and the numbers of the disk."""
    disk.free, disk.inodes, disk.free_inodes = 12345, 64, 9
    (tmp_path / plain("a")).write_bytes(b"x" * 10)
    (tmp_path / plain("b")).write_bytes(b"x" * 20)
    (tmp_path / "token").write_bytes(b"x" * 40)
    (tmp_path / opened("c")).write_bytes(b"x" * 5)
    one = make()
    with locked(tmp_path / opened("c")):
        settle(one)
    space = files.Space(disk.total, 12345, 64, 9, is_read_only=False)
    assert DiskUsage(1, 5, 2, 30, space) == one.disk_usage


def test_numbers_of_a_disk_that_hangs_are_not_shown(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers from before a step that does not return are not published."""
    one = make()
    settle(one)
    assert one.disk_usage is not None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + STALE_SECONDS + 1)
    assert one.disk_usage is None
    one.step()
    assert one.disk_usage is not None


def test_poll_is_done_in_short_steps(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many segments take many steps, and requests are served between them."""
    monkeypatch.setattr(housekeeper, "SLICE_SECONDS", SLICE_SECONDS / 6)
    for number in range(500):
        (tmp_path / plain(number)).touch()
    one = make()
    steps = 0
    while one.step() < POLL_SECONDS:
        steps += 1
    assert steps > 3
    assert one.disk_usage is not None


def test_fault_of_the_disk_ends_with_it(
    make: Make, break_os: BreakOs, caplog: pytest.LogCaptureFixture
) -> None:
    """After any failure the next poll starts again; it is logged once."""
    looks = break_os("space", errno.EIO, module=files)
    one = make()
    for _ in range(3):
        settle(one)
    assert one.disk_usage is None
    assert 1 == len(caplog.messages)
    assert "Input/output error" in caplog.messages[0]
    looks.times = 0
    settle(one)
    assert one.disk_usage is not None
