"""Read the `ASTRALOG_*` environment variables into one frozen `Settings`."""

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import Field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from environs import Env, EnvValidationError
from marshmallow import ValidationError
from marshmallow.validate import OneOf, Range, Regexp

from astralog.resources import count_cores

PREFIX = "ASTRALOG_"

#: The variables that Kubernetes sets in a pod for a Service named `astralog` or `astralog-…`, as
#: name=value (kubernetes.io/docs/concepts/services-networking/service).
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


def _read() -> dict[str, Any]:
    """Return the values of all settings by their names; raises InvalidSettings."""
    env = Env(eager=False, prefix=PREFIX)
    values = {field.name: _parse(env, field) for field in dataclasses.fields(Settings)}
    problems = [
        f"{name}: No such setting; see docs/configuration.md."
        for name in _other_names()
        if not _is_service_link(name)
    ]
    try:
        env.seal()
    except EnvValidationError as error:
        messages: Any = error.error_messages
        problems += [f"{name}: {' '.join(texts)}" for name, texts in messages.items()]
    if problems:
        raise InvalidSettings(problems)
    return values


def _parse(env: Env, field: Field[Any]) -> Any:
    """Return the value of a setting.

    Its type may list the values. The field's metadata has `validate`, which checks it, and
    `convert`, which changes it then; both may be None.
    """
    parsers: dict[Any, Any] = {int: env.int, float: env.float}
    parse = parsers.get(field.type, env.str)
    listed = OneOf(get_args(field.type)) if get_origin(field.type) is Literal else None
    validate = listed or field.metadata["validate"]
    value = parse(field.name.upper(), field.default, validate=validate)
    convert = field.metadata["convert"]
    return convert(value) if convert and value is not None else value  # None if it is invalid


def _other_names() -> list[str]:
    known = {PREFIX + field.name.upper() for field in dataclasses.fields(Settings)}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def _is_service_link(name: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(f"{name}={os.environ[name]}"))


# --- Checks, which raise marshmallow's ValidationError, and conversions


def check_bind(address: str) -> None:
    host, _, port = address.rpartition(":")
    is_port = port.isdecimal() and int(port) <= 65535
    is_host = re.fullmatch(r"\[[0-9A-Fa-f:]+\]|[^:\s]+", host)
    if not (expand_bind(address).startswith("unix:/") or (is_host and is_port)):
        raise ValidationError("Not host:port or unix:/path.")


def check_clickhouse_url(url: str) -> None:
    """Reject an invalid URL without repeating it, since it may contain a password."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    if url and not is_url:
        raise ValidationError("Not a URL like https://user:password@host:8443/database.")


def check_file(path: str) -> None:
    """Reject a path in the home of an unknown user."""
    if os.path.expanduser(path).startswith("~"):
        raise ValidationError("No such user's home.")


def check_networks(text: str) -> None:
    try:
        parse_networks(text)
    except ValueError as error:
        raise ValidationError(f"Not addresses or networks: {error}.") from error


def parse_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks of a comma-separated list; raises ValueError."""
    return tuple(ip_network(word.strip()) for word in text.split(",") if word.strip())


def check_origins(text: str) -> None:
    for origin in parse_origins(text):
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s*]+", origin):
            raise ValidationError("Not origins like https://app.example, comma separated.")


def parse_origins(text: str) -> tuple[str, ...]:
    """Return the origins of a comma-separated list, as browsers write them."""
    return tuple(word.strip().lower() for word in text.split(",") if word.strip())


def check_directory(path: str | Path) -> None:
    """Reject an empty path, which would mean the working directory."""
    if not str(path):
        raise ValidationError("Must not be empty.")
    check_file(str(path))


def expand_bind(address: str) -> str:
    """Return the address with the path of a unix socket expanded."""
    scheme, _, path = address.partition(":")
    return f"unix:{os.path.expanduser(path)}" if scheme == "unix" else address


KIB = 1024
MIB = 1024 * KIB

T = TypeVar("T")
SyncMode = Literal["always", "everysec", "never"]

_POSITIVE = Range(min=0, min_inclusive=False)


class InvalidSettings(Exception):
    """The settings in the environment are invalid; `problems` has one line per fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _setting(
    default: T,
    help: str,
    validate: Callable[[Any], Any] | None = None,
    shown: str = "",
    convert: Callable[[Any], Any] | None = None,
    *,
    is_secret: bool = False,
) -> T:
    """Declare a setting; `shown` is the text of its default in docs/configuration.md.

    The representation of the settings leaves out secret ones.
    """
    shown = shown or str(default) or "(none)"
    metadata = {"help": help, "validate": validate, "shown": shown, "convert": convert}
    field: T = dataclasses.field(default=default, repr=not is_secret, metadata=metadata)
    return field


def _file_setting(help: str) -> str:
    return _setting("", help, check_file, convert=os.path.expanduser)


def _size_setting(default: int, help: str, minimum: int = 1) -> int:
    return _setting(default, help, Range(min=minimum))


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings; the environment variable is `ASTRALOG_` and the name in capitals."""

    bind: str = _setting(
        "127.0.0.1:8080",
        "Address to listen on: `host:port`, or `unix:/path` for a local socket. "
        "Port 0 selects a free one.",
        check_bind,
        convert=expand_bind,
    )
    tokens: str = _setting(
        "",
        "Tokens, comma separated. Without this and `ASTRALOG_TOKENS_FILE`, the token is in "
        "`<data dir>/token`, which the first start creates.",
        is_secret=True,
    )
    tokens_file: str = _file_setting(
        "File of tokens, one per line, each followed by its projects (none for all) and its "
        "options `allow=` and `rate=`; `#` starts a comment. Reread when it changes."
    )
    tls_cert: str = _file_setting(
        "File of the TLS certificate chain, in PEM; with it, the service speaks only HTTPS. "
        "Reread at a reload."
    )
    tls_key: str = _file_setting("File of the certificate's key, in PEM. Reread at a reload.")
    trusted_proxies: str = _setting(
        "",
        "Addresses and networks of proxies, comma separated, whose `X-Forwarded-For` names the "
        "client in the service's own log.",
        check_networks,
    )
    cors_origins: str = _setting(
        "",
        "Origins whose pages may send from browsers, comma separated, such as "
        "`https://app.example`; they need a token with `allow=write`.",
        check_origins,
    )
    data_dir: Path = _setting(
        Path("data"),
        "Directory of the segment files; created at the first start.",
        check_directory,
        "./data",
        lambda path: Path(path).expanduser(),
    )
    workers: int = _setting(
        count_cores(),
        "Worker processes, each with its own queue and segment file.",
        Range(min=1, max=256),
        shown="the cores, or the cgroup's CPU quota if that is lower",
    )
    sync: SyncMode = _setting(
        "always",
        "When 200 is sent: `always` once the batch is synced to the disk; `everysec` once it is "
        "written, and synced within a second; `never` once it is written; the system syncs it.",
    )
    max_body_bytes: int = _size_setting(
        10 * MIB, "Largest body, decompressed. Above it: 413 `body_too_large`."
    )
    body_timeout_seconds: float = _setting(
        10.0, "Time for a client to send its body. After it: 408 `body_timeout`.", _POSITIVE
    )
    commit_timeout_seconds: float = _setting(
        8.0,
        "Time for a batch to wait for its commit; keep it below the timeout of the clients. "
        "After it: 503 `commit_timeout`.",
        _POSITIVE,
    )
    queue_bytes: int = _size_setting(
        64 * MIB,
        "Memory per worker for bodies, the buffers that decompress and split them, and lines that "
        "are not stored yet. Beyond it: 503 `queue_full`. With several tokens, each may use at "
        "most three quarters of it. At least `ASTRALOG_MAX_BODY_BYTES`.",
    )
    writers: int = _setting(
        1,
        "Writers per worker, each with its own segment file. A writer is a lightweight "
        "thread (a greenlet) that stores queued batches.",
        Range(min=1, max=64),
    )
    segment_bytes: int = _size_setting(
        256 * MIB, "A segment is sealed before it exceeds this size."
    )
    segment_seconds: float = _setting(
        3600.0, "A segment is sealed at this age, idle or not.", _POSITIVE
    )
    compress: Literal["none", "zstd"] = _setting(
        "none",
        "Compression of sealed segments: `none`, or `zstd`, in the background and at the lowest "
        "priority.",
    )
    min_free_bytes: int = _size_setting(
        256 * MIB,
        "Free disk below which batches are rejected: 503 `storage_full`. One inode per 256 KiB of "
        "it must be free too.",
        0,
    )
    retain_bytes: int = _size_setting(
        0, "Total size of segments beyond which the oldest sealed ones are removed; 0 keeps all.", 0
    )
    retain_seconds: float = _setting(
        0.0, "Age at which sealed segments are removed; 0 keeps all.", Range(min=0)
    )
    retain_free_bytes: int = _size_setting(
        0,
        "Free disk below which the oldest sealed segments are removed; 0 keeps all. One inode per "
        "256 KiB of it is kept free too. Above `ASTRALOG_MIN_FREE_BYTES`, old logs make room for "
        "new ones.",
        0,
    )
    retain_undelivered: Literal["always", "until_full"] = _setting(
        "always",
        "How long retention keeps segments that `astralog forward` has not delivered: `always`, or "
        "`until_full`, which removes the oldest, delivered or not, while the free disk is below "
        "`ASTRALOG_RETAIN_FREE_BYTES` or `ASTRALOG_MIN_FREE_BYTES`.",
    )
    clickhouse_url: str = _setting(
        "",
        "ClickHouse of `astralog forward`, over HTTP: `https://user:password@host:8443/database`; "
        "after `?`, options of clickhouse-connect such as `ca_cert=/path`.",
        check_clickhouse_url,
        is_secret=True,
    )
    clickhouse_table: str = _setting(
        "logs",
        "Table of the logs. The table of dead letters, lines that it cannot hold, has the same "
        "name with `_dead_letter`.",
        Regexp(r"[A-Za-z_][A-Za-z0-9_]*\Z", error="Not a name of letters, digits and `_`."),
    )
    clickhouse_timeout_seconds: float = _setting(
        60.0,
        "Time limit of a whole insert or query of forward. After it, forward queries the tables "
        "for the delivered lines, and sends the others again.",
        Range(min=1),
    )
    node: str = _setting(
        "",
        "Name of this node in the table, unique to its data directory. The first delivery stores "
        "it in the data directory (file `node`), and forward stops if this differs.",
        Regexp(
            r"[^\s/\ud800-\udfff]{1,255}\Z",
            error="Not 1 to 255 characters without spaces and slashes.",
        ),
        shown="the name in the data directory, else the host's name",
    )
    forward_chunk_bytes: int = _setting(
        16 * MIB,
        "Bytes of lines per insert; also the memory that forward needs for them.",
        Range(min=1, max=256 * MIB),
    )
    forward_keep_seconds: float = _setting(
        0.0, "Age at which delivered segments are removed; 0 keeps all.", Range(min=0)
    )
    idempotency_keys: int = _size_setting(
        1_000_000,
        "Idempotency keys remembered per token; beyond it, the oldest of the same token are "
        "forgotten. A failed try counts as a key if its record was written. A key takes about 100 "
        "bytes on disk.",
    )
    idempotency_seconds: float = _setting(
        86400.0, "Time for which an idempotency key is remembered.", _POSITIVE
    )
    status: Literal["on", "off"] = _setting(
        "on", "Serve the status page to clients with a token: `on` or `off`."
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info",
        "Lowest level of the lines in the service's own log on stderr: `debug`, `info`, `warning` "
        "or `error`.",
    )

    @classmethod
    def from_environ(cls) -> "Settings":
        """Read the settings from `os.environ`.

        Raises InvalidSettings, with a line for each wrong value and each unknown name.
        """
        return cls(**_read())._checked()

    def _checked(self) -> "Settings":
        """Reject invalid combinations of valid settings."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise InvalidSettings([f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY: Set both or neither."])
        if self.queue_bytes < self.max_body_bytes:
            raise InvalidSettings(
                [f"{PREFIX}QUEUE_BYTES: Must be at least {PREFIX}MAX_BODY_BYTES, or no body fits."]
            )
        return self


def service_links() -> list[str]:
    """Return the variables that Kubernetes sets for a Service called `astralog`."""
    return [name for name in _other_names() if _is_service_link(name)]
