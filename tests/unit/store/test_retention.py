import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from astralog.clock import TrustedClock
from astralog.settings import Settings
from astralog.store import files, housekeeper
from astralog.store.directory import AHEAD_ERA, Entry, SegmentIndex
from astralog.store.files import Space
from astralog.store.forward_state import DeliveredSegments
from astralog.store.housekeeper import (
    KEPT_SECONDS,
    SETTLE_SECONDS,
    STEP_SEGMENTS,
    UNDELIVERED_LOG_SECONDS,
    Retention,
)
from astralog.store.names import Form
from tests.support.fake_system import Disk
from tests.unit.store.segments import name_of, plain

Caplog = pytest.LogCaptureFixture


class Delivered(DeliveredSegments):
    """The delivered segments by a function."""

    def __init__(self, is_delivered: Callable[[str], bool]) -> None:
        self._is_delivered = is_delivered

    def __contains__(self, name: str) -> bool:
        return self._is_delivered(name)


class Directory:
    """A directory of sealed segments, and the segments that retention removes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sealed = SegmentIndex()

    def add(self, key: str, size: int, age: float = 0, form: Form = Form.PLAIN) -> None:
        """Add a segment, or another form of one, with some bytes and seconds."""
        name = name_of(key)
        name.path(self.path, form).write_bytes(b"x" * size)
        self.sealed.add(name, Entry(size, changed_at=time.time() - age))

    def retention(
        self, is_delivered: Callable[[str], bool] | None = None, **values: object
    ) -> Retention:
        settings = Settings(data_dir=self.path, tokens="x", **values)  # type: ignore[arg-type]
        made = Retention(settings, TrustedClock())
        made._delivered = Delivered(is_delivered) if is_delivered else None
        return made

    def apply(
        self,
        retention: Retention,
        free: int = 1 << 40,
        open_bytes: int = 0,
        free_inodes: int | None = None,
    ) -> list[str]:
        """Remove the segments beyond the retention; return the remaining files."""
        total = self.sealed.bytes + open_bytes
        inodes = None if free_inodes is None else 1 << 40
        space = Space(1 << 50, free, inodes, free_inodes, is_read_only=False)
        for _ in retention.remove_excess(self.sealed, total, space):
            pass
        return sorted(file.name for file in self.path.iterdir())


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    """Return a directory with three segments of 100, 200 and 300 bytes and seconds."""
    made = Directory(tmp_path)
    for name, size in (("a", 100), ("b", 200), ("c", 300)):
        made.add(name, size, age=400 - size)
    return made


@pytest.fixture
def prompt_disk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Return a disk without other users that shows freed bytes at once."""
    unlink = os.unlink

    def free_and_unlink(path: Path) -> None:
        disk.free += path.stat().st_size if path.exists() else 0
        disk.free_inodes += 1
        unlink(path)

    monkeypatch.setattr(os, "unlink", free_and_unlink)
    return disk


def names(letters: str) -> list[str]:
    return [plain(letter) for letter in letters]


@pytest.mark.parametrize(
    ("total_bytes", "kept"),
    [
        (0, "abc"),
        (600, "abc"),
        (599, "bc"),
        (500, "bc"),
        (499, "c"),
        (300, "c"),
        (299, ""),
        (1, ""),
    ],
)
def test_the_oldest_segments_beyond_the_total_are_removed(
    directory: Directory, total_bytes: int, kept: str
) -> None:
    """As few of the oldest sealed segments as the limit requires; 0 keeps all."""
    applied = directory.retention(retain_bytes=total_bytes)
    assert names(kept) == directory.apply(applied)
    assert len(kept) == len(directory.sealed)
    assert 3 - len(kept) == applied.removed_segments


def test_open_segments_count_towards_the_total(directory: Directory) -> None:
    """Bytes of open segments leave less for sealed ones."""
    applied = directory.retention(retain_bytes=700)
    assert names("abc") == directory.apply(applied, open_bytes=100)
    assert names("bc") == directory.apply(applied, open_bytes=101)


@pytest.mark.parametrize(
    ("age_seconds", "kept"), [(0, "abc"), (350, "abc"), (250, "bc"), (150, "c"), (50, "")]
)
def test_segments_beyond_the_age_are_removed(
    directory: Directory, age_seconds: float, kept: str
) -> None:
    """Sealed segments are removed at the age of the setting; 0 keeps all."""
    assert names(kept) == directory.apply(directory.retention(retain_seconds=age_seconds))


@pytest.mark.parametrize(
    ("free", "kept"), [(1000, "abc"), (999, "bc"), (900, "bc"), (899, "c"), (700, "c"), (0, "")]
)
def test_the_oldest_segments_make_room_on_the_disk(
    directory: Directory, free: int, kept: str
) -> None:
    """As many are removed as the disk lacks free bytes."""
    assert names(kept) == directory.apply(directory.retention(retain_free_bytes=1000), free)


def test_disk_that_reports_freed_bytes_late_is_waited_for(
    directory: Directory, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If free bytes do not grow with a removal, retention does not remove everything."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    applied = directory.retention(retain_free_bytes=1000)
    disk.free = 950
    assert names("bc") == directory.apply(applied, disk.free)
    assert names("bc") == directory.apply(applied, disk.free)
    now += SETTLE_SECONDS
    assert names("c") == directory.apply(applied, disk.free)


def test_disk_that_reports_freed_bytes_at_once_is_not_waited_for(
    directory: Directory, prompt_disk: Disk
) -> None:
    """A service that fills its disk quickly makes room as quickly."""
    applied = directory.retention(retain_free_bytes=1000)
    for kept in ("bc", "c"):
        prompt_disk.free = 950
        assert names(kept) == directory.apply(applied, prompt_disk.free)


#: As many bytes as ask for four inodes.
FOUR_INODES = 1024 * 1024


@pytest.mark.parametrize(
    ("free_inodes", "kept"), [(None, "abc"), (4, "abc"), (3, "bc"), (2, "c"), (0, "")]
)
@pytest.mark.usefixtures("prompt_disk")
def test_the_oldest_segments_make_room_for_inodes(
    directory: Directory, free_inodes: int | None, kept: str
) -> None:
    """As many are removed as the disk lacks free inodes, however small they are."""
    applied = directory.retention(retain_free_bytes=FOUR_INODES, min_free_bytes=0)
    assert names(kept) == directory.apply(applied, free_inodes=free_inodes)


def test_retention_keeps_more_inodes_free_than_acceptance_needs(
    directory: Directory, prompt_disk: Disk
) -> None:
    """Otherwise batches would be rejected before a segment is removed."""
    prompt_disk.inodes = 8
    applied = directory.retention(retain_free_bytes=FOUR_INODES, min_free_bytes=FOUR_INODES - 1)
    assert names("abc") == directory.apply(applied, free_inodes=4)
    applied = directory.retention(retain_free_bytes=FOUR_INODES, min_free_bytes=FOUR_INODES)
    assert names("abc") == directory.apply(applied, free_inodes=4)
    above = directory.retention(retain_free_bytes=FOUR_INODES + 1, min_free_bytes=FOUR_INODES)
    assert names("bc") == directory.apply(above, free_inodes=4)


def test_disk_that_reports_no_freed_inodes_is_waited_for(
    directory: Directory, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: Caplog
) -> None:
    """After a few removals, since a writer may have used the freed ones."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    for key in "defg":
        directory.add(key, 1)
    disk.inodes, disk.free_inodes = 1 << 40, 3
    applied = directory.retention(retain_free_bytes=FOUR_INODES, min_free_bytes=0)
    for kept in ("bcdefg", "cdefg", "defg", "defg", "defg"):
        assert names(kept) == directory.apply(applied, free_inodes=3)
    now += SETTLE_SECONDS
    assert names("efg") == directory.apply(applied, free_inodes=3)
    assert caplog.messages[0].endswith(": 1 by free inodes")


def test_segment_is_removed_in_all_its_forms(directory: Directory) -> None:
    """A segment under compression is one segment."""
    directory.add("a", 10, form=Form.COMPRESSED)
    directory.add("b", 20, form=Form.COMPRESSED)
    (directory.path / plain("b")).unlink()
    applied = directory.retention(retain_bytes=1)
    assert [] == directory.apply(applied)
    assert 3 == applied.removed_segments


@pytest.mark.parametrize(
    "values", [{"retain_bytes": 1}, {"retain_seconds": 1}, {"retain_free_bytes": 1 << 50}]
)
def test_spared_segment_does_not_keep_the_others(
    directory: Directory, values: dict[str, float]
) -> None:
    """Undelivered ones stay, and delivered ones are removed, although they are younger."""
    undelivered = {name_of("a")}
    applied = directory.retention(lambda name: name not in undelivered, **values)
    assert names("a") == directory.apply(applied)
    undelivered.clear()
    applied = directory.retention(lambda name: True, **values)
    assert [] == directory.apply(applied)


def test_spared_segment_causes_no_further_removals(directory: Directory) -> None:
    """The oldest removable ones, as many as exceed the limit."""
    applied = directory.retention(lambda name: name != name_of("a"), retain_bytes=400)
    assert names("ac") == directory.apply(applied)


UNTIL_FULL = {"retain_undelivered": "until_full", "clickhouse_url": "http://localhost"}


@pytest.mark.parametrize(
    ("values", "free", "kept"),
    [
        ({"retain_free_bytes": 1000, "min_free_bytes": 0}, 1000, "abc"),
        ({"retain_free_bytes": 1000, "min_free_bytes": 0}, 999, "bc"),
        ({"retain_free_bytes": 1000, "min_free_bytes": 0}, 899, "c"),
        ({"retain_free_bytes": 1000, "min_free_bytes": 2000}, 1999, "bc"),
        ({"retain_free_bytes": 0, "min_free_bytes": 1000}, 0, ""),
        ({"retain_bytes": 1, "min_free_bytes": 1000}, 1000, "abc"),
        ({"retain_seconds": 1, "min_free_bytes": 1000}, 1000, "abc"),
        ({"retain_seconds": 1, "min_free_bytes": 1000}, 999, "bc"),
    ],
)
def test_undelivered_segments_make_room_on_a_full_disk_if_allowed(
    directory: Directory, values: dict[str, object], free: int, kept: str
) -> None:
    """As many as needed, and for no other reason."""
    applied = directory.retention(lambda name: False, **UNTIL_FULL, **values)
    assert names(kept) == directory.apply(applied, free)
    removed = 3 - len(kept)
    assert [removed] * 2 == [applied.removed_segments, applied.removed_undelivered_segments]


@pytest.mark.parametrize(
    "values", [{}, {"retain_undelivered": "always"}, {"retain_undelivered": "until_full"}]
)
def test_undelivered_segments_stay_on_a_full_disk_otherwise(
    directory: Directory, values: dict[str, object]
) -> None:
    """Without the setting, or if forward never delivered anything."""
    if values != {"retain_undelivered": "until_full"}:
        values = {**values, "clickhouse_url": "http://localhost"}
    applied = directory.retention(lambda name: False, min_free_bytes=1000, **values)
    assert names("abc") == directory.apply(applied, free=0)
    assert 0 == applied.removed_undelivered_segments


@pytest.mark.usefixtures("prompt_disk")
def test_undelivered_segments_make_room_for_inodes_if_allowed(
    directory: Directory, caplog: Caplog
) -> None:
    """The log names inodes, not bytes."""
    applied = directory.retention(lambda name: False, min_free_bytes=FOUR_INODES, **UNTIL_FULL)
    assert names("bc") == directory.apply(applied, free_inodes=3)
    assert caplog.messages == [
        f"removed 1 segments, 100 bytes, up to {name_of('a')} BEFORE THEY WERE DELIVERED "
        "(ASTRALOG_RETAIN_UNDELIVERED): fewer than 4 inodes were free"
    ]


def test_delivered_segments_are_not_counted_as_undelivered(directory: Directory) -> None:
    """They make room as well, if they are older."""
    applied = directory.retention(
        lambda name: name == name_of("a"), min_free_bytes=300, **UNTIL_FULL
    )
    assert names("c") == directory.apply(applied, free=0)
    assert [2, 1] == [applied.removed_segments, applied.removed_undelivered_segments]


@pytest.mark.usefixtures("prompt_disk")
def test_removed_undelivered_segments_are_logged_once_per_minute(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As an error at once, and then with the count since."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    applied = directory.retention(lambda name: False, min_free_bytes=1000, **UNTIL_FULL)
    directory.apply(applied, free=950)
    directory.add("d", 400)
    directory.apply(applied, free=650)
    now += UNDELIVERED_LOG_SECONDS
    directory.apply(applied, free=1000)
    directory.apply(applied, free=1000)
    why = "(ASTRALOG_RETAIN_UNDELIVERED): less than 1000 bytes of disk were free"
    assert caplog.messages == [
        f"removed 1 segments, 100 bytes, up to {name_of('a')} BEFORE THEY WERE DELIVERED {why}",
        f"removed 2 segments, 500 bytes, up to {name_of('c')} BEFORE THEY WERE DELIVERED {why}",
    ]
    assert {"ERROR"} == {record.levelname for record in caplog.records}


def test_other_files_are_neither_counted_nor_removed(directory: Directory) -> None:
    """Retention handles only segments."""
    (directory.path / "0-token").write_bytes(b"x" * 1000)
    assert ["0-token", *names("abc")] == directory.apply(directory.retention(retain_bytes=600))


def test_segment_removed_by_another_process_is_skipped(directory: Directory) -> None:
    """It is dropped, and not counted as removed."""
    for applied in (
        directory.retention(retain_bytes=599),
        directory.retention(retain_seconds=250),
    ):
        (directory.path / plain("a")).unlink(missing_ok=True)
        assert names("bc") == directory.apply(applied)
        assert 0 == applied.removed_segments
        assert [*map(name_of, "bc")] == list(directory.sealed.oldest_first())
        directory.sealed.put(name_of("a"), Entry(100, changed_at=0.0))


@pytest.mark.parametrize("values", [{"retain_bytes": 1}, {"retain_seconds": 1}])
def test_segment_that_cannot_be_removed_does_not_keep_the_others(
    directory: Directory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    values: dict[str, float],
) -> None:
    """It is logged once, retried, and logged again when it is gone."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    remove, broken = files.remove_sealed, set(map(name_of, "ab"))

    def fail(path: Path, name: str) -> int:
        if name in broken:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return remove(path, name)

    monkeypatch.setattr(files, "remove_sealed", fail)
    applied = directory.retention(lambda name: True, **values)
    for _ in range(5):
        assert names("ab") == directory.apply(applied)
        now += 1
    assert [1, 2] == [applied.removed_segments, len(directory.sealed)]
    broken.clear()
    for _ in range(2):
        assert [] == directory.apply(applied)
        now += 1
    assert caplog.messages == [
        f"cannot remove {name_of('a')}: Operation not permitted; removal is retried",
        "segments can be removed again",
    ]


def test_segments_named_ahead_of_the_clock_are_removed_first(directory: Directory) -> None:
    """For the size limit, which ignores ages: they cannot be the newest."""
    ahead = name_of("z")
    ahead.path(directory.path, Form.PLAIN).write_bytes(b"x" * 50)
    directory.sealed.put(ahead, Entry(50, changed_at=time.time(), era=AHEAD_ERA))
    assert names("abc") == directory.apply(directory.retention(retain_bytes=600))


def test_each_segment_beyond_the_age_is_found(directory: Directory) -> None:
    """At any place among the names."""
    directory.add("x", 10, age=10_000)
    for number in range(3 * STEP_SEGMENTS):
        directory.add(chr(200 + number), 10)
    directory.add("y", 10, age=10_000)
    applied = directory.retention(retain_seconds=5000)
    left = directory.apply(applied)
    assert 3 + 3 * STEP_SEGMENTS == len(left)
    assert not {plain("x"), plain("y")} & {*left}


def test_clock_that_jumps_makes_nothing_older(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two days ahead for a while have no effect; a day that passes has."""
    start, wall, elapsed = time.time(), 0.0, 0.0
    monkeypatch.setattr(time, "time", lambda: start + elapsed + wall)
    clock = TrustedClock(time.time, lambda: elapsed)
    settings = Settings(data_dir=directory.path, tokens="x", retain_seconds=3600)
    applied = Retention(settings, clock)
    wall = 2 * 86_400.0
    assert names("abc") == directory.apply(applied)
    wall, elapsed = 0.0, 86_400.0
    monkeypatch.setattr(applied, "_expired_due_at", 0.0)
    assert [] == directory.apply(applied)


def test_clock_that_was_ahead_at_the_start_makes_nothing_older_once_it_is_right(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trusted clock is wrong for another hour."""
    start, wall = time.time(), 7 * 86_400.0
    monkeypatch.setattr(time, "time", lambda: start + wall)
    applied = directory.retention(retain_seconds=3600)
    wall = 0.0
    assert names("abc") == directory.apply(applied)


def test_passes_over_many_segments_are_rare(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The more a pass keeps, the later the next one; removals for free disk are not delayed."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    asked: list[str] = []

    def spare(name: str) -> bool:
        asked.append(name)
        return False

    for number in range(200, 2200):
        directory.sealed.put(name_of(number), Entry(1, changed_at=0.0))
    applied = directory.retention(spare, retain_bytes=1, retain_seconds=1)
    directory.apply(applied)
    assert 2 * 2003 == len(asked)
    directory.apply(applied)
    assert 2 * 2003 == len(asked)
    now += 2003 * KEPT_SECONDS
    directory.apply(applied)
    assert 4 * 2003 == len(asked)


def test_removals_are_not_delayed(directory: Directory) -> None:
    """A disk that fills quickly is freed as quickly."""
    applied = directory.retention(retain_bytes=500)
    assert names("bc") == directory.apply(applied)
    directory.add("d", 300)
    assert names("d") == directory.apply(applied)


def test_removals_are_one_line_in_the_log(
    directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    """The line has the number, the newest name and the reason."""
    caplog.set_level(logging.INFO)
    applied = directory.retention(retain_bytes=300, retain_seconds=250)
    directory.apply(applied)
    directory.apply(applied)
    expected = f"removed segments up to {name_of('b')}: 1 by age, 1 by size"
    assert [expected] == [r.getMessage() for r in caplog.records if r.name == housekeeper.__name__]


def test_each_removal_is_one_step(directory: Directory) -> None:
    """The caller can pause between two segments."""
    space = Space(1 << 50, 0, None, None, is_read_only=False)
    steps = directory.retention(retain_bytes=1).remove_excess(directory.sealed, 600, space)
    for kept in ("bc", "c", ""):
        next(steps)
        assert names(kept) == sorted(file.name for file in directory.path.iterdir())
