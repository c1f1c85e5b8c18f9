"""What is wrong with a request that is no HTTP, in a sentence that shows nothing of a token."""

from gunicorn.http import errors

from astralog.server.receiver import (
    MAX_HEAD_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    BareLineFeed,
    HeadTooLong,
    OtherProtocol,
)

#: Headers that are named where something is wrong with their name or value. No other is: what
#: stands in the place of a header may be a token.
NAMED_HEADERS = (
    *("AUTHORIZATION", "HOST", "CONTENT-LENGTH", "CONTENT-TYPE", "CONTENT-ENCODING"),
    *("TRANSFER-ENCODING", "CONNECTION", "USER-AGENT", "ACCEPT", "IDEMPOTENCY-KEY"),
)

#: Why HTTP is not what a client speaks, by the name of what it speaks instead.
OTHER_PROTOCOLS = {
    "TLS": "This port speaks plain HTTP; TLS was sent to it. Use http:// in its address.",
    "HTTP/2": "HTTP/2, as gRPC has it, is not spoken here; use HTTP/1.1. "
    "OpenTelemetry sends so with the protocol http/protobuf.",
}

REASONS: dict[type[Exception], str] = {
    errors.LimitRequestLine: "the request line is too long",
    errors.InvalidRequestLine: "the request line is malformed",
    errors.InvalidRequestMethod: "the method is malformed",
    errors.InvalidHTTPVersion: "only HTTP/1.0 and HTTP/1.1 are spoken here",
    errors.InvalidHeader: "a header has no colon, or a value that none may have",
    errors.InvalidHeaderName: "the name of a header is malformed, as by a blank behind it",
    errors.LimitRequestHeaders: f"there are more than {MAX_HEADERS} headers, or one is longer than "
    f"{MAX_HEADER_BYTES} bytes",
    errors.ObsoleteFolding: "a header goes on in a second line",
    errors.ExpectationFailed: "the header Expect asks for what is not done here",
    HeadTooLong: f"the head is longer than {MAX_HEAD_BYTES} bytes",
    BareLineFeed: "a line ends in LF without a CR before it",
    errors.UnsupportedTransferCoding: "the header Transfer-Encoding names more than chunked",
}


def describe(error: errors.ParseException) -> str:
    """Return the sentence for an error of the parser; it names no header but well-known ones."""
    if isinstance(error, OtherProtocol):
        return OTHER_PROTOCOLS[str(error)]
    return f"The request is no valid HTTP: {_reason(error)}."


def _reason(error: errors.ParseException) -> str:
    header = getattr(error, "hdr", "").strip(" \t").upper()
    if isinstance(error, errors.InvalidHeader) and header in NAMED_HEADERS:
        hint = ", as by a line end in the token" if header == "AUTHORIZATION" else ""
        return f"the header {header.title()} is malformed{hint}, or stands there twice"
    if isinstance(error, errors.InvalidHeaderName) and header in NAMED_HEADERS:
        return f"the name of the header {header.title()} is malformed, as by a blank behind it"
    return REASONS.get(type(error), type(error).__name__)
