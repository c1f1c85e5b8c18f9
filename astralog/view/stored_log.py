"""A log that is read from a segment, and the order of severity of the level names of senders."""

import msgspec

#: The names of each rank, least severe first, the usual name leading: those of syslog, Python,
#: Java, .NET, Go, JavaScript and OpenTelemetry.
RANKS = (
    ("trace", "verbose", "vrb", "finest", "finer", "silly"),
    ("debug", "dbg", "fine", "config"),
    ("info", "information", "informational", "inf"),
    ("notice",),
    ("warning", "warn", "wrn"),
    ("error", "err", "severe"),
    ("critical", "crit", "fatal", "ftl"),
    ("alert",),
    ("emergency", "emerg", "panic"),
)

_RANK_OF_NAME = {name: rank for rank, names in enumerate(RANKS) for name in names}


class StoredLog(msgspec.Struct):
    """One log; `metadata` is its JSON text, empty if there is none."""

    project_id: str
    timestamp: str
    level: str
    service: str
    message: str
    metadata: msgspec.Raw = msgspec.Raw()

    @property
    def metadata_text(self) -> str:
        """The metadata as it is stored."""
        return bytes(self.metadata).decode()


_decoder = msgspec.json.Decoder(StoredLog)


def decode(line: bytes) -> StoredLog | None:
    """Return the log of a stored line, None if the line is not one."""
    try:
        return _decoder.decode(line)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def known_rank(level: str) -> int | None:
    """Return the rank of a level, ignoring case; None for an unknown level."""
    # OpenTelemetry has four steps of each level: error, error2, error3, error4.
    return _RANK_OF_NAME.get(level.strip().lower().rstrip("1234"))


def rank_of(level: str) -> int:
    """Return the rank of a level; an unknown level ranks as `info`.

    So it is shown unless warnings or worse are wanted, and the wanted logs are not lost among
    levels of somebody's own.
    """
    rank = known_rank(level)
    return _RANK_OF_NAME["info"] if rank is None else rank


def names_from(least: str) -> list[str] | None:
    """Return the beginnings of all levels for which `is_severe_enough`, in lower case.

    None if no list of them is complete: levels that are not known rank as `info`.
    """
    rank = known_rank(least)
    if rank is None:
        name = least.strip().lower()
        return [name] if name.isascii() and name.isalpha() else None
    return [name for names in RANKS[rank:] for name in names] if rank > rank_of("info") else None


def is_severe_enough(level: str, least: str) -> bool:
    """Return whether a level is `least` or worse; an unknown `least` matches only itself."""
    rank = known_rank(least)
    if rank is None:
        return level.strip().lower() == least.strip().lower()
    return rank_of(level) >= rank
