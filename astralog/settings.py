"""Read the `ASTRALOG_*` environment variables into one frozen `Settings`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from marshmallow.validate import OneOf, Range, Regexp

from astralog import environment
from astralog.cores import count_cores

PREFIX = environment.PREFIX
KIB = 1024
MIB = 1024 * KIB

T = TypeVar("T")
SyncMode = Literal["always", "everysec", "never"]
CompressMode = Literal["none", "zstd"]
KeepMode = Literal["always", "until_full"]


class InvalidSettings(Exception):
    """The environment does not make usable settings; `problems` holds one line for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _setting(
    default: T,
    help: str,
    validate: Callable[[Any], Any] | None = None,
    shown: str = "",
    convert: Callable[[Any], Any] | None = None,
) -> T:
    """Declare a setting; `shown` is the default as the table of docs/configuration.md words it."""
    metadata = {
        "help": help,
        "validate": validate,
        "shown": shown or str(default),
        "convert": convert,
    }
    field: T = dataclasses.field(default=default, metadata=metadata)
    return field


def _file_setting(help: str) -> str:
    return _setting("", help, environment.check_file, "(none)", environment.expand_file)


def _size_setting(default: int, help: str, minimum: int = 1) -> int:
    return _setting(default, help, Range(min=minimum))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every tunable; `ASTRALOG_` and the name in capitals is its environment variable."""

    bind: str = _setting(
        "127.0.0.1:8080",
        "Address to listen on: `host:port`, or `unix:/path` for a local socket. "
        "Port 0 takes a free one.",
        environment.check_bind,
        convert=environment.expand_bind,
    )
    tokens: str = _setting(
        "",
        "Tokens that may write, comma separated. "
        "With neither this nor `ASTRALOG_TOKENS_FILE`, one is made in `<data dir>/token`.",
        shown="(none)",
    )
    tokens_file: str = _file_setting(
        "File of tokens, one a line, each followed by the projects it may write, none for all; "
        "`#` starts a comment. Read again when it changes."
    )
    tls_cert: str = _file_setting(
        "File of the TLS certificate chain, in PEM; with it, the service speaks HTTPS alone. "
        "Read again at a reload."
    )
    tls_key: str = _file_setting("File of the certificate's key, in PEM. Read again at a reload.")
    trusted_proxies: str = _setting(
        "",
        "Addresses and networks of proxies, comma separated, whose `X-Forwarded-For` names the "
        "client in the service's own log.",
        environment.check_networks,
        shown="(none)",
    )
    data_dir: Path = _setting(
        Path("data"),
        "Directory of the segment files; made at the first start.",
        environment.check_directory,
        "./data",
        environment.expand_directory,
    )
    workers: int = _setting(
        count_cores(),
        "Worker processes, each with its own queue and segment file.",
        Range(min=1, max=256),
        shown="the cores, or the cgroup's CPU quota if that is lower",
    )
    sync: SyncMode = _setting(
        "always",
        "When a batch is answered 200: `always` once synced to the disk; `everysec` once written, "
        "synced within a second; `never` once written, synced when the system likes.",
        OneOf(("always", "everysec", "never")),
    )
    max_body_bytes: int = _size_setting(
        10 * MIB, "Largest body, after inflating. Above it: 413 `body_too_large`."
    )
    body_timeout_seconds: float = _setting(
        10.0,
        "Time a client has to send its body. After it: 408 `body_timeout`.",
        Range(min=0, min_inclusive=False),
    )
    commit_timeout_seconds: float = _setting(
        8.0,
        "Time a batch may wait for its commit; keep it below the clients' own timeout. "
        "After it: 503 `commit_timeout`.",
        Range(min=0, min_inclusive=False),
    )
    queue_bytes: int = _size_setting(
        64 * MIB,
        "Memory a worker grants to bodies that arrive, their decodes, and batches that wait for "
        "their commit. Beyond it: 503 `queue_full`. With several tokens, none holds more than "
        "three quarters of it. At least `ASTRALOG_MAX_BODY_BYTES`.",
    )
    writers: int = _setting(
        1, "Drain greenlets a worker, each with its own segment file.", Range(min=1, max=64)
    )
    segment_bytes: int = _size_setting(
        256 * MIB, "A segment is sealed before it grows past this size."
    )
    segment_seconds: float = _setting(
        3600.0, "A segment is sealed at this age, idle or not.", Range(min=0, min_inclusive=False)
    )
    compress: CompressMode = _setting(
        "none",
        "What becomes of sealed segments: `none` leaves them as they are; `zstd` compresses them, "
        "in the background and at the lowest priority.",
        OneOf(("none", "zstd")),
    )
    min_free_bytes: int = _size_setting(
        256 * MIB,
        "Free disk, with an inode for each 256 KiB of it, below which batches are rejected: "
        "503 `storage_full`.",
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
        "Free disk, with an inode for each 256 KiB of it, below which the oldest sealed segments "
        "are removed; 0 keeps all. "
        "Above `ASTRALOG_MIN_FREE_BYTES`, old logs make room for new ones.",
        0,
    )
    retain_undelivered: KeepMode = _setting(
        "always",
        "Whether retention spares what `astralog forward` has not delivered: `always`, or "
        "`until_full`, by which the oldest go, delivered or not, while less disk is free "
        "than the larger of `ASTRALOG_RETAIN_FREE_BYTES` and `ASTRALOG_MIN_FREE_BYTES`.",
        OneOf(("always", "until_full")),
    )
    clickhouse_url: str = dataclasses.field(
        default="",
        repr=False,
        metadata={
            "help": "Where `astralog forward` delivers to, over HTTP: "
            "`https://user:password@host:8443/database`; after `?`, options of clickhouse-connect "
            "as `ca_cert=/path`.",
            "validate": environment.check_clickhouse_url,
            "shown": "(none)",
        },
    )
    clickhouse_table: str = _setting(
        "logs",
        "Table of the logs; the table of its dead letters, lines that it cannot hold, has the same "
        "name and `_dead_letter`.",
        Regexp(r"[A-Za-z_][A-Za-z0-9_]*\Z", error="Not a name of letters, digits and `_`."),
    )
    clickhouse_timeout_seconds: float = _setting(
        60.0,
        "Time for an insert or a query of forward's in all, from its first byte to the answer's "
        "last. After it, the tables are asked what they hold, and the rest is sent again.",
        Range(min=1),
    )
    node: str = _setting(
        "",
        "Name of this node in the table; no two data directories may share one. The first "
        "delivery fixes it in the data directory (file `node`): forward stops if this differs.",
        Regexp(
            r"[^\s/\ud800-\udfff]{1,255}\Z",
            error="Not 1 to 255 characters without spaces and slashes.",
        ),
        shown="the name in the data directory, else the host's name",
    )
    forward_chunk_bytes: int = _setting(
        16 * MIB,
        "Lines that go to ClickHouse in one insert, in bytes; also what forward holds in memory.",
        Range(min=1, max=256 * MIB),
    )
    forward_keep_seconds: float = _setting(
        0.0, "Age at which delivered segments are removed; 0 keeps all.", Range(min=0)
    )
    idempotency_keys: int = _size_setting(
        1_000_000,
        "Idempotency keys of each token that are remembered; beyond it, the token's oldest are "
        "forgotten, and no other token's. A try that failed after its record was written counts "
        "like a key. A key takes about 100 bytes on the disk.",
    )
    idempotency_seconds: float = _setting(
        86400.0,
        "Time for which an idempotency key is remembered.",
        Range(min=0, min_inclusive=False),
    )
    status: str = _setting(
        "on",
        "Whether `/status` shows numbers and stored logs to who has a token: `on` or `off`.",
        OneOf(("on", "off")),
    )
    log_level: str = _setting(
        "info",
        "Least severe of the service's own log lines on stderr: "
        "`debug`, `info`, `warning` or `error`.",
        OneOf(("debug", "info", "warning", "error")),
    )

    @classmethod
    def from_environ(cls) -> "Settings":
        """Read the settings from `os.environ`.

        Raises InvalidSettings, with a line for each wrong value and each unknown name.
        """
        values, problems = environment.read(dataclasses.fields(cls))
        if problems:
            raise InvalidSettings(problems)
        return cls(**values)._checked()

    def _checked(self) -> "Settings":
        """Reject combinations that no single variable shows to be wrong."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise InvalidSettings([f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY: One needs the other."])
        if self.queue_bytes < self.max_body_bytes:
            raise InvalidSettings(
                [f"{PREFIX}QUEUE_BYTES: Must be at least {PREFIX}MAX_BODY_BYTES, or no body fits."]
            )
        return self
