"""Standard streams that are closed or whose device is full, and untrusted text for them."""

import atexit
import contextlib
import os
import re
import sys
from collections.abc import Iterable

#: Each standard descriptor with the mode in which /dev/null takes its place. Writing to stdout
#: fails as before, so that a command reports lost output; the log may be lost.
_MODES = {0: os.O_RDONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}


def reopen_closed_streams() -> None:
    """Open /dev/null in place of each standard stream that is closed.

    Otherwise the next file that is opened, such as a segment, gets its number, and a library's
    output to stderr goes into that file. Source: gnulib's stdopen.
    """
    for number, mode in _MODES.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # which gets the lowest free number, this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    atexit.register(_discard_unwritten_errors)


def print_errors(lines: Iterable[str]) -> None:
    """Print lines to stderr, and ignore errors of writing."""
    with contextlib.suppress(OSError):
        print("\n".join(lines), file=sys.stderr, flush=True)


def discard_output() -> None:
    """Discard unwritten output; else Python tries to write it again when it ends, and exits 120."""
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _discard_unwritten_errors() -> None:
    """Discard lines that stderr did not accept, so that the exit status stays as it is."""
    try:
        sys.stderr.flush()
    except OSError:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


# Control characters, line ends, and characters that change the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape(text: str, keep: str = "") -> str:
    r"""Return the text with control characters except `keep` escaped as in JSON: `\n`, `\u001b`."""
    return _UNSAFE.sub(
        lambda match: match[0] if match[0] in keep else _escape_character(match[0]), text
    )


def _escape_character(character: str) -> str:
    return _SHORT.get(character) or f"\\u{ord(character):04x}"
