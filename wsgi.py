"""The WSGI entry point: `gunicorn wsgi:app`."""

from astralog.app import create_app

app = create_app()
