"""Senders as they are: pino's fields under a mapping, Splunk's HEC, Loki's push, and bulk."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from bench import bodies

_LINES = "application/x-ndjson"

HEAD = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {token}\r\n"
    "Content-Type: {kind}\r\nContent-Length: {{}}\r\n\r\n"
)

PINO_PATH = (
    "/v1/drain?project_id=shop&service=checkout&message_field=msg&timestamp_field=time"
    "&unknown=metadata"
)
HEC_PATH = "/services/collector/event"
LOKI_PATH = "/loki/api/v1/push?project_id=shop"
BULK_PATH = "/elasticsearch/shop/_bulk"

#: The logs of a stream of Loki.
STREAM_LOGS = 100

#: Milliseconds from a log to the next one.
STEP_MS = 7

_PINO_LEVELS = {"debug": 20, "info": 30, "warning": 40, "error": 50}

Logs = list[dict[str, Any]]

_encode = msgspec.json.encode


def pino_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the pool of requests with `batch` logs each, as pino writes them."""
    return _requests(batch, PINO_PATH, _LINES, token, _write_pino)


def hec_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the same logs as events, which follow one another."""
    return _requests(batch, HEC_PATH, "application/json", token, _write_events)


def loki_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the same logs as a push in JSON, with their metadata as structured metadata."""
    return _requests(batch, LOKI_PATH, "application/json", token, _write_push)


def bulk_requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the same logs as documents, each with its action."""
    return _requests(batch, BULK_PATH, _LINES, token, _write_bulk)


#: What makes the requests of a form, by its name.
FORMS = {
    "mapped fields": pino_requests,
    "HEC": hec_requests,
    "Loki in JSON": loki_requests,
    "bulk": bulk_requests,
}


def _requests(
    batch: int, path: str, kind: str, token: str, write: Callable[[Logs], bytes]
) -> list[bodies.Template]:
    head = HEAD.format(path=path, token=token, kind=kind)
    pool = bodies.templates(batch)
    return [bodies.Template(write(_read_logs(template)), batch, head) for template in pool]


def _read_logs(template: bodies.Template) -> Logs:
    """Return a batch's logs, STEP_MS apart: a batch has the logs of a few seconds."""
    logs = template.decode_logs()
    start = datetime.fromisoformat(logs[0]["timestamp"])
    for number, log in enumerate(logs):
        moment = start + timedelta(milliseconds=STEP_MS * number)
        log["timestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return logs


def _seconds(log: dict[str, Any]) -> float:
    return datetime.fromisoformat(log["timestamp"]).timestamp()


def _write_pino(logs: Logs) -> bytes:
    return b"\n".join(
        _encode(
            {
                "level": _PINO_LEVELS[log["level"]],
                "time": round(_seconds(log) * 1000),
                "pid": 4711,
                "hostname": "shop-7d9f",
                **log["metadata"],
                "msg": log["message"],
            }
        )
        for log in logs
    )


def _write_events(logs: Logs) -> bytes:
    return b"".join(
        _encode(
            {
                "time": _seconds(log),
                "host": "shop-7d9f",
                "index": log["project_id"],
                "sourcetype": log["service"],
                "event": {"message": log["message"], "level": log["level"], **log["metadata"]},
            }
        )
        for log in logs
    )


def _write_push(logs: Logs) -> bytes:
    streams = []
    for start in range(0, len(logs), STREAM_LOGS):
        labels = {"service_name": "checkout", "namespace": "shop", "pod": f"shop-{start}"}
        values = [_entry(log) for log in logs[start : start + STREAM_LOGS]]
        streams.append({"stream": labels, "values": values})
    return _encode({"streams": streams})


def _entry(log: dict[str, Any]) -> list[Any]:
    metadata = {name: str(value) for name, value in log["metadata"].items()}
    nanoseconds = round(_seconds(log) * 1000) * 1_000_000
    return [str(nanoseconds), log["message"], {"level": log["level"], **metadata}]


def _write_bulk(logs: Logs) -> bytes:
    lines = []
    for log in logs:
        document = {
            "@timestamp": log["timestamp"],
            "log.level": log["level"],
            "message": log["message"],
            "service.name": log["service"],
            "ecs.version": "8.10.0",
            **log["metadata"],
        }
        lines += [b'{"create":{}}\n', _encode(document), b"\n"]
    return b"".join(lines)
