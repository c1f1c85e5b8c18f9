"""A short form of each kind of fault; `make faults` runs them all for longer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import (
    __main__,
    attacks,
    clocks,
    compression,
    connection_flood,
    disks,
    forward,
    fuzz,
    heavy_bodies,
    housekeeping,
    kills,
    memory,
    mounts,
    otlp,
    powercut,
    protocols,
    sealing,
    shim,
    signals,
    slow_clients,
    stall,
    status_page_load,
    tenants,
    tls,
    upgrades,
    writes,
)
from tests.faults.bench import Bench
from tests.faults.table import HEADINGS, Row, render, render_markdown
from tests.support.certificate import can_make_certificate
from tests.support.full_memory import can_fill_memory

pytestmark = pytest.mark.timeout(900)

#: An upper bound that a busy machine needs.
SECONDS = 600
SEED = 1

FAULTS = [
    fault
    for fault in writes.FAULTS
    if fault.what
    in (
        "short write, then ENOSPC",
        "short write, then no memory",
        "EIO on sync, pages lost",
        "EIO on rename",
    )
]

needs_shim = pytest.mark.skipif(
    not shim.is_available(), reason="NOT TESTED: failing calls; it takes gcc to compile the shim"
)


def check(tmp_path: Path, inject: Callable[[Bench], Iterator[Row]]) -> None:
    """Run a kind, and check that it did something and that no promise was broken."""
    rows = list(inject(Bench(tmp_path, SEED, SECONDS, quiet=True)))
    assert rows
    assert all(row.tried for row in rows)
    assert [] == [(row.cells(), row.remarks) for row in rows if row.is_bad]


def test_kills(tmp_path: Path) -> None:
    """Nothing acknowledged is lost when processes are killed."""
    check(tmp_path, lambda bench: kills.run(bench, rounds=3))


@needs_shim
def test_failing_calls(tmp_path: Path) -> None:
    """After a failed sync nothing is acknowledged, and no segment stays unsealed."""
    check(tmp_path, lambda bench: writes.run(bench, rounds=2, faults=FAULTS))


@needs_shim
def test_seals(tmp_path: Path) -> None:
    """Whatever prevents a seal, it is done in the end, and replaces nothing."""
    check(tmp_path, lambda bench: sealing.run(bench, rounds=1))


def test_housekeeping(tmp_path: Path) -> None:
    """One process after another applies the settings to the directory."""
    check(tmp_path, lambda bench: housekeeping.run(bench, rounds=2))


def test_compression(tmp_path: Path) -> None:
    """With kills during compression, each log is stored and shown once."""
    kills = ("the compressor and another process",)
    check(tmp_path, lambda bench: compression.run(bench, rounds=2, kills=kills))


@needs_shim
def test_clocks(tmp_path: Path) -> None:
    """A clock that jumps removes nothing young, whatever it showed at the start."""
    check(tmp_path, lambda bench: clocks.run(bench, rounds=1, starts=(clocks.WEEK,)))


@needs_shim
def test_power_cuts(tmp_path: Path) -> None:
    """Every disk that a power cut may leave has the acknowledged logs."""
    check(tmp_path, lambda bench: powercut.run(bench, states=30))


@needs_shim
def test_disks(tmp_path: Path) -> None:
    """A full, read-only or missing disk rejects batches, and is used again afterwards."""
    if not mounts.can_mount():
        pytest.skip("NOT TESTED: troubled disks; it takes root to mount a small file system")
    check(tmp_path, lambda bench: disks.run(bench, rounds=1))
    if not mounts.can_mount_ext4():
        pytest.skip("NOT TESTED: an ext4 with an error; it takes mkfs.ext4, a loop device")


def test_full_memory(tmp_path: Path) -> None:
    """A full /dev/shm affects neither batches nor workers nor metrics."""
    if not can_fill_memory():
        pytest.skip("NOT TESTED: a full /dev/shm; it takes root to mount a small one")
    check(tmp_path, lambda bench: memory.run(bench, rounds=1))


@pytest.mark.alone
@needs_shim
def test_a_stall(tmp_path: Path) -> None:
    """A hanging sync leads to a timely 503 for its batches, and does not affect /health."""
    check(tmp_path, lambda bench: stall.run(bench, stall_seconds=3, commit_timeout_seconds=1))


def test_signals(tmp_path: Path) -> None:
    """Stops, reloads and restarts under load lose nothing, also with a full directory."""
    little = {"rounds": 1, "starts": 2, "segments": 1000}
    endings = ("SIGTERM twice", "SIGQUIT")
    check(tmp_path, lambda bench: signals.run(bench, **little, endings=endings))


def test_upgrades(tmp_path: Path) -> None:
    """An upgrade fails no request, and another version's files do no harm."""
    check(tmp_path, lambda bench: upgrades.run(bench, rounds=1))


def test_attacks(tmp_path: Path) -> None:
    """Lying bodies and smuggled requests are rejected, and no line is forged."""
    check(tmp_path, lambda bench: attacks.run(bench, rounds=1))


def test_heavy_bodies(tmp_path: Path) -> None:
    """Hundreds of bodies that are heavy to decode take the memory of one; others are served."""
    check(tmp_path, lambda bench: heavy_bodies.run(bench, bodies=200))


@pytest.mark.alone
def test_connection_floods(tmp_path: Path) -> None:
    """Slow, silent and vanished clients do not delay others."""
    kinds = ("half a body", "gone before the answer")
    check(tmp_path, lambda bench: connection_flood.run(bench, 100, stay_seconds=0.5, kinds=kinds))


@pytest.mark.alone
def test_broken_tls(tmp_path: Path) -> None:
    """Clients that break TLS delay no other client, and leave no state behind."""
    if not can_make_certificate():
        pytest.skip("NOT TESTED: broken TLS; openssl is not installed")
    kinds = ("plain HTTP", "garbage", "gone in the midst of a body")
    check(tmp_path, lambda bench: tls.run(bench, 50, 0.2, kinds, until_dropped=False))


@pytest.mark.timeout(600)  # its last campaign may begin when the others took all of SECONDS
def test_forwarding(tmp_path: Path) -> None:
    """With kills and faults at any point, the tables have each acknowledged log once."""
    check(tmp_path, lambda bench: forward.run(bench, 3, 0, 1, 300, 1000, faults=()))


@pytest.mark.alone
def test_status_page_load(tmp_path: Path) -> None:
    """Readers delay no sender."""
    check(tmp_path, lambda bench: status_page_load.run(bench, 50, segments=500, seconds=3))


def test_tenants_that_flood_each_other(tmp_path: Path) -> None:
    """Each sends at its own rate, whatever the other one sends."""
    check(tmp_path, lambda bench: tenants.run(bench, floods=2))


def test_slow_clients(tmp_path: Path) -> None:
    """Clients that occupy connections, memory and time delay no other client.

    test_unread_bodies has bodies without end for each path, test_connection_limits the handshakes.
    """
    check(
        tmp_path,
        lambda bench: slow_clients.run(bench, 4200, 0, [15_000], ["/health"], tls_connections=0),
    )


def test_fuzz(tmp_path: Path) -> None:
    """Mutated bodies are stored correctly, or rejected."""
    check(tmp_path, lambda bench: fuzz.run(bench, inputs=5000))


def test_a_kind_that_fails_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of a failed kind are in the table, and the run ends with status 1."""

    def fail_after_a_row(bench: Bench) -> Iterator[Row]:
        yield Row("finished", tried=7)
        raise RuntimeError("no more")

    def succeed(bench: Bench) -> Iterator[Row]:
        yield Row("after it", tried=8)

    kinds = [__main__.Kind("a", fail_after_a_row, 1), __main__.Kind("b", succeed, 1)]
    monkeypatch.setattr(__main__, "kinds", lambda scale: kinds)
    report = tmp_path / "table.md"
    monkeypatch.setattr("sys.argv", ["faults", "--report", str(report)])
    assert 1 == __main__.main()
    _, _, *rows = [line for line in report.read_text().splitlines() if line.startswith("| ")]
    assert ["| finished | 7 ", "| a: not finished | 0 ", "| after it | 8 "] == [
        row[: row.index("|", row.index("|", 2) + 1)] for row in rows
    ]
    assert "a: not finished: RuntimeError('no more')" in capsys.readouterr().out
    monkeypatch.setattr(__main__, "kinds", lambda scale: kinds[1:])
    monkeypatch.setattr("sys.argv", ["faults"])
    monkeypatch.setattr(__main__, "RESULTS", tmp_path / "results.md")
    assert 0 == __main__.main()
    assert "| after it | 8 " in (tmp_path / "results.md").read_text()


def test_the_table_has_a_cell_for_each_heading() -> None:
    """A broken promise is visible, in a terminal and in Markdown."""
    row = Row("a", tried=1000, lost=1)
    assert row.is_bad
    assert Row("b", parts=1).is_bad
    assert Row("b", unresolved=1).is_bad
    assert not Row("b", undecided=1, keyed=1, sent_again=1).is_bad
    assert len(HEADINGS) == len(row.cells())
    assert "1,000" in render([row])
    assert "| a | 1,000 | 0 | 0 | 0 | 1 |" in render_markdown([row])


def test_otlp(tmp_path: Path) -> None:
    """Mutated exports in both encodings, and exports made to take memory."""
    check(tmp_path, lambda bench: otlp.run(bench, inputs=2000))


def test_protocols(tmp_path: Path) -> None:
    """A body of another protocol is stored as whole logs, or rejected."""
    check(tmp_path, lambda bench: protocols.run(bench, inputs=1000))
