"""Exports as of OpenTelemetry's SDK: protobuf, from calls of a logger with some extras."""

import random
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from bench import bodies

HEAD = (
    "POST /v1/logs?project_id=shop HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {token}\r\n"
    "Content-Type: application/x-protobuf\r\nContent-Length: {{}}\r\n\r\n"
)

_RESOURCE = {
    "service.name": "checkout",
    "service.version": "1.4.2",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": "1.45.2",
}
_FUNCTIONS = ("pay", "cancel", "refund", "confirm", "list_orders", "show_order")
_FIRST_TIME = 1_795_392_000_000_000_000
_SEVERITIES = {"debug": 5, "info": 9, "warning": 13, "error": 17}


def requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the pool of requests with `batch` logs each, made of those of `bodies`."""
    head = HEAD.format(token=token)
    chance = random.Random(f"{bodies.SEED}-otlp")
    pool = bodies.templates(batch)
    return [bodies.Template(_export(template, chance), batch, head) for template in pool]


def _export(template: bodies.Template, chance: random.Random) -> bytes:
    export = ExportLogsServiceRequest()
    resource = export.resource_logs.add()
    resource.resource.attributes.extend(
        KeyValue(key=k, value=_value(v)) for k, v in _RESOURCE.items()
    )
    scope = resource.scope_logs.add()
    scope.scope.name = "checkout.orders"
    time = _FIRST_TIME + chance.randrange(86_400_000_000_000)
    for log in template.decode_logs():
        time += chance.randrange(4_000_000)  # a batch holds what was logged in a second
        scope.log_records.append(_record(log, time, chance))
    return export.SerializeToString()


def _record(log: dict[str, Any], time: int, chance: random.Random) -> LogRecord:
    """Return a log of `bodies` as a record of about 340 bytes: with the attributes of a handler."""
    metadata = log["metadata"]
    place = chance.randrange(len(_FUNCTIONS))
    attributes = {
        "code.file.path": "/srv/checkout/orders/views.py",
        "code.function.name": _FUNCTIONS[place],
        "code.line.number": 40 + 17 * place,
        **{name: metadata[name] for name in ("log_id", "user_id", "method", "duration_ms")},
    }
    level = log["level"]
    return LogRecord(
        time_unix_nano=time,
        observed_time_unix_nano=time + chance.randrange(100_000),
        severity_number=_SEVERITIES[level],  # type: ignore[arg-type]  # any number is one
        severity_text=level.upper(),
        body=_value(log["message"]),
        attributes=[KeyValue(key=key, value=_value(value)) for key, value in attributes.items()],
        flags=1,
        trace_id=chance.randbytes(16),
        span_id=chance.randbytes(8),
    )


def _value(value: object) -> AnyValue:
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return (
        AnyValue(double_value=value)
        if isinstance(value, float)
        else AnyValue(string_value=str(value))
    )
