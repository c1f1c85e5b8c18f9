"""systemd accepts the units, and they do not give up."""

import configparser
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT, Service, make_batch, wait_for

UNITS = sorted(
    path for path in (ROOT / "deploy").glob("*.*") if path.suffix in (".service", ".socket")
)


def read_unit(name: str) -> configparser.ConfigParser:
    """Return the sections of a unit; of a repeated setting, the last value."""
    parser = configparser.ConfigParser(interpolation=None, delimiters="=", strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((ROOT / "deploy" / name).read_text())
    return parser


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Every section, setting and dependency is known."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT TESTED: systemd-analyze is not installed")
    commands = Path(sys.executable).parent
    for unit in UNITS:
        text = unit.read_text().replace("/opt/astralog/.venv/bin", str(commands))
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "astralog" in line]
    assert ([], 0) == (ours, done.returncode), done.stderr


def test_service_is_always_restarted() -> None:
    """A disk or file that is late at boot does not keep it down after some quick failures."""
    unit = read_unit("astralog.service")
    assert "always" == unit["Service"]["Restart"]
    assert float(unit["Service"]["RestartSec"]) >= 1
    assert "0" == unit["Unit"]["StartLimitIntervalSec"]


def test_restarted_service_retries_its_socket() -> None:
    """By itself, systemd never retries an address in use, and fails a unit that requires it."""
    unit = read_unit("astralog.service")
    assert "Requires" not in unit["Unit"]
    for name in ("Wants", "PartOf", "After"):
        assert "astralog.socket" in unit["Unit"][name].split()
    assert "is-active --quiet astralog.socket ||" in unit["Service"]["ExecStartPre"]


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS])
def test_units_need_no_program_beyond_the_shell(unit: str) -> None:
    """A minimal Debian has systemd and a shell, but no procps."""
    lines = (ROOT / "deploy" / unit).read_text().splitlines()
    commands = [line.partition("=")[2] for line in lines if line.startswith("Exec")]
    programs = {command.lstrip("+").split()[0] for command in commands}
    assert programs <= {"/bin/sh", "/opt/astralog/.venv/bin/astralog"}


def test_the_unit_outlasts_the_stop() -> None:
    """The unit waits longer than the service's longest stop, 10 s."""
    assert float(read_unit("astralog.service")["Service"]["TimeoutStopSec"]) > 10


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS if unit.suffix == ".service"])
def test_the_units_are_hardened(unit: str) -> None:
    """The exposure level that systemd computes is at most 2.0 of 10."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT TESTED: systemd-analyze is not installed")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager"]
    done = subprocess.run(
        [*command, ROOT / "deploy" / unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr


def allowed_calls() -> set[str]:
    """Return the system calls that the service's unit allows, and the default ones."""
    lines = (ROOT / "deploy" / "astralog.service").read_text().splitlines()
    filters = [line.partition("=")[2] for line in lines if line.startswith("SystemCallFilter=")]
    allowed = expand_calls("@default")
    for words in filters:
        calls = {call for word in words.lstrip("~").split() for call in expand_calls(word)}
        allowed = allowed - calls if words.startswith("~") else allowed | calls
    return allowed


def expand_calls(group: str) -> set[str]:
    """Return the system calls of a group, including nested groups; a call is its own."""
    if not group.startswith("@"):
        return {group}
    command = ["systemd-analyze", "syscall-filter", "--no-pager", group]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    words = [line.strip() for line in lines[1:] if line.strip() and "#" not in line]
    calls = {word for word in words if not word.startswith("@")}
    return calls.union(*(expand_calls(word) for word in words if word.startswith("@")))


class ConfinedService(Service):
    """The service without writable and executable memory; its system calls are recorded."""

    def command(self) -> list[str]:
        """Return the command that starts the service under MemoryDenyWriteExecute=."""
        deny = "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0"
        run = "os.execv(sys.argv[1], sys.argv[1:])"
        traced = ["strace", "-D", "-f", "-qq", "-o", str(self.data_dir.parent / "calls")]
        return [*traced, sys.executable, "-c", f"{deny}; {run}", *super().command()]


def test_service_makes_only_allowed_system_calls(tmp_path: Path) -> None:
    """From its start through batches and rotation to its end."""
    for program in ("systemd-analyze", "strace"):
        if shutil.which(program) is None:
            pytest.skip(f"NOT TESTED: {program} is not installed")
    settings = {"segment_bytes": 1000, "retain_bytes": 2000, "compress": "zstd"}
    service = ConfinedService(tmp_path, **settings)
    with service:
        for _ in range(20):
            assert 200 == service.drain(make_batch("x" * 100)).status
        assert 400 == service.drain(b"{").status
        assert 200 == service.request("GET", "/metrics").status
        wait_for(lambda: service.files("*.zst"))
        service.signal(signal.SIGTERM)
        assert 0 == service.wait()
    calls = re.findall(r"^\d+ +(\w+)\(", (tmp_path / "calls").read_text(), re.MULTILINE)
    assert {"fdatasync", "accept4", "sched_setscheduler"} <= set(calls)
    assert set() == set(calls) - allowed_calls()
