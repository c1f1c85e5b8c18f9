import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from astralog.store import compression
from astralog.store.compression import (
    DRAFT_NAME,
    LOCK_NAME,
    LONGEST_RETRY_SECONDS,
    POLL_SECONDS,
    RETRY_SECONDS,
    Compressor,
    Saving,
    compress_segment,
)
from tests.support import foreign

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd
from tests.support.fake_system import Disk

Make = Callable[[], Compressor]

NAMES = [f"20261123T06250{number}.000000Z-1" for number in range(3)]
LINE = b'{"message":"a"}\n'


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a factory of compressors of one directory; they are closed at the end."""
    made: list[Compressor] = []

    def make_one() -> Compressor:
        made.append(Compressor(tmp_path))
        return made[-1]

    yield make_one
    for one in made:
        one.close()


def seal(directory: Path, *names: str) -> None:
    for name in names:
        (directory / f"{name}.ndjson").write_bytes(LINE * 100)


def forms(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.ndjson*"))


def break_segment(monkeypatch: pytest.MonkeyPatch, number: int, *names: str) -> list[str]:
    """Let the compression of some segments fail; return the list of attempts."""
    attempts: list[str] = []
    broken = set(names)

    def fail(directory: Path, name: str) -> Saving | None:
        attempts.append(name)
        if name in broken:
            raise OSError(number, os.strerror(number))
        return compress_segment(directory, name)

    monkeypatch.setattr(compression, "compress_segment", fail)
    return attempts


def test_segments_are_compressed_one_per_step_oldest_first(tmp_path: Path, make: Make) -> None:
    """Saved bytes and waiting segments are counted."""
    seal(tmp_path, *NAMES[1::-1])
    one = make()
    assert [0.0, 1] == [one.step(), one.counts.waiting_segments]
    assert [f"{NAMES[0]}.ndjson.zst", f"{NAMES[1]}.ndjson"] == forms(tmp_path)
    assert [0.0, 0] == [one.step(), one.counts.waiting_segments]
    assert [POLL_SECONDS, 2] == [one.step(), one.counts.segments]
    assert 200 * len(LINE) == one.counts.plain_bytes
    assert sum(path.stat().st_size for path in tmp_path.glob("*.zst")) == (
        one.counts.compressed_bytes
    )
    seal(tmp_path, NAMES[2])
    one.step()
    assert [f"{name}.ndjson.zst" for name in NAMES] == forms(tmp_path)
    assert one.counts.cpu_seconds > 0


def test_one_process_compresses_until_it_ends(tmp_path: Path, make: Make) -> None:
    """A second one waits, and does not count waiting segments."""
    seal(tmp_path, NAMES[0])
    first, second = make(), make()
    first.step()
    for _ in range(3):
        assert [POLL_SECONDS, None] == [second.step(), second.counts.waiting_segments]
    seal(tmp_path, NAMES[1])
    first.close()
    assert first.counts.waiting_segments is None
    second.step()
    assert [1, 1] == [first.counts.segments, second.counts.segments]


def test_killed_process_releases_its_lock(tmp_path: Path, make: Make) -> None:
    """At any point of its work."""
    code = (
        "import sys; from pathlib import Path;"
        "from astralog.store.compression import Compressor;"
        "one = Compressor(Path(sys.argv[1])); one.step(); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, os.fspath(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as other:
        assert other.stdout
        other.stdout.readline()
        seal(tmp_path, NAMES[0])
        one = make()
        one.step()
        assert [f"{NAMES[0]}.ndjson"] == forms(tmp_path)
        other.kill()
    one.step()
    assert [f"{NAMES[0]}.ndjson.zst"] == forms(tmp_path)


def test_the_draft_of_a_crash_is_removed_at_the_start(tmp_path: Path, make: Make) -> None:
    """But not by a process that waits for the lock."""
    first, second = make(), make()
    (tmp_path / DRAFT_NAME).touch()
    first.step()
    assert [LOCK_NAME] == [path.name for path in tmp_path.iterdir()]
    (tmp_path / DRAFT_NAME).touch()
    second.step()
    assert (tmp_path / DRAFT_NAME).exists()


def test_full_disk_is_retried(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With longer and longer pauses, one line at the start and one at the end."""
    seal(tmp_path, *NAMES[:2])
    with monkeypatch.context() as patch:
        break_segment(patch, errno.ENOSPC, NAMES[0])
        one = make()
        pauses = [one.step() for _ in range(9)]
    assert [RETRY_SECONDS, 2 * RETRY_SECONDS] == pauses[:2]
    assert LONGEST_RETRY_SECONDS == max(pauses) == pauses[-1]
    assert [9, 0, 2] == [one.counts.failures, one.counts.segments, one.counts.waiting_segments]
    assert 0.0 == one.step()
    assert caplog.messages == [
        "segments stay uncompressed: No space left on device; compression is retried",
        "segments are compressed again",
    ]


def test_lack_of_memory_is_retried(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For example for the compressor's window."""
    seal(tmp_path, NAMES[0])

    def fail(directory: Path, name: str) -> Saving | None:
        raise MemoryError

    monkeypatch.setattr(compression, "compress_segment", fail)
    one = make()
    assert RETRY_SECONDS == one.step()
    assert ["segments stay uncompressed: out of memory; compression is retried"] == caplog.messages


def test_failing_segment_does_not_delay_the_others(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, counted, and retried a minute later when no other is left."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seal(tmp_path, *NAMES[:2])
    attempts = break_segment(monkeypatch, errno.EIO, NAMES[0])
    one = make()
    assert [RETRY_SECONDS, 0.0, POLL_SECONDS] == [one.step() for _ in range(3)]
    assert [NAMES[0], NAMES[1]] == attempts
    assert 1 == one.counts.waiting_segments
    now += LONGEST_RETRY_SECONDS
    seal(tmp_path, NAMES[2])
    assert [0.0, RETRY_SECONDS, POLL_SECONDS] == [one.step() for _ in range(3)]
    assert [NAMES[2], NAMES[0]] == attempts[2:]
    assert 2 == one.counts.failures
    text = f"cannot compress {NAMES[0]}: Input/output error; it is retried every minute"
    assert [text] == caplog.messages


@pytest.mark.parametrize("change", ["replaced", "read-only"])
def test_no_file_of_a_failing_directory_is_open(
    tmp_path: Path, make: Make, disk: Disk, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """Its disk can be unmounted; later segments are compressed."""
    one = make()
    one.step()
    if change == "replaced":
        (tmp_path / LOCK_NAME).unlink()
        (tmp_path / LOCK_NAME).touch()
        reason = "the directory was replaced"
    else:
        disk.flags = os.ST_RDONLY
        reason = "Read-only file system"
    assert RETRY_SECONDS == one.step()
    held = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if entry.is_symlink()]
    assert not [path for path in held if path.startswith(os.fspath(tmp_path))]
    disk.flags = 0
    seal(tmp_path, NAMES[0])
    one.step()
    assert [f"{NAMES[0]}.ndjson.zst"] == forms(tmp_path)
    cannot = f"cannot compress in {tmp_path}: {reason}"
    assert [cannot, "segments are compressed again"] == caplog.messages


def test_files_that_are_no_segments_stay_as_they_are(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """They are neither compressed nor counted as waiting, old or new."""
    (tmp_path / "early").mkdir()
    before = foreign.make_all(tmp_path / "early")
    for path in (tmp_path / "early").iterdir():
        path.rename(tmp_path / path.name)
    one = make()
    assert [POLL_SECONDS, 0] == [one.step(), one.counts.waiting_segments]
    seal(tmp_path, NAMES[0])
    (tmp_path / "export2.ndjson").write_bytes(LINE)
    os.mkfifo(tmp_path / f"{NAMES[1]}.ndjson")
    assert [0.0, POLL_SECONDS] == [one.step(), one.step()]
    assert [0, 1] == [one.counts.waiting_segments, one.counts.segments]
    assert before.items() <= foreign.seen(tmp_path).items()
    assert [] == caplog.messages


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_a_segment_whose_other_name_is_taken_stays_plain(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A link to the same lines is not a segment: readers would not find them."""
    seal(tmp_path, NAMES[0])
    plain = tmp_path / f"{NAMES[0]}.ndjson"
    taken = tmp_path / f"{NAMES[0]}.ndjson.zst"
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(zstd.compress(plain.read_bytes()))
        taken.symlink_to("elsewhere")
    else:
        taken.mkdir()
    assert RETRY_SECONDS == make().step()
    assert LINE * 100 == plain.read_bytes()
    assert taken.is_dir() if kind == "directory" else taken.is_symlink()
    assert 1 == len(caplog.messages)
