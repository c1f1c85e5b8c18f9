"""The measurement of the client."""

import re

import pytest

from bench import python_client


@pytest.mark.slow
def test_bench_prints_the_cost_per_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of log has a cost for each handler, and all sent logs are stored."""
    for name, value in (("ROUND_LOGS", 10), ("ROUNDS", 1), ("RUN_LOGS", 1000), ("RUNS", 1)):
        monkeypatch.setattr(python_client, name, value)
    python_client.main()
    rows = capsys.readouterr().out.splitlines()
    costs = [row for row in rows if re.fullmatch(r"\| [^|]+ (\| [0-9.]+ ){4}\|", row)]
    assert len(python_client.LOGS) == len(costs)
    assert re.fullmatch(r"\| 1 \| [0-9,]+ \| [0-9.]+ \| [0-9.]+ \|", rows[-1])
