"""The command `astralog token`: print a strong token, and edit and check the tokens file."""

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from astralog import tokens_file
from astralog.settings import PREFIX, InvalidSettings
from astralog.tokens_file import ALL_SCOPES, Scope, Token

VARIABLE = f"{PREFIX}TOKENS_FILE"

_file = click.option(
    "--file",
    "path",
    envvar=VARIABLE,
    required=True,
    type=click.Path(path_type=Path),
    help=f"The tokens file.  [default: {VARIABLE}]",
)


@click.group(invoke_without_command=True)
@click.pass_context
def token(context: click.Context) -> None:
    """Print a strong token, or edit and check the tokens file."""
    if context.invoked_subcommand is None:
        click.echo(make_token())


@token.command()
@click.option("--project", "projects", multiple=True, help="A project of the token. Repeatable.")
@click.option(
    "--allow",
    type=click.Choice([scope.value for scope in Scope]),
    help="The token's grants; both by default.",
)
@click.option("--rate", help="Limit of the bytes that the token sends, such as 5MB/s.")
@_file
def add(*, projects: tuple[str, ...], allow: str | None, rate: str | None, path: Path) -> None:
    """Add a new token to the file, and print it."""
    new = make_token()
    options = [f"allow={allow}"] if allow else []
    options += [f"rate={rate}"] if rate else []
    line = " ".join([new, *projects, *options])
    encoded = line.encode(errors="surrogateescape")  # invalid UTF-8 as it was typed, to be rejected
    made = _parse(encoded, "the new token")
    if (made[0].projects or frozenset()) != frozenset(projects):
        raise click.UsageError("A project's name has no spaces and no =, and begins without #.")
    path = _real(path)
    with _locked(path):
        content = _read(path) if path.exists() else b""
        if content and not content.endswith((b"\n", b"\r")):
            content += b"\n"
        content += encoded + b"\n"
        _parse(content, str(path))
        _replace(path, content)
    click.echo(new)


@token.command("list")
@_file
def list_tokens(*, path: Path) -> None:
    """List the names and grants of the tokens, never the tokens."""
    tokens = _parse(_read(path), str(path))
    rows = [("name", "projects", "allow", "rate"), *map(_row, tokens)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@token.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def check(*, path: Path) -> None:
    """Check a tokens file, and name each faulty line by its number."""
    number = len(_parse(_read(path), str(path)))
    click.echo(f"{path}: {number} {'token' if number == 1 else 'tokens'}")


def make_token() -> str:
    return secrets.token_urlsafe(32)


def _read(path: Path) -> bytes:
    """Return the content of a file that the service would read; else end the command."""
    with _faults_shown():
        return tokens_file.read_file(Path(os.path.expanduser(path)), str(path))


def _parse(content: bytes, place: str) -> list[Token]:
    with _faults_shown():
        return list(tokens_file.by_digest(tokens_file.parse(content, place)).values())


@contextlib.contextmanager
def _faults_shown() -> Iterator[None]:
    """End the command with one line for each fault."""
    try:
        yield
    except InvalidSettings as error:
        raise click.ClickException("\n".join(error.problems)) from None


def _row(known: Token) -> tuple[str, str, str, str]:
    projects = " ".join(sorted(known.projects or ())) or "(all)"
    allow = "read write" if known.scopes == ALL_SCOPES else min(s.value for s in known.scopes)
    return known.name, projects, allow, tokens_file.format_rate(known.rate)


def _real(path: Path) -> Path:
    """Return the target of a path, so that a symbolic link is not replaced."""
    return Path(os.path.realpath(os.path.expanduser(path)))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the file's directory, since the file is replaced."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        os.fsync(fd)
    finally:
        os.close(fd)


def _replace(path: Path, content: bytes) -> None:
    """Replace a file atomically; keep its mode and owner. A new file is for its owner alone."""
    fd, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            if path.exists():
                status = path.stat()
                os.fchown(fd, status.st_uid, status.st_gid)
                os.fchmod(fd, status.st_mode & 0o7777)
            os.fsync(fd)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
