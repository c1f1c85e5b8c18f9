"""The WSGI entry point: `gunicorn wsgi:app`."""

from astralog import create_app

app = create_app()
