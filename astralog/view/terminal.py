"""Write logs for a terminal: one a line, and nothing in them can drive it."""

import re

from astralog.view.levels import known_rank
from astralog.view.stored_log import StoredLog, decode

#: Characters of a line that holds no log that are shown.
SHOWN_CHARACTERS = 500

# Control characters, what ends a line, and what turns the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

# The terminal's codes for colors and weights (ECMA-48, "select graphic rendition").
_DIM = "2"
_BOLD = "1"
_PLAIN = ""

#: The codes of `levels.RANKS`.
_RANK_CODES = (_DIM, _DIM, "32", "36", "33", "31", "1;31", "1;31", "1;31")

#: Columns of the level, so that what follows it is aligned.
_LEVEL_COLUMNS = 7


def escape(text: str) -> str:
    r"""Return the text with what a terminal might act on as `\n` or `\u001b`, as in JSON."""
    return _UNSAFE.sub(_escape_character, text)


def _escape_character(match: re.Match[str]) -> str:
    return _SHORT.get(match[0]) or f"\\u{ord(match[0]):04x}"


def format_line(line: bytes, *, colored: bool) -> str:
    """Return a stored line as a person reads it."""
    log = decode(line)
    if log is None:
        return escape(line[:SHOWN_CHARACTERS].decode(errors="replace"))
    texts = [(escape(text), code) for text, code in _columns(log) if text]
    return " ".join(
        f"\x1b[{code}m{text}\x1b[0m" if colored and code else text for text, code in texts
    )


def _columns(log: StoredLog) -> list[tuple[str, str]]:
    """Return the texts of a log's line, each with its code."""
    rank = known_rank(log.level)
    return [
        (log.timestamp, _DIM),
        (log.level.ljust(_LEVEL_COLUMNS), _PLAIN if rank is None else _RANK_CODES[rank]),
        (log.project_id, _DIM),
        (log.service, _BOLD),
        (log.message, _PLAIN),
        (log.metadata_text, _DIM),
    ]
