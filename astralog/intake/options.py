"""What a sender asks for in the query, where it cannot write a log's fields itself."""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl

from astralog.errors import Rejection

#: Parameters that give every log a field that it lacks.
DEFAULTS = ("project_id", "service", "level")

PARAMETERS = (*DEFAULTS, "unknown", "partial", "dry_run")

#: Characters of a default value: it is repeated in every log, so it bounds what a batch grows to.
MAX_DEFAULT_CHARACTERS = 255

#: What `unknown` may say.
TO_METADATA = "metadata"

#: Names of parameters that are repeated where they are not known. Any other may be a token.
_SHOWN_NAME = re.compile(r"[A-Za-z_]{1,24}")

_FLAGS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}


class Options(NamedTuple):
    """What the query asks for.

    `defaults` has a value for each field that is filled in; `moves_unknown` is set where unknown
    fields go under metadata, `is_partial` where the valid logs of an invalid batch are stored.
    """

    defaults: Mapping[str, str] = MappingProxyType({})
    moves_unknown: bool = False
    is_partial: bool = False
    is_dry_run: bool = False


NO_OPTIONS = Options()


def parse_options(query: str, parameters: Collection[str] = PARAMETERS) -> Options:
    """Return what a query string, as WSGI has it, asks for; `parameters` are those it may use.

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
