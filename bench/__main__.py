"""Measure the service: `python -m bench --help`."""

import argparse
import multiprocessing
import signal
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench import (
    balance,
    compression,
    forward,
    keyed,
    lean_logs,
    measure,
    rates,
    report,
    search,
    segments,
)
from bench.results import Results, figures
from bench.runs import Runner, progress

BATCHES = (1, 10, 100, 500)
CONNECTIONS = (1, 8, 32)
SECTIONS = (
    "lean",
    "rates",
    "options",
    "foreign",
    "otlp",
    "keyed",
    "workers",
    "shares",
    "growth",
    "segments",
    "flood",
    "compression",
    "forward",
    "search",
)

SECONDS = 5.0
QUICK_SECONDS = 1.0


def main() -> int:
    """Run the selected benchmarks; return 1 if an acknowledged log is missing on disk."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # cleans up
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    is_whole = not (options.cells or options.sections is not None or options.quick)
    cells = options.cells
    if cells is None:
        cells = [(batch, count) for batch in BATCHES for count in CONNECTIONS]
    sections = options.sections
    if sections is None:
        sections = [] if options.cells else list(SECTIONS)
    results = Results(
        commit=measure.commit(),
        machine=measure.machine(),
        taken_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=seconds,
    )
    try:
        _run(results, cells, sections, options.search_segments)
    finally:
        print(report.text(results))  # after a failure, it has the sections before it
    output = options.output or (Path(__file__).parent if is_whole else None)
    if output:
        _write(results, output)
    return 0 if all(check.is_sound for check in results.checks()) else 1


def _run(  # one for each section
    results: Results, cells: list[tuple[int, int]], sections: list[str], search_segments: int
) -> None:
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix=".work-", dir=Path(__file__).parent) as directory,
        ProcessPoolExecutor(1, context, initializer=measure.take_last_core) as executor,
    ):
        runner = Runner(Path(directory), executor, results.seconds)
        results.cells = runner.cells(cells)
        if "lean" in sections:
            results.lean = lean_logs.measure_lean(runner)
        if "rates" in sections:
            results.rates = rates.measure_rates(runner)
        _run_forms(results, runner, sections)
        if "keyed" in sections:
            results.keyed = keyed.compare(runner)
        if "workers" in sections:
            results.workers = runner.workers()
        if "shares" in sections:
            results.shares = balance.compare(runner)
        if "growth" in sections:
            results.growth = runner.growth()
        if "segments" in sections:
            results.segments = segments.compare(Path(directory), executor, results.seconds)
        if "flood" in sections:
            results.flood = runner.flood()
        if "compression" in sections:
            results.compression = compression.measure_compression(runner, Path(directory))
        if "forward" in sections:
            results.forward = forward.measure_forward(runner, Path(directory))
        if "search" in sections:
            results.searches = search.measure_searches(Path(directory), search_segments)


def _run_forms(results: Results, runner: Runner, sections: list[str]) -> None:
    """Measure bodies of other forms than the drain's own."""
    if "options" in sections:
        results.options = runner.options()
    if "foreign" in sections:
        results.foreign = runner.foreign()
    if "otlp" in sections:
        results.otlp = runner.otlp()


def _write(results: Results, directory: Path) -> None:
    """Write the figures, the tables and the picture."""
    directory.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(figures(results)), indent=1)
    (directory / "results.json").write_bytes(encoded + b"\n")
    (directory / "results.md").write_text(report.markdown(results))
    if results.cells:
        from bench import plot  # noqa: PLC0415  # slow to import, and only wanted here

        plot.draw(results, directory / "results.png")
    progress(f"wrote {directory}/results.*")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=float, help=f"a cell, {SECONDS:g} by default")
    parser.add_argument(
        "--quick", action="store_true", help=f"everything, {QUICK_SECONDS:g} s a cell"
    )
    parser.add_argument(
        "--cells", type=_cells, help="only these, as 500x8,100x8: logs per batch x connections"
    )
    parser.add_argument(
        "--sections",
        type=_sections,
        help=f"only these, of {','.join(SECTIONS)}; none is an empty word",
    )
    parser.add_argument(
        "--search-segments",
        type=int,
        default=search.SEGMENTS,
        help=f"of some 90 MB each to search in, {search.SEGMENTS} by default",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="directory of results.json, .md and .png; only a whole run has a default, bench/",
    )
    return parser


def _cells(text: str) -> list[tuple[int, int]]:
    pairs = [cell.split("x") for cell in text.split(",") if cell]
    return [(int(batch), int(connections)) for batch, connections in pairs]


def _sections(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not set(names) <= set(SECTIONS):
        raise argparse.ArgumentTypeError(f"choose from {','.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
