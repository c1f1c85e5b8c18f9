"""The command `astralog forward`."""

import sys

import click


@click.command()
@click.option("--once", is_flag=True, help="Deliver what is sealed now, and end.")
def forward(once: bool) -> None:
    """Deliver sealed segments to ClickHouse, each log once."""
    try:
        from astralog.forward.run import run  # noqa: PLC0415  # takes the extra
    except ModuleNotFoundError as error:
        if error.name != "clickhouse_connect":
            raise
        hint = "Needs clickhouse-connect: install astralog[clickhouse]."
        raise click.ClickException(hint) from None
    sys.exit(run(once))
