"""The picture: throughput and p99 over batch size, a line for each number of connections."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.results import Results

matplotlib.use("Agg")


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    for connections in sorted({cell.connections for cell in results.cells}):
        cells = sorted(
            (cell for cell in results.cells if cell.connections == connections),
            key=lambda cell: cell.batch,
        )
        sizes = [cell.batch for cell in cells]
        label = f"{connections} connection{'s' if connections > 1 else ''}"
        throughput.plot(sizes, [cell.logs_per_second for cell in cells], "o-", label=label)
        latency.plot(sizes, [cell.p99_ms for cell in cells], "o-", label=label)
    throughput.set_title("Logs a second, on disk before 200")
    latency.set_title("p99 latency, ms")
    for axes in (throughput, latency):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("logs per batch")
        axes.set_xticks(sorted({cell.batch for cell in results.cells}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:,.10g}")
        axes.grid(alpha=0.3)
    throughput.legend()
    machine = results.machine
    figure.suptitle(f"AstraLog {results.commit}: {machine['cpu']}, {machine['cores']} cores")
    figure.savefig(path, dpi=120)
