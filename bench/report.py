"""The tables for the terminal and the docs."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from bench import rate_results
from bench.compression_results import Compression
from bench.forward_results import Forward
from bench.load import ACKNOWLEDGED
from bench.results import (
    Cell,
    Flood,
    Foreign,
    Growth,
    Keyed,
    Results,
    Segments,
    Shares,
    Workers,
    marks,
)
from bench.search_results import Searches
from bench.tables import markdown_table, text_table

_HEADINGS = (
    "logs per batch",
    "connections",
    "logs/s",
    "MB/s",
    "p50 ms",
    "p99 ms",
    "CPU µs/log",
    "CPU µs/request",
    "logs/CPU s",
    "x codec",
    "x disk",
    "peak MiB",
)


def rows(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Return the table of the cells, headings first."""
    return [_HEADINGS, *map(_row, cells)]


def _tables(results: Results) -> Iterator[list[tuple[str, ...]]]:
    if results.cells:
        yield rows(results.cells)
    if results.rates:
        yield [rate_results.HEADINGS, *(rate.row for rate in results.rates)]


def _row(cell: Cell) -> tuple[str, ...]:
    return (
        str(cell.batch),
        str(cell.connections),
        f"{cell.logs_per_second:,.0f}",
        f"{cell.mb_per_second:.1f}",
        f"{cell.p50_ms:.2f}",
        f"{cell.p99_ms:.2f}",
        f"{cell.cpu_us_per_log:.2f}",
        f"{cell.cpu_us_per_request:.0f}",
        f"{cell.logs_per_cpu_second:,.0f}",
        f"{cell.codec_ratio:.2f}",
        f"{cell.disk_ratio:.2f}",
        f"{cell.peak_mib:.0f}",
    )


def text(results: Results) -> str:
    """Return the whole report for the terminal."""
    parts = [text_table(table) for table in _tables(results)]
    return "\n\n".join([*parts, *_sections(results), *_marks(results), _verdict(results)])


def markdown(results: Results) -> str:
    """Return the whole report for the docs."""
    machine = results.machine
    source = (
        f"Commit `{results.commit}`, {results.taken_at}: {machine['cpu']}, {machine['cores']} "
        f"cores, Linux {machine['kernel']}, Python {machine['python']}; `make bench`, "
        f"{results.seconds:g} s per row, default settings except the number of workers, "
        "every batch synced before its 200."
    )
    parts = [source, *map(markdown_table, _tables(results))]
    return "\n\n".join([*parts, *_sections(results), *_marks(results), _verdict(results)]) + "\n"


def _sections(results: Results) -> Iterator[str]:
    sections: tuple[tuple[Callable[[Any], str], Any], ...] = (
        (_costs, results.cells),
        (_answers, [cell for cell in results.cells if not cell.answers.keys() <= ACKNOWLEDGED]),
        (_lean, results.lean),
        (_otlp, results.otlp),
        (_options, results.options),
        (_foreign, results.foreign),
        (_keyed, results.keyed),
        (_workers, results.workers),
        (_shares, results.shares),
        (_growth, results.growth),
        (_segments, results.segments),
        (_flood, results.flood),
        (_compression, results.compression),
        (_forward, results.forward),
        (_searches, results.searches),
    )
    return (section(found) for section, found in sections if found)


def _costs(cells: list[Cell]) -> str:
    codec = {c.batch: f"{c.codec_us_per_log:.2f} µs at {c.batch}" for c in cells}
    disk = {c.batch: f"{c.disk_mb_per_second:.0f} MB/s at {c.batch}" for c in cells}
    busiest = max(cell.load_cores for cell in cells)
    return (
        f"CPU per log of the bare codec, by logs per batch: {', '.join(codec.values())}. "
        f"Plain write and fdatasync, by logs per batch: {', '.join(disk.values())}. "
        f"CPU is the time of the master and all workers ({cells[0].workers}). A separate core "
        f"remains for the load generator, which uses up to {busiest:.2f} of it."
    )


def _answers(cells: list[Cell]) -> str:
    lines = (f"Answers at {cell.batch} x {cell.connections}: {cell.answers}." for cell in cells)
    return "\n\n".join(lines)


def _lean(cells: list[Cell]) -> str:
    lines = (
        f"Logs of 300 bytes with four keys of metadata ({cell.batch} per batch, "
        f"{cell.connections} connections): {cell.logs_per_second:,.0f} logs/s at "
        f"{cell.cpu_us_per_log:.2f} CPU µs per log, {cell.codec_ratio:.2f} times the bare codec."
        for cell in cells
    )
    return "\n\n".join(lines)


def _otlp(otlp: Cell) -> str:
    return (
        f"OTLP in protobuf ({otlp.batch} per batch, {otlp.connections} connections): "
        f"{otlp.logs_per_second:,.0f} logs/s at {otlp.cpu_us_per_log:.2f} CPU µs per log, "
        f"{otlp.logs_per_cpu_second:,.0f} logs per CPU second."
    )


def _options(options: Cell) -> str:
    return (
        f"NDJSON with unknown=metadata and three defaults ({options.batch} per batch, "
        f"{options.connections} connections): {options.logs_per_second:,.0f} logs/s at "
        f"{options.cpu_us_per_log:.2f} CPU µs per log, {options.logs_per_cpu_second:,.0f} logs "
        "per CPU second."
    )


def _foreign(senders: list[Foreign]) -> str:
    first = senders[0]
    forms = "; ".join(
        f"{sender.form} {median(sender.cpu_us_per_log):.2f} CPU µs per log and NDJSON "
        f"{median(sender.drain_cpu_us_per_log):.2f}, {median(sender.ratios):.2f} times the logs "
        "per CPU second"
        for sender in senders
    )
    return (
        f"Senders in their own form, in turns with NDJSON ({first.batch} per batch, "
        f"{first.connections} connections): {forms}."
    )


def _keyed(sizes: list[Keyed]) -> str:
    return "\n\n".join(map(_keyed_size, sizes))


def _keyed_size(keyed: Keyed) -> str:
    one, two = keyed.plain[0], keyed.keyed[0]
    return (
        f"Idempotency keys ({two.batch} per batch, {two.connections} connections): "
        f"{two.cpu_us_per_request:.0f} CPU µs per request with keys, {one.cpu_us_per_request:.0f} "
        f"without; {keyed.efficiency:.2f} times the logs per CPU second, and "
        f"{keyed.p99_factor:.2f} times the p99."
    )


def _workers(all_workers: list[Workers]) -> str:
    return "\n\n".join(map(_workers_under_a_load, all_workers))


def _workers_under_a_load(workers: Workers) -> str:
    one, two = workers.one[0], workers.two[0]
    return (
        f"Workers ({two.batch} logs per batch, {two.connections} connections): two workers store "
        f"{workers.throughput_factor:.2f} times the logs of one, with {workers.efficiency:.2f} "
        "times the logs per CPU second. The load generator shares the cores: it uses "
        f"{one.load_cores:.2f} of a core with one worker, and {two.load_cores:.2f} with two, "
        f"which use {two.server_cores:.2f}. With two cores for the service alone, the factor "
        f"would be near {2 * workers.efficiency:.2f}."
    )


def _shares(shares: list[Shares]) -> str:
    worst = [f"{max(s.factors):.2f} at {s.batch} x {s.connections}" for s in shares]
    return (
        f"Balance (logs per batch x connections, {len(shares[0].factors)} starts each): "
        f"the busier of two workers uses up to {', '.join(worst)} times the CPU of the other."
    )


def _growth(growth: Growth) -> str:
    fifths = ", ".join(f"{value:.2f}" for value in growth.fifths_us)
    return (
        f"Growth: CPU µs per log in each fifth of a run of {growth.fifths_logs:,} logs "
        f"into one segment per worker: {fifths}."
    )


def _segments(segments: Segments) -> str:
    sides = (segments.empty, segments.full)
    p99s = [median(s.p99_ms for s in side) for side in sides]
    idle = [median(s.idle_cores for s in side) * 100 for side in sides]
    first = segments.full[0]
    return (
        f"Segments: in a directory with {segments.count:,} compressed segments, with retention and "
        "compression, and a seal every 10 s, the p99 at a steady "
        f"{segments.logs_per_second:,} logs/s is {p99s[1]:.2f} ms, {segments.p99_factor:.2f} "
        f"times the {p99s[0]:.2f} ms in an empty directory. The idle service uses "
        f"{idle[1]:.2f}% of a core, and {idle[0]:.2f}% in an empty directory. After a start it "
        f"serves at once, and has found all segments after {first.known_seconds:.1f} s and "
        f"{first.known_cpu:.1f} s of CPU in total; its largest worker uses "
        f"{first.peak_mib:.0f} MiB."
    )


def _flood(flood: Flood) -> str:
    answers = ", ".join(f"{count} x {answer}" for answer, count in flood.answers.items())
    return (
        f"Flood: {flood.clients} clients send {flood.body_bytes / 2**20:.1f} MiB each at the same "
        f"time, within {flood.seconds:.1f} s: {answers}. The largest worker uses "
        f"{flood.peak_mib:.0f} MiB; {flood.workers_lost} workers died."
    )


def _compression(compression: Compression) -> str:
    sides = (compression.beside_compressor, compression.beside_busy)
    rates, p99s, cores = (
        [median(getattr(intake, name) for intake in side) for side in sides]
        for name in ("logs_per_second", "p99_ms", "other_cores")
    )
    return (
        f"Compression: {compression.plain_bytes_per_log:.0f} bytes per log become "
        f"{compression.compressed_bytes_per_log:.1f}, {compression.ratio:.2f} times less, for "
        f"{compression.cpu_us_per_log:.2f} µs of CPU per log and {compression.peak_mib:.0f} MiB. "
        f"During compression the service stores {rates[0]:,.0f} logs/s at a p99 of {p99s[0]:.1f} "
        f"ms; next to another busy process of the same priority, {rates[1]:,.0f} at {p99s[1]:.1f} "
        f"ms. The ratio is {compression.intake_factor:.2f}. The compressor uses {cores[0]:.2f} "
        f"cores, the other process {cores[1]:.2f}."
    )


def _searches(found: Searches) -> str:
    searches = "; ".join(
        f"{one.name} {one.seconds:.2f} s and {one.cpu_seconds:.2f} s of CPU, {one.tool} "
        f"{one.tool_seconds:.2f} and {one.tool_cpu_seconds:.2f}: {one.factor:.2f} times"
        for one in found.searches
    )
    return (
        f"Search for a word in one line of {found.segments} segments ({found.megabytes:.0f} MB, "
        f"compressed {found.compressed_megabytes:.0f} MB) in the page cache: {searches}."
    )


def _forward(forward: Forward) -> str:
    deliveries = "; ".join(
        f"{d.form} segments, {d.engine}: {d.logs:,} logs, {d.logs_per_second:,.0f} logs/s, "
        f"{d.cpu_us_per_log:.2f} µs of CPU per log, peak {d.peak_mib:.0f} MiB"
        for d in forward.deliveries
    )
    return (
        f"Forward: {deliveries}. Bytes per log: {forward.disk_bytes_per_log:.0f} plain, "
        f"{forward.compressed_bytes_per_log:.0f} compressed, {forward.table_bytes_per_log:.0f} in "
        f"the table, including {forward.index_bytes_per_log:.0f} for the word index. With segments "
        f"of {forward.segment_seconds:.0f} s and {forward.intake_logs_per_second:,.0f} logs/s of "
        f"intake, the lag was at most {forward.lag_seconds:.1f} s, and a query found a log "
        f"{min(forward.search_seconds):.1f} to {max(forward.search_seconds):.1f} s after its 200. "
        f"CPU of intake next to an idle forward: {forward.beside_factor:.2f} times that without."
    )


def _marks(results: Results) -> Iterator[str]:
    lines = [
        f"- {mark.name}: {_figure(mark.value)}, {'at most' if mark.is_at_most else 'at least'} "
        f"{_figure(mark.limit)}: {'holds' if mark.holds else 'does not hold'}"
        for mark in marks(results)
    ]
    if lines:
        yield "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}" if value < 0.1 else f"{value:.2f}"


def _verdict(results: Results) -> str:
    checks = results.checks()
    if all(check.is_sound for check in checks):
        total = sum(check.stored for check in checks)
        return f"Every acknowledged log is on disk exactly once ({total:,} lines checked)."
    faults = [str(check) for check in checks if not check.is_sound]
    return "\n".join(["LOGS WERE LOST OR DAMAGED:", *faults])
