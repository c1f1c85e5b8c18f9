"""What becomes of keys when processes end, and when their journal is damaged or in the way."""

import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.keyed_client import make_headers
from tests.support.keyed_load import KeyedLoad
from tests.support.numbered_batches import count_lines, make_body
from tests.support.service import Answer, Service, make_batch, wait_for

BATCHES = range(6)

#: Logs of each batch, which spans more than a page.
LOGS = 20

#: What may befall a journal while the service is down.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn at its end": lambda content: content[:-7],
    "here and there": lambda content: _spoil(content),  # noqa: PLW0108
    "nothing but zeros": lambda content: bytes(len(content)),
    "another system's line ends": lambda content: content.replace(b"\n", b"\r\n"),
}

#: What may be appended to it by mistake while the service runs.
APPENDED = (
    b"\nsomebody's line",
    bytes(5000),
    bytes(20),
    b"\n" + bytes(range(256)),
    b"\n" + b"x" * 600_000,
)


def _spoil(content: bytes) -> bytes:
    """Tear the start, flip a bit, lose some bytes, and add lines of others, one without an end."""
    flipped = content[9:300] + bytes([content[300] ^ 1]) + content[301:500] + bytes(60)
    return flipped + content[560:] + b"\nsomebody's line\n" + bytes(range(256)) + b"x" * 600_000


def send(service: Service, number: int) -> Answer:
    """Send a batch by its number."""
    return service.drain(make_body(number, LOGS), make_headers(number))


def is_replay(answer: Answer) -> bool:
    """Return whether an answer says that the batch was stored before; it must be 200."""
    assert 200 == answer.status, answer.raw
    return answer.headers["Idempotency-Replayed"] == "true"


def journals(service: Service) -> list[Path]:
    """Return the files of the journal."""
    return sorted(service.data_dir.glob("keys*.journal"))


def check_stored(service: Service) -> None:
    """Check that each batch is there whole, and once."""
    lines = count_lines(log for log in service.logs() if "batch" in log["metadata"])
    assert {(number, line) for number in BATCHES for line in range(LOGS)} == set(lines)
    assert {1} == set(lines.values())


@pytest.mark.slow
def test_kills_double_nothing(tmp_path: Path) -> None:
    """Clients that send again until they see 200 find each batch there whole, and once."""
    with Service(tmp_path, workers=2, segment_bytes=200_000) as service:
        load = KeyedLoad(service, threads=6)
        load.start()
        for _ in range(3):
            enough = len(load.acknowledged) + 30
            wait_for(lambda: len(load.acknowledged) > enough)  # noqa: B023
            service.kill()
            service.start()
        load.stop()
        wait_for(lambda: not service.has_orphans())
        assert 0 == service.stop()
        assert load.replayed
        load.check(service.logs())


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_journal_harms_no_other_key(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Batches whose records are whole are replayed, the others stored; all goes on as before."""
    with Service(tmp_path, workers=2) as service:
        assert not any(is_replay(send(service, number)) for number in BATCHES)
        service.stop()
        (path,) = journals(service)
        before = path.read_bytes()
        after = damage(before)
        path.write_bytes(after)
        service.start()
        replayed = [is_replay(send(service, number)) for number in BATCHES]
        keyed = [line for line in before.split(b"\n") if line.startswith(b"keyed ")]
        assert [line in after.split(b"\n") for line in keyed] == replayed
        assert not is_replay(send(service, len(BATCHES)))
        wait_for(lambda: "damaged" in service.log())
        _check_order(service)


@pytest.mark.slow
def test_a_journal_may_be_spoilt_while_it_is_used(tmp_path: Path) -> None:
    """What is stored before and after is remembered by both workers."""
    with Service(tmp_path, workers=2) as service:
        for number, data in enumerate(APPENDED):
            assert not is_replay(send(service, number))
            (path,) = journals(service)
            with path.open("ab") as file:
                file.write(data)
        assert all(is_replay(send(service, number)) for number in range(len(APPENDED)))
        assert "damaged" in service.log()
        _check_order(service)


def _check_order(service: Service) -> None:
    """Check that nothing else suffers from what befell the journal."""
    assert 200 == service.drain(make_batch("without a key")).status
    assert {"status": "ready"} == service.request("GET", "/ready").body
    assert "Traceback" not in service.log()
    assert 0 == service.stop()


@pytest.mark.slow
def test_keys_wait_for_a_directory_that_is_gone(tmp_path: Path) -> None:
    """Nothing is stored and no client waits in vain; afterwards each batch is stored once."""
    with Service(tmp_path, workers=1) as service:
        assert not is_replay(send(service, 0))
        away = service.data_dir.rename(tmp_path / "away")
        for number in (0, 1, 1, 2):
            answers = [send(service, number), service.drain(make_batch("without a key"))]
            assert {503} >= {answer.status for answer in answers} - {200}
            codes = {answer.body.get("code") for answer in answers} - {None}
            assert codes <= {"storage_failed", "commit_timeout"}
        away.rename(service.data_dir)
        for number in BATCHES:
            wait_for(lambda: send(service, number).status == 200)  # noqa: B023
        assert all(is_replay(send(service, number)) for number in BATCHES)
        _check_order(service)
        check_stored(service)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keys-00000001.journal", "keys-00000002.journal", "keys.lock"])
def test_a_directory_in_the_way_costs_no_other_batch(tmp_path: Path, name: str) -> None:
    """Batches without a key are stored, those with one are rejected or stored, but for good."""
    service = Service(tmp_path)
    (service.data_dir / name).mkdir(parents=True)
    with service:
        assert 200 == service.drain(make_batch("without a key")).status
        for number in BATCHES:
            answer = send(service, number)
            assert answer.status in (200, 503)
            if answer.status == 200:
                assert is_replay(send(service, number))
        assert 200 == service.drain(make_batch("without a key")).status
        assert {"status": "ready"} == service.request("GET", "/ready").body
        assert "Traceback" not in service.log()
        (service.data_dir / name).rmdir()
        for number in BATCHES:
            wait_for(lambda: send(service, number).status == 200)  # noqa: B023
        assert all(is_replay(send(service, number)) for number in BATCHES)
        assert 0 == service.stop()
        check_stored(service)


@pytest.mark.slow
def test_many_keys_delay_no_other_batch(tmp_path: Path) -> None:
    """While they are read for the first batch with a key, one after another is stored."""
    service = Service(tmp_path)
    service.data_dir.mkdir()
    _write_keys(service.data_dir, 400_000)
    with service:
        assert 200 == service.drain(make_batch("without a key")).status
        keyed = threading.Thread(target=send, args=[service, 0])
        keyed.start()
        stored = 0
        while keyed.is_alive():
            assert 200 == service.drain(make_batch("without a key")).status
            stored += 1
        assert stored >= 10  # one or two, where a worker reads the keys at a stretch
        assert is_replay(send(service, 0))
        assert "damaged" not in service.log()


def _write_keys(data_dir: Path, count: int) -> None:
    """Write a journal as docs/operations.md has it, its keys those of segments that are gone."""
    part = count // 8
    for number in range(8):
        lines = [b"journal 1"]
        for key in range(number * part, (number + 1) * part):
            digest = key * 0x9E3779B97F4A7C15F39CC0605CEDC834 % (1 << 128)
            place = b"20240531T153045.000000Z-1 %d %d" % (key * 300, key * 300 + 300)
            lines.append(b"keyed %d 01234567 %032x 10a-0123abcd %b" % (time.time(), digest, place))
        lines = [b"%b %08x" % (line, zlib.crc32(line)) for line in lines]
        (data_dir / f"keys-{number + 1:08d}.journal").write_bytes(b"\n".join(lines))
