"""Write logs for a terminal: one a line, none drives it, and none poses as another project's."""

import json
import re
import unicodedata

from astralog.escaping import escape
from astralog.view.levels import known_rank
from astralog.view.stored_log import StoredLog, decode

#: Characters of a line that holds no log that are shown.
SHOWN_CHARACTERS = 500

# Characters that no plain name has, in addition to unprintable ones: blanks, letters and marks
# that look like one or like nothing, and the quotes of those that are not plain.
_ODD = re.compile(
    r'[\s"\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0'
    "\U000e0100-\U000e01ef]"
)

# The terminal's codes for colors and weights (ECMA-48, "select graphic rendition").
_DIM = "2"
_BOLD = "1"
_PLAIN = ""

#: The codes of `levels.RANKS`.
_RANK_CODES = (_DIM, _DIM, "32", "36", "33", "31", "1;31", "1;31", "1;31")

#: Columns of the level, which align the text after it.
_LEVEL_COLUMNS = 7


def quote(name: str) -> str:
    r"""Return a name as it is if it is plain, otherwise as a JSON string without a blank in it.

    So a column ends at the first blank: a level `error b` is shown as `"error\u0020b"`.
    """
    if name and name.isprintable() and not _ODD.search(name):
        return name
    return f'"{"".join(map(_quote_character, name))}"'


def _quote_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable() and not _ODD.match(character):
        return character
    return r"\u0020" if character == " " else json.dumps(character)[1:-1]


def format_line(line: bytes, *, colored: bool) -> str:
    """Return a stored line as a person reads it."""
    log = decode(line)
    if log is None:
        return escape(line[:SHOWN_CHARACTERS].decode(errors="replace"))
    texts = [(text, code) for text, code in _columns(log) if text]
    return " ".join(
        f"\x1b[{code}m{text}\x1b[0m" if colored and code else text for text, code in texts
    )


def _columns(log: StoredLog) -> list[tuple[str, str]]:
    """Return the texts of a log's line, each with its code."""
    rank = known_rank(log.level)
    return [
        (quote(log.timestamp), _DIM),
        (_pad(quote(log.level)), _PLAIN if rank is None else _RANK_CODES[rank]),
        (quote(log.project_id), _DIM),
        (quote(log.service), _BOLD),
        (escape(log.message), _PLAIN),
        (escape(log.metadata_text), _DIM),
    ]


def _pad(level: str) -> str:
    """Return the level with blanks up to the width of most."""
    wide = sum(unicodedata.east_asian_width(character) in "FW" for character in level)
    return level.ljust(_LEVEL_COLUMNS - wide)
