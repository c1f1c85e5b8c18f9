"""The members of logs that are alike: a trick for speed.

Each step is done to one member of all logs, in place of all steps to one log.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from io import BytesIO
from itertools import chain, repeat, takewhile
from operator import contains, itemgetter
from typing import Annotated, Any, NamedTuple

import msgspec

from astralog.intake.lines import encode_value
from astralog.intake.members import Members, decode_members
from astralog.intake.strict_json import check_utf8

#: Logs that are changed together if they are alike, which takes a millisecond: in runs of 64, it
#: takes a tenth more.
ALIKE_LOGS = 256

#: Orders of known members whose structs are kept; a struct takes 0.1 ms to make.
KEPT_FORMS = 64

#: The fewest logs whose other members stay text: to find their form takes as long as it gains.
LEAST_LINES = 32

#: Characters of numbers, and the comma between two of them.
_NUMBERS = b"0123456789-+.eE,"

#: Names of known members, in groups: if a log has one, those after it in its group are not known.
Groups = tuple[tuple[str, ...], ...]

#: A type that no value has.
_Never = Annotated[int, msgspec.Meta(gt=0, lt=1)]

_decode_texts = msgspec.json.Decoder(list[str]).decode


class NotAlikeError(Exception):
    """Logs have different members, or some may be invalid."""


class Columns:
    """The members of several logs, by their names; `found` are the names of those in use."""

    def __init__(self, logs: Sequence[Members]) -> None:
        self._logs = logs
        self.found: list[str] = []

    def __len__(self) -> int:
        return len(self._logs)

    def is_in_any(self, name: str) -> bool:
        """Return whether a log has a member; in two thirds of the time of a loop."""
        return any(map(contains, self._logs, repeat(name)))

    def _read(self, name: str) -> Sequence[msgspec.Raw] | None:
        """Return each log's value of a member, None if the first log has none."""
        if name not in self._logs[0]:
            return None
        try:
            return list(map(itemgetter(name), self._logs))
        except KeyError:
            raise NotAlikeError from None

    def find(self, names: Sequence[str]) -> Sequence[msgspec.Raw] | None:
        """Return each log's value of the first member that is there; add its name to `found`.

        Returns None if no log has one of the members, or an object on the path of a dotted name.
        Raises NotAlikeError if only some logs have it.
        """
        for name in names:
            values = self._read(name)
            if values is not None:
                self.found.append(name)
                return values
            places = (name, *outer_names(name)) if "." in name else (name,)
            if any(map(self.is_in_any, places)):
                raise NotAlikeError
        return None

    def find_texts(self, names: Sequence[str]) -> list[str] | None:
        """Return each log's text in the first member that is there, as `find` does.

        Raises NotAlikeError also if a value is not a string.
        """
        values = self.find(names)
        return None if values is None else read_texts(values)

    def find_names(self, names: Sequence[str], default: str) -> list[str]:
        """Return the same as `find_texts`, with the default for None; raises for "" too."""
        texts = self.find_texts(names)
        if texts is None:
            return [default] * len(self)
        if "" in texts:
            raise NotAlikeError
        return texts

    def take_rest(self) -> list[Any]:
        """Return each log's members that were not found, None if there are none.

        The logs lose the others. Raises NotAlikeError before any log is changed.
        """
        for name in set(self.found):
            for log in self._logs:
                del log[name]
        return [log or None for log in self._logs]


class TextColumns(Columns):
    """The known members of logs in lines, which are first or last in each; the rest stays text.

    Most loggers write their logs so. A trick for speed: a decode takes 0.75 (mapped lines) or 0.86
    (bulk) of the time of one that makes an object for each other member.
    """

    def __init__(self, text: bytes, groups: Groups) -> None:
        """Read the members of the groups; they have the same order in all lines of a text.

        Raises NotAlikeError or ValueError.
        """
        if b"\r" in text:
            raise NotAlikeError
        check_utf8(text)
        text = text if text.endswith(b"\n") else text + b"\n"
        lines = BytesIO(text).readlines()
        if len(lines) < LEAST_LINES:
            raise NotAlikeError
        try:
            form = _find_form(lines[0], groups)
            rows = list(map(msgspec.structs.astuple, map(form.decode, lines)))
        except RecursionError:
            raise NotAlikeError from None
        self.found = []
        names = (*form.first, *form.last)
        self._columns = dict(zip(names, zip(*rows, strict=True), strict=False))
        starts = self._write(form.start, form.first, len(lines))
        ends = self._write(form.end, form.last, len(lines))
        # Neither can begin within a string: both have an even number of quotes.
        rest = list(map(bytes.removesuffix, map(bytes.removeprefix, lines, starts), ends))
        if len(text) != sum(map(len, chain(starts, rest, ends))) or b"" in rest:
            raise NotAlikeError
        self._rest = list(map(msgspec.Raw, map(b"{%b}".__mod__, rest)))

    def _write(self, texts: Sequence[bytes], names: Sequence[str], count: int) -> list[bytes]:
        """Return the texts with each log's values of some members between them."""
        parts: list[Sequence[bytes]] = [[texts[0]] * count]
        for name, text in zip(names, texts[1:], strict=True):
            parts += self._columns[name], [text] * count
        return list(map(b"".join, zip(*parts, strict=True))) if names else [texts[0]] * count

    def __len__(self) -> int:
        return len(self._rest)

    def is_in_any(self, name: str) -> bool:
        return name in self._columns

    def take_rest(self) -> list[Any]:
        if self._columns.keys() != set(self.found):
            raise NotAlikeError
        return self._rest

    def _read(self, name: str) -> Sequence[msgspec.Raw] | None:
        return self._columns.get(name)


class _Form(NamedTuple):
    """The form of a log: its known members, and the texts around their values.

    The decoder makes structs that begin with these members; it rejects logs with other known ones.
    """

    first: Sequence[str]
    last: Sequence[str]
    start: Sequence[bytes]
    end: Sequence[bytes]
    decode: Callable[[bytes], Any]


def _find_form(line: bytes, groups: Groups) -> _Form:
    """Return the form of a log; raises NotAlikeError and ValueError."""
    known = _find_known(groups)
    names = list(decode_members(line))
    first = tuple(takewhile(known.__contains__, names))
    last = tuple(takewhile(known.__contains__, reversed(names)))[::-1]
    if len(first) == len(names) or len(first) + len(last) < len(known.intersection(names)):
        raise NotAlikeError
    is_spaced = line.startswith(b"{%b: " % encode_value(names[0]))
    return _make_form(first, last, groups, is_spaced=is_spaced)


@lru_cache(KEPT_FORMS)
def _find_known(groups: Groups) -> frozenset[str]:
    names = chain.from_iterable(groups)
    return frozenset(chain.from_iterable((name, *outer_names(name)) for name in names))


@lru_cache(KEPT_FORMS)
def _make_form(
    first: Sequence[str], last: Sequence[str], groups: Groups, *, is_spaced: bool
) -> _Form:
    space = b" " if is_spaced else b""
    keys = {name: b",%b%b:%b" % (space, encode_value(name), space) for name in (*first, *last)}
    start = [*(keys[name] for name in first), b"," + space]
    start[0] = b"{" + start[0].lstrip(b", ")
    end = [*(keys[name] for name in last), b"}\n"]
    missing = [
        known
        for group in groups
        for name in takewhile(lambda name: name not in keys, group)
        for known in (name, *outer_names(name))
    ]
    fields = {name: f"f{place}" for place, name in enumerate(dict.fromkeys((*keys, *missing)))}
    struct = msgspec.defstruct(
        "Form",
        [
            (field, msgspec.Raw) if name in keys else (field, _Never, msgspec.UNSET)
            for name, field in fields.items()
        ],
        rename={field: name for name, field in fields.items()},
        gc=False,
    )
    return _Form(first, last, start, end, msgspec.json.Decoder(struct).decode)


def outer_names(name: str) -> list[str]:
    """Return the names of the objects that a dotted name may reach into."""
    return [name[:end] for end, character in enumerate(name) if character == "."]


def read_texts(values: Sequence[msgspec.Raw]) -> list[str]:
    """Return values that are strings, decoded in one call; raises NotAlikeError for any other."""
    try:
        return _decode_texts(b"[%b]" % b",".join(values))
    except ValueError:
        raise NotAlikeError from None


def read_scalars(values: Sequence[msgspec.Raw]) -> list[str]:
    """Return values that are strings, or all of them numbers, which stay as they were written."""
    text = b",".join(values)
    if not text.translate(None, _NUMBERS):
        return text.decode().split(",")
    return read_texts(values)
