"""How the environment's variables become the values of settings, and which are none of ours."""

import os
import re
from collections.abc import Iterable
from dataclasses import Field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from environs import Env, EnvValidationError
from marshmallow import ValidationError

PREFIX = "ASTRALOG_"

#: What Kubernetes puts into the environment of a pod beside a Service called `astralog`, or
#: `astralog-` and more, as name=value (kubernetes.io/docs/concepts/services-networking/service).
_SERVICE_LINK = re.compile(
    r"""
    ASTRALOG_(\w+_)?
    (
        SERVICE_HOST=[0-9A-Fa-f.:]+
        | SERVICE_PORT(_\w+)?=[0-9]+
        | PORT(_[0-9]+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.+
        | PORT_[0-9]+_(TCP|UDP|SCTP)_(PORT=[0-9]+|PROTO=(tcp|udp|sctp)|ADDR=[0-9A-Fa-f.:]+)
    )
    """,
    re.VERBOSE,
)


def read(fields: Iterable[Field[Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of settings by their names, and a line for each fault.

    A field's metadata has what checks a value (`validate`), and may have what makes the setting's
    value of it (`convert`).
    """
    fields = list(fields)
    env = Env(eager=False, prefix=PREFIX)
    values = {field.name: _parse(env, field) for field in fields}
    problems = [
        f"{name}: No such setting; see docs/configuration.md."
        for name in _other_names(fields)
        if not _is_service_link(name)
    ]
    try:
        env.seal()
    except EnvValidationError as error:
        messages: Any = error.error_messages
        problems += [f"{name}: {' '.join(texts)}" for name, texts in messages.items()]
    return values, problems


def service_links(fields: Iterable[Field[Any]]) -> list[str]:
    """Return the variables that look like settings, but were made by Kubernetes."""
    return [name for name in _other_names(fields) if _is_service_link(name)]


def _parse(env: Env, field: Field[Any]) -> Any:
    parsers: dict[Any, Any] = {int: env.int, float: env.float}
    parse = parsers.get(field.type, env.str)
    value = parse(field.name.upper(), field.default, validate=field.metadata["validate"])
    convert = field.metadata.get("convert")
    return convert(value) if convert and value is not None else value  # None where it is wrong


def _other_names(fields: Iterable[Field[Any]]) -> list[str]:
    known = {PREFIX + field.name.upper() for field in fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def _is_service_link(name: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(f"{name}={os.environ[name]}"))


# --- Checks, which raise marshmallow's ValidationError, and what makes values of texts


def check_bind(address: str) -> None:
    """Reject what is neither a host with its port nor a unix socket."""
    host, _, port = address.rpartition(":")
    is_port = port.isdecimal() and int(port) <= 65535
    is_host = re.fullmatch(r"\[[0-9A-Fa-f:]+\]|[^:\s]+", host)
    if not (expand_bind(address).startswith("unix:/") or (is_host and is_port)):
        raise ValidationError("Not host:port or unix:/path.")


def check_clickhouse_url(url: str) -> None:
    """Reject what is no address, without a word of it: a password may stand in it."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    if url and not is_url:
        raise ValidationError("Not a URL like https://user:password@host:8443/database.")


def check_file(path: str) -> None:
    """Reject a path in the home of a user who is not known."""
    if expand_file(path).startswith("~"):
        raise ValidationError("No such user's home.")


def check_networks(text: str) -> None:
    """Reject what is no comma-separated list of addresses and networks."""
    try:
        parse_networks(text)
    except ValueError as error:
        raise ValidationError(f"Not addresses or networks: {error}.") from error


def parse_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks of a comma-separated list; raises ValueError."""
    return tuple(ip_network(word.strip()) for word in text.split(",") if word.strip())


def check_directory(path: str | Path) -> None:
    """Reject an empty path, which would mean the directory that the service was started in."""
    if not str(path):
        raise ValidationError("Must not be empty.")
    check_file(str(path))


def expand_bind(address: str) -> str:
    """Return the address with the path of a unix socket expanded."""
    scheme, _, path = address.partition(":")
    return f"unix:{expand_file(path)}" if scheme == "unix" else address


def expand_file(path: str) -> str:
    """Return the path with `~` expanded."""
    return os.path.expanduser(path)


def expand_directory(path: str | Path) -> Path:
    """Return the path with `~` expanded."""
    return Path(os.path.expanduser(path))
