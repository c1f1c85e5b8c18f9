"""The command `astralog search`."""

import os
import re
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from astralog.resources import count_cores, keep_freed_heap
from astralog.standard_streams import discard_output
from astralog.store.merge import Arrival, Part, newest_arrivals, oldest_arrivals, parts_since
from astralog.store.reader import ReadBudget, Select
from astralog.view import options
from astralog.view.context import MAX_LINES, ContextPart, unpack
from astralog.view.log_filter import LogFilter, is_empty_range, parse_field
from astralog.view.output import Output
from astralog.view.processes import Processes, ProcessPart

#: Exit statuses, as those of grep.
NOT_FOUND, FAILED, INTERRUPTED = 1, 2, 128 + signal.SIGINT

#: Seconds between two updates of the progress bar, and before the first one.
UPDATE_SECONDS = 0.2

#: Characters of the progress bar.
BAR_CHARACTERS = 20

#: Columns of a terminal of unknown width.
DEFAULT_COLUMNS = 80

#: The logs before and after a found one.
AROUND = click.IntRange(0, MAX_LINES)


class Failed(click.ClickException):
    """An error that ends the command with grep's exit status."""

    exit_code = FAILED


class _Command(click.Command):
    """A command whose errors have the exit status of grep's."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command; the readers of segments report their own errors."""
        try:
            return super().invoke(context)
        except click.UsageError:  # which has that status
            raise
        except click.ClickException as error:
            raise Failed(error.message) from None
        except OSError as error:
            discard_output()
            raise Failed(f"cannot write: {error.strerror}") from None


def _parse_fields(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(map(parse_field, texts))
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


@click.command(cls=_Command)
@click.argument("text", required=False, type=options.TEXT)
@options.since
@click.option(
    "--until",
    metavar="WHEN",
    callback=options.parse_when,
    help="Only logs until a time, or older than a duration.",
)
@options.projects
@options.services
@options.level
@click.option(
    "--field",
    "fields",
    metavar="NAME=VALUE",
    type=options.TEXT,
    multiple=True,
    callback=_parse_fields,
    help="Only logs with this value in the metadata; dots reach into objects. Repeatable.",
)
@click.option("--regex", is_flag=True, help="Interpret TEXT as a regular expression of Python.")
@click.option(
    "-s",
    "--case-sensitive",
    "match_case",
    is_flag=True,
    help="Match upper and lower case as given.",
)
@click.option("-A", "after", metavar="N", type=AROUND, help="Also show N logs after each.")
@click.option("-B", "before", metavar="N", type=AROUND, help="Also show N logs before each.")
@click.option(
    "-C",
    "around",
    metavar="N",
    type=AROUND,
    default=0,
    help="Also show N logs before and after each, of the same segment.",
)
@click.option(
    "-n", "limit", metavar="N", type=click.IntRange(0), help="Show the newest N logs, newest first."
)
@click.option("--count", is_flag=True, help="Print the number of logs instead.")
@options.as_json
@options.data_dir
def search(
    *,
    text: str | None,
    since: str | None,
    until: str | None,
    projects: tuple[str, ...],
    services: tuple[str, ...],
    level: str | None,
    fields: tuple[tuple[str, str], ...],
    regex: bool,
    match_case: bool,
    after: int | None,
    before: int | None,
    around: int,
    limit: int | None,
    count: bool,
    as_json: bool,
    data_dir: Path,
) -> None:
    """Find stored logs by text, field, level and time.

    TEXT is searched in message and metadata, ignoring case. The logs are shown in the order of
    their arrival. Exit status: 0 if a log was found, 1 if none was, 2 after an error.
    """
    options.prepare("search", level)
    if is_empty_range(since, until):
        raise click.UsageError("--since is later than --until.")
    wanted = LogFilter(
        projects=frozenset(projects) or None,
        services=frozenset(services) or None,
        level=level,
        text=None if regex else text,
        since=since,
        until=until,
        fields=fields,
        pattern=_compile(text, match_case=match_case) if regex and text is not None else None,
        match_case=match_case,
    )
    keep_freed_heap()
    has_context = not count and bool(around or after or before)
    make = partial(
        ContextPart, around if before is None else before, around if after is None else after
    )
    parts = options.find_parts(data_dir, make if has_context else ProcessPart)
    parts = parts_since(parts, since)
    output = Output(as_json=as_json)
    run = _Run(parts, wanted.select, limit, None if count else output)
    run.show(has_context=has_context, marks_gaps=not as_json)
    if count:
        click.echo(run.found)
    if any(part.is_failed and not part.is_removed for part in parts):
        sys.exit(FAILED)  # the log names each
    sys.exit(0 if run.found else NOT_FOUND)


def _compile(text: str, *, match_case: bool) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of sets such as [[a]
            return re.compile(text, 0 if match_case else re.IGNORECASE)
    except RecursionError:
        problem = "nested too deep"
    except (re.error, OverflowError) as error:
        problem = str(error)
    raise click.UsageError(f"not a regular expression: {problem}")


def _interrupt(number: int, frame: object) -> NoReturn:
    """Raise KeyboardInterrupt at Ctrl-C; another one ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


class _Run:
    """A search under way: its arrivals, and its progress on a terminal."""

    def __init__(
        self, parts: list[Part], select: Select, limit: int | None, output: Output | None
    ) -> None:
        """Print nothing without an output."""
        self.found = 0
        self._parts = parts
        self._select = select
        self._limit = limit
        self._output = output
        self._budget = ReadBudget()
        self._processes = Processes(parts, select, limit, count_cores(), self._update)
        self._total_bytes = sum(map(Part.file_size, parts))
        self._is_terminal = os.isatty(2)
        self._started_at = self._updated_at = time.monotonic()
        self._has_bar = False
        if output:
            output.before_writing = self._remove_bar

    def show(self, *, has_context: bool, marks_gaps: bool) -> None:
        """Print the results; Ctrl-C reports the searched share and ends the process."""
        found = self._arrivals()
        lines = (
            unpack(found, marks_gaps=marks_gaps)
            if has_context
            else (arrival.line for arrival in found)
        )
        is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        try:
            if not is_ignored:
                signal.signal(signal.SIGINT, _interrupt)
            if self._output:
                self._output.write(lines)
            else:
                deque(found, maxlen=0)
            self._remove_bar()
        except KeyboardInterrupt:
            self._remove_bar()
            click.echo(f"astralog search: interrupted: {self._describe()}", err=True)
            sys.exit(INTERRUPTED)
        finally:
            if not is_ignored:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            self._processes.close()

    def _arrivals(self) -> Iterator[Arrival]:
        if self._limit is None:
            found = oldest_arrivals(self._parts, self._watched, self._budget)
        else:
            found = newest_arrivals(self._parts, self._limit, self._watched, self._budget)
        for arrival in found:
            self.found += 1
            yield arrival

    def _watched(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        self._update()
        yield from self._select(block)

    def _update(self) -> None:
        """Flush the output if it is due, and update the progress bar."""
        if self._output:
            self._output.flush_if_due()
        now = time.monotonic()
        if self._is_terminal and now - self._updated_at > UPDATE_SECONDS:
            self._updated_at = now
            self._has_bar = True
            os.write(2, f"\r{self._bar(now - self._started_at)}\x1b[K".encode())

    def _bar(self, seconds: float) -> str:
        share = min(self._budget.file_bytes / self._total_bytes, 1.0) if self._total_bytes else 1.0
        left = f"  {seconds / share - seconds:.0f} s left" if share else ""
        text = f"{share:4.0%}  {self.found} found{left}"
        # The last column stays free: some terminals go on to the next line after it.
        columns = (os.get_terminal_size(2).columns or DEFAULT_COLUMNS) - 1
        width = min(columns - len(text) - 1, BAR_CHARACTERS)
        bar = ("#" * round(share * width)).ljust(width, ".")
        return f"{bar} {text}".lstrip()[:columns]

    def _remove_bar(self) -> None:
        if self._has_bar:
            self._has_bar = False
            os.write(2, b"\r\x1b[K")

    def _describe(self) -> str:
        searched, total = self._budget.file_bytes / 1e6, self._total_bytes / 1e6
        return f"searched {searched:.1f} of {total:.1f} MB, {self.found} found"
