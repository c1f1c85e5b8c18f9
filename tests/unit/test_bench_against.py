"""`make bench-against`: its statistics, its alternation, and the checkout compared with itself."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

import pytest

from bench import against, load, measure
from bench.ratios import Outcome, Ratios, RowRatios, table
from bench.turns import run_in_turns
from tests.support.service import ROOT, TIMEOUT_SECONDS


@pytest.mark.parametrize(
    ("values", "is_more_better", "expected"),
    [
        ([1.0, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0], True, Outcome.FINE),
        ([0.95, 0.94, 0.96, 0.95, 0.97, 0.94, 0.95, 0.96], True, Outcome.WORSE),
        ([1.05, 1.04, 1.06, 1.05, 1.07, 1.04, 1.05, 1.06], True, Outcome.FINE),
        ([1.05, 1.04, 1.06, 1.05, 1.07, 1.04, 1.05, 1.06], False, Outcome.WORSE),
        ([0.95, 0.94, 0.96, 0.95, 0.97, 0.94, 0.95, 1.01], True, Outcome.UNCERTAIN),
        ([0.98, 0.98, 0.98, 0.98, 0.98, 0.98, 0.98, 0.98], True, Outcome.FINE),
    ],
)
def test_row_is_worse_beyond_the_limit_and_beyond_chance(
    values: list[float], is_more_better: bool, expected: Outcome
) -> None:
    """The median is the difference, and the interval shows whether chance explains it."""
    ratios = Ratios(values, is_more_better)
    assert expected is ratios.outcome
    row = RowRatios("json", efficiency=ratios, p99=Ratios([1.0]))
    assert (expected is Outcome.WORSE) == row.is_worse


@pytest.mark.parametrize(("count", "left_out"), [(1, 0), (7, 0), (8, 0), (11, 0), (12, 1), (20, 3)])
def test_interval_excludes_as_many_values_as_chance_allows(count: int, left_out: int) -> None:
    """The numbers are those of the sign test's tables for 99%."""
    low, high = Ratios([float(value) for value in range(count)]).interval
    assert (float(left_out), float(count - 1 - left_out)) == (low, high)


def test_table_names_the_worse_rows() -> None:
    """Each row has both figures, their ranges and the outcome."""
    worse = RowRatios("a", Ratios([0.5] * 8), Ratios([1.2, 1.0], is_more_better=False))
    _, row = table([worse])
    assert row == (
        "a",
        "0.500",
        "0.500..0.500",
        "1.100",
        "1.000..1.200",
        "WORSE: logs per CPU second, uncertain: p99",
    )


class Counting(ThreadingHTTPServer):
    """A server that records its name for each request, in the order of the requests."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), self._handler(name, calls))

    @staticmethod
    def _handler(name: str, calls: list[str]) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                calls.append(name)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def calls() -> list[str]:
    """Return the list in which the servers record their requests."""
    return []


@pytest.fixture
def plans(calls: list[str]) -> Iterator[list[load.Plan]]:
    """Return a plan of one connection and two phases for each of two servers, `a` and `b`."""
    servers = [Counting(name, calls) for name in "ab"]
    for server in servers:
        threading.Thread(target=server.serve_forever).start()
    yield [
        load.Plan(("127.0.0.1", server.server_port), "token", [], 1, 1, [0.05, 0.05])
        for server in servers
    ]
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_loads_run_one_at_a_time(plans: list[load.Plan], calls: list[str]) -> None:
    """No load sends while the other has its turn; each continues at its last request."""
    outcomes = run_in_turns(plans, [0, 1, 1, 0])
    counts = [[phase.acknowledged for phase in outcome.phases] for outcome in outcomes]
    assert [2, 2] == [len(own) for own in counts]
    expected = "a" * counts[0][0] + "b" * sum(counts[1]) + "a" * counts[0][1]
    assert expected == "".join(calls)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with one commit, in place of the checkout."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / "requirements.lock").write_text("flask==3.1.0\n")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")
    monkeypatch.setattr(measure, "ROOT", root)
    monkeypatch.setattr(against, "ROOT", root)
    measure.git("init", "--quiet")
    measure.git("add", ".")
    measure.git("commit", "--quiet", "--message", "one")
    return root


def test_revision_is_checked_out_temporarily(repository: Path, tmp_path: Path) -> None:
    """It has its own directory and, if the locks are equal, this environment; both are removed."""
    (repository / "wsgi.py").write_text("changed since")
    directory = tmp_path / "checkout"
    with against.checked_out("HEAD", directory) as revision:
        assert ["requirements.lock"] == [path.name for path in directory.glob("[a-z]*")]
        assert str(directory) in measure.git("worktree", "list")
        assert Path(sys.executable).parent == revision.programs
    assert not directory.exists()
    assert str(directory) not in measure.git("worktree", "list")


def test_revision_with_another_lock_is_installed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The revision's own Makefile installs its lock file into its directory."""
    (repository / "requirements.lock").write_text("flask==3.1.1\n")
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "check_call", lambda command, stdout: commands.append(command))
    directory = tmp_path / "checkout"
    with against.checked_out("HEAD", directory) as revision:
        assert directory / ".venv" / "bin" == revision.programs
    [[*start, python, _]] = commands
    assert ["make", "-C", str(directory), "install"] == start
    assert Path(python.removeprefix("PYTHON=")).exists()


@pytest.mark.slow
def test_a_comparison_with_this_checkout() -> None:
    """A revision is checked out, both are loaded alternately, and the row is printed."""
    if subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=False
    ).returncode:
        pytest.skip("the checkout is no git repository")
    options = ["--rounds=1", "--seconds=0.2", "--only=json 1x8"]
    run = subprocess.run(
        [sys.executable, "-m", "bench.against", "HEAD", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * TIMEOUT_SECONDS,
    )
    assert run.returncode in (0, 1), run.stderr
    assert "json 1x8" in run.stdout.splitlines()[-1]


def test_uncertain_rows_get_more_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows get the requested rounds; one that stays uncertain gets three times as many."""
    revision = against.Revision("name", tmp_path, tmp_path)
    duel = against.Duel((revision, revision), Executor(), tmp_path, 1.0)
    cpu_seconds = {"certain": cycle([1.0]), "uncertain": cycle([0.7, 1.3])}

    def run_round(row: against.Row, order: Sequence[int]) -> list[list[load.Phase]]:
        return [
            [load.Phase(server_cpu=cpu, latencies=[1.0], answers=Counter({"200": 1}))]
            for cpu in (1.0, next(cpu_seconds[row.name]))
        ]

    monkeypatch.setattr(duel, "_round", run_round)
    found = duel.compare([against.Row(name, 1, 1) for name in cpu_seconds], 2)
    assert [2, 6] == [len(row.efficiency.values) for row in found]
    assert [Outcome.FINE, Outcome.UNCERTAIN] == [row.efficiency.outcome for row in found]
