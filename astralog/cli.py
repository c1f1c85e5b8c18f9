"""The command `astralog`; each of its commands is imported only when it is used."""

import importlib

import click

from astralog import __version__

#: Where each command is found.
COMMANDS = {
    "tail": "astralog.view.tail_command:tail",
}


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        module, _, function = COMMANDS.get(name, "").partition(":")
        if not module:
            return None
        command: click.Command = getattr(importlib.import_module(module), function)
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def main() -> None:
    """Collect logs, and look at what is collected."""
