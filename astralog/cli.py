"""The `astralog` command; each part of it imports what it needs when it runs."""

import secrets

import click

from astralog import __version__


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Collect logs, and answer 200 when every line is on disk."""


@main.command()
def serve() -> None:
    """Start the service; the ASTRALOG_* variables of the environment are its settings."""
    from astralog.server import application

    application.run()


@main.command()
def token() -> None:
    """Print a strong token."""
    click.echo(secrets.token_urlsafe(32))
