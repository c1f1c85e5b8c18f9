"""Run `astralog tail` on a data directory, and make segments for it to read."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.service import TIMEOUT_SECONDS, make_log, wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMMAND = Path(sys.executable).parent / "astralog"


def tail(data_dir: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [COMMAND, "tail", "--data-dir", data_dir, *options],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | environ,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


class Tail:
    """A running `astralog tail`, whose output goes to a file."""

    def __init__(self, directory: Path, data_dir: Path, *options: str) -> None:
        self._output = directory / "tail.out"
        self._errors = directory / "tail.err"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [COMMAND, "tail", "--data-dir", data_dir, *options], stdout=output, stderr=errors
            )

    def lines(self) -> list[str]:
        """Return what was printed, line by line; half a line raises."""
        content = self._output.read_text("utf-8")
        assert not content or content.endswith("\n"), "half a line was printed"
        return content.split("\n")[:-1]

    def errors(self) -> str:
        """Return what was printed to stderr."""
        return self._errors.read_text()

    def logs(self) -> list[dict[str, Any]]:
        """Return the logs that were printed with --json."""
        return [json.loads(line) for line in self.lines()]

    def wait_for_lines(self, count: int) -> list[str]:
        """Return the lines once there are as many."""
        wait_for(lambda: len(self.lines()) >= count)
        return self.lines()

    def cpu_seconds(self) -> float:
        """Return the processor time that the command took so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """Press Ctrl-C, and return the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(TIMEOUT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_SECONDS)


class Compressor:
    """Compress the sealed segments of a directory while it lives, as the service would."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(0.05):
            for path in sorted(self._data_dir.glob("*.ndjson")):
                compress(path)


def compress(path: Path) -> Path:
    """Compress a sealed segment and return its new path; at every instant one of both is whole."""
    unfinished = path.with_name(path.name + ".zst.tmp")
    unfinished.write_bytes(zstd.compress(path.read_bytes()))
    status = path.stat()
    os.utime(unfinished, ns=(status.st_atime_ns, status.st_mtime_ns))
    compressed = path.with_name(path.name + ".zst")
    unfinished.rename(compressed)
    path.unlink()
    return compressed


def make_segment(
    data_dir: Path, name: str, logs: Sequence[dict[str, Any]], *, changed: float | None = None
) -> Path:
    """Write a segment as the service does, last changed at a time in seconds since 1970."""
    data_dir.mkdir(exist_ok=True)
    path = data_dir / name
    path.write_bytes(b"".join(encode_line(log) for log in logs))
    if changed is not None:
        os.utime(path, (changed, changed))
    return path


def encode_line(log: dict[str, Any]) -> bytes:
    """Return a log's line as the service stores it."""
    return json.dumps(log, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def make_line(message: str, **fields: Any) -> bytes:
    """Return the stored line of a log with some of its fields replaced."""
    return encode_line(make_log(message=message, **fields))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a segment, compressed or not."""
    content = path.read_bytes()
    if path.suffix == ".zst":
        content = zstd.decompress(content)
    return content.decode().split("\n")[:-1]
