"""The header Idempotency-Key: the name that a client gives a batch, so that it is stored once.

Source: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07.
"""

import re

from astralog.errors import Rejection
from astralog.intake.body import Environ
from astralog.store.keys.claims import Key, make_key
from astralog.tokens_file import Token

#: The header as WSGI names it.
HEADER = "HTTP_IDEMPOTENCY_KEY"

MAX_KEY_CHARACTERS = 255

#: A string of RFC 9651, section 3.3.3, and a key that is sent without its quotes. A comma would be
#: of two headers that became one on the way.
_QUOTED = re.compile(r'"((?:[!#-\[\]-~]++|\\["\\])*+)"')
_BARE = re.compile(r"[!#-+\--~]+")
_ESCAPED = re.compile(r'\\(["\\])')

_FORM = f"Idempotency-Key is one quoted string of 1 to {MAX_KEY_CHARACTERS} visible characters."


def parse_key(value: str) -> str:
    """Return the key in the header's value; raises Rejection `bad_request` where it is none."""
    text = value.strip(" \t")
    if match := _QUOTED.fullmatch(text):
        text = match[1]
        if "\\" in text:
            text = _ESCAPED.sub(r"\1", text)
    elif not _BARE.fullmatch(text):
        raise Rejection("bad_request", _FORM)
    if not 1 <= len(text) <= MAX_KEY_CHARACTERS:
        raise Rejection("bad_request", _FORM)
    return text


def digest(key: str, token: Token, body: bytes, environ: Environ) -> Key:
    """Return the digests of a key and of what it is sent with.

    A second try may be compressed in another way, but what becomes of its body must be the same.
    """
    words = ("PATH_INFO", "CONTENT_TYPE", "QUERY_STRING")
    context = "\n".join([environ.get(word, "") for word in words])
    return make_key(token.digest, token.name, key, body, context)
