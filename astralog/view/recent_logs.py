"""The newest logs for a page that polls, shortened for display."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from astralog.clock import TrustedClock
from astralog.store.merge import Arrival
from astralog.store.reader import READ_ERRORS, ReadBudget
from astralog.store.recent import Gap, Older, PageCursor, Recent, RecentLines
from astralog.view.log_filter import LogFilter
from astralog.view.log_search import paced
from astralog.view.sealer import Sealer
from astralog.view.stored_log import StoredLog, decode, known_rank

#: Logs of one poll.
MAX_LOGS = 100

#: Characters of a message, of the metadata, and of any other field that are shown.
TEXT_CHARACTERS = 2000
NAME_CHARACTERS = 200

#: Bytes that one poll reads at most, in addition to the largest log; and once more in a gap.
READ_BYTES = 6 * 1024 * 1024

#: The text of a cursor before it is sealed.
_cursors = msgspec.json.Decoder(tuple[PageCursor, Gap | None])


class ShownLog(msgspec.Struct):
    """A log in the form of the page: `metadata` is JSON, `bytes` the length of the whole line."""

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


class Search(msgspec.Struct):
    """A search for logs that an earlier response left out because its bytes were used up.

    Its logs are the last `count` of the answer. The next one has further logs unless `is_done`, and
    `has_more` says that more are left out, since enough were found.
    """

    count: int
    is_done: bool
    has_more: bool


class Page(msgspec.Struct):
    """The logs of one response, newest first, and the cursor for the next response."""

    logs: list[ShownLog]
    after: str
    is_all: bool
    searched_bytes: int | None
    older: Search | None


class RecentLogs:
    """The newest logs of a data directory; one thread at a time may use it.

    Ids and cursors have the offsets of logs, and with them the sizes of all others, so they are
    sealed with a secret that the processes share which are asked.
    """

    def __init__(
        self, directory: Path, max_log_bytes: int, secret: bytes, clock: TrustedClock | None = None
    ) -> None:
        self._lines = RecentLines(directory, clock)
        self._max_bytes = max_log_bytes + READ_BYTES
        self._sealer = Sealer(secret)

    def poll(self, wanted: LogFilter, after: str | None, *, is_bound: bool = False) -> bytes:
        """Return a page as JSON; raises ValueError for an invalid cursor, and OSError.

        `is_bound` says that the page must not tell how much there is of other projects, nor may the
        bytes of their logs end its search: it goes on with the next call.
        """
        cursor: PageCursor | None = None
        gap: Gap | None = None
        if after is not None:
            cursor, gap = _cursors.decode(self._sealer.open_hidden(after))
        select = paced(wanted.select)
        budget = ReadBudget(self._max_bytes)
        recent = self._lines.read(MAX_LOGS, select, budget, cursor)
        older: Older | None = None
        if gap:
            if cursor and recent.gap:  # these lines wait for the end of the gap
                recent = Recent([], cursor, is_all=True, has_more=False, gap=None)
            older = self._lines.read_gap(gap, select, ReadBudget(self._max_bytes, is_soft=True))
        elif is_bound and recent.gap:
            older = Older([], recent.gap, has_more=False)
        text = json.dumps((recent.cursor, older and older.gap), default=sorted)
        page = Page(
            [*self._show_all(recent.arrivals), *self._show_all(older.arrivals if older else ())],
            self._sealer.seal_hidden(text),
            is_all=not recent.has_more if is_bound else recent.is_all,
            searched_bytes=None if is_bound else budget.bytes_read,
            older=older and Search(len(older.arrivals), older.gap is None, older.has_more),
        )
        return msgspec.json.encode(page)

    def _show_all(self, arrivals: Iterable[Arrival]) -> Iterator[ShownLog]:
        for segment, _, offset, line in arrivals:
            yield _show(self._sealer.seal(f"{segment}:{offset:016}"), line, is_whole=False)

    def find(self, wanted: LogFilter, id: str) -> bytes | None:
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
