"""What is wrong with a request that is no HTTP, in a sentence that shows nothing of a token."""

import re

from gunicorn.http import errors

from astralog.server.receiver import MAX_HEAD_BYTES, BareLineFeed, HeadTooLong

#: Headers that are named where something is wrong with their value. gunicorn tells no other name
#: from a line without a colon, which may be a token.
NAMED_HEADERS = (
    *("AUTHORIZATION", "HOST", "CONTENT-LENGTH", "CONTENT-TYPE", "CONTENT-ENCODING"),
    *("TRANSFER-ENCODING", "CONNECTION", "USER-AGENT", "ACCEPT", "IDEMPOTENCY-KEY"),
)

#: How a name begins (RFC 9110, 5.6.2), as far as it is repeated.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")

REASONS: dict[type[Exception], str] = {
    errors.LimitRequestLine: "the request line is too long",
    errors.InvalidRequestLine: "the request line is malformed",
    errors.InvalidRequestMethod: "the method is malformed",
    errors.InvalidHTTPVersion: "only HTTP/1.0 and HTTP/1.1 are spoken here",
    errors.InvalidHeader: "a header has no colon, or a value that none may have",
    errors.LimitRequestHeaders: "there are too many headers, or one is too long",
    errors.ObsoleteFolding: "a header goes on in a second line",
    errors.ExpectationFailed: "the header Expect asks for what is not done here",
    HeadTooLong: f"the head is longer than {MAX_HEAD_BYTES} bytes",
    BareLineFeed: "a line ends in LF without a CR before it",
    errors.UnsupportedTransferCoding: "the header Transfer-Encoding names more than chunked",
}


def describe(error: errors.ParseException) -> str:
    """Return the sentence for one of gunicorn's errors; it names the header that is meant."""
    return f"The request is no valid HTTP: {_reason(error)}."


def _reason(error: errors.ParseException) -> str:
    if isinstance(error, errors.InvalidHeader) and error.hdr in NAMED_HEADERS:
        return f"the header {error.hdr.title()} is malformed, or stands there twice"
    if isinstance(error, errors.InvalidHeaderName) and (name := _NAME.match(error.hdr)):
        return f"the name of the header {name[0]} is malformed"
    return REASONS.get(type(error), type(error).__name__)
