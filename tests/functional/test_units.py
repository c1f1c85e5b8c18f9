"""The units of systemd are what systemd takes, and do not give up."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT

UNITS = sorted(
    path for path in (ROOT / "deploy").glob("*.*") if path.suffix in (".service", ".socket")
)


def read_unit(name: str) -> configparser.ConfigParser:
    """Return the sections of a unit; a setting may stand there once."""
    parser = configparser.ConfigParser(interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((ROOT / "deploy" / name).read_text())
    return parser


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Every section, setting and dependency is known, with the commands where they are here."""
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


def test_the_service_is_started_again_whatever_ends_it() -> None:
    """A disk or a file that is late at boot does not keep it down after some quick failures."""
    unit = read_unit("astralog.service")
    assert "always" == unit["Service"]["Restart"]
    assert float(unit["Service"]["RestartSec"]) >= 1
    assert "0" == unit["Unit"]["StartLimitIntervalSec"]
    assert "astralog.socket" in unit["Unit"]["Requires"]


def test_the_unit_outlasts_the_stop() -> None:
    """The unit waits longer than the service takes at most, which is 10 s."""
    assert float(read_unit("astralog.service")["Service"]["TimeoutStopSec"]) > 10
