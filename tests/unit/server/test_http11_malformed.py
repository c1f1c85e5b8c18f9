import pytest
from gunicorn.http import errors

from astralog.server.http11_receiver import BareLineFeed, HeadTooLong, OtherProtocol
from astralog.server.http11_request import describe

SECRET = "s3cret-Token"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.InvalidHeader("CONTENT-LENGTH"), "the header Content-Length is malformed"),
        (errors.InvalidHeader("HOST"), "the header Host is malformed, or is repeated"),
        (
            errors.InvalidHeader("X-OTHER"),
            "a header has no colon, or characters that are not allowed",
        ),
        (
            errors.InvalidHeader("authorization"),
            "malformed, perhaps by a line end in the token, or is",
        ),
        (errors.InvalidHeaderName("X-Other "), "a header name is malformed, perhaps by a blank"),
        (errors.InvalidHeaderName("Host "), "the header name Host is malformed"),
        (errors.InvalidHeaderName("\xe9"), "a header name is malformed"),
        (
            errors.LimitRequestHeaders("x"),
            "100 headers, or one is longer than 8190 bytes",
        ),
        (HeadTooLong(), "the head is longer than 16384 bytes"),
        (BareLineFeed(), "a line ends in LF without a CR"),
        (errors.LimitRequestLine(1, 2), "the request line is too long"),
        (errors.InvalidHTTPVersion("HTTP/2"), "only HTTP/1.0 and HTTP/1.1"),
        (errors.UnsupportedTransferCoding("gzip"), "the header Transfer-Encoding has"),
        (errors.ForbiddenProxyRequest("h"), "ForbiddenProxyRequest"),
    ],
)
def test_error_is_named(error: errors.ParseException, words: str) -> None:
    """The message names the header or the part of the request that is wrong."""
    sentence = describe(error)
    assert sentence.startswith("The request is not valid HTTP: ")
    assert words in sentence


@pytest.mark.parametrize(("name", "words"), [("TLS", "use http://"), ("HTTP/2", "http/protobuf")])
def test_another_protocol_is_explained(name: str, words: str) -> None:
    """The message names the protocol and the address to use."""
    assert words in describe(OtherProtocol(name))


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidHeaderName(SECRET),
        errors.InvalidHeaderName(f"{SECRET} "),
        errors.InvalidHeaderName(f" {SECRET}"),
        errors.InvalidHeader(f"Authorization {SECRET}"),
        errors.InvalidHeader(SECRET),
        errors.InvalidHeader(SECRET.upper()),
        errors.InvalidHeaderName(f"Authorization {SECRET}"),
        errors.InvalidRequestLine(SECRET),
        errors.InvalidRequestMethod(SECRET),
        errors.InvalidHTTPVersion(SECRET),
        errors.ObsoleteFolding(SECRET),
        errors.ExpectationFailed(SECRET),
        errors.UnsupportedTransferCoding(SECRET),
        errors.InvalidChunkSize(SECRET),
    ],
)
def test_message_repeats_no_possible_token(error: errors.ParseException) -> None:
    """A line without a colon, a value, or the request line is not shown."""
    assert SECRET.lower() not in describe(error).lower()
