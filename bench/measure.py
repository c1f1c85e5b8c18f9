"""The yardsticks: CPU time, memory, percentiles, the bare codec and the bare disk."""

import contextlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from astralog.intake.batch import decode_json
from bench.bodies import Template, templates
from tests.support.decoding import make_context

ROOT = Path(__file__).parent.parent

#: CPU seconds of one sample of the codec, and seconds of one sample of the disk.
CODEC_SAMPLE_SECONDS = 0.3
DISK_SAMPLE_SECONDS = 0.5


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has held at once, in MiB; 0 for one that ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return _peak_mib(Path(f"/proc/{pid}/status").read_text())
    return 0.0


def _peak_mib(status: str) -> float:
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0  # a zombie


def take_last_core() -> None:
    """Keep this process, which is that of the load, to one core of several."""
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        os.sched_setaffinity(0, {max(cores)})


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of the values do not exceed; 0 without values."""
    if not values:
        return 0.0
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(int(rank) - 1, 0)]


class Yardstick:
    """Samples of something that is measured again and again during a run, by key."""

    def __init__(self, sample: Callable[[int], float]) -> None:
        self._sample = sample
        self._samples: dict[int, list[float]] = {}

    def take(self, key: int) -> None:
        """Take one more sample."""
        self._samples.setdefault(key, []).append(self._sample(key))

    def median(self, key: int) -> float:
        """Return the median of the samples so far."""
        return statistics.median(self._samples[key])


def codec_cpu_per_log(batch: int, make: Callable[[int], list[Template]] = templates) -> float:
    """Return the CPU seconds for a log of decode, timestamp check and encode in this process.

    `make` returns requests of so many logs.
    """
    pool = [template.body(number) for number, template in enumerate(make(batch))]
    context = make_context()
    decode_json(pool[0], context)
    logs = 0
    start = time.process_time()
    while (used := time.process_time() - start) < CODEC_SAMPLE_SECONDS:
        for body in pool[:50]:
            logs += decode_json(body, context).batch.logs
        pool = pool[50:] + pool[:50]
    return used / logs


def disk_bytes_per_second(directory: Path, size: int) -> float:
    """Return how fast a plain loop of write and fdatasync fills a file, `size` bytes a turn."""
    path = directory / "plain"
    data = os.urandom(size)
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
    written = 0
    start = time.perf_counter()
    try:
        while (passed := time.perf_counter() - start) < DISK_SAMPLE_SECONDS:
            written += os.write(fd, data)
            os.fdatasync(fd)
    finally:
        os.close(fd)
        path.unlink()
    return written / passed


def machine() -> dict[str, str | int]:
    """Describe the machine of the figures."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit of the checkout, with `-dirty` if more than the results differs."""
    try:
        name = git("rev-parse", "--short=12", "HEAD").strip()
        changes = git("status", "--porcelain", "--", ".", ":!bench/results.*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("-dirty" if changes else "")


def git(*arguments: str) -> str:
    """Run git in the checkout and return its output."""
    return subprocess.check_output(["git", *arguments], cwd=ROOT, text=True)
