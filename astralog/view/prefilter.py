r"""Find the lines of a block that may match a filter, without parsing them.

A stored line is JSON as the service encodes it, in which only quotes, backslashes and control
characters of the five texts are escaped, with the metadata as the client sent it, in which any
character may be: as `\u0041`, or `/` as `\/`. So a character that need not be escaped is in the
line as it is, unless the line has such an escape. A prefilter finds the lines that have a literal,
and those with a reason why they may match all the same. A parse then decides.
"""

import ctypes
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import itemgetter
from string import ascii_lowercase
from typing import Any, NamedTuple

import msgspec

from astralog.view.stored_log import names_from


class Escapes(NamedTuple):
    """Escapes of JSON, and the bytes with which they begin: two each."""

    pattern: re.Pattern[bytes]
    heads: tuple[bytes, ...]


#: The escapes of characters by their numbers, except control characters, which the service itself
#: escapes.
_UNICODE_ESCAPE = rb"u(?!00[01])"

#: Texts of this many characters or more are found by their ASCII characters alone.
_FEW_CHARACTERS = 2

#: Characters of a part with few letters that is searched for before a block is converted to lower
#: case. Fewer take as long.
_MIN_REQUIRED = 5

#: The characters that need no escape: their longest run is the literal.
_RUN = re.compile(r'[^"\\\x00-\x1f\x7f]+')
_ASCII_RUN = re.compile(r"[ !#-\[\]-~]+")

#: The characters with at most two different letters, of a text in lower case.
_FEW_LETTERS_RUN = re.compile(r"[^a-z]*([a-z]?)(?:[^a-z]|\1)*([a-z]?)(?:[^a-z]|\1|\2)*")

#: The characters other than ASCII that have ASCII characters in their folded form: as `ß` has `ss`.
#: A test finds them anew.
FOLDED_TO_ASCII = (
    "\u00df\u0130\u0149\u017f\u01f0\u1e96\u1e97\u1e98\u1e99"
    "\u1e9a\u1e9e\u212a\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06"
)

#: The parts of a regular expression: escapes, sets, counts, and single characters.
_REGEX_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{[^}]*\}?|.", re.DOTALL)

#: Alternatives, extensions and repetitions, whose matches are unknown.
_UNKNOWN_IN_REGEX = re.compile(r"\||\(\?|\\[^\W_dDwWsSbBAZ]")

#: The characters that a regular expression in any case finds as `casefold` does: not `i`, which is
#: also found for two letters of Turkish.
_FOLDED_RUN = re.compile("[ -HJ-hj-~]+")

_TEXT = rb'"(?:[^"\\]|\\.)*"'


def _make_contains() -> Callable[[bytes, bytes], bool]:
    """Return a function that checks whether a block contains a text.

    memmem(3) of glibc takes 0.15 ms per MB, `bytes.find` 0.45 ms, for a text of ten characters.
    """
    memmem: Any = getattr(ctypes.CDLL(None), "memmem", None)
    if memmem is None:
        return bytes.__contains__
    memmem.restype = ctypes.c_void_p
    memmem.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
    return lambda block, text: memmem(block, len(block), text, len(text)) is not None


_contains = _make_contains()

#: Bytes of a block that are searched for pairs at once; an even number.
_PAIR_BYTES = 64 * 1024

#: Copies bytes into a string; the kind is the number of bytes of a character.
_make_string: Any = ctypes.pythonapi.PyUnicode_FromKindAndData
_make_string.restype = ctypes.py_object
_make_string.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_ssize_t)


@dataclass(frozen=True)
class Prefilter:
    """Find the lines that contain a literal, or one of the exceptions: texts and escapes.

    With `lower`, ASCII letters match in any case; `literal` is in lower case. With `folds`, blocks
    are case-folded as a whole and searched for `folds`. With `pattern`, lines are found by it
    alone. A block without `required`, in which `letters` match in any case, is not searched for any
    of these.
    """

    literal: bytes = b""
    lower: bool = False
    folds: str = ""
    pattern: re.Pattern[bytes] | None = None
    required: bytes = b""
    letters: tuple[bytes, ...] = ()
    exceptions: tuple[bytes, ...] = ()
    escapes: Escapes | None = None

    def lines(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each line of a block that may match, and the offset after it, in order."""
        return ((end + 1, block[begin:end]) for begin, end in self._spans(block))

    def _spans(self, block: bytes) -> Iterator[tuple[int, int]]:
        """Yield the start and end of each line found, without its line end, in order."""
        found = [self._found(block)] if self._has_required(block) else []
        found += [_by_literal(block, block, text) for text in self.exceptions]
        if self.escapes and _has_pair(block, self.escapes.heads):
            found.append(_by_pattern(block, self.escapes.pattern))
        return found[0] if len(found) == 1 else map(itemgetter(0), groupby(merge(*found)))

    def _has_required(self, block: bytes) -> bool:
        """Return whether the block contains `required`.

        To replace a rare letter takes less than a tenth of the time of `lower()`.
        """
        for letter in self.letters:
            block = block.replace(letter.upper(), letter)
        return _has(block, self.required)

    def _found(self, block: bytes) -> Iterator[tuple[int, int]]:
        if self.pattern:
            return _by_pattern(block, self.pattern)
        if self.folds:
            return _by_folded(block, self.folds)
        if not self.lower:
            return _by_literal(block, block, self.literal)
        cases = zip(self.literal, self.literal.upper(), strict=True)
        if not all(lower in block or upper in block for lower, upper in cases):
            return iter(())
        return _by_literal(block, block.lower(), self.literal)


def by_text(text: str, *, match_case: bool) -> Prefilter | None:
    """Return a prefilter for a text in message or metadata, None if all logs may match."""
    if match_case:
        return _by_run(_longest(_RUN, text))
    wanted = text.casefold()
    literal = _longest(_ASCII_RUN, wanted)
    run = _longest(_RUN, wanted)
    if len(literal) < min(_FEW_CHARACTERS, len(run)):
        return Prefilter(folds=run, escapes=_escapes(_UNICODE_ESCAPE, run))
    if not literal:
        return None
    folded = [one for one in FOLDED_TO_ASCII if _may_be_part(one, literal)]
    is_caseless = literal == literal.upper()
    required = _longest(_FEW_LETTERS_RUN, literal).encode()
    if is_caseless or len(required) < _MIN_REQUIRED:
        required = b""
    return Prefilter(
        literal.encode(),
        lower=not is_caseless,
        required=required,
        letters=tuple(letter.encode() for letter in ascii_lowercase if letter.encode() in required),
        exceptions=tuple(one.encode() for one in folded),
        escapes=_escapes_of({*literal, *literal.upper(), *folded}),
    )


def by_regex(pattern: re.Pattern[str]) -> Prefilter | None:
    """Return a prefilter for a regular expression in message or metadata, None if all may match."""
    match_case = not pattern.flags & re.IGNORECASE
    runs = _required_runs(pattern.pattern)
    if not match_case:
        runs = [part for run in runs for part in _FOLDED_RUN.findall(run)]
    return by_text(max(runs, key=len, default=""), match_case=match_case)


def by_field(name: str, value: str) -> Prefilter | None:
    """Return a prefilter for a value in a member of metadata, None if all logs may match."""
    return _by_run(_longest(_RUN, value) or _longest(_RUN, name.rpartition(".")[2]))


def by_head(
    projects: Collection[str] | None, level: str | None, services: Collection[str] | None
) -> Prefilter | None:
    """Return a prefilter for the projects, the services and the level.

    Return None without any of these, or if most levels match.
    """
    members = [
        (b'"project_id":', _one_of(projects)),
        (b'"timestamp":', None),
        (b'"level":', _level_pattern(level)),
        (b'"service":', _one_of(services)),
    ]
    asked = [place for place, (_, pattern) in enumerate(members) if pattern is not None]
    if not asked:
        return None
    first, *others = (
        name + (_TEXT if pattern is None else pattern)
        for name, pattern in members[asked[0] : asked[-1] + 1]
    )
    # A regular expression searches for its first character: a rare one takes half of the time.
    begin = min(first.index(letter) for letter in b"jv" if letter in first)
    return Prefilter(
        pattern=re.compile(b",".join([first[begin:], *others])),
        required=_only(b'"service":', services) or _only(b'"project_id":', projects),
    )


def _one_of(texts: Collection[str] | None) -> bytes | None:
    if texts is None:
        return None
    encoded = (re.escape(msgspec.json.encode(text)) for text in texts)
    return b"(?:%s)" % b"|".join(encoded) if texts else b"(?!)"


def _only(name: bytes, texts: Collection[str] | None) -> bytes:
    """Return the JSON of the member if there is exactly one text, else empty."""
    return name + msgspec.json.encode(*texts) if texts and len(texts) == 1 else b""


def _level_pattern(level: str | None) -> bytes | None:
    """Return a pattern that matches all levels that are severe enough, and some others.

    Blanks around a known name do not count, so a text that does not begin with a letter is found
    too. The Kelvin sign is a capital k.
    """
    names = None if level is None else names_from(level)
    if names is None:
        return None
    known = "|".join(names).replace("k", "(?:k|\u212a)").encode()
    return rb'"(?:(?i:%s)|[^a-zA-Z"])(?:[^"\\]|\\.)*"' % known


def _by_run(run: str) -> Prefilter | None:
    if not run:
        return None
    return Prefilter(run.encode(errors="replace"), escapes=_escapes_of(run))


def _escapes_of(characters: Collection[str]) -> Escapes:
    r"""Return the escapes of the characters; some take two `\u`."""
    units = "".join(characters).encode("utf-16-be", errors="surrogatepass").hex(" ", 2).split()
    return _escapes(rb"u(?i:%s)" % "|".join(sorted(set(units))).encode(), characters)


def _escapes(unicode_escape: bytes, characters: Collection[str]) -> Escapes:
    if "/" not in characters:
        return Escapes(re.compile(rb"\\" + unicode_escape), (rb"\u",))
    return Escapes(re.compile(rb"\\(?:%s|/)" % unicode_escape), (rb"\u", rb"\/"))


def _required_runs(regex: str) -> list[str]:
    """Return the known texts that every match of a regular expression contains."""
    if _UNKNOWN_IN_REGEX.search(regex):
        return []
    runs = [""]
    depth = 0
    for part in _REGEX_PARTS.findall(regex):
        if part in "()":
            depth += 1 if part == "(" else -1
            runs.append("")
        elif part[0] in "*?{":  # the character before it may be missing
            runs[-1] = runs[-1][:-1]
            runs.append("")
        elif depth or part[0] in "+.^$[" or (part[0] == "\\" and part[1].isalnum()):
            runs.append("")
        else:
            runs[-1] += part[-1]
    return runs


def _longest(run: re.Pattern[str], text: str) -> str:
    return max((match[0] for match in run.finditer(text)), key=len, default="")


def _may_be_part(character: str, literal: str) -> bool:
    """Return whether a character's folded form may overlap an occurrence of the literal."""
    folded = character.casefold()
    cuts = range(1, len(folded))
    return (
        literal in folded
        or folded in literal
        or any(literal.startswith(folded[cut:]) for cut in cuts)
        or any(literal.endswith(folded[:cut]) for cut in cuts)
    )


def _has(block: bytes, text: bytes) -> bool:
    """Return whether a block contains a text; fast if one of the text's bytes is missing.

    To search for one byte takes 0.03 ms per MB, for two or three 0.5 ms.
    """
    return all(byte in block for byte in text) and _contains(block, text)


def _has_pair(block: bytes, pairs: Iterable[bytes]) -> bool:
    r"""Return whether one of the pairs of bytes, each a backslash and another, is in a block.

    A string with a character for every two bytes finds each by memchr(3) of the first byte, which
    is fast if that is rare, as a backslash is: 0.25 ms per MB, both alignments of the block
    together. `memmem` takes 0.45 ms for each pair. Copies of the whole block would leave the cache.
    A block without a backslash takes 0.03.
    """
    if b"\\" not in block:
        return False
    characters = [chr(int.from_bytes(pair, sys.byteorder)) for pair in pairs]
    for begin in range(0, len(block), _PAIR_BYTES):
        for first in (begin, begin + 1):
            part = block[first : first + _PAIR_BYTES]
            text = _make_string(2, part, len(part) // 2)
            if any(map(text.__contains__, characters)):
                return True
    return False


def _by_literal(block: bytes, searched: bytes, literal: bytes) -> Iterator[tuple[int, int]]:
    """Yield the lines whose searched form contains the literal, at the same offsets."""
    position = searched.find(literal) if _has(searched, literal) else -1
    while position >= 0:
        end = block.find(b"\n", position)
        yield block.rfind(b"\n", 0, position) + 1, end
        position = searched.find(literal, end + 1)


def _by_pattern(block: bytes, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
    match = pattern.search(block)
    while match:
        end = block.find(b"\n", match.start())
        yield block.rfind(b"\n", 0, match.start()) + 1, end
        match = pattern.search(block, end + 1)


def _by_folded(block: bytes, text: str) -> Iterator[tuple[int, int]]:
    """Yield the lines whose case-folded form contains the text; folding changes their lengths."""
    folded = block.decode(errors="replace").casefold()
    position = folded.find(text)
    if position < 0:
        return
    begin = 0
    for line, folded_line in zip(block.split(b"\n"), folded.split("\n"), strict=True):
        if text in folded_line:
            yield begin, begin + len(line)
        begin += len(line) + 1
