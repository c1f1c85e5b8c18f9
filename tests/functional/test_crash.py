"""Processes that are killed, and the recovery by the next start."""

import contextlib
import fcntl
import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.service import Service, make_batch, make_log, segment_pid, wait_for


def test_a_killed_worker_is_replaced_and_its_file_recovered(tmp_path: Path) -> None:
    """The service continues, and every acknowledged batch is stored once."""
    with Service(tmp_path, workers=2) as service, Load(service) as load:
        for _ in range(3):
            load.wait_for_every_worker()
            load.wait_for_acknowledged(100)
            victim, other = service.worker_pids()
            os.kill(victim, signal.SIGKILL)
            service.wait_for_workers(other_than=[victim])
            wait_for(lambda: not service.has_orphans())
            assert other in service.worker_pids()
            assert victim in map(segment_pid, service.files("*.ndjson"))
        load.wait_for_acknowledged(100)
        load.stop()
        assert 0 == service.stop()
        assert [] == service.files("*.open")
        load.check(service.logs())


def test_a_killed_master_takes_its_workers_along(tmp_path: Path) -> None:
    """Workers without a master end by themselves, and lose nothing acknowledged."""
    with Service(tmp_path, workers=2) as service, Load(service) as load:
        load.wait_for_acknowledged(100)
        service.signal(signal.SIGKILL)
        wait_for(lambda: not service.pids())
        service.wait()
        load.stop()
        with service:
            wait_for(lambda: not service.has_orphans())
            assert 200 == service.drain({"logs": []}).status
            assert 0 == service.stop()
        assert [] == service.files("*.open")
        load.check(service.logs())


@pytest.mark.parametrize("sync", ["always", "everysec", "never"])
def test_everything_killed_loses_nothing_acknowledged(tmp_path: Path, sync: str) -> None:
    """After a restart every acknowledged batch is there whole, none twice, each line JSON.

    The other sync modes trade only a crash of the system, which keeps written pages here.
    """
    with Service(tmp_path, workers=2, sync=sync) as service, Load(service) as load:
        for _ in range(3):
            load.wait_for_acknowledged(100)
            service.kill()
            assert service.has_orphans()
            service.start()
            wait_for(lambda: not service.has_orphans())
        load.wait_for_acknowledged(100)
        load.stop()
        assert 0 == service.stop()
        assert [] == service.files("*.open")
        load.check(service.logs())


LINE = json.dumps(make_log()).encode() + b"\n"
BIG_LINE = json.dumps(make_log(message="x" * 3_000_000)).encode() + b"\n"

#: What a crash leaves, and what the next start makes of it; None where no file is left.
TAILS = {
    "whole": (LINE * 3, LINE * 3),
    "half a line": (LINE * 3 + LINE[:40], LINE * 3),
    "a line without its end": (LINE * 3 + LINE[:-1], LINE * 3),
    "half a big line": (LINE + BIG_LINE[:-1], LINE),
    "a big line": (LINE + BIG_LINE + LINE[:9], LINE + BIG_LINE),
    "a hole at the end": (LINE * 3 + bytes(4096), LINE * 3),
    "a hole in a line": (LINE * 3 + LINE[:40] + bytes(4096), LINE * 3),
    "a hole in the middle": (LINE * 3 + bytes(4096) + LINE * 3, LINE * 3),
    "a hole in a line in the middle": (LINE * 2 + LINE[:9] + bytes(99) + LINE * 3, LINE * 2),
    "only half a line": (LINE[:40], None),
    "only a hole": (bytes(4096), None),
    "empty": (b"", None),
}


@pytest.mark.quick
def test_orphans_are_truncated_and_sealed_at_the_start(tmp_path: Path) -> None:
    """After the last complete line before any hole; an empty file is removed."""
    service = Service(tmp_path)
    service.data_dir.mkdir()
    names = [f"20260101T000000.{number:06}Z-99999999.ndjson" for number in range(len(TAILS))]
    for name, (left, _) in zip(names, TAILS.values(), strict=True):
        (service.data_dir / f"{name}.open").write_bytes(left)
    with service:
        wait_for(lambda: not service.has_orphans())
        found = {path.name: path.read_bytes() for path in service.files()}
        expected = dict(zip(names, (made for _, made in TAILS.values()), strict=True))
        assert {name: made for name, made in expected.items() if made is not None} == found
        wait_for(lambda: len(TAILS) == service.log().count("recovered"))


def test_files_that_are_no_orphans_stay(tmp_path: Path) -> None:
    """Sealed files, files of another process, and other files."""
    service = Service(tmp_path)
    service.data_dir.mkdir()
    content = LINE + LINE[:40]
    names = [
        "20260101T000000.000001Z-99999999.ndjson.open",
        "20260101T000000.000002Z-99999999.ndjson",
        "notes.txt",
        "notes.open",
    ]
    for name in names:
        (service.data_dir / name).write_bytes(content)
    (service.data_dir / "20260101T000000.000003Z-99999999.ndjson.open").write_bytes(content)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context((service.data_dir / names[0]).open("rb"))
        fcntl.flock(held, fcntl.LOCK_EX)
        stack.enter_context(service)
        wait_for(lambda: [service.data_dir / names[0]] == service.files("*.ndjson.open"))
        assert 200 == service.drain(make_batch("more")).status
        assert 0 == service.stop()
        for name in names:
            assert content == (service.data_dir / name).read_bytes()
