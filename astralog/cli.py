"""The `astralog` command; each subcommand is imported when it runs."""

import signal

# Ctrl-C ends a command at once, without a message, also during the imports; commands may handle it.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import importlib
import sys
from typing import Any

import click

from astralog import __version__
from astralog.standard_streams import discard_output, print_errors, reopen_closed_streams

#: Commands in other modules, which have a function of the same name.
ELSEWHERE = {
    "check": "astralog.check",
    "forward": "astralog.forward",
    "search": "astralog.view.search",
    "sql": "astralog.view.sql",
    "tail": "astralog.view.tail_command",
    "token": "astralog.token_command",  # nosec B105  # not a token
}


class _Commands(click.Group):
    """Commands that are imported only when they are used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *ELSEWHERE])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in ELSEWHERE:
            return super().get_command(context, name)
        command: click.Command = getattr(importlib.import_module(ELSEWHERE[name]), name)
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; an OSError, such as a full device, ends it with one line."""
        reopen_closed_streams()
        try:
            return super().main(*args, **extra)
        except OSError as error:
            print_errors([f"Error: {error.filename or 'cannot write'}: {error.strerror or error}"])
            discard_output()
            sys.exit(1)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Collect logs over HTTP, and read the stored logs.

    All settings are environment variables, ASTRALOG_*.
    """


@main.command()
def serve() -> None:
    """Start the service."""
    from astralog.server import master

    master.run()
