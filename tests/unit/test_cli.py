import pytest
from click.testing import CliRunner

from astralog import __version__, cli
from astralog.server import application


def test_a_token_is_printed() -> None:
    """It is alone on its line, and another one every time."""
    outputs = [CliRunner().invoke(cli.main, ["token"]).output for _ in range(2)]
    assert all(len(output.split()) == 1 and output.endswith("\n") for output in outputs)
    assert outputs[0] != outputs[1]
    assert len(outputs[0]) > 40


def test_the_version_is_printed() -> None:
    """It is the package's."""
    assert __version__ in CliRunner().invoke(cli.main, ["--version"]).output


def test_the_service_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` takes no options: the settings come from the environment."""
    started: list[bool] = []
    monkeypatch.setattr(application, "run", lambda: started.append(True))
    assert 0 == CliRunner().invoke(cli.main, ["serve"]).exit_code
    assert 2 == CliRunner().invoke(cli.main, ["serve", "--bind", "x"]).exit_code
    assert [True] == started
