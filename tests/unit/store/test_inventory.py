import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from astralog.store import inventory, libc
from astralog.store.directory_watch import ChangesLost, DirectoryWatch
from astralog.store.inventory import SCAN_SECONDS, SCAN_SHARE, UNWATCHED_SCAN_SECONDS, Inventory
from astralog.store.names import Form, SegmentName
from tests.conftest import Fault
from tests.unit.store.segments import name_of, opened, packed, plain

BreakOs = Callable[..., Fault]


def scan(known: Inventory) -> None:
    for steps in (known.list_names(), known.measure(), known.follow()):
        for _ in steps:
            pass


def follow(known: Inventory) -> None:
    for _ in known.follow():
        pass


def names(known: Inventory) -> list[SegmentName]:
    """Return the sealed segments, oldest first, and forget them."""
    found = []
    while name := known.sealed.oldest():
        found.append(name)
        known.sealed.remove(name)
    return found


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Inventory]:
    """Return the inventory of a directory with some files, after its first scan."""
    files = {plain("b"): 20, plain("a"): 10, packed("c"): 5, opened("d"): 7, "token": 99}
    for name, size in files.items():
        (tmp_path / name).write_bytes(b"x" * size)
    made = Inventory(tmp_path)
    scan(made)
    yield made
    made.close()


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_a_scan_finds_all_segments(known: Inventory) -> None:
    """Sealed segments of either form are known with their bytes, open ones by name."""
    assert (3, 35) == (len(known.sealed), known.sealed.bytes)
    assert {name_of("d")} == known.open
    assert 7 == known.open_bytes()
    assert [*map(name_of, "abc")] == names(known)


def test_what_comes_after_the_scan_is_learned(known: Inventory, tmp_path: Path) -> None:
    """A seal, a recovery under an old name and a new segment cost no scan."""
    (tmp_path / opened("d")).rename(tmp_path / plain("d"))
    (tmp_path / plain("0")).write_bytes(b"x" * 3)
    (tmp_path / opened("e")).write_bytes(b"x")
    follow(known)
    assert (5, 45) == (len(known.sealed), known.sealed.bytes)
    assert 1 == known.open_bytes()
    assert {name_of("e")} == known.open
    assert [*map(name_of, "0abcd")] == names(known)


def test_what_goes_after_the_scan_is_forgotten(known: Inventory, tmp_path: Path) -> None:
    """Whoever removes or moves a segment need not tell."""
    (tmp_path / plain("a")).unlink()
    (tmp_path / plain("b")).rename(tmp_path / "elsewhere")
    (tmp_path / opened("d")).unlink()
    follow(known)
    assert (0, set()) == (known.open_bytes(), known.open)
    assert [name_of("c")] == names(known)


def test_a_segment_in_both_forms_is_one(known: Inventory, tmp_path: Path) -> None:
    """While it is compressed it has the bytes of both forms, then those of the one that stays."""
    (tmp_path / packed("a")).write_bytes(b"x")
    follow(known)
    assert (3, 36) == (len(known.sealed), known.sealed.bytes)
    scan(known)
    assert (3, 36) == (len(known.sealed), known.sealed.bytes)
    (tmp_path / plain("a")).unlink()
    follow(known)
    assert (3, 26) == (len(known.sealed), known.sealed.bytes)
    assert [*map(name_of, "abc")] == names(known)


def test_what_changes_during_a_scan_is_not_missed(tmp_path: Path) -> None:
    """A segment that comes or goes between two steps of a scan is right after it."""
    for number in range(10):
        (tmp_path / plain(number)).write_bytes(b"xx")
    known = Inventory(tmp_path)
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


def test_a_look_costs_what_is_new(known: Inventory, break_os: BreakOs, tmp_path: Path) -> None:
    """Beside any number of segments, only those that changed are looked at, each once."""
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
    """Where the system could not keep all changes, the directory is listed anew."""

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


def test_a_scan_is_repeated_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no watch tells, as another host's changes, is found at last."""
    clock = Clock(monkeypatch)
    known = Inventory(tmp_path)
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
    """The more a scan costs, the longer until the next one."""
    clock = Clock(monkeypatch)
    spent = iter([10.0, 60.0])
    monkeypatch.setattr(time, "thread_time", lambda: next(spent))
    known = Inventory(tmp_path)
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
    """Without a watch, what is new is found within a minute, and the log says so."""
    clock = Clock(monkeypatch)
    break_os("call", errno.EMFILE, module=libc)
    known = Inventory(tmp_path)
    assert [f"cannot watch {tmp_path} (Too many open files): new segments are found every 60 "
            "seconds"] == caplog.messages  # fmt: skip
    scan(known)
    (tmp_path / plain("a")).write_bytes(b"x")
    follow(known)
    assert 0 == len(known.sealed)
    clock.now += UNWATCHED_SCAN_SECONDS
    assert known.is_scan_due
    scan(known)
    assert [name_of("a")] == names(known)
    known.close()


def test_a_directory_that_is_gone_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks learns that it cannot be listed."""
    monkeypatch.setattr(inventory, "DirectoryWatch", lambda path: None)
    with pytest.raises(FileNotFoundError):
        scan(Inventory(tmp_path / "missing"))


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    """An inventory that is closed holds nothing, also one whose scan was not ended."""
    before = os.listdir("/proc/self/fd")
    (tmp_path / plain("a")).touch()
    known = Inventory(tmp_path)
    listing = known.list_names()
    next(listing)
    del listing
    known.close()
    assert len(before) == len(os.listdir("/proc/self/fd"))
