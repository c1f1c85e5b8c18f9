"""Options and preparations that the commands for reading logs share."""

import logging
import signal
from pathlib import Path
from typing import Any

import click

from astralog.log import LineFormatter
from astralog.standard_streams import escape
from astralog.store import merge
from astralog.store.merge import MakePart, Part
from astralog.view.log_filter import parse_moment
from astralog.view.stored_log import known_rank


class _Text(click.types.StringParamType):
    """Text in UTF-8. Python takes other bytes for lone surrogates, which no stored log has."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, or report that it is not UTF-8."""
        text = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail("not valid UTF-8.", param, ctx)
        return text


TEXT = _Text()


def parse_when(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """Return the time of a duration before now, or of a timestamp, in the stored form."""
    try:
        return None if text is None else parse_moment(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


projects = click.option(
    "--project", "projects", type=TEXT, multiple=True, help="Only logs of this project. Repeatable."
)
services = click.option(
    "--service", "services", type=TEXT, multiple=True, help="Only logs of this service. Repeatable."
)
level = click.option(
    "--level", type=TEXT, help="Only logs of this level or worse: `--level warning`."
)
since = click.option(
    "--since",
    metavar="WHEN",
    callback=parse_when,
    help="Only logs since a time (2024-05-31T15:30), or of the last 10m, 1h30m or 2d.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the logs as they are stored.")
data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, readable=False),  # an error of the system is no wrong use
    envvar="ASTRALOG_DATA_DIR",
    default="data",
    show_default=True,
    show_envvar=True,
    help="Directory of the segment files.",
)


def prepare(name: str, level: str | None) -> None:
    """End silently at SIGPIPE, log to stderr, and report an unknown level."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGPIPE))
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(f"astralog {name}: %(message)s"))
    logging.basicConfig(handlers=[handler])
    if level is not None and known_rank(level) is None:
        message = f"unknown level {level!r}; only logs with this level match"
        click.echo(f"astralog {name}: {message}", err=True)


def find_parts(directory: Path, make: MakePart = Part) -> list[Part]:
    """Return the parts of the directory; raises ClickException if it cannot be read."""
    try:
        return merge.find_parts(directory, make)
    except OSError as error:
        raise click.ClickException(describe(directory, error)) from None


def describe(directory: Path, error: OSError) -> str:
    return f"{escape(str(directory))}: {error.strerror}"
