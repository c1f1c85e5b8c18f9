"""Run all fault injection: `python -m tests.faults [--seconds N] [--report FILE] [--only KIND]`.

Ends with status 1 if a promise was broken. A whole run writes docs/fault-injection.md.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import commit
from tests.faults import (
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
    otlp,
    powercut,
    protocols,
    races,
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
from tests.faults.table import REPORT, Row, render, render_markdown
from tests.support.service import ROOT, heed_signals


class Kind(NamedTuple):
    """A kind of fault, with its largest share of the time."""

    name: str
    run: Callable[[Bench], Iterator[Row]]
    share: float
    needs_shim: bool = False


DEFAULT_SECONDS = 1800

#: The file for the table of a whole run.
RESULTS = ROOT / "docs" / "fault-injection.md"


def kinds(scale: float) -> list[Kind]:
    """Return every kind; `scale` is the length of the run relative to the default."""

    def times(count: int) -> int:
        return max(1, int(count * scale))

    def kind(name: str, share: float, *counts: Any, needs_shim: bool = False) -> Kind:
        function = partial(MODULES[name].run, **dict(zip(counts[::2], counts[1::2], strict=True)))
        return Kind(name, function, share, needs_shim)

    return [
        kind("kills", 0.35, "rounds", max(100, times(102))),
        kind("writes", 0.25, "rounds", times(10), needs_shim=True),
        kind("powercut", 0.25, "states", times(4000), needs_shim=True),
        kind("races", 0.1, "keys", times(100_000)),
        kind("disks", 0.1, "rounds", times(3), needs_shim=True),
        kind("clocks", 0.1, "rounds", times(2), needs_shim=True),
        kind("memory", 0.05, "rounds", times(2)),
        kind("sealing", 0.1, "rounds", times(3), needs_shim=True),
        kind("housekeeping", 0.1, "rounds", times(5)),
        kind("compression", 0.15, "rounds", times(12)),
        kind("stall", 0.1, "stall_seconds", 30, "commit_timeout_seconds", 8, needs_shim=True),
        kind("signals", 0.2, "rounds", times(4), "starts", max(24, times(24)), "segments", 10_000),
        kind("upgrades", 0.1, "rounds", times(3)),
        kind("attacks", 0.1, "rounds", times(1)),
        kind("heavy_bodies", 0.1, "bodies", 200),
        kind("connection_flood", 0.15, "connections", 2000),
        kind("tls", 0.2, "connections", 500),
        kind("slow_clients", 0.15, "connections", 4500, "readers", 20),
        kind("status_page_load", 0.05, "pages", 200, "segments", 5000, "seconds", 8),
        kind("tenants", 0.05),
        kind("fuzz", 0.1, "inputs", times(200_000)),
        kind("otlp", 0.05, "inputs", times(20_000)),
        kind("protocols", 0.05, "inputs", times(20_000)),
        kind(
            "forward",
            0.6,
            *("kills", max(200, times(200)), "rounds", max(8, times(8))),
            *("mixed_rounds", max(8, times(8))),
            *("logs", times(5000), "segments", 100_000),
        ),
    ]


MODULES: dict[str, Any] = {
    "kills": kills,
    "writes": writes,
    "powercut": powercut,
    "races": races,
    "disks": disks,
    "clocks": clocks,
    "memory": memory,
    "sealing": sealing,
    "housekeeping": housekeeping,
    "compression": compression,
    "stall": stall,
    "signals": signals,
    "attacks": attacks,
    "heavy_bodies": heavy_bodies,
    "connection_flood": connection_flood,
    "tls": tls,
    "slow_clients": slow_clients,
    "upgrades": upgrades,
    "fuzz": fuzz,
    "forward": forward,
    "otlp": otlp,
    "protocols": protocols,
    "status_page_load": status_page_load,
    "tenants": tenants,
}


def run(seconds: float, seed: int, only: list[str]) -> list[Row]:
    """Run the kinds one after another, and return their rows."""
    rows: list[Row] = []
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="astralog-faults-") as path:
        for kind in kinds(seconds / DEFAULT_SECONDS):
            if only and kind.name not in only:
                continue
            left = end - time.monotonic()
            bench = Bench(Path(path), seed, min(left, seconds * kind.share if not only else left))
            if kind.needs_shim and not shim.is_available():
                bench.say(f"NOT TESTED: {kind.name}; the shim needs gcc")
            elif left > 0:
                bench.say(f"--- {kind.name}")
                rows += _run_kind(kind, bench)
            else:
                bench.say(f"NOT TESTED: {kind.name}; no time is left")
    return rows


def _run_kind(kind: Kind, bench: Bench) -> Iterator[Row]:
    """Yield a kind's rows, and a failed row if it raises; the other kinds still run."""
    try:
        yield from kind.run(bench)
    except Exception as error:
        traceback.print_exc()
        row = Row(f"{kind.name}: not finished")
        row.fail(repr(error))
        yield row


def _report(rows: list[Row], seed: int, seconds: float) -> str:
    """Return the table with the conditions of the run."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    table = render_markdown(rows)
    return REPORT.format(commit=commit(), day=day, seed=seed, seconds=seconds, table=table)


def main() -> int:
    """Run the kinds that the command line selects, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS, help="longest duration of the run"
    )
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="seed of all random choices"
    )
    parser.add_argument("--report", type=Path, help="file for the table, in Markdown")
    parser.add_argument("--only", action="append", choices=list(MODULES), default=[])
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.seconds:g} s", file=sys.stderr)
    heed_signals()
    started_at = time.monotonic()
    rows = run(options.seconds, options.seed, options.only)
    print(render(rows))
    for row in rows:
        for remark in row.remarks:
            print(f"{row.what}: {remark}")
    is_whole = not options.only and options.seconds >= DEFAULT_SECONDS
    report = options.report or (RESULTS if is_whole else None)
    if report:
        seconds = time.monotonic() - started_at
        report.write_text(_report(rows, options.seed, seconds))
    return int(any(row.is_bad for row in rows))


if __name__ == "__main__":
    sys.exit(main())
