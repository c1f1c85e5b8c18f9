"""The options of a request: its query, and its header Idempotency-Key.

Source of the header:
https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07.
"""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl

from astralog.errors import Rejection
from astralog.intake.body import Environ
from astralog.store.keys.claims import Key, make_key
from astralog.tokens_file import Token

#: Parameters whose value is stored in logs that lack the field.
DEFAULTS = ("project_id", "service", "level")

PARAMETERS = (*DEFAULTS, "unknown", "partial", "dry_run")

#: Characters of a default value: it is repeated in every log, so it bounds the growth of a batch.
MAX_DEFAULT_CHARACTERS = 255

#: The only value of `unknown`.
TO_METADATA = "metadata"

#: The header that holds the key, as WSGI names it.
KEY_HEADER = "HTTP_IDEMPOTENCY_KEY"

MAX_KEY_CHARACTERS = 255

#: A string of RFC 9651, section 3.3.3, and a key that is sent without its quotes. A comma would
#: separate two headers that a proxy joined.
_QUOTED = re.compile(r'"((?:[!#-\[\]-~]++|\\["\\])*+)"')
_BARE = re.compile(r"[!#-+\--~]+")
_ESCAPED = re.compile(r'\\(["\\])')

_KEY_FORM = f"Idempotency-Key is one quoted string of 1 to {MAX_KEY_CHARACTERS} visible characters."

#: Unknown parameters that a message repeats. Any other name may be a token.
_SHOWN_NAME = re.compile(r"[A-Za-z_]{1,24}")

_FLAGS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}


class Options(NamedTuple):
    """The options of a query.

    `defaults` has a value for each field that is filled in; with `moves_unknown`, unknown fields go
    under metadata; with `is_partial`, the valid logs of an invalid batch are stored.
    """

    defaults: Mapping[str, str] = MappingProxyType({})
    moves_unknown: bool = False
    is_partial: bool = False
    is_dry_run: bool = False


NO_OPTIONS = Options()


def parse_options(query: str, parameters: Collection[str] = PARAMETERS) -> Options:
    """Return the options in a query string as WSGI has it, which may use the `parameters`.

    Raises Rejection `bad_request`, which names the parameter.
    """
    values = parse_query(query, parameters)
    defaults = {name: values[name] for name in DEFAULTS if name in values}
    for name, value in defaults.items():
        if len(value) > MAX_DEFAULT_CHARACTERS:
            raise _bad(f"{name} has more than {MAX_DEFAULT_CHARACTERS} characters.")
    if values.get("unknown", TO_METADATA) != TO_METADATA:
        raise _bad(f"unknown is {TO_METADATA}.")
    return Options(
        defaults,
        moves_unknown="unknown" in values,
        is_partial=_parse_flag(values, "partial"),
        is_dry_run=_parse_flag(values, "dry_run"),
    )


def parse_query(query: str, parameters: Collection[str]) -> dict[str, str]:
    """Return the values of a query's parameters; raises Rejection `bad_request` for any other."""
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
            raise _bad(f"{name} stands twice in the query.")
        if not value:
            raise _bad(f"{name} is empty.")
        values[name] = value
    return values


def _parse_flag(values: Mapping[str, str], name: str) -> bool:
    text = values.get(name, "false")
    if text not in _FLAGS:
        raise _bad(f"{name} is true or false.")
    return _FLAGS[text]


def _bad(message: str) -> Rejection:
    return Rejection("bad_request", message)


def parse_key(value: str) -> str:
    """Return the key in the header's value; raises Rejection `bad_request` for any other value."""
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


def digest(key: str, token: Token, body: bytes, environ: Environ) -> Key:
    """Return the digests of a key and of the request that is sent with it.

    A second try may be compressed in another way, but must be decoded in the same way.
    """
    words = ("PATH_INFO", "CONTENT_TYPE", "QUERY_STRING")
    context = "\n".join([environ.get(word, "") for word in words])
    return make_key(token.digest, token.name, key, body, context)
