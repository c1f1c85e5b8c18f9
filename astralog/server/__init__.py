"""gunicorn's worker, HTTP/1.1, start, reload and stop."""
