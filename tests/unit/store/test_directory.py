import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from astralog.clock import TrustedClock, boot_time
from astralog.store import directory
from astralog.store.directory import (
    AHEAD_ERA,
    FIRST_ERA,
    FOUND_ERA,
    SCAN_SECONDS,
    SCAN_SHARE,
    UNWATCHED_SCAN_SECONDS,
    ChangesLost,
    DirectoryWatch,
    Inventory,
)
from astralog.store.names import Form, SegmentName
from tests.support.fake_system import BreakOs, Clock
from tests.unit.store.segments import START, name_of, opened, packed, plain

DAY = 86_400.0
LATER = START + 7 * DAY
DAY_NUMBER = 86_400


def scan(known: Inventory) -> None:
    for steps in (known.list_names(), known.measure(), known.follow()):
        for _ in steps:
            pass


def follow(known: Inventory) -> None:
    for _ in known.follow():
        pass


def names(known: Inventory) -> list[SegmentName]:
    """Return the sealed segments, oldest first."""
    return list(known.sealed.oldest_first())


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Inventory]:
    """Return the inventory of a directory with some files, after its first scan."""
    files = {plain("b"): 20, plain("a"): 10, packed("c"): 5, opened("d"): 7, "token": 99}
    for name, size in files.items():
        (tmp_path / name).write_bytes(b"x" * size)
    made = Inventory(tmp_path, TrustedClock(), LATER)
    scan(made)
    yield made
    made.close()


def test_a_scan_finds_all_segments(known: Inventory) -> None:
    """Sealed segments of either form are known with their bytes, open ones by name."""
    assert (3, 35) == (len(known.sealed), known.sealed.bytes)
    assert {name_of("d")} == known.open
    assert 7 == known.open_bytes()
    assert [*map(name_of, "abc")] == names(known)


def test_new_files_are_found_without_a_scan(known: Inventory, tmp_path: Path) -> None:
    """A seal, a recovery under an old name, and a new segment."""
    (tmp_path / opened("d")).rename(tmp_path / plain("d"))
    (tmp_path / plain("0")).write_bytes(b"x" * 3)
    (tmp_path / opened("e")).write_bytes(b"x")
    follow(known)
    assert (5, 45) == (len(known.sealed), known.sealed.bytes)
    assert 1 == known.open_bytes()
    assert {name_of("e")} == known.open
    assert [*map(name_of, "0abcd")] == names(known)


def test_removed_files_are_noticed_without_a_scan(known: Inventory, tmp_path: Path) -> None:
    """Any process may remove or move a segment."""
    (tmp_path / plain("a")).unlink()
    (tmp_path / plain("b")).rename(tmp_path / "elsewhere")
    (tmp_path / opened("d")).unlink()
    follow(known)
    assert (0, set()) == (known.open_bytes(), known.open)
    assert [name_of("c")] == names(known)


def test_a_segment_in_both_forms_is_one(known: Inventory, tmp_path: Path) -> None:
    """During compression it has the bytes of both forms, then those of the remaining one."""
    (tmp_path / packed("a")).write_bytes(b"x")
    follow(known)
    assert (3, 36) == (len(known.sealed), known.sealed.bytes)
    scan(known)
    assert (3, 36) == (len(known.sealed), known.sealed.bytes)
    (tmp_path / plain("a")).unlink()
    follow(known)
    assert (3, 26) == (len(known.sealed), known.sealed.bytes)
    assert [*map(name_of, "abc")] == names(known)


def test_changes_during_a_scan_are_not_missed(tmp_path: Path) -> None:
    """A segment created or removed between two steps of a scan is right after it."""
    for number in range(10):
        (tmp_path / plain(number)).write_bytes(b"xx")
    known = Inventory(tmp_path, TrustedClock(), LATER)
    for count, _ in enumerate(known.list_names()):
        (tmp_path / plain(100 + count)).write_bytes(b"x")
    for count, _ in enumerate(known.measure()):
        if count < 5:
            (tmp_path / plain(count)).unlink()
    follow(known)
    found = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert (len(found), sum(found.values())) == (len(known.sealed), known.sealed.bytes)
    assert sorted(found) == [name.file(Form.PLAIN) for name in names(known)]
    known.close()


def test_poll_reads_only_changed_segments(
    known: Inventory, break_os: BreakOs, tmp_path: Path
) -> None:
    """Among any number of segments, only changed ones are read, each once."""
    listings = break_os("scandir", errno.EIO)
    looks = break_os("lstat", errno.EIO, times=0)
    follow(known)
    assert [] == looks.calls
    for content in (b"x", b"xx"):
        (tmp_path / plain("e")).write_bytes(content)
        (tmp_path / plain("e")).rename(tmp_path / plain("f"))
    follow(known)
    forms = {f"{tmp_path}/{form(name)}" for name in "ef" for form in (plain, packed)}
    assert forms == set(looks.calls)
    assert 4 == len(looks.calls)
    assert [] == listings.calls


def test_changes_that_were_lost_are_found_by_a_scan(
    known: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system dropped changes, the directory is listed again."""

    def lose(watch: DirectoryWatch) -> set[str]:
        raise ChangesLost

    assert not known.is_scan_due
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryWatch, "changes", lose)
        (tmp_path / plain("e")).write_bytes(b"x")
        follow(known)
    assert known.is_scan_due
    scan(known)
    assert not known.is_scan_due
    assert [*map(name_of, "abce")] == names(known)


def test_scan_is_repeated_periodically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds changes that no watch reports, such as those of another host."""
    clock = Clock(monkeypatch)
    known = Inventory(tmp_path, TrustedClock(), LATER)
    assert known.is_scan_due
    scan(known)
    clock.now += SCAN_SECONDS - 1
    assert not known.is_scan_due
    clock.now += 2
    assert known.is_scan_due
    known.close()


def test_scans_take_a_small_share_of_a_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longer a scan takes, the later the next one."""
    clock = Clock(monkeypatch)
    spent = iter([10.0, 60.0])
    monkeypatch.setattr(time, "thread_time", lambda: next(spent))
    known = Inventory(tmp_path, TrustedClock(), LATER)
    scan(known)
    clock.now += 50 / SCAN_SHARE - 1
    assert not known.is_scan_due
    clock.now += 2
    assert known.is_scan_due
    known.close()


def test_a_directory_that_cannot_be_watched_is_scanned(
    tmp_path: Path,
    break_os: BreakOs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a watch, new files are found within a minute, and a line is logged."""
    clock = Clock(monkeypatch)
    break_os("call_libc", errno.EMFILE, module=directory)
    known = Inventory(tmp_path, TrustedClock(), LATER)
    assert [f"cannot watch {tmp_path} (Too many open files): it is scanned for new segments "
            "every 60 seconds"] == caplog.messages  # fmt: skip
    scan(known)
    (tmp_path / plain("a")).write_bytes(b"x")
    follow(known)
    assert 0 == len(known.sealed)
    clock.now += UNWATCHED_SCAN_SECONDS
    assert known.is_scan_due
    scan(known)
    assert [name_of("a")] == names(known)
    known.close()


def test_missing_directory_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inventory raises the error of the listing."""
    monkeypatch.setattr(directory, "DirectoryWatch", lambda path: None)
    with pytest.raises(FileNotFoundError):
        scan(Inventory(tmp_path / "missing", TrustedClock(), LATER))


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    """A closed inventory has no open file, even if its scan did not end."""
    before = os.listdir("/proc/self/fd")
    (tmp_path / plain("a")).touch()
    known = Inventory(tmp_path, TrustedClock(), LATER)
    listing = known.list_names()
    next(listing)
    del listing
    known.close()
    assert len(before) == len(os.listdir("/proc/self/fd"))


# --- Ages


def change_of(known: Inventory, key: str) -> float:
    """Return how long after START a segment last changed."""
    entry = known.sealed.get(name_of(key))
    assert entry is not None
    return entry.changed_at - START


@pytest.fixture
def dated(tmp_path: Path) -> Iterator[Inventory]:
    """Return the inventory of a directory, with a clock a week after START."""
    made = Inventory(tmp_path, TrustedClock(lambda: START + 7 * DAY, lambda: 0.0), LATER)
    scan(made)
    yield made
    made.close()


def add(path: Path, key: str | int, changed: float) -> None:
    """Seal a segment that was last changed at a time after START."""
    (path / plain(key)).write_bytes(b"x")
    os.utime(path / plain(key), (START + changed, START + changed))


@pytest.mark.parametrize("is_scanned", [True, False])
def test_last_change_is_that_of_the_file(
    dated: Inventory, tmp_path: Path, is_scanned: bool
) -> None:
    """Or the start in the name, if that is later and not in the future."""
    ahead, soon = int(9 * DAY), int(7.5 * DAY)
    add(tmp_path, "a", 3600)
    add(tmp_path, "b", -30 * DAY)  # a copy without its time, or a clock that was behind
    add(tmp_path, ahead, 3600)
    add(tmp_path, soon, 1800)
    (scan if is_scanned else follow)(dated)
    assert 3600 == change_of(dated, "a")
    assert ord("b") == change_of(dated, "b")
    entry = dated.sealed.get(name_of(ahead))
    assert entry
    assert (START + 3600, AHEAD_ERA) == (entry.changed_at, entry.era)
    entry = dated.sealed.get(name_of(soon))
    assert entry
    assert (START + 1800, FOUND_ERA) == (entry.changed_at, entry.era)
    assert [name_of(ahead), name_of("a"), name_of("b"), name_of(soon)] == names(dated)


def test_another_time_of_change_is_noticed(dated: Inventory, tmp_path: Path) -> None:
    """`touch` or a restored backup may set it."""
    add(tmp_path, "a", 3600)
    follow(dated)
    os.utime(tmp_path / plain("a"), (START + 7200, START + 7200))
    follow(dated)
    assert 7200 == change_of(dated, "a")


@pytest.mark.parametrize("is_watched", [True, False])
def test_segment_seen_while_written_is_young(
    tmp_path: Path, break_os: BreakOs, is_watched: bool
) -> None:
    """Whatever its name; a copied segment is not, nor is one from before the start."""
    if not is_watched:
        break_os("call_libc", errno.EMFILE, module=directory)
    ahead = int(9 * DAY)
    add(tmp_path, "a", 0)
    known = Inventory(tmp_path, TrustedClock(lambda: START + 7 * DAY, lambda: 0.0), LATER)
    scan(known)
    add(tmp_path, "b", 0)
    (tmp_path / opened(ahead)).write_bytes(b"x")
    if not is_watched:
        scan(known)
    (tmp_path / opened(ahead)).rename(tmp_path / plain(ahead))
    for _ in range(2):  # what is known of it survives another scan
        (follow if is_watched else scan)(known)
        assert [name_of("a"), name_of("b"), name_of(ahead)] == names(known)
        entries = {name: entry.sealed_at for name, entry in known.sealed.items()}
        sealed_at = entries.pop(name_of(ahead))
        assert sealed_at is not None
        assert abs(sealed_at - boot_time()) < 100
        assert {None} == set(entries.values())
        scan(known)
    known.close()


@pytest.mark.parametrize("is_watched", [True, False])
def test_segment_written_after_the_clock_was_set_back_is_the_youngest(
    tmp_path: Path, break_os: BreakOs, is_watched: bool
) -> None:
    """For less than a day, so that no name is ahead of the clock, and for more."""
    if not is_watched:
        break_os("call_libc", errno.EMFILE, module=directory)
    look = follow if is_watched else scan
    known = Inventory(tmp_path, TrustedClock(lambda: START, lambda: 0.0), LATER)
    for number in (100, 43_000):
        add(tmp_path, number, 0)
    scan(known)

    def write(*numbers: int) -> None:
        for number in numbers:
            (tmp_path / opened(number)).write_bytes(b"x")
        look(known)
        for number in numbers:
            (tmp_path / opened(number)).rename(tmp_path / plain(number))
        look(known)

    write(43_001, 43_002)
    write(300, 310, 290)  # some seconds apart, as those of several workers
    write(320, 44_000)
    write(-DAY_NUMBER)
    add(tmp_path, 200, 0)  # put there by somebody
    look(known)
    order = [100, 200, 43_000, 43_001, 43_002, 290, 300, 310, 320, 44_000, -DAY_NUMBER]
    assert [*map(name_of, order)] == names(known)
    scan(known)
    assert [*map(name_of, order)] == names(known)
    known.close()


def test_segment_started_after_the_process_is_younger(
    tmp_path: Path,
) -> None:
    """Than those written before the directory was watched, in the first moments."""
    add(tmp_path, 43_000, 0)  # by a clock that was ahead
    add(tmp_path, 100, 3000)  # another process's, open for long
    add(tmp_path, 2001, 3000)
    (tmp_path / opened(101)).write_bytes(b"x")
    (tmp_path / opened(2000)).write_bytes(b"x")
    known = Inventory(tmp_path, TrustedClock(lambda: START, lambda: 0.0), START + 2000)
    scan(known)
    for number in (101, 2000):
        (tmp_path / opened(number)).rename(tmp_path / plain(number))
    follow(known)
    assert [*map(name_of, [100, 101, 43_000, 2000, 2001])] == names(known)
    eras = {entry.era for _, entry in known.sealed.items()}
    assert {FOUND_ERA, FIRST_ERA} == eras
    known.close()


def test_segment_written_during_the_first_scan_is_young(tmp_path: Path) -> None:
    """Also if it is sealed before the scan ends."""
    add(tmp_path, 43_000, 0)
    known = Inventory(tmp_path, TrustedClock(lambda: START, lambda: 0.0), LATER)
    (tmp_path / opened(100)).write_bytes(b"x")
    (tmp_path / opened(100)).rename(tmp_path / plain(100))
    scan(known)
    assert [name_of(43_000), name_of(100)] == names(known)
    entry = known.sealed.get(name_of(100))
    assert entry
    assert entry.sealed_at is not None
    known.close()


def test_orphaned_segment_is_not_known_to_be_young(tmp_path: Path) -> None:
    """Unless it was created while the inventory existed, and its process died since."""
    known = Inventory(tmp_path, TrustedClock(), LATER)
    (tmp_path / opened("a")).write_bytes(b"x")
    scan(known)
    (tmp_path / opened("b")).write_bytes(b"x")
    follow(known)
    for key in "ab":
        known.eras.note_recovered(name_of(key))
        (tmp_path / opened(key)).rename(tmp_path / plain(key))
    known.open_bytes()
    follow(known)
    entries = dict(known.sealed.items())
    assert entries[name_of("a")].sealed_at is None
    assert entries[name_of("b")].sealed_at is not None
    known.close()


def test_nothing_is_kept_of_segments_that_were_never_sealed(tmp_path: Path) -> None:
    """For example of those removed because they are empty."""
    known = Inventory(tmp_path, TrustedClock(), LATER)
    scan(known)
    (tmp_path / opened("a")).touch()
    follow(known)
    (tmp_path / opened("a")).unlink()
    follow(known)
    known.open_bytes()
    scan(known)
    assert not known.eras._writing
    known.close()
