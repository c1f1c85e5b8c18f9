"""Requests whose end is ambiguous: a proxy and the service may find it at different places."""

import json
from collections.abc import Iterator

from tests.support.service import TOKEN, make_batch

#: The message of the batch that must never be stored.
POISON = "poisoned"

_START = f"POST /v1/drain HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN}\r\n"


def requests() -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes: one request with a second hidden in or after its body."""
    body = json.dumps(make_batch(POISON)).encode()
    hidden = f"{_START}Content-Length: {len(body)}\r\n\r\n".encode() + body
    chunked_end = b"0\r\n\r\n"
    for what, headers in _doubtful_headers(len(hidden), len(chunked_end)).items():
        yield f"{what}, hidden behind", f"{_START}{headers}\r\n".encode() + chunked_end + hidden
    for what, chunk in _doubtful_chunks(hidden).items():
        yield what, f"{_START}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk
    start = _START.encode()
    yield "bare LF ends the head", start.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n" + hidden
    yield "bare CR in a value", start + b"X: a\rContent-Length: 0\r\n\r\n" + hidden
    yield "NUL in a value", start + b"X: a\0b\r\nContent-Length: 0\r\n\r\n" + hidden
    yield "LF in the target", start.replace(b"/v1", b"/\n/v1") + b"\r\n" + hidden
    yield "no version", b"POST /v1/drain\r\n\r\n" + hidden


def _doubtful_headers(hidden: int, end: int) -> dict[str, str]:
    """Return header lines that give a body two ends, by name."""
    chunked = "Transfer-Encoding: chunked"
    return {
        "CL.TE": f"Content-Length: {end + hidden}\r\n{chunked}\r\n",
        "TE.CL": f"{chunked}\r\nContent-Length: {end}\r\n",
        "two Content-Lengths": f"Content-Length: {end}\r\nContent-Length: {end + hidden}\r\n",
        "Content-Length list": f"Content-Length: {end}, {end}\r\n",
        "space before the colon": f"Content-Length: {end}\r\nTransfer-Encoding : chunked\r\n",
        "tab before the colon": f"Content-Length: {end}\r\nTransfer-Encoding\t: chunked\r\n",
        "space before the name": f"Content-Length: {end}\r\n {chunked}\r\n",
        "folded value": f"Content-Length: {end}\r\nTransfer-Encoding:\r\n chunked\r\n",
        "space before the only colon": "Transfer-Encoding : chunked\r\n",
        "space before the length's colon": f"Content-Length : {end}\r\n",
        "folded value alone": "Transfer-Encoding:\r\n chunked\r\n",
        "chunked twice": f"{chunked}\r\n{chunked}\r\n",
        "chunked, identity": "Transfer-Encoding: chunked, identity\r\n",
        "identity and length": f"Transfer-Encoding: identity\r\nContent-Length: {end}\r\n",
        "xchunked": "Transfer-Encoding: xchunked\r\n",
        "quoted chunked": 'Transfer-Encoding: "chunked"\r\n',
        "vertical tab": "Transfer-Encoding: \x0bchunked\r\n",
        "signed length": f"Content-Length: +{end}\r\n",
        "length with a tail": f"Content-Length: {end}abc\r\n",
        "underscore name": f"Content_Length: {end}\r\n{chunked}\r\nContent-Length: {end}\r\n",
        "name with a null": f"Content-Length\0: {end}\r\n",
        "empty name": f": x\r\nContent-Length: {end}\r\n",
    }


def _doubtful_chunks(hidden: bytes) -> dict[str, bytes]:
    """Return chunked bodies with an ambiguous end, by name."""
    return {
        "LF ends the chunk size": b"0\n\n" + hidden,
        "chunk size with 0x": b"0x0\r\n\r\n" + hidden,
        "chunk size with a sign": b"+0\r\n\r\n" + hidden,
        "chunk size with an underscore": b"0_0\r\n\r\n" + hidden,
        "chunk without its end": b"1\r\nx0\r\n\r\n" + hidden,
        "LF in a chunk extension": b"0;a\n\r\n\r\n" + hidden,
        "CR in a chunk extension": b"1;a\rb\r\nx\r\n0\r\n\r\n" + hidden,
        "longer than it says": b"1\r\nxy\r\n0\r\n\r\n" + hidden,
    }
