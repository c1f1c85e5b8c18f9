"""Deliver sealed segments to ClickHouse, each line once: the command `astralog forward`."""

import sys

import click


@click.command()
@click.option("--once", is_flag=True, help="Deliver the segments that are sealed now, and exit.")
def forward(once: bool) -> None:
    """Deliver sealed segments to ClickHouse, each log once.

    ASTRALOG_CLICKHOUSE_URL is the address of ClickHouse.
    """
    try:
        from astralog.forward.forwarder import run  # noqa: PLC0415  # needs the extra
    except ModuleNotFoundError as error:
        if error.name != "clickhouse_connect":
            raise
        hint = "Needs clickhouse-connect: pip install clickhouse-connect"
        raise click.ClickException(hint) from None
    sys.exit(run(once))
