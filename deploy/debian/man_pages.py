"""Write the man pages of the command `astralog` from its help: `man_pages.py VERSION DIRECTORY`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from astralog.cli import main


def commands(command: click.Command, names: list[str]) -> Iterator[tuple[click.Context, list[str]]]:
    """Yield a command and its subcommands, each as its context and its words."""
    context = click.Context(command, info_name=" ".join(names))
    yield context, names
    for name, child in subcommands(context):
        yield from commands(child, [*names, name])


def subcommands(context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield the direct subcommands by their names."""
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            if child := context.command.get_command(context, name):
                yield name, child


def make_page(context: click.Context, names: list[str], version: str) -> str:
    """Return a command's man page, in the format of man(7)."""
    command = context.command
    title = "-".join(names)
    usage = " ".join([*names, *command.collect_usage_pieces(context)])
    lines = [
        f'.TH "{title.upper()}" 1 "" "AstraLog {version}" "AstraLog"',
        ".SH NAME",
        f"{title} \\- {escape(command.get_short_help_str(limit=200).rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {escape(usage)}",
        ".SH DESCRIPTION",
    ]
    for paragraph in (command.help or "").split("\n\n"):
        lines += [".PP", escape(" ".join(paragraph.split()))]
    lines += [*_section("OPTIONS", _options(context)), *_section("COMMANDS", _children(context))]
    return "\n".join(lines) + "\n"


def _options(context: click.Context) -> Iterator[str]:
    for option in context.command.get_params(context):
        name, text = option.get_help_record(context) or ("", "")
        if text:
            yield f".TP\n.B {escape(name)}\n{escape(text)}"


def _children(context: click.Context) -> Iterator[str]:
    for name, child in subcommands(context):
        page = f"{context.info_name}-{name}".replace(" ", "-")
        yield f".TP\n.BR {page} (1)\n{escape(child.get_short_help_str(limit=200))}"


def _section(title: str, entries: Iterator[str]) -> list[str]:
    found = list(entries)
    return [f".SH {title}", *found] if found else []


def escape(text: str) -> str:
    """Return text that troff prints literally."""
    text = text.replace("\\", "\\\\").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for context, names in commands(main, ["astralog"]):
        (target / f"{'-'.join(names)}.1").write_text(make_page(context, names, sys.argv[1]))
