"""The `astralog` command names what it has, and what it lacks."""

import sys

import pytest
from click.testing import CliRunner

from astralog import __version__
from astralog.cli import main


def test_help_and_version() -> None:
    """Each subcommand is listed with what it does."""
    shown = CliRunner().invoke(main, ["--help"]).output
    assert "forward  Deliver sealed segments to ClickHouse, each log once." in shown
    assert __version__ in CliRunner().invoke(main, ["--version"]).output
    assert "--once" in CliRunner().invoke(main, ["forward", "--help"]).output


def test_forward_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, one line tells which; any other missing module is a defect."""
    for name in [name for name in sys.modules if name.startswith("astralog.forward.")]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "clickhouse_connect", None)
        result = CliRunner().invoke(main, ["forward"])
    assert (result.exit_code, result.output) == (
        1,
        "Error: Needs clickhouse-connect: install astralog[clickhouse].\n",
    )
    monkeypatch.setitem(sys.modules, "astralog.store.sealed", None)
    assert isinstance(CliRunner().invoke(main, ["forward"]).exception, ModuleNotFoundError)
