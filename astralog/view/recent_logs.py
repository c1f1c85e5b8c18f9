"""The newest logs for a page that polls, shortened for display."""

from pathlib import Path

import msgspec

from astralog.clock import TrustedClock
from astralog.store.reader import READ_ERRORS, ReadBudget
from astralog.store.recent import RecentLines, parse_cursor
from astralog.view.levels import known_rank
from astralog.view.log_filter import LogFilter
from astralog.view.log_search import paced
from astralog.view.sealer import Sealer
from astralog.view.stored_log import StoredLog, decode

#: Logs of one look.
MAX_LOGS = 100

#: Characters of a message, of the metadata, and of any other field that are shown.
TEXT_CHARACTERS = 2000
NAME_CHARACTERS = 200

#: Bytes that one look reads at most, beside the largest log.
READ_BYTES = 6 * 1024 * 1024


class ShownLog(msgspec.Struct):
    """A log as the page gets it: `metadata` is its JSON, `bytes` the length of the whole line."""

    id: str
    timestamp: str
    level: str
    rank: int | None
    project_id: str
    service: str
    message: str
    metadata: str
    bytes: int
    is_shortened: bool


class Page(msgspec.Struct):
    """The logs of one answer, newest first, and the cursor of those that follow."""

    logs: list[ShownLog]
    after: str
    is_all: bool
    searched_bytes: int | None


class RecentLogs:
    """The newest logs of a data directory; one thread at a time may use it.

    Ids and cursors have the offsets of logs, and with them the sizes of all others, so they are
    sealed with a secret that the processes share which are asked.
    """

    def __init__(
        self,
        directory: Path,
        max_log_bytes: int,
        secret: bytes,
        clock: TrustedClock | None = None,
    ) -> None:
        self._lines = RecentLines(directory, clock)
        self._max_bytes = max_log_bytes + READ_BYTES
        self._sealer = Sealer(secret)

    def look(self, wanted: LogFilter, after: str | None, *, is_bound: bool = False) -> bytes:
        """Return a page as JSON; raises ValueError for a cursor that is none, and OSError.

        `is_bound` says that the page must not tell how much there is of other projects.
        """
        budget = ReadBudget(self._max_bytes)
        cursor = None if after is None else parse_cursor(self._sealer.open_hidden(after))
        recent = self._lines.read(MAX_LOGS, paced(wanted.select), budget, cursor)
        logs = [
            _show(
                self._sealer.seal(f"{arrival.segment}:{arrival.offset:016}"),
                arrival.line,
                is_whole=False,
            )
            for arrival in recent.arrivals
        ]
        is_all = recent.is_all
        searched_bytes: int | None = budget.bytes_read
        if is_bound:  # the reader's bounds are met by the logs of others
            is_all, searched_bytes = after is not None and not recent.has_more, None
        page = Page(logs, self._sealer.seal_hidden(str(recent.cursor)), is_all, searched_bytes)
        return msgspec.json.encode(page)

    def look_at(self, wanted: LogFilter, id: str) -> bytes | None:
        """Return a whole log as JSON by its id, None if it is gone or does not match."""
        try:
            segment, _, offset = self._sealer.open(id).partition(":")
        except ValueError:
            return None
        try:
            line = self._lines.read_line(segment, int(offset), ReadBudget(self._max_bytes))
        except READ_ERRORS:
            return None
        if not line or decode(line) is None or not wanted.matches(line):
            return None
        return msgspec.json.encode(_show(id, line, is_whole=True))


def _show(id: str, line: bytes, *, is_whole: bool) -> ShownLog:
    log = decode(line)
    if log is None:
        text = line[: 4 * TEXT_CHARACTERS].decode(errors="replace")
        log = StoredLog("", "", "", "", text)
    names = [log.timestamp, log.level, log.project_id, log.service]
    texts = [log.message, log.metadata_text]
    shown_names = names if is_whole else [name[:NAME_CHARACTERS] for name in names]
    shown_texts = texts if is_whole else [text[:TEXT_CHARACTERS] for text in texts]
    return ShownLog(
        id=id,
        timestamp=shown_names[0],
        level=shown_names[1],
        rank=known_rank(log.level),
        project_id=shown_names[2],
        service=shown_names[3],
        message=shown_texts[0],
        metadata=shown_texts[1],
        bytes=len(line),
        is_shortened=(names, texts) != (shown_names, shown_texts),
    )
