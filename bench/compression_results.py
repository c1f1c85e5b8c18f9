"""The figures of the compression, and the marks that they are held against."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.stored import Check


@dataclass
class Intake:
    """Intake next to another process that uses idle CPU."""

    logs_per_second: float
    p50_ms: float
    p99_ms: float
    other_cores: float  # CPU seconds of the other process for each second
    check: Check


@dataclass
class Compression:
    """Sealed segments compressed alone, and during a load that uses all cores."""

    plain_bytes_per_log: float
    compressed_bytes_per_log: float
    cpu_us_per_log: float
    peak_mib: float
    beside_compressor: list[Intake]
    beside_busy: list[Intake]  # alternating with these, a busy process of the same priority
    intake_factor: float  # logs per second beside the compressor, in those beside the busy one

    @property
    def ratio(self) -> float:
        """How many times smaller a segment is."""
        return self.plain_bytes_per_log / self.compressed_bytes_per_log

    @property
    def checks(self) -> list[Check]:
        """The checks of the disk after each load."""
        return [intake.check for intake in self.beside_compressor + self.beside_busy]


def compression_marks(compression: Compression) -> Iterator[tuple[str, float, float, bool]]:
    """Yield each mark as `results.Mark` has it: name, value, limit, and whether it is at most."""
    yield "compressed segments: compression ratio", compression.ratio, 7, False
    yield "compression: CPU µs per log", compression.cpu_us_per_log, 1.2, True
    name = "intake next to compression, relative to that next to a busy process"
    yield name, compression.intake_factor, 0.9, False
