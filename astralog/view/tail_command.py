"""The command `astralog tail`."""

import logging
import sys
from pathlib import Path
from typing import NoReturn

import click

from astralog.store.follower import Follower
from astralog.store.merge import Part, newest_lines, oldest_first, parts_since
from astralog.view import options
from astralog.view.log_filter import LogFilter
from astralog.view.output import Output

log = logging.getLogger(__name__)

#: Seconds between two polls for new lines.
POLL_SECONDS = 0.1

#: Stored lines that are shown if neither -n nor --since is given.
DEFAULT_LINES = 10


def _parse_lines(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    if text == "all":
        return float("inf")
    raise click.BadParameter("neither a number of lines nor `all`.")


@click.command()
@click.option(
    "-n",
    "--lines",
    metavar="N",
    callback=_parse_lines,
    help=f"Show the newest N logs, or `all`; {DEFAULT_LINES} by default, all with --since.",
)
@click.option("-f", "--follow", is_flag=True, help="Also show new logs as they arrive.")
@options.projects
@options.services
@options.level
@click.option(
    "--grep",
    "text",
    type=options.TEXT,
    help="Only logs with this text in message or metadata, ignoring case.",
)
@options.since
@options.as_json
@options.data_dir
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
    options.prepare("tail", level)
    wanted = LogFilter(frozenset(projects) or None, frozenset(services) or None, level, text, since)
    if lines is None:
        lines = DEFAULT_LINES if since is None else float("inf")
    output = Output(as_json=as_json)
    if follow:
        _follow(data_dir, lines, wanted, output)
    stored = options.find_parts(data_dir)
    _show_stored(stored, lines, wanted, output)
    if any(part.is_failed for part in stored):
        sys.exit(1)  # the log names each


def _show_stored(parts: list[Part], lines: float, wanted: LogFilter, output: Output) -> None:
    parts = parts_since(parts, wanted.since)
    if lines == float("inf"):
        output.write(oldest_first(parts, wanted.select))
    else:
        output.write(newest_lines(parts, int(lines), wanted.select))


def _follow(data_dir: Path, lines: float, wanted: LogFilter, output: Output) -> NoReturn:
    follower = Follower(data_dir)
    stored = follower.start()
    if follower.error and not isinstance(follower.error, FileNotFoundError):
        raise click.ClickException(options.describe(data_dir, follower.error))
    _show_stored(stored, lines, wanted, output)
    del stored
    is_away = False
    while True:
        if bool(follower.error) != is_away:
            is_away = not is_away
            reason = follower.error and follower.error.strerror
            log.warning("%s: %s", data_dir, f"{reason}; waiting" if reason else "available again")
        output.wait(POLL_SECONDS)
        output.write(follower.poll(wanted.select))
