"""AstraLog: a log collector that answers 200 when every line is on disk."""

from flask import Flask

from astralog import errors
from astralog.api import docs, drain, health, metrics
from astralog.auth import Tokens
from astralog.body import BodyReader
from astralog.metrics import Metrics
from astralog.pipeline import Pipeline
from astralog.settings import Settings
from astralog.web import App

__version__ = "0.1.0"


def create_app(settings: Settings | None = None, tokens: Tokens | None = None) -> Flask:
    """Join the parts to an app; without settings and tokens, those of the environment.

    Raises InvalidSettings. It makes neither the data directory nor a token (`server.check_start`
    does): a worker that starts while a disk is not mounted must not take another in its place.
    """
    settings = settings or Settings.from_environ()
    tokens = tokens or Tokens(settings)
    pipeline = Pipeline(settings)
    numbers = Metrics(pipeline, settings.data_dir)
    bodies = BodyReader(settings.max_body_bytes, settings.body_timeout_seconds)
    app = App(__name__, static_folder=None)
    app.extensions["astralog"] = pipeline
    app.extensions["astralog_metrics"] = numbers
    errors.init_app(app)
    app.register_blueprint(drain.create_blueprint(tokens, bodies, pipeline))
    app.register_blueprint(health.create_blueprint(pipeline))
    app.register_blueprint(docs.create_blueprint(__version__))
    app.register_blueprint(metrics.create_blueprint(tokens, numbers))
    return app
