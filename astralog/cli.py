"""The `astralog` command; each subcommand imports what it needs only when it is called."""

import sys

import click

from astralog import __version__


@click.group()
@click.version_option(__version__)
def main() -> None:
    """AstraLog: a log collector that answers 200 when every line is on disk.

    All settings come from the environment, as ASTRALOG_*.
    """


@main.command()
@click.option("--once", is_flag=True, help="Deliver what is sealed now, and end.")
def forward(once: bool) -> None:
    """Deliver sealed segments to ClickHouse, each log once."""
    try:
        from astralog.forward.run import run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "clickhouse_connect":
            raise
        raise click.ClickException(
            "Needs clickhouse-connect: install astralog[clickhouse]."
        ) from None
    sys.exit(run(once))
