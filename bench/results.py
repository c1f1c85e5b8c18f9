"""The figures of a run, and the marks that they are held against."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import starmap
from statistics import median
from typing import Any, NamedTuple

import msgspec

from bench.compression_results import Compression, compression_marks
from bench.forward_results import Forward, forward_marks
from bench.keyed_marks import keyed_marks
from bench.rate_results import Rate, rate_marks
from bench.search_results import Searches, search_marks
from bench.stored import Check

#: Logs per CPU second by logs per batch and connections, and CPU in that of the bare codec, if any.
CELL_MARKS = {
    (500, 8): (700e3, 1.4),
    (100, 8): (420e3, 2.2),
    (1, 8): (15e3, None),
    (1, 32): (20e3, None),
}

#: Logs per CPU second of senders as they are, in those of NDJSON drain.
FOREIGN_MARKS = {"mapped fields": 0.45, "HEC": 0.45, "Loki in JSON": 0.5, "bulk": 0.45}


@dataclass
class Cell:
    """One batch size at one number of connections; throughput counts acknowledged logs only."""

    batch: int
    connections: int
    workers: int
    seconds: float
    requests: int
    logs_per_second: float
    mb_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_log: float
    cpu_us_per_request: float
    logs_per_cpu_second: float
    server_cores: float  # CPU seconds of the server for each second
    load_cores: float  # the same of the load generator
    peak_mib: float  # of the largest worker
    answers: dict[str, int]
    check: Check
    codec_us_per_log: float = 0.0
    disk_mb_per_second: float = 0.0

    @property
    def codec_ratio(self) -> float:
        """CPU of the whole service for a log, in those of the bare codec."""
        return self.cpu_us_per_log / self.codec_us_per_log

    @property
    def disk_ratio(self) -> float:
        """Bytes stored a second, in those of a plain loop of write and fdatasync."""
        return self.mb_per_second / self.disk_mb_per_second


@dataclass
class Workers:
    """One worker against two, alternating, under one load."""

    one: list[Cell]
    two: list[Cell]
    throughput_factor: float
    efficiency: float  # logs per CPU second of two workers, in those of one


@dataclass
class Foreign:
    """A sender as it is, in turns with NDJSON drain; a figure of each round."""

    form: str
    batch: int
    connections: int
    ratios: list[float] = field(default_factory=list)  # logs per CPU second, in those of NDJSON
    cpu_us_per_log: list[float] = field(default_factory=list)
    drain_cpu_us_per_log: list[float] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


@dataclass
class Keyed:
    """Batches without and with idempotency keys, alternating; factors are those of the latter."""

    plain: list[Cell]
    keyed: list[Cell]
    efficiency: float  # logs per CPU second
    p99_factor: float


@dataclass
class Shares:
    """CPU of the busiest of several workers in that of the least busy one, start by start."""

    batch: int
    connections: int
    factors: list[float] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


@dataclass
class Growth:
    """CPU for a log as a segment grows, in µs."""

    fifths_us: list[float]  # of one run into one segment
    fifths_logs: int
    fifths_factor: float
    check: Check


@dataclass
class Beside:
    """A service at a steady, low load, with a number of sealed segments and retention."""

    known_seconds: float  # from its start until it knew every segment
    known_cpu: float  # the CPU seconds that it took until then
    p99_ms: float
    idle_cores: float
    peak_mib: float  # of the largest worker
    check: Check


@dataclass
class Segments:
    """An empty directory against one with many sealed segments, under the same load in turns."""

    count: int
    logs_per_second: int
    empty: list[Beside]
    full: list[Beside]
    p99_factor: float  # of the full directory, in those of the empty one
    idle_percent: float  # of a core, that the full directory takes more


@dataclass
class Flood:
    """Clients that each send the largest body at once."""

    clients: int
    body_bytes: int
    seconds: float
    answers: dict[str, int]
    peak_mib: float
    workers_lost: int
    check: Check


@dataclass
class Results:
    """Everything that a run found."""

    commit: str
    machine: dict[str, str | int]
    taken_at: str
    seconds: float
    cells: list[Cell] = field(default_factory=list)
    lean: list[Cell] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    options: Cell | None = None
    foreign: list[Foreign] = field(default_factory=list)
    otlp: Cell | None = None
    keyed: list[Keyed] = field(default_factory=list)
    workers: list[Workers] = field(default_factory=list)
    shares: list[Shares] = field(default_factory=list)
    growth: Growth | None = None
    segments: Segments | None = None
    flood: Flood | None = None
    compression: Compression | None = None
    forward: Forward | None = None
    searches: Searches | None = None

    def checks(self) -> list[Check]:
        """Return the checks of the disk after each load."""
        cells = self.cells + [c for workers in self.workers for c in workers.one + workers.two]
        cells += [cell for cell in (self.options, self.otlp) if cell]
        cells += [cell for keyed in self.keyed for cell in keyed.plain + keyed.keyed]
        checks = [cell.check for cell in cells + self.lean] + [rate.check for rate in self.rates]
        checks += self.forward.checks if self.forward else []
        checks += self.compression.checks if self.compression else []
        checks += [check for shares in self.shares for check in shares.checks]
        checks += [check for foreign in self.foreign for check in foreign.checks]
        checks += [self.growth.check] if self.growth else []
        sides = self.segments.empty + self.segments.full if self.segments else []
        checks += [side.check for side in sides]
        return checks + ([self.flood.check] if self.flood else [])


class Mark(NamedTuple):
    """A figure that should not leave its limit."""

    name: str
    value: float
    limit: float
    is_at_most: bool

    @property
    def holds(self) -> bool:
        """Return whether the figure keeps the limit."""
        return self.value <= self.limit if self.is_at_most else self.value >= self.limit


def figures(results: Results) -> dict[str, Any]:
    """Return everything for JSON, with the ratios and the marks."""
    data: dict[str, Any] = msgspec.to_builtins(results)
    for cell, values in zip(results.cells, data["cells"], strict=True):
        values |= {"codec_ratio": cell.codec_ratio, "disk_ratio": cell.disk_ratio}
    data["marks"] = [{**mark._asdict(), "holds": mark.holds} for mark in marks(results)]
    return data


def marks(results: Results) -> Iterator[Mark]:
    """Yield every mark that the run has a figure for."""
    for name, cell in [*(("", c) for c in results.cells), *(("lean ", c) for c in results.lean)]:
        yield from _marks_of_cell(name, cell)
    yield from starmap(Mark, rate_marks(results.rates))
    for cell in results.cells:
        if (cell.batch, cell.connections) == (500, 32):
            name = "500 a batch, 32 connections: peak MiB of a worker"
            yield Mark(name, cell.peak_mib, 120, True)
    yield from _marks_of_forms(results)
    yield from starmap(Mark, keyed_marks(results.keyed))
    for workers in results.workers:
        yield from _marks_of_workers(workers)
    if results.shares:
        factor = max(factor for shares in results.shares for factor in shares.factors)
        yield Mark("two workers: CPU of the busier relative to the other", factor, 1.5, True)
    if results.growth:
        growth = results.growth
        yield Mark("last fifth of a segment: relative CPU", growth.fifths_factor, 1.1, True)
    if results.segments:
        segments = results.segments
        name = f"with {segments.count} sealed segments"
        yield Mark(f"{name}: p99 relative to none", segments.p99_factor, 1.2, True)
        yield Mark(f"{name}: additional idle CPU, % of a core", segments.idle_percent, 1.0, True)
    if results.flood:
        flood = results.flood
        served = flood.answers.get("200", 0) + flood.answers.get("503", 0)
        name = f"{flood.clients} clients with {flood.body_bytes / 2**20:.1f} MiB"
        yield Mark(f"{name}: peak MiB of a worker", flood.peak_mib, 500, True)
        wrong = sum(flood.answers.values()) - served
        yield Mark(f"{name}: workers that died", flood.workers_lost, 0, True)
        yield Mark(f"{name}: neither 200 nor 503 with Retry-After", wrong, 0, True)
    if results.compression:
        yield from starmap(Mark, compression_marks(results.compression))
    if results.forward:
        yield from starmap(Mark, forward_marks(results.forward))
    if results.searches:
        yield from starmap(Mark, search_marks(results.searches))


def _marks_of_workers(workers: Workers) -> Iterator[Mark]:
    batch = workers.two[0].batch
    name = f"two workers, {batch} a batch"
    if batch == 500:
        yield Mark(f"{name}: throughput relative to one", workers.throughput_factor, 1.8, False)
    limit = 0.95 if batch == 500 else 0.92
    yield Mark(f"{name}: logs per CPU second relative to one", workers.efficiency, limit, False)


def _marks_of_cell(kind: str, cell: Cell) -> Iterator[Mark]:
    if (cell.batch, cell.connections) not in CELL_MARKS:
        return
    rate, ratio = CELL_MARKS[cell.batch, cell.connections]
    name = f"{cell.batch} {kind}logs per batch, {cell.connections} connections"
    yield Mark(f"{name}: logs per CPU second", cell.logs_per_cpu_second, rate, False)
    if ratio:
        yield Mark(f"{name}: CPU relative to the bare codec", cell.codec_ratio, ratio, True)


def _marks_of_forms(results: Results) -> Iterator[Mark]:
    forms = (
        ("NDJSON with options", results.options, 200e3),
        ("OTLP in protobuf", results.otlp, 150e3),
    )
    for form, cell, rate in forms:
        if cell:
            name = f"500 per batch, {form}: logs per CPU second"
            yield Mark(name, cell.logs_per_cpu_second, rate, False)
    for foreign in results.foreign:
        name = f"{foreign.batch} per batch, {foreign.form}: logs per CPU second relative to NDJSON"
        yield Mark(name, median(foreign.ratios), FOREIGN_MARKS[foreign.form], False)
