"""Escape untrusted text for one line of a terminal or a log."""

import re

# Control characters, line ends, and characters that change the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape(text: str, keep: str = "") -> str:
    r"""Return the text with control characters escaped as in JSON: `\n`, `\u001b`.

    Characters in `keep` stay as they are.
    """
    return _UNSAFE.sub(
        lambda match: match[0] if match[0] in keep else _escape_character(match[0]), text
    )


def _escape_character(character: str) -> str:
    return _SHORT.get(character) or f"\\u{ord(character):04x}"
