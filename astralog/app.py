"""Create the application: the one place that joins its parts."""

from dataclasses import dataclass

from flask import Flask, Response

from astralog import __version__
from astralog.api import drain, health, otlp, pages, responses, search, status
from astralog.api.dispatch import Api, Dispatcher, Reject, create_protocols
from astralog.api.rejection_log import RejectionLog
from astralog.api.search import Streams
from astralog.auth import Tokens
from astralog.intake.acceptor import Acceptor
from astralog.intake.body import BodyReader, Environ
from astralog.settings import Settings, parse_networks
from astralog.store.commit_queue import CommitQueue
from astralog.store.compression import CompressionCounts
from astralog.telemetry.counters import Counters
from astralog.telemetry.families import (
    compression_families,
    counter_families,
    disk_families,
    forward_families,
    queue_families,
)
from astralog.telemetry.overview import Overview
from astralog.telemetry.prometheus import Metrics


@dataclass
class Services:
    """The parts of an app that its server starts and stops, and that its connections use."""

    queue: CommitQueue
    tokens: Tokens
    metrics: Metrics
    rejections: RejectionLog
    streams: Streams
    overview: Overview | None = None

    def start(self, metrics_fd: int, started_at: float) -> None:
        """Start the background work of a worker.

        The workers share their metrics in the file `metrics_fd`; the service has run since
        `started_at`, in seconds since 1970.
        """
        self.queue.start()
        self.tokens.start()
        self.metrics.start(metrics_fd)
        if self.overview:
            self.overview.start(metrics_fd, started_at)

    def stop(self, seconds: float) -> None:
        """Store the queued batches within so many seconds, and publish the last metrics."""
        self.queue.stop(seconds)
        self.rejections.flush()
        self.metrics.stop()


def services_of(app: Flask) -> Services:
    """Return the services of an app that `create_app` made."""
    services: Services = app.extensions["astralog"]
    return services


def create_app(settings: Settings | None = None, tokens: Tokens | None = None) -> Flask:
    """Create the app from its parts; settings and tokens default to those of the environment.

    Raises InvalidSettings. It creates neither the data directory nor a token; `server.start` does.
    """
    settings = settings or Settings.from_environ()
    tokens = tokens or Tokens(settings)
    counters = Counters(tokens.is_named)
    queue = CommitQueue(settings, counters.store, lambda: tokens.are_several)
    numbers = Metrics(counters)
    numbers.add([*counter_families(counters), *queue_families(queue), *disk_families(queue)])
    if settings.compress == "zstd":
        numbers.add(compression_families(CompressionCounts()))
    if settings.clickhouse_url:
        numbers.add(forward_families(queue))
    bodies = BodyReader(settings.max_body_bytes, settings.body_timeout_seconds)
    acceptor = Acceptor(tokens, bodies, queue, counters)
    app = Api(__name__)
    proxies = parse_networks(settings.trusted_proxies)
    rejections = RejectionLog(tokens.name_of, counters, proxies)
    streams = Streams()
    services = Services(queue, tokens, numbers, rejections, streams)
    app.extensions["astralog"] = services
    reject_json = responses.make_rejecter(rejections.note)
    reject_otlp = otlp.make_rejecter(rejections.note)
    responses.init_app(app, _by_path(reject_json, reject_otlp))
    app.register_blueprint(drain.create_blueprint(acceptor, rejections.note, reject_json))
    app.register_blueprint(otlp.create_blueprint(acceptor, rejections.note, reject_otlp))
    app.register_blueprint(health.create_blueprint(queue, tokens, numbers, reject_json))
    app.register_blueprint(search.create_blueprint(settings, tokens, streams))
    has_status = settings.status == "on"
    app.register_blueprint(pages.create_blueprint(__version__, has_status=has_status))
    if has_status:
        services.overview = overview = Overview(numbers, settings.min_free_bytes)
        app.register_blueprint(status.create_blueprint(settings, tokens, overview, queue.clock))
    views = create_protocols(acceptor, rejections.note)
    app.wsgi_app = Dispatcher(app, views, tokens.origins)  # type: ignore[method-assign]  # as Flask documents it
    return app


def _by_path(reject_json: Reject, reject_otlp: Reject) -> Reject:
    def reject_error(error: Exception, environ: Environ) -> Response:
        form = reject_otlp if otlp.is_otlp_path(environ["PATH_INFO"]) else reject_json
        return form(error, environ)

    return reject_error
