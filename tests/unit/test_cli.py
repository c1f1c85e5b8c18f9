import sys

import pytest
from click.testing import CliRunner

import astralog
from astralog import __version__, cli
from astralog.server import master


def test_a_token_is_printed() -> None:
    """It is alone on its line, and different each time."""
    outputs = [CliRunner().invoke(cli.main, ["token"]).output for _ in range(2)]
    assert all(len(output.split()) == 1 and output.endswith("\n") for output in outputs)
    assert outputs[0] != outputs[1]
    assert len(outputs[0]) > 40


def test_the_version_is_printed() -> None:
    """The version is the package's."""
    assert __version__ in CliRunner().invoke(cli.main, ["--version"]).output


def test_the_service_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` takes no options: the settings come from the environment."""
    started: list[bool] = []
    monkeypatch.setattr(master, "run", lambda: started.append(True))
    assert 0 == CliRunner().invoke(cli.main, ["serve"]).exit_code
    assert 2 == CliRunner().invoke(cli.main, ["serve", "--bind", "x"]).exit_code
    assert [True] == started


def test_forward_is_listed_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the help is complete, and one line names the package to install."""
    if hasattr(astralog, "forward"):  # which the import below replaces
        monkeypatch.setattr(astralog, "forward", astralog.forward)
    for name in [name for name in sys.modules if name.startswith("astralog.forward")]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "clickhouse_connect", None)
        shown = CliRunner().invoke(cli.main, ["--help"]).output
        result = CliRunner().invoke(cli.main, ["forward"])
    assert "forward  Deliver sealed segments to ClickHouse, each log once." in shown
    assert (result.exit_code, result.output) == (
        1,
        "Error: Needs clickhouse-connect: pip install clickhouse-connect\n",
    )
    monkeypatch.setitem(sys.modules, "astralog.store.reader", None)
    exception = CliRunner().invoke(cli.main, ["forward"]).exception
    assert isinstance(exception, ModuleNotFoundError)  # any other missing module is a defect
