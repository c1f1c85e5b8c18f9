"""Compare this checkout with another revision: `python -m bench.against REV`.

Both services run at the same time and are loaded in turns, so that a slow or busy machine slows
both alike. Ends with status 1 if a row is more than 3% worse and chance does not explain it.
"""

import argparse
import multiprocessing
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import bodies, foreign, load, measure, open_loop, options, otlp
from bench.ratios import Outcome, RowRatios, table
from bench.runs import CELL_WORKERS, progress, wait_until_idle
from bench.tables import text_table
from bench.turns import TURN_SECONDS, efficiency, median_ratio, order_of_turns, run_in_turns
from tests.support.service import ROOT, TOKEN, Service

#: Rounds per row, and seconds that each revision is loaded for in a round.
ROUNDS = 8
SECONDS = 1.5

#: Times as many rounds that a row may take in addition if its efficiency is uncertain.
MORE_ROUNDS = 2
WARM_UP_SECONDS = 0.5


class Row(NamedTuple):
    """A load that both revisions have to take; `rate` is in requests per second.

    It is left out if the older revision lacks the file that it `needs`.
    """

    name: str
    batch: int
    connections: int
    make: Callable[[int, str], list[bodies.Template]] = load.json_requests
    workers: int = CELL_WORKERS
    rate: float = 0.0
    needs: str = "wsgi.py"


#: A revision that has it accepts the requests of other senders.
FOREIGN = "astralog/intake/foreign.py"

ROWS = (
    Row("json 1x8", 1, 8),
    Row("json 1x32", 1, 32),
    Row("json 100x8", 100, 8),
    Row("json 500x8", 500, 8),
    Row("json 500x32", 500, 32),
    Row("ndjson 500x8", 500, 8, load.ndjson_requests),
    Row("otlp 500x8", 500, 8, otlp.requests),
    Row("options 500x8", 500, 8, options.requests),
    *(Row(f"{form} 500x8", 500, 8, make, needs=FOREIGN) for form, make in foreign.FORMS.items()),
    Row("keyed 100x8", 100, 8, load.keyed_requests),
    Row("keyed 500x8", 500, 8, load.keyed_requests),
    Row("two workers 100x8", 100, 8, workers=2),
    Row("single logs, 1,000/s", 1, 16, rate=1000.0),
    Row("/health, 1,000/s", 0, 16, open_loop.health_requests, rate=1000.0),
)


class Revision(NamedTuple):
    """A checkout and the directory of the programs to run it with."""

    name: str
    root: Path
    programs: Path


class RevisionService(Service):
    """The service of a revision, with its default settings except for the number of workers."""

    def __init__(self, directory: Path, revision: Revision, workers: int) -> None:
        directory.mkdir()
        super().__init__(directory, workers=workers, min_free_bytes=None)
        self.root = revision.root
        self._programs = revision.programs
        self._environ["PYTHONPATH"] = str(revision.root)

    def command(self) -> list[str]:
        return [str(self._programs / "gunicorn"), "wsgi:app"]


def main() -> int:
    """Measure as the command line says, and print the table."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # cleans up
    rows = [row for row in ROWS if arguments.only in row.name]
    if not rows:
        sys.exit(f"--only matches no row of: {', '.join(row.name for row in ROWS)}")
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix=".work-", dir=Path(__file__).parent) as work,
        checked_out(arguments.revision, Path(work) / "checkout") as old,
        ProcessPoolExecutor(1, context, initializer=measure.take_last_core) as executor,
    ):
        new = Revision("this checkout", ROOT, Path(sys.executable).parent)
        rows = [row for row in rows if (old.root / row.needs).exists()]
        duel = Duel((old, new), executor, Path(work), arguments.seconds)
        ratios = duel.compare(rows, arguments.rounds)
    print(f"this checkout ({measure.commit()}) divided by {old.name}, median of the rounds:\n")
    print(text_table(list(table(ratios))))
    return int(any(row.is_worse for row in ratios))


class Duel:
    """Rounds in which two revisions take the same loads."""

    def __init__(
        self,
        revisions: tuple[Revision, Revision],
        executor: Executor,
        directory: Path,
        seconds: float,
    ) -> None:
        self._revisions = revisions
        self._executor = executor
        self._directory = directory
        self._turns = max(round(seconds / TURN_SECONDS), 2)

    def compare(self, rows: Sequence[Row], rounds: int) -> list[RowRatios]:
        """Return the ratios of the second revision's figures to those of the first, per row.

        Each round runs all rows, so that a bad minute of the machine costs each row one round.
        Further rounds, up to MORE_ROUNDS times as many, run those whose efficiency is uncertain.
        """
        found = {row: RowRatios(row.name) for row in rows}
        for number in range((1 + MORE_ROUNDS) * rounds):
            for row, ratios in found.items():
                if number < rounds or ratios.efficiency.outcome is Outcome.UNCERTAIN:
                    progress(f"round {number + 1}: {row.name}")
                    old, new = self._round(row, number)
                    ratios.efficiency.values.append(median_ratio(efficiency, new, old))
                    ratios.p99.values.append(median_ratio(_p99, new, old))
        return list(found.values())

    def _round(self, row: Row, number: int) -> list[list[load.Phase]]:
        """Start both services, load them in turns, and return the phases of each."""
        with tempfile.TemporaryDirectory(dir=self._directory) as directory, ExitStack() as stack:
            services = [
                RevisionService(Path(directory) / str(number), revision, workers=row.workers)
                for number, revision in enumerate(self._revisions)
            ]
            for service in services:
                service.launch()
                stack.callback(service.kill)
            for service in services:
                service.wait_until_listening()
            for service in services:
                wait_until_idle(service)
            plans = [self._plan(service, row) for service in services]
            order = order_of_turns(number, self._turns)
            outcomes = self._executor.submit(run_in_turns, plans, order).result()
        for service, outcome in zip(services, outcomes, strict=True):
            answers = [dict(phase.answers) for phase in outcome.phases]
            if not all(answer and answer.keys() <= load.ACKNOWLEDGED for answer in answers):
                raise RuntimeError(f"{row.name}: {answers}\n{service.log()[-5000:]}")
        return [outcome.phases[1:] for outcome in outcomes]

    def _plan(self, service: Service, row: Row) -> load.Plan:
        return load.Plan(
            address=service.address,
            token=TOKEN,
            pids=service.pids(),
            batch=row.batch,
            connections=row.connections,
            phase_seconds=[WARM_UP_SECONDS, *[TURN_SECONDS] * self._turns],
            make=row.make,
            rate=row.rate,
        )


def _p99(phase: load.Phase) -> float:
    return measure.percentile(phase.latencies, 99)


@contextmanager
def checked_out(revision: str, directory: Path) -> Iterator[Revision]:
    """Check a revision out into a temporary worktree, with an environment that fits its lock."""
    commit = measure.git("rev-parse", "--verify", "--short=12", revision + "^{commit}").strip()
    measure.git("worktree", "add", "--quiet", "--detach", str(directory), commit)
    try:
        yield Revision(commit, directory, _programs(directory))
    finally:
        measure.git("worktree", "remove", "--force", str(directory))


def _programs(root: Path) -> Path:
    """Return the programs of this environment if it has the locked versions, else install them."""
    if _lock(root) == _lock(ROOT):
        return Path(sys.executable).parent
    progress("its lock differs from this checkout's: installing its own environment")
    python = Path(sys.base_exec_prefix) / "bin" / Path(sys.executable).resolve().name
    command = ["make", "-C", str(root), "install", f"PYTHON={python}", "VENV=.venv"]
    subprocess.check_call(command, stdout=sys.stderr)
    return root / ".venv" / "bin"


def _lock(root: Path) -> list[str]:
    """Return the locked dependencies without comments; older revisions lock them at the top."""
    for path in (root / "requirements" / "base.lock", root / "requirements.lock"):
        if path.exists():
            return [line for line in path.read_text().splitlines() if "#" not in line]
    raise FileNotFoundError(f"no lock file in {root}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.against", description=__doc__)
    parser.add_argument("revision", help="commit, tag or branch to compare this checkout with")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS} by default")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"of load for each revision in a round of a row, {SECONDS:g} by default",
    )
    parser.add_argument("--only", default="", help="a part of the names of the rows to run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
