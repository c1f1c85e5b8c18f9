"""Which keys are known, and what is forgotten when there are too many or they are too old."""

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from astralog.store.keys.generation import Generation
from astralog.store.keys.generations import MAX_TOKENS_FULL, PARTS
from astralog.store.keys.index import KeyIndex
from astralog.store.keys.journal_files import list_numbers, note_sealed, path_of, ranges_in
from astralog.store.keys.records import Entry, Key, Sealed, encode

SEGMENT = "20261123T062500.123456Z-4711"
MAX_KEYS = 80
TOKEN, OTHER = "01234567", "89abcdef"


def make_entry(number: int, token: str = TOKEN, at: float | None = None) -> Entry:
    key = Key(token, f"{number * 7919:08x}" * 4, f"{number:x}-00000000")
    return Entry(int(time.time() if at is None else at), key, SEGMENT, number, number + 1)


def is_known(index: KeyIndex, number: int, token: str = TOKEN) -> bool:
    entry = make_entry(number, token)
    return any(found.key == entry.key for found in index.known.entries_of(token, entry.key.digest))


def known(index: KeyIndex, numbers: range, token: str = TOKEN) -> list[int]:
    return [number for number in numbers if is_known(index, number, token)]


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[..., KeyIndex]:
    def make(max_keys: int = MAX_KEYS, seconds: float = 1000) -> KeyIndex:
        index = KeyIndex(tmp_path, max_keys, seconds)
        for _ in index.load():
            pass
        index.catch_up()
        return index

    return make


def add(index: KeyIndex, *entries: Entry | Sealed) -> None:
    """Append each record as a commit group does."""
    for entry in entries:
        index.catch_up()
        index.append([entry], is_synced=False)
    index.catch_up()


def test_what_one_process_appends_the_others_know(make_index: Callable[..., KeyIndex]) -> None:
    """They read on from where they stopped, through all files that were begun since."""
    one, two = make_index(), make_index()
    for number in range(MAX_KEYS // 2):
        add(one if number % 2 else two, make_entry(number))
    two.catch_up()
    one.catch_up()
    for index in (one, two, make_index()):
        assert list(range(MAX_KEYS // 2)) == known(index, range(MAX_KEYS))
        assert MAX_KEYS // 2 == index.known.held_keys


def test_two_processes_may_begin_the_journal_at_once(
    make_index: Callable[..., KeyIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one whose empty file the other has removed goes on with the other's file."""
    one, two = make_index(), make_index()
    load = one.load

    def load_later() -> Iterator[None]:
        monkeypatch.setattr(one, "load", load)
        two.begin_file()
        return load()

    monkeypatch.setattr(one, "load", load_later)
    one.append([make_entry(1)], is_synced=True)
    two.append([make_entry(2)], is_synced=True)
    for index in (one, two, make_index()):
        index.catch_up()
        assert [1, 2] == known(index, range(5))


def test_a_record_that_comes_late_is_appended_to_the_newest_file(
    make_index: Callable[..., KeyIndex], tmp_path: Path
) -> None:
    """Whoever had gone on to the newer file would never see it in the older one."""
    one, two = make_index(), make_index()
    add(one, make_entry(1))
    two.catch_up()
    one.begin_file()
    two.append([make_entry(2)], is_synced=True)
    one.catch_up()
    assert [1, 2] == known(one, range(10))
    assert encode(make_entry(2))[:60] in path_of(tmp_path, 2).read_bytes()


@pytest.mark.parametrize("count", [MAX_KEYS + 1, 3 * MAX_KEYS])
def test_a_token_has_so_many_keys_and_its_oldest_are_forgotten(
    make_index: Callable[..., KeyIndex],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    count: int,
) -> None:
    """What is forgotten is counted by one process, and told once; other tokens lose nothing."""
    one, two = make_index(), make_index()
    add(one, make_entry(5, OTHER))
    for number in range(count):
        add(one, make_entry(number))
        two.catch_up()
    for index in (one, two, make_index()):
        newest = known(index, range(count))
        assert list(range(newest[0], count)) == newest
        assert MAX_KEYS - MAX_KEYS // PARTS <= len(newest) <= MAX_KEYS
        assert is_known(index, 5, OTHER)
        assert len(newest) + 1 == index.known.held_keys
    assert (count - len(newest), 0) == (one.known.forgotten_keys, two.known.forgotten_keys)
    assert 1 == sum("forgot" in message for message in caplog.messages)
    assert len(list_numbers(tmp_path)) <= MAX_TOKENS_FULL * PARTS + 1


def test_all_tokens_together_are_bounded(
    make_index: Callable[..., KeyIndex], tmp_path: Path
) -> None:
    """Many tokens cannot fill memory and disk, each below its own bound."""
    index = make_index()
    tokens = [f"{number:08x}" for number in range(20)]
    for number in range(20 * MAX_KEYS // 2):
        add(index, make_entry(number, tokens[number % 20]))
    assert index.known.held_keys <= MAX_TOKENS_FULL * MAX_KEYS
    assert len(list_numbers(tmp_path)) <= MAX_TOKENS_FULL * PARTS + 1
    assert is_known(index, 20 * MAX_KEYS // 2 - 1, tokens[-1])
    assert index.known.forgotten_keys == 20 * MAX_KEYS // 2 - index.known.held_keys


def test_old_keys_are_forgotten_with_their_files(
    make_index: Callable[..., KeyIndex], tmp_path: Path
) -> None:
    """Beyond the time a key may be used anew, and its file goes with the last of its keys."""
    index = make_index(seconds=1000)
    now = time.time()
    add(index, make_entry(1, at=now - 1500), make_entry(2, at=now - 1001))
    add(index, make_entry(3, at=now - 999), make_entry(4))
    assert [3, 4] == known(index, range(10))
    for _ in range(2):
        index.begin_file()
    assert [3, 4] == known(index, range(10))
    assert 1 not in list_numbers(tmp_path)
    assert 0 == index.known.forgotten_keys


def test_files_that_were_begun_in_vain_do_not_add_up(
    make_index: Callable[..., KeyIndex], tmp_path: Path
) -> None:
    """While the disk fails a new one is begun every second; those with a word in them stay."""
    index = make_index()
    add(index, make_entry(1))
    for number in range(20):
        index.begin_file()
        if number == 10:
            add(index, Sealed(SEGMENT, 1))
    assert [1, 12, 21] == list_numbers(tmp_path)
    assert ([1], 1) == (known(index, range(5)), index.known.sealed_bytes(SEGMENT))


def test_a_sealed_segment_is_known_by_its_last_size(make_index: Callable[..., KeyIndex]) -> None:
    """Another process's record is as good as one's own."""
    one, two = make_index(), make_index()
    add(one, make_entry(1))
    assert one.known.sealed_bytes(SEGMENT) is None
    note_sealed(one._directory, SEGMENT, 123)
    for index in (one, two):
        index.catch_up()
        assert 123 == index.known.sealed_bytes(SEGMENT)


def test_without_a_journal_nothing_is_noted(tmp_path: Path) -> None:
    """Where there are no keys, no file is made."""
    note_sealed(tmp_path, SEGMENT, 1)
    assert [] == list(tmp_path.iterdir())
    assert [] == ranges_in(tmp_path, SEGMENT)


def test_the_ranges_of_a_segment_are_found_in_all_files(
    make_index: Callable[..., KeyIndex], tmp_path: Path
) -> None:
    """Also in one that ends in half a record, or holds what is none."""
    index = make_index()
    add(index, make_entry(1))
    index.begin_file()
    add(index, make_entry(2), make_entry(3)._replace(segment=SEGMENT + "0"))
    with path_of(tmp_path, 2).open("ab") as file:
        file.write(b"\n" + encode(make_entry(4))[:-1])
    assert [(1, 2), (2, 3)] == ranges_in(tmp_path, SEGMENT)


@pytest.mark.parametrize("garbage", [b"x", b"\n", b"\0" * 5000, b"\nkeyed 1764", b"y" * 300_000])
def test_what_is_none_of_the_journal_is_skipped(
    make_index: Callable[..., KeyIndex],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    garbage: bytes,
) -> None:
    """It is told once, and costs no record that comes before or after it."""
    index = make_index()
    add(index, make_entry(1))
    with path_of(tmp_path, 1).open("ab") as file:
        file.write(b"\n" + garbage)
    add(index, make_entry(2))
    for reader in (index, make_index()):
        assert [1, 2] == known(reader, range(5))
    told = [message for message in caplog.messages if message.startswith("skipped")]
    assert (0 if garbage == b"\n" else 2) == len(told)


def test_a_record_that_is_being_written_is_read_when_it_is_whole(
    make_index: Callable[..., KeyIndex], tmp_path: Path
) -> None:
    """A write that is seen in its midst is no damage."""
    index = make_index()
    add(index, make_entry(1))
    line = b"\n" + encode(make_entry(2))
    with path_of(tmp_path, 1).open("ab", buffering=0) as file:
        for place in range(len(line)):
            file.write(line[place : place + 1])
            index.catch_up()
            assert ([1, 2] if place == len(line) - 1 else [1]) == known(index, range(5))
    assert 0 == index.known.all[-1].damaged_lines


def test_a_key_takes_less_than_a_hundred_bytes(tmp_path: Path) -> None:
    """Of a full file's keys, each takes its share of everything."""
    count = 20_000
    lines = [encode(make_entry(number)) for number in range(count)]
    data = b"".join(b"\n" + line for line in lines)
    generation = Generation(tmp_path, 1)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        while generation.end < len(data):
            generation.index(data[generation.end : generation.end + 50_000])
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert count == len(generation)
    assert sys.getsizeof(generation._buckets) < taken < 100 * len(generation)
