"""Run `astralog tail` on a data directory, and create segments for it to read."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.processes import cpu_seconds
from tests.support.service import TIMEOUT_SECONDS, make_log, read_segment, wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMMAND = Path(sys.executable).parent / "astralog"

#: The command as a word of a shell, since the path of the checkout may have spaces.
QUOTED_COMMAND = shlex.quote(str(COMMAND))


def tail(data_dir: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `astralog tail` to its end."""
    return run("tail", data_dir, *options, **environ)


def run(
    name: str, data_dir: Path, *options: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that reads logs to its end."""
    return subprocess.run(
        [COMMAND, name, "--data-dir", data_dir, *options],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | environ,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def tail_on_terminal(data_dir: Path, *options: str, **environ: str) -> str:
    """Run the command to its end on a terminal, and return its output there."""
    master, terminal = os.openpty()
    with (
        open(master, "rb", buffering=0) as screen,
        subprocess.Popen(
            [COMMAND, "tail", "--data-dir", data_dir, *options],
            stdout=terminal,
            env=os.environ | {"TERM": "xterm", "NO_COLOR": ""} | environ,
        ) as process,
    ):
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # the last one lets the terminal go
            while block := screen.read(65536):
                shown += block
        assert 0 == process.wait(TIMEOUT_SECONDS)
    return shown.decode().replace("\r\n", "\n")


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
        """Return the printed lines; half a line raises."""
        content = self._output.read_text("utf-8")
        assert not content or content.endswith("\n"), "half a line was printed"
        return content.split("\n")[:-1]

    def errors(self) -> str:
        """Return the stderr."""
        return self._errors.read_text()

    def logs(self) -> list[dict[str, Any]]:
        """Return the logs printed with --json."""
        return [json.loads(line) for line in self.lines()]

    def wait_for_lines(self, count: int) -> list[str]:
        """Return the lines once there are enough; the last one may be half written."""
        wait_for(lambda: self._output.read_bytes().count(b"\n") >= count)
        return self._output.read_bytes().decode(errors="replace").split("\n")[:-1]

    def cpu_seconds(self) -> float:
        """Return the CPU time of the command so far."""
        return cpu_seconds([self.process.pid])

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


def compress(path: Path) -> Path:
    """Compress a sealed segment and return its new path; one of both always exists."""
    unfinished = path.with_name(path.name + ".zst.tmp")
    unfinished.write_bytes(zstd.compress(path.read_bytes()))
    status = path.stat()
    os.utime(unfinished, ns=(status.st_atime_ns, status.st_mtime_ns))
    compressed = path.with_name(path.name + ".zst")
    unfinished.rename(compressed)
    path.unlink()
    return compressed


def make_segment(
    data_dir: Path, name: str, *lines: bytes, suffix: str = ".ndjson", changed: float | None = None
) -> Path:
    """Write a segment, last changed at a time in seconds since 1970."""
    data_dir.mkdir(exist_ok=True)
    path = data_dir / (name + suffix)
    content = b"".join(lines)
    path.write_bytes(zstd.compress(content) if suffix == ".ndjson.zst" else content)
    if changed is not None:
        os.utime(path, (changed, changed))
    return path


def make_name(start: float, pid: int = 1) -> str:
    """Return the name of a segment started at a time in seconds since 1970."""
    return f"{datetime.fromtimestamp(start, UTC):%Y%m%dT%H%M%S.%fZ}-{pid}"


def make_line(message: str, at: float | None = None, **fields: Any) -> bytes:
    """Return the stored line of a log, whose timestamp is `at` seconds since 1970."""
    if at is not None:
        fields["timestamp"] = f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    log = make_log(message=message, **fields)
    return json.dumps(log, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def message_of(line: bytes) -> str:
    """Return the message of a line."""
    message: str = json.loads(line)["message"]
    return message


def read_lines(path: Path) -> list[str]:
    """Return the lines of a segment, compressed or not."""
    return read_segment(path).decode().split("\n")[:-1]
