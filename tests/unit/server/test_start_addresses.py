"""Addresses that cannot be bound are rejected in one line, which names a remedy."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from astralog.server import start
from astralog.server.start import check_addresses
from astralog.server.worker import STOP_SECONDS
from astralog.settings import InvalidSettings


@pytest.fixture(autouse=True)
def _try_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "TRIES", 1)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="astralog-", dir="/tmp") as made:
        yield Path(made)


def problem_of(address: object) -> str:
    """Return the only line of the rejection of an address."""
    with pytest.raises(InvalidSettings) as rejected:
        check_addresses("ASTRALOG_BIND", [address])
    (line,) = rejected.value.problems
    assert line.startswith("ASTRALOG_BIND: ")
    return line


def test_path_that_is_no_socket_is_rejected(directory: Path) -> None:
    (directory / "file").touch()
    (directory / "dir").mkdir()
    os.mkfifo(directory / "fifo")
    (directory / "link").symlink_to(directory / "nowhere")
    before = sorted(directory.iterdir())
    assert "is a file, not a socket; remove it" in problem_of(str(directory / "file"))
    assert "is a directory, not" in problem_of(str(directory / "dir"))
    assert "is a FIFO, not" in problem_of(str(directory / "fifo"))
    assert "is a dangling link" in problem_of(str(directory / "link"))
    assert "There is no directory" in problem_of(str(directory / "a" / "socket"))
    assert "longer than 107 bytes" in problem_of(str(directory / ("x" * 107)))
    assert sorted(directory.iterdir()) == before


def test_socket_in_use_is_rejected_and_a_stale_one_is_not(directory: Path) -> None:
    path = directory / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert f"In use by process {os.getpid()} (" in problem_of(str(path))
    check_addresses("ASTRALOG_BIND", [str(path), str(directory / "new"), 5])
    assert path.exists()


def test_socket_whose_process_accepts_nothing_is_in_use(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "CONNECT_SECONDS", 0.01)
    path = str(directory / "socket")
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(path)
        other.listen(0)
        waiting.connect(path)
        assert "In use; stop it" in problem_of(path)


def test_relative_path_is_checked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    check_addresses("ASTRALOG_BIND", ["socket"])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_in_use_names_its_process(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        line = problem_of((host, port))
    assert f":{port}: In use by process {os.getpid()} (" in line
    check_addresses("ASTRALOG_BIND", [(host, port)])


def test_foreign_address_and_unknown_host_are_rejected() -> None:
    assert "Not an address of this machine" in problem_of(("192.0.2.1", 8080))
    assert "Unknown host" in problem_of(("no-such-host.invalid", 8080))
    assert "Unknown host" in problem_of(("a..b", 8080))
    assert "Unknown host" in problem_of(("ä..b", 8080))


def test_address_that_becomes_free_is_accepted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker of a killed master keeps it for as long as it may take to stop."""
    passed: list[float] = []

    def wait(seconds: float) -> None:
        passed.append(seconds)
        if sum(passed) > STOP_SECONDS:
            taken.close()

    monkeypatch.undo()  # try as often as a start does
    monkeypatch.setattr("time.sleep", wait)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_addresses("ASTRALOG_BIND", [taken.getsockname()])
    (message,) = caplog.messages
    assert message.startswith(f"ASTRALOG_BIND: 127.0.0.1:{port}: In use")
    assert message.endswith("Trying again for 10 seconds.")
