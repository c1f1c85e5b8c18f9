"""Segment files: when they are sealed, their names, and how long they are kept."""

import contextlib
import os
import re
import stat
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support import foreign
from tests.support.load import Load
from tests.support.metrics import Samples, read_samples
from tests.support.service import (
    TOKEN,
    Service,
    make_batch,
    read_logs,
    segment_pid,
    size_of,
    wait_for,
)

NAME = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[0-9]+\.ndjson(\.open)?")


def post_in_turn(service: Service, count: int) -> list[str]:
    """Post batches of one log of about 1,000 bytes one after another; return their messages."""
    messages = [f"{number} ".ljust(830, "x") for number in range(count)]
    for message in messages:
        assert 200 == service.drain(make_batch(message)).status
    return messages


def stored_messages(paths: list[Path]) -> list[str]:
    return [log["message"] for log in read_logs(paths)]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_segments_are_sealed_by_size(tmp_path: Path) -> None:
    """No segment grows beyond its size, and names are in the order of the logs."""
    with Service(tmp_path, segment_bytes=10_000) as service:
        messages = post_in_turn(service, 50)
        sealed = service.files("*.ndjson")
        assert all(9_000 < path.stat().st_size <= 10_000 for path in sealed)
        assert len(service.files("*.open")) <= 1
        assert messages == stored_messages(service.files())
        assert 0 == service.stop()
        assert sealed == service.files()[: len(sealed)]
        assert messages == stored_messages(service.files("*.ndjson"))
        assert max(path.stat().st_size for path in service.files()) <= 10_000


def test_batch_larger_than_a_segment_has_its_own_segment(tmp_path: Path) -> None:
    """A batch is never split over two files."""
    with Service(tmp_path, segment_bytes=10_000) as service:
        for messages in (["a"], ["x" * 900] * 50, ["b"]):
            assert 200 == service.drain(make_batch(*messages)).status
        assert [1, 50, 1] == [path.read_bytes().count(b"\n") for path in service.files()]


def test_segments_are_sealed_by_age_also_when_idle(tmp_path: Path) -> None:
    """A segment is sealed at its age without another batch, and the next one is a new file."""
    with Service(tmp_path, segment_seconds=1) as service:
        for number in range(2):
            assert 200 == service.drain(make_batch(str(number))).status
            wait_for(lambda: not service.files("*.open"))
            assert number + 1 == len(service.files("*.ndjson"))
        assert ["0", "1"] == stored_messages(service.files())


@pytest.mark.parametrize("umask", [0, 0o077])
def test_segments_are_named_and_guarded(tmp_path: Path, umask: int) -> None:
    """Files are for owner and group only, whatever the umask, and sealed at the stop."""
    service = Service(tmp_path)
    stack = contextlib.ExitStack()
    before = os.umask(umask)
    try:
        stack.enter_context(service)
    finally:
        os.umask(before)
    with stack:
        assert 200 == service.drain(make_batch("a")).status
        (path,) = service.files()
        assert NAME.fullmatch(path.name)
        assert path.name.endswith(".ndjson.open")
        assert service.worker_pids() == [segment_pid(path)]
        assert time.strftime("%Y%m%d", time.gmtime(path.stat().st_mtime)) == path.name[:8]
        assert (0o640, 0o750) == (mode_of(path), mode_of(service.data_dir))
        content = path.read_bytes()
        assert 0 == service.stop()
        sealed = path.with_suffix("")
        assert [sealed] == service.files()
        assert (0o640, content) == (mode_of(sealed), sealed.read_bytes())


def test_a_service_without_logs_leaves_no_file(tmp_path: Path) -> None:
    """An idle service creates no segment, neither while it runs nor at its end."""
    with Service(tmp_path, segment_seconds=0.5) as service:
        assert 200 == service.drain({"logs": []}).status
        time.sleep(1.5)
        assert 0 == service.stop()
        assert [] == service.files()


def test_workers_share_a_directory(tmp_path: Path) -> None:
    """Each worker writes its own files, with its pid in the names."""
    with Service(tmp_path, workers=3, segment_bytes=100_000) as service:
        with Load(service) as load:
            load.wait_for_every_worker()
            load.wait_for_acknowledged(200)
        assert set(service.worker_pids()) == set(map(segment_pid, service.files()))
        assert 0 == service.stop()
        assert all(NAME.fullmatch(path.name) for path in service.files())
        assert [] == service.files("*.open")
        load.check(service.logs())


def test_two_services_share_a_directory(tmp_path: Path) -> None:
    """Neither start, crash nor stop of one harms the files of the other."""
    settings = {"data_dir": tmp_path / "data", "segment_bytes": 100_000, "segment_seconds": 1}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = Service(tmp_path / "one", **settings)
    two = Service(tmp_path / "two", **settings)
    one.data_dir = two.data_dir = tmp_path / "data"
    with one, Load(one, 4) as load_one:
        load_one.wait_for_acknowledged(50)
        with two, Load(two, 4, start=1_000_000) as load_two:
            load_two.wait_for_acknowledged(50)
            two.kill()
            load_one.wait_for_acknowledged(50)
            two.start()
            load_two.wait_for_acknowledged(50)
            wait_for(lambda: not two.has_orphans())
            load_two.stop()
            assert 0 == two.stop()
        load_one.wait_for_acknowledged(50)
        load_one.stop()
        assert 0 == one.stop()
    assert [] == one.files("*.open")
    logs = one.logs()
    assert {True, False} == {log["metadata"]["batch"] < 1_000_000 for log in logs}
    load_one.check(logs)
    load_two.check(logs)


OLD = [f"20260101T00000{number}.000000Z-1.ndjson" for number in range(5)]


def prepare_sealed(service: Service, age_seconds: float = 0) -> None:
    """Create five old segments of 1,000 bytes, each `age_seconds` older than the next."""
    service.data_dir.mkdir()
    now = time.time()
    for number, name in enumerate(OLD):
        path = service.data_dir / name
        path.write_bytes(b"x" * 999 + b"\n")
        moment = now - (len(OLD) - number) * age_seconds
        os.utime(path, (moment, moment))
    (service.data_dir / "notes.txt").write_bytes(b"x" * 100_000)


def names_in(service: Service) -> list[str]:
    return sorted(path.name for path in service.data_dir.iterdir())


def test_all_segments_are_kept_by_default(tmp_path: Path) -> None:
    """Without retention no segment is removed."""
    service = Service(tmp_path)
    prepare_sealed(service, age_seconds=10**8)
    with service:
        time.sleep(2)
        assert [*OLD, "notes.txt"] == names_in(service)


@pytest.mark.quick
def test_the_oldest_segments_beyond_the_size_are_removed(tmp_path: Path) -> None:
    """The newest that fit stay; other files neither count nor are removed."""
    service = Service(tmp_path, retain_bytes=3_500)
    prepare_sealed(service)
    with service:
        wait_for(lambda: "2 by size" in service.log())
        assert [*OLD[2:], "notes.txt"] == names_in(service)


def test_segments_beyond_the_age_are_removed(tmp_path: Path) -> None:
    """A segment's age is the time since its last write."""
    service = Service(tmp_path, retain_seconds=3500)
    prepare_sealed(service, age_seconds=1000)
    with service:
        wait_for(lambda: "2 by age" in service.log())
        assert [*OLD[2:], "notes.txt"] == names_in(service)


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9"], ids=["alone", "forwarded"])
def test_other_files_are_not_touched(tmp_path: Path, url: str) -> None:
    """With any names, they are not read, counted, removed, compressed or waited for."""
    settings = {"retain_bytes": 1, "retain_seconds": 3600, "compress": "zstd"}
    service = Service(tmp_path, clickhouse_url=url, segment_bytes=1, **settings)
    service.data_dir.mkdir()
    before = foreign.make_all(service.data_dir)
    (service.data_dir / OLD[0]).write_bytes(b"{}\n")
    with service:
        for message in "abc":
            assert 200 == service.drain(make_batch(message)).status
        if url:
            facts = "".join(fact(f"done {name}") for name in sealed_names(service, before))
            head = fact("cursor 1 0/0 node table")
            (service.data_dir / "forward.cursor").write_text(head + facts)
        wait_for(lambda: not sealed_names(service, before))
        wait_for(lambda: read_samples_of(service).get("segments sealed") == 0)
        samples = read_samples_of(service)
        assert [0, 0] == [samples["segments open"], samples["compression_waiting_segments"]]
        assert "cannot" not in service.log()
        page = service.request("GET", "/status/logs", headers={"Authorization": TOKEN})
        assert (200, []) == (page.status, page.body["logs"])
        assert 0 == service.stop()
    assert before.items() <= foreign.seen(service.data_dir).items()


def sealed_names(service: Service, others: Iterable[str]) -> set[str]:
    """Return the names of the sealed segments, without other files."""
    files = {path.name for path in service.files("*.ndjson*")} - {*others}
    return {name.partition(".ndjson")[0] for name in files if not name.endswith(".open")}


def fact(text: str) -> str:
    """Return the line of forward's cursor for a fact."""
    return f"{text} {zlib.crc32(text.encode()):08x}\n"


@pytest.mark.parametrize("hours", [12, 7 * 24])
def test_segments_named_ahead_of_the_clock_go_first(tmp_path: Path, hours: int) -> None:
    """As a clock leaves them that was wrong for a while: nothing goes that was just stored."""
    service = Service(tmp_path, retain_bytes=3_500, segment_bytes=1)
    prepare_sealed(service)
    ahead = time.strftime("%Y%m%dT%H%M%S", time.gmtime(time.time() + hours * 3600))
    for number in range(3):
        path = service.data_dir / f"{ahead}.{number:06}Z-77.ndjson"
        path.write_bytes(b"x" * 999 + b"\n")
    with service:
        messages = post_in_turn(service, 3)
        wait_for(lambda: sum(map(size_of, service.files())) <= 3_500)
        left = service.files()
        assert not [path for path in left if path.name.startswith(ahead)]
        assert set(messages) == {log["message"] for log in read_logs(left[-3:])}


@pytest.mark.parametrize("hours", [12, 7 * 24])
def test_segments_beyond_the_age_are_found_under_any_name(tmp_path: Path, hours: int) -> None:
    """Behind younger ones, and ahead of the clock, from the first second on."""
    service = Service(tmp_path, retain_seconds=86_400)
    prepare_sealed(service)
    ahead = time.strftime("%Y%m%dT%H%M%S", time.gmtime(time.time() + hours * 3600))
    for name in (f"{ahead}.000000Z-77.ndjson", "20260102T000000.000000Z-1.ndjson"):
        path = service.data_dir / name
        path.write_bytes(b"x" * 999 + b"\n")
        month_ago = time.time() - 30 * 86_400
        os.utime(path, (month_ago, month_ago))
    with service:
        wait_for(lambda: "2 by age" in service.log())
        assert [*OLD, "notes.txt"] == names_in(service)


@pytest.mark.parametrize("keep", ["always", "until_full"])
def test_undelivered_segments_make_room_only_if_allowed(tmp_path: Path, keep: str) -> None:
    """On a nearly full disk, with a ClickHouse that accepts nothing; logged as errors."""
    service = Service(
        tmp_path,
        clickhouse_url="http://127.0.0.1:9",
        retain_free_bytes=2**60,
        retain_bytes=1,
        retain_undelivered=keep,
    )
    prepare_sealed(service)
    removed = 0 if keep == "always" else len(OLD)
    with service:
        wait_for(lambda: read_samples_of(service).get("segments sealed") == len(OLD) - removed)
        time.sleep(1.5)  # more than a look
        assert [*OLD[removed:], "notes.txt"] == names_in(service)
        assert removed == read_samples_of(service)["removed_undelivered_segments_total"]
        assert bool(removed) == ("BEFORE THEY WERE DELIVERED" in service.log())


def read_samples_of(service: Service) -> Samples:
    return read_samples(service.request("GET", "/metrics").raw.decode())


def test_retention_goes_on_while_logs_come_in(tmp_path: Path) -> None:
    """The newest logs are kept, including the open segment."""
    with Service(tmp_path, segment_bytes=10_000, retain_bytes=30_000) as service:
        for _ in range(2):
            messages = post_in_turn(service, 100)
            wait_for(lambda: sum(map(size_of, service.files())) <= 30_000)
            kept = stored_messages(service.files())
            assert 20 <= len(kept) <= 30
            assert messages[-len(kept) :] == kept
