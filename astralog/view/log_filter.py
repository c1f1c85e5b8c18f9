"""Which stored lines somebody wants to see."""

import dataclasses
from collections.abc import Collection

from astralog.view.levels import is_severe_enough
from astralog.view.stored_log import StoredLog, decode


@dataclasses.dataclass(frozen=True)
class LogFilter:
    """What a log must have to be shown; what is None is not asked for.

    `level` is the least severe one, `text` is looked for in the message and the metadata in any
    case, and `since` is a timestamp as it is stored: the least that a log's own may be.
    """

    projects: Collection[str] | None = None
    services: Collection[str] | None = None
    level: str | None = None
    text: str | None = None
    since: str | None = None

    def matches(self, line: bytes) -> bool:
        """Return whether a stored line is wanted; one that is no log is, unless something is asked.

        The blank ones never are.
        """
        if not line or self == _ALL:
            return bool(line)
        log = decode(line)
        return log is not None and self._matches(log)

    def _matches(self, log: StoredLog) -> bool:
        return (
            (self.projects is None or log.project_id in self.projects)
            and (self.services is None or log.service in self.services)
            and (self.level is None or is_severe_enough(log.level, self.level))
            and (self.since is None or sort_key(log.timestamp) >= sort_key(self.since))
            and (self.text is None or _contains(log, self.text.casefold()))
        )


_ALL = LogFilter()


def sort_key(timestamp: str) -> str:
    """Return a text that sorts as the stored timestamp does, and is the same for the same time."""
    second, _, fraction = timestamp.removesuffix("Z").partition(".")
    return f"{second}.{fraction.rstrip('0')}"


def _contains(log: StoredLog, text: str) -> bool:
    return text in log.message.casefold() or text in log.metadata_text.casefold()
