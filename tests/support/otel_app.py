"""An application that logs through OpenTelemetry's SDK, as its documentation sets it up.

`python otel_app.py ENCODING COUNT PAUSE_SECONDS`, set up by OpenTelemetry's own variables, logs the
numbers below COUNT, and prints those of each export that the service said it has stored.
"""

import importlib
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExportResult
from opentelemetry.sdk.trace import TracerProvider


def make_exporter(encoding: str) -> Any:
    """Return the SDK's exporter for an encoding, which prints the stored numbers."""
    module = "json.http" if encoding == "json" else "proto.http"
    module = f"opentelemetry.exporter.otlp.{module}._log_exporter"
    kind: Any = importlib.import_module(module).OTLPLogExporter

    class Exporter(kind):  # type: ignore[misc]
        def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
            result: LogRecordExportResult = super().export(batch)
            if result is LogRecordExportResult.SUCCESS:
                print(*(record.log_record.body.split()[1] for record in batch), flush=True)
            return result

    return Exporter()


def main(encoding: str, count: int, pause_seconds: float) -> None:
    """Log the numbers, with a separate span per hundred."""
    provider = LoggerProvider()
    provider.add_log_record_processor(
        BatchLogRecordProcessor(make_exporter(encoding), schedule_delay_millis=100)
    )
    logger = logging.getLogger("shop.orders")
    logger.setLevel(logging.INFO)
    logger.addHandler(LoggingHandler(logger_provider=provider))
    tracer = TracerProvider().get_tracer("shop")
    for number in range(count):
        with tracer.start_as_current_span("order"):
            logger.warning("order %d", number, extra={"order": number, "ok": True, "parts": ["a"]})
        if number % 100 == 99:
            time.sleep(pause_seconds)
    provider.force_flush(60_000)
    provider.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
