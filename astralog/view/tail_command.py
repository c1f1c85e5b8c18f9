"""The command `astralog tail`."""

import logging
import re
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import click

from astralog.log import LineFormatter
from astralog.store.follower import Follower
from astralog.store.merge import Part, find_parts, newest_lines, oldest_first, parts_since
from astralog.view.levels import known_rank
from astralog.view.log_filter import LogFilter
from astralog.view.output import Output

log = logging.getLogger(__name__)

#: Seconds between two looks for new lines.
POLL_SECONDS = 0.1

#: Stored lines that are shown where neither their number nor their age is asked for.
DEFAULT_LINES = 10

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _parse_lines(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    if text == "all":
        return float("inf")
    raise click.BadParameter("neither a number of lines nor `all`.")


def _parse_since(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """Return the timestamp that a duration or a timestamp stands for, as it would be stored."""
    if text is None:
        return None
    from astralog.intake import timestamps  # noqa: PLC0415  # it takes long to import

    try:
        if re.fullmatch(r"([0-9]+[smhdw])+", text):
            parts = re.findall(r"([0-9]+)([smhdw])", text)
            ago = sum((timedelta(**{_UNITS[unit]: int(n)}) for n, unit in parts), timedelta())
            return timestamps.normalise((datetime.now(UTC) - ago).isoformat())
        return timestamps.normalise(text)
    except OverflowError:
        raise click.BadParameter("before the year 1.") from None
    except ValueError as error:
        raise click.BadParameter(f"{error} A duration such as 10m or 1h30m will do too.") from None


@click.command()
@click.option(
    "-n",
    "--lines",
    metavar="N",
    callback=_parse_lines,
    help=f"Show the newest N logs, or `all`; {DEFAULT_LINES} by default, all with --since.",
)
@click.option("-f", "--follow", is_flag=True, help="Show the logs that come from now on too.")
@click.option("--project", "projects", multiple=True, help="Only logs of this project. Repeatable.")
@click.option("--service", "services", multiple=True, help="Only logs of this service. Repeatable.")
@click.option("--level", help="Only logs of this level or worse: `--level warning`.")
@click.option(
    "--grep", "text", help="Only logs with this text in message or metadata, in any case."
)
@click.option(
    "--since",
    metavar="WHEN",
    callback=_parse_since,
    help="Only logs since a time (2024-05-31T15:30) or for a duration (10m, 1h30m, 2d).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the logs as they are stored.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, readable=False),  # an error of the system is no wrong use
    envvar="ASTRALOG_DATA_DIR",
    default="data",
    show_default=True,
    show_envvar=True,
    help="Directory of the segment files.",
)
def tail(
    *,
    lines: float | None,
    follow: bool,
    projects: tuple[str, ...],
    services: tuple[str, ...],
    level: str | None,
    text: str | None,
    since: str | None,
    as_json: bool,
    data_dir: Path,
) -> None:
    """Show the newest logs, in the order of their arrival."""
    # As other commands do, it ends by these signals, at once and without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGPIPE))
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("astralog tail: %(message)s"))
    logging.basicConfig(handlers=[handler])
    if level and known_rank(level) is None:
        click.echo(f"astralog tail: unknown level {level!r}: only logs of exactly it", err=True)
    wanted = LogFilter(frozenset(projects) or None, frozenset(services) or None, level, text, since)
    if lines is None:
        lines = DEFAULT_LINES if since is None else float("inf")
    output = Output(as_json=as_json)
    if follow:
        _follow(data_dir, lines, wanted, output)
    try:
        stored = find_parts(data_dir)
    except OSError as error:
        raise click.ClickException(f"{data_dir}: {error.strerror}") from None
    _show_stored(stored, lines, wanted, output)
    if any(part.is_failed for part in stored):
        sys.exit(1)  # the log names each


def _show_stored(parts: list[Part], lines: float, wanted: LogFilter, output: Output) -> None:
    if wanted.since is not None:
        parts = parts_since(parts, datetime.fromisoformat(wanted.since[:19] + "Z").timestamp())
    if lines == float("inf"):
        output.write(oldest_first(parts, wanted.select))
    else:
        output.write(newest_lines(parts, int(lines), wanted.select))


def _follow(data_dir: Path, lines: float, wanted: LogFilter, output: Output) -> NoReturn:
    follower = Follower(data_dir)
    stored = follower.start()
    if follower.error and not isinstance(follower.error, FileNotFoundError):
        raise click.ClickException(f"{data_dir}: {follower.error.strerror}")
    _show_stored(stored, lines, wanted, output)
    del stored
    is_away = False
    while True:
        if bool(follower.error) != is_away:
            is_away = not is_away
            reason = follower.error and follower.error.strerror
            log.warning("%s: %s", data_dir, f"{reason}; waiting" if reason else "there again")
        output.wait(POLL_SECONDS)
        output.write(follower.poll(wanted.select))
