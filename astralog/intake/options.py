"""The options of a request: its query, and its header `Idempotency-Key`.

Source of the header:
https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property, lru_cache
from urllib.parse import parse_qsl

from astralog.errors import Rejection
from astralog.intake.body import Environ
from astralog.store.keys.claims import Key, make_key
from astralog.tokens_file import Token

#: Parameters whose value is stored in logs that lack the field.
DEFAULTS = ("project_id", "service", "level")

#: Parameters that name the members of a log from which a field is moved, and that field.
FIELD_PARAMETERS = {
    f"{name}_field": name for name in ("message", "timestamp", "level", "service", "project_id")
}

#: Parameters with a single value.
CONSTANTS = {"timestamp": "now", "unknown": "metadata", "invalid": "keep", "once": "body"}

PARAMETERS = (*DEFAULTS, *FIELD_PARAMETERS, *CONSTANTS, "partial", "dry_run")

#: Characters of a default value: it is repeated in every log, so it bounds the growth of a batch.
MAX_DEFAULT_CHARACTERS = 255

#: Characters of the value of a `*_field`.
MAX_FIELD_CHARACTERS = 255

#: Names in a `*_field`, and dots in all of them, which bound the work for each log.
MAX_FIELD_NAMES = 16
MAX_FIELD_DOTS = 16

#: The level and the service of a log that names none, for protocols that do not require them.
NO_LEVEL = "unspecified"
NO_SERVICE = "unknown_service"

#: The header that holds the key, as WSGI names it.
KEY_HEADER = "HTTP_IDEMPOTENCY_KEY"

MAX_KEY_CHARACTERS = 255

#: A string of RFC 9651, section 3.3.3, and a key that is sent without its quotes. A comma would
#: separate two headers that a proxy joined.
_QUOTED = re.compile(r'"((?:[!#-\[\]-~]++|\\["\\])*+)"')
_BARE = re.compile(r"[!#-+\--~]+")
_ESCAPED = re.compile(r'\\(["\\])')

_KEY_FORM = (
    f"Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} visible characters, with or without "
    "quotes."
)

#: Queries whose options are kept: senders have one each, and a head bounds its length.
CACHED_QUERIES = 64

#: Unknown parameters that a message repeats. Any other name may be a token.
_SHOWN_NAME = re.compile(r"[A-Za-z_]{1,24}")

#: Parameters of Elasticsearch that are usually written without a value: `_bulk?pretty`.
BARE_PARAMETERS = ("pretty", "human", "error_trace", "refresh")

_FLAGS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}


class OnInvalid(Enum):
    """The fate of a batch with invalid logs."""

    REJECT = "nothing is stored"
    LEAVE_OUT = "the valid logs are stored (`partial=true`)"
    KEEP = "all logs are stored, the invalid ones as text (`invalid=keep`)"


@dataclass(frozen=True)
class Options:
    """The options of a query.

    `defaults` has a value for each field that is filled in, and `sources` the names of the members
    from which a field is moved. With `moves_unknown`, unknown fields go under metadata; with
    `stamps_arrival`, the arrival is the default timestamp; with `keys_body`, the body is its own
    idempotency key.
    """

    defaults: Mapping[str, str] = field(default_factory=dict)
    moves_unknown: bool = False
    is_dry_run: bool = False
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stamps_arrival: bool = False
    on_invalid: OnInvalid = OnInvalid.REJECT
    keys_body: bool = False

    @cached_property
    def changes_logs(self) -> bool:
        return bool(self.defaults or self.moves_unknown or self.sources)

    @cached_property
    def moves_fields(self) -> bool:
        """Whether fields are moved; then metadata is decoded, and encoded again."""
        return bool(self.moves_unknown or self.sources)

    @cached_property
    def accepts_any_json(self) -> bool:
        """Whether a JSON body may be an array, a log or several logs instead of a batch."""
        return bool(self.moves_unknown or self.stamps_arrival or self.sources)

    def stamp(self, arrival: str) -> "Options":
        return replace(self, defaults={**self.defaults, "timestamp": arrival})


NO_OPTIONS = Options()


@lru_cache(CACHED_QUERIES)  # a trick for speed: a query takes 6 to 12 µs
def parse_options(query: str, parameters: tuple[str, ...] = PARAMETERS) -> Options:
    """Return the options in WSGI's query string; only `parameters` are allowed.

    Raises Rejection `bad_request`, which names the parameter.
    """
    values = parse_query(query, parameters)
    for name, value in CONSTANTS.items():
        if values.get(name, value) != value:
            raise bad_parameter(name, f"must have the value {value!r}")
    if "once" in values and "timestamp" in values:
        raise _bad(
            "once=body cannot be combined with timestamp=now: without timestamps, separate batches "
            "may have the same bytes."
        )
    return Options(
        {
            name: _limited(values, name, MAX_DEFAULT_CHARACTERS)
            for name in DEFAULTS
            if name in values
        },
        moves_unknown="unknown" in values,
        is_dry_run=_parse_flag(values, "dry_run"),
        sources={
            FIELD_PARAMETERS[name]: _parse_names(values, name)
            for name in values
            if name in FIELD_PARAMETERS
        },
        stamps_arrival="timestamp" in values,
        on_invalid=_parse_on_invalid(values),
        keys_body="once" in values,
    )


def _parse_on_invalid(values: Mapping[str, str]) -> OnInvalid:
    is_partial = _parse_flag(values, "partial")
    if "invalid" in values:
        return OnInvalid.KEEP
    return OnInvalid.LEAVE_OUT if is_partial else OnInvalid.REJECT


def _limited(values: Mapping[str, str], name: str, most: int) -> str:
    if len(values[name]) > most:
        raise bad_parameter(name, f"has more than {most} characters")
    return values[name]


def _parse_names(values: Mapping[str, str], name: str) -> tuple[str, ...]:
    names = tuple(_limited(values, name, MAX_FIELD_CHARACTERS).split(","))
    if "" in names:
        raise bad_parameter(name, "has an empty name between commas")
    if len(names) > MAX_FIELD_NAMES or values[name].count(".") > MAX_FIELD_DOTS:
        limits = f"{MAX_FIELD_NAMES} names or {MAX_FIELD_DOTS} dots"
        raise bad_parameter(name, f"has more than {limits}")
    return names


def find_project(options: Options, projects: Collection[str] | None) -> str:
    """Return the project of logs without one: the query's, else the token's only one, else ""."""
    only = "".join(projects) if projects and len(projects) == 1 else ""
    return options.defaults.get("project_id") or only


def parse_query(query: str, parameters: Collection[str]) -> dict[str, str]:
    """Return the values of a query's parameters; raises Rejection `bad_request` for others."""
    try:
        pairs = parse_qsl(query.encode("latin-1").decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise _bad("The query is not valid UTF-8.") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in parameters:
            shown = f"query parameter {name!r}" if _SHOWN_NAME.fullmatch(name) else "such parameter"
            raise _bad(f"There is no {shown}; there are {', '.join(parameters)}.")
        if name in values:
            raise bad_parameter(name, "occurs twice")
        if not value and name not in BARE_PARAMETERS:
            raise bad_parameter(name, "is empty")
        values[name] = value
    return values


def _parse_flag(values: Mapping[str, str], name: str) -> bool:
    text = values.get(name, "false")
    if text not in _FLAGS:
        raise bad_parameter(name, "must be 'true' or 'false'")
    return _FLAGS[text]


def bad_parameter(name: str, problem: str) -> Rejection:
    return _bad(f"The query parameter {name!r} {problem}.")


def _bad(message: str) -> Rejection:
    return Rejection("bad_request", message)


def parse_key(value: str) -> str:
    """Return the key in the header's value; raises Rejection `bad_request` if there is none."""
    text = value.strip(" \t")
    if match := _QUOTED.fullmatch(text):
        text = match[1]
        if "\\" in text:
            text = _ESCAPED.sub(r"\1", text)
    elif not _BARE.fullmatch(text):
        raise Rejection("bad_request", _KEY_FORM)
    if not 1 <= len(text) <= MAX_KEY_CHARACTERS:
        raise Rejection("bad_request", _KEY_FORM)
    return text


def digest(key: str | None, token: Token, body: bytes, environ: Environ) -> Key:
    """Return the digests of a key and of its request.

    Without a key, it is made of the request itself (`once=body`), and is none that a header can
    hold. A second try may be compressed in another way, but must be decoded in the same way.
    """
    words = ("PATH_INFO", "CONTENT_TYPE", "QUERY_STRING")
    context = "\n".join([environ.get(word, "") for word in words])
    if tenant := environ.get("HTTP_X_SCOPE_ORGID"):  # which names the project of Loki's logs
        context += f"\n{tenant}"
    if key is None:
        made = hashlib.sha256(f"{context}\n".encode())
        made.update(body)
        key = f"body {made.hexdigest()}"
    return make_key(token.digest, token.name, key, body, context)
