"""Commands with closed, broken or full standard streams, or an unusable directory."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import IO, Self

import pytest

from tests.support.connections import free_port
from tests.support.service import TIMEOUT_SECONDS, TOKEN, Service, make_batch, wait_for
from tests.support.tail import COMMAND, QUOTED_COMMAND, make_line, make_name, make_segment

PRINTING = ["token", "--help", "--version", "tail --help", "forward --help", "tail", "tail -f"]

REASONS = {
    ">&-": ("stdout is closed", "Bad file descriptor"),
    ">/dev/full": ("No space left on device",),
}

#: What takes from root the right to read what the mode of a file forbids.
RESTRICT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Return the directory of two segments with a log each."""
    for number in (1, 2):
        make_segment(tmp_path / "data", make_name(number), make_line(f"log-{number}"))
    return tmp_path / "data"


def run(
    arguments: str,
    data_dir: Path,
    redirection: str = "",
    stdout: IO[bytes] | int = subprocess.PIPE,
    clickhouse_url: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell with redirected streams."""
    return subprocess.run(
        ["bash", "-c", f"exec {QUOTED_COMMAND} {arguments} {redirection}"],
        env=os.environ
        | {"ASTRALOG_DATA_DIR": str(data_dir), "ASTRALOG_CLICKHOUSE_URL": clickhouse_url},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT_SECONDS,
        check=False,
        text=True,
    )


@pytest.mark.parametrize("redirection", REASONS)
@pytest.mark.parametrize("arguments", PRINTING)
def test_a_lost_output_ends_a_command_with_one_line(
    data_dir: Path, arguments: str, redirection: str
) -> None:
    """The exit status is 1, and the line reports the failed write."""
    result = run(arguments, data_dir, redirection)
    assert 1 == result.returncode
    (line,) = result.stderr.splitlines()
    assert line in [f"Error: cannot write: {reason}" for reason in REASONS[redirection]]


@pytest.mark.parametrize("arguments", ["tail", "tail -f"])
def test_a_closed_output_is_an_error_before_the_first_log(tmp_path: Path, arguments: str) -> None:
    """A job without an output ends at once, and not with the first log."""
    result = run(arguments, tmp_path, ">&-")
    assert (1, "Error: cannot write: stdout is closed\n") == (result.returncode, result.stderr)


@pytest.mark.parametrize("arguments", PRINTING)
def test_closed_pipe_ends_a_command_silently(data_dir: Path, arguments: str) -> None:
    """It ends like other commands, without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as broken:
        result = run(arguments, data_dir, stdout=broken)
    assert result.returncode in (1, -signal.SIGPIPE)
    assert "" == result.stderr


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "2>/dev/full", "<&- 2>&-"])
@pytest.mark.parametrize("arguments", ["tail", "tail --nonsense", "tail --data-dir /nowhere"])
def test_a_command_needs_neither_stdin_nor_stderr(
    data_dir: Path, arguments: str, redirection: str
) -> None:
    """Its messages for stderr do not go to stdout, and its status is the same."""
    expected, result = run(arguments, data_dir), run(arguments, data_dir, redirection)
    assert expected.stdout == result.stdout
    assert (expected.returncode == 0) == (result.returncode == 0)


STREAMS = [">&-", "<&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"]


@pytest.mark.parametrize("redirection", STREAMS)
def test_forward_needs_no_streams(tmp_path: Path, redirection: str) -> None:
    """It delivers, and fails without its setting, also if its log has no reader."""
    assert 1 == run("forward --once", tmp_path, redirection).returncode
    url = "http://127.0.0.1:1"
    assert 0 == run("forward --once", tmp_path, redirection, clickhouse_url=url).returncode


class RedirectedService(Service):
    """A service without some of its standard streams; its log may be lost."""

    def __init__(self, directory: Path, program: str, redirection: str, *inherited: int) -> None:
        port = free_port()
        super().__init__(directory, bind=f"127.0.0.1:{port}", tokens=None)
        self.data_dir.mkdir()
        (self.data_dir / "token").write_text(TOKEN)  # the start prints how to use it
        self.inherited = inherited
        self.address = ("127.0.0.1", port)
        self.workers = 1
        self._line = f"exec {shlex.quote(str(COMMAND.parent))}/{program} {redirection}"

    def command(self) -> list[str]:
        """Return the command that starts the service."""
        return ["bash", "-c", self._line]

    def wait_until_listening(self) -> Self:
        """Return when the service accepts connections."""
        wait_for(self._accepts)
        return self

    def _accepts(self) -> bool:
        assert self.process.poll() is None
        with socket.socket() as connection:
            return connection.connect_ex(self.address) == 0


@pytest.mark.parametrize(
    ("program", "redirection"),
    [
        *[("gunicorn wsgi:app", redirection) for redirection in STREAMS],
        *[("astralog serve", redirection) for redirection in (STREAMS[0], STREAMS[-1])],
    ],
)
def test_the_service_needs_no_streams(tmp_path: Path, program: str, redirection: str) -> None:
    """It stores logs and stops regularly, and none of its files becomes its stderr."""
    with RedirectedService(tmp_path, program, redirection) as service:
        assert 200 == service.drain(make_batch("a")).status
        for pid in (service.process.pid, *service.worker_pids()):
            for number in range(3):
                path = os.readlink(f"/proc/{pid}/fd/{number}")
                assert path.startswith("/dev/") or path == str(tmp_path / "stderr.log")
        assert 0 == service.stop()
    assert ["a"] == [log["message"] for log in service.logs()]


def test_the_service_outlives_the_reader_of_its_log(tmp_path: Path) -> None:
    """As with `astralog serve 2>&1 | head`, also if the reader ends before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    with (
        open(writing, "wb"),
        RedirectedService(tmp_path, "astralog serve", f"2>&{writing}", writing) as service,
    ):
        assert 200 == service.drain(make_batch("a")).status
        assert 0 == service.stop()
    assert ["a"] == [log["message"] for log in service.logs()]


@pytest.fixture
def restricted() -> list[str]:
    """Return the prefix of a command for which file modes apply, although root runs it."""
    if os.getuid() != 0:
        return []
    if shutil.which(RESTRICT[0]) is None:
        pytest.skip("NOT TESTED: what may not be read; setpriv is not installed")
    return RESTRICT


def run_restricted(restricted: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [*restricted, str(COMMAND), "tail", *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


@pytest.mark.parametrize("options", [[], ["-f"]])
@pytest.mark.parametrize("mode", [0o000, 0o100, 0o300])
def test_tail_of_an_unreadable_directory_ends_with_1(
    data_dir: Path, restricted: list[str], mode: int, options: list[str]
) -> None:
    """It is a system error, as a missing directory is, and no usage error."""
    data_dir.chmod(mode)
    try:
        result = run_restricted(restricted, "--data-dir", str(data_dir), *options)
    finally:
        data_dir.chmod(0o700)
    assert (1, "") == (result.returncode, result.stdout)
    assert f"Error: {data_dir}: Permission denied\n" == result.stderr


def test_tail_of_an_unreadable_segment_ends_with_1(data_dir: Path, restricted: list[str]) -> None:
    """Readable segments are shown, and stderr names the unreadable one."""
    unreadable, _ = sorted(data_dir.iterdir())
    unreadable.chmod(0)
    result = run_restricted(restricted, "--data-dir", str(data_dir))
    assert 1 == result.returncode
    assert " log-2 " in result.stdout
    assert 1 == result.stdout.count("\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith("astralog tail: cannot read ")
    assert "Permission denied" in line
