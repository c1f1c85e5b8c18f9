"""/elasticsearch/: accept bulk requests, and answer the requests that clients send first.

Source: https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk.
"""

import secrets
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import msgspec
from flask import Response
from werkzeug.exceptions import MethodNotAllowed, NotFound

from astralog.api.dispatch import OPTIONS, Note, PlainView, decode_wsgi
from astralog.api.responses import REPLAYED_HEADERS, left_out, make_rejecter
from astralog.errors import Rejection
from astralog.intake.acceptor import Acceptor
from astralog.intake.body import Environ
from astralog.intake.elasticsearch import Bulk, Item
from astralog.tokens_file import Scope

PREFIX = "/elasticsearch"

#: Parameters of the query: the service's own, and those of Elasticsearch that change nothing here.
PARAMETERS = (
    *OPTIONS,
    *("pipeline", "refresh", "timeout", "filter_path", "error_trace", "pretty", "human"),
    *("require_alias", "require_data_stream", "wait_for_active_shards", "routing"),
    *("_source", "_source_includes", "_source_excludes", "list_executed_pipelines"),
    *("include_source_on_error", "format", "type"),
)

#: The version that is reported to clients; they refuse a version below their own.
VERSION = "8.19.0"

INFO = {
    "name": "astralog",
    "cluster_name": "astralog",
    "cluster_uuid": "astralog",
    "version": {
        "number": VERSION,
        "build_flavor": "default",
        "build_type": "tar",
        "build_snapshot": False,
        "lucene_version": "9.12.2",
        "minimum_wire_compatibility_version": "7.17.0",
        "minimum_index_compatibility_version": "7.0.0",
    },
    "tagline": "You Know, for Search",
}
LICENSE = {"license": {"status": "active", "uid": "astralog", "type": "basic", "mode": "basic"}}
HEALTH = {"cluster_name": "astralog", "status": "green", "timed_out": False, "number_of_nodes": 1}
UNHEALTHY = HEALTH | {"status": "red", "timed_out": True}

#: Requests that clients send before the first bulk request, by the first segments of the path.
HANDSHAKE: dict[str, Any] = {
    "": INFO,
    "_license": LICENSE,
    "_xpack": LICENSE | {"features": {}},
    "_cluster": HEALTH,
    "_nodes": {"nodes": {}},
    "_ilm": {"acknowledged": True},
    "_index_template": {"acknowledged": True},
    "_component_template": {"acknowledged": True},
    "_template": {"acknowledged": True},
    "_ingest": {"acknowledged": True},
    "_data_stream": {"acknowledged": True},
}

#: Elasticsearch's type of an error for each code; any other is an illegal argument.
TYPE_OF_CODE = {
    "unauthorized": "security_exception",
    "forbidden_project": "security_exception",
    "forbidden_scope": "security_exception",
    "rate_limited": "es_rejected_execution_exception",
    "queue_full": "es_rejected_execution_exception",
    "storage_full": "cluster_block_exception",
    "storage_failed": "cluster_block_exception",
    "commit_timeout": "process_cluster_event_timeout_exception",
    "stopping": "cluster_block_exception",
    "key_in_use": "version_conflict_engine_exception",
    "internal": "exception",
}

#: Items of a response that are encoded at once.
ITEMS_PER_PIECE = 500

#: The ends of the IDs in a piece.
_SUFFIXES = tuple(b"%03x" % number for number in range(ITEMS_PER_PIECE))

HEADERS = {"X-Elastic-Product": "Elasticsearch"}

_encode = msgspec.json.Encoder().encode


def create_view(acceptor: Acceptor, note: Note) -> PlainView:
    def answer(environ: Environ) -> Response:
        """Store the documents of a bulk request, or answer a handshake."""
        path = environ["PATH_INFO"].removeprefix(PREFIX).strip("/")
        index, _, name = path.rpartition("/")
        if name == "_bulk" and "/" not in index:
            if environ["REQUEST_METHOD"] not in ("POST", "PUT"):
                raise MethodNotAllowed(["POST", "PUT"])
            return _store(acceptor, note, decode_wsgi(index), environ)
        acceptor.tokens.authorize(environ, Scope.WRITE)
        first = path.partition("/")[0]
        if first == "_cluster" and acceptor.queue.unavailable():
            # winston-elasticsearch waits while red
            return _respond(UNHEALTHY, environ, HTTPStatus.REQUEST_TIMEOUT)
        known = HANDSHAKE.get(first)
        if known is None:
            raise NotFound
        return _respond(known, environ)

    return PlainView(answer, make_rejecter(note, _render))


def _render(rejection: Rejection, environ: Environ) -> Response:
    kind = TYPE_OF_CODE.get(rejection.code, "illegal_argument_exception")
    cause = {"type": kind, "reason": f"{rejection.code}: {rejection.message}"}
    body = {"error": {"root_cause": [cause], **cause}, "status": int(rejection.status)}
    return _respond(body, environ, rejection.status)


def _store(acceptor: Acceptor, note: Note, index: str, environ: Environ) -> Response:
    started_at = time.monotonic()
    bulk = Bulk(index)
    headers = HEADERS
    try:
        accepted = acceptor.accept(environ, bulk.decode, PARAMETERS)
        if accepted.is_replayed:
            headers = HEADERS | REPLAYED_HEADERS
        elif invalid := accepted.decoded.invalid:
            note(left_out(invalid, "documents"), environ)
    except Rejection as rejection:
        if rejection.code != "invalid_batch" or not bulk.is_complete:
            raise
        note(rejection, environ)  # no document is valid: each has its result
    took = int(1000 * (time.monotonic() - started_at))
    head = {"took": took, "errors": any(item.type for item in bulk.items)}
    pieces = _encode_items(_encode(head)[:-1] + b',"items":[', bulk.items)
    is_short = len(bulk.items) <= ITEMS_PER_PIECE
    body = b"".join(pieces) if is_short else pieces  # which alone needs no chunks
    return Response(body, content_type=_content_type(environ), headers=headers)


def _encode_items(head: bytes, items: list[Item]) -> Iterator[bytes]:
    """Yield the response to a bulk request, piece by piece."""
    made = secrets.token_urlsafe(9)
    yield head
    for start in range(0, len(items), ITEMS_PER_PIECE):
        run = items[start : start + ITEMS_PER_PIECE]
        prefix = f"{made}{start:05x}"
        if run.count(run[0]) == len(run) and not (run[0].type or run[0].document_id):
            results = _encode_stored(run[0], prefix, len(run))  # as most are
        else:
            results = b",".join(
                [_encode(_describe(item, f"{prefix}{n:03x}")) for n, item in enumerate(run)]
            )
        yield (b"," if start else b"") + results
    yield b"]}"


def _encode_stored(item: Item, prefix: str, count: int) -> bytes:
    """Return the results of stored documents; they differ only at the end of their IDs."""
    head, _, tail = _encode(_describe(item, f"{prefix}\0")).rpartition(b"\\u0000")
    return head + (tail + b"," + head).join(_SUFFIXES[:count]) + tail


def _describe(item: Item, made_id: str) -> dict[str, Any]:
    result: dict[str, Any] = {"_index": item.index_name, "_id": item.document_id or made_id}
    if item.type:
        result |= {"status": item.status, "error": {"type": item.type, "reason": item.reason}}
    else:
        shards = {"total": 1, "successful": 1, "failed": 0}
        result |= {"_version": 1, "result": "created", "_shards": shards, "_seq_no": 0}
        result |= {"_primary_term": 1, "status": item.status}
    return {item.action: result}


def _respond(body: Any, environ: Environ, status: int = HTTPStatus.OK) -> Response:
    content_type = _content_type(environ)
    return Response(_encode(body), status, headers=HEADERS, content_type=content_type)


def _content_type(environ: Environ) -> str:
    """Return a response's Content-Type: the type for the client's version, if it asks for one."""
    accept = str(environ.get("HTTP_ACCEPT", ""))
    for version in ("8", "9"):
        if f"application/vnd.elasticsearch+json; compatible-with={version}" in accept.lower():
            return f"application/vnd.elasticsearch+json;compatible-with={version}"
    return "application/json"
