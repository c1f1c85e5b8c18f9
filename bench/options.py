"""A sender that cannot write a log's fields: NDJSON, and a query for the rest."""

import msgspec

from bench import bodies

HEAD = (
    "POST /v1/drain?project_id=shop&level=info&service=shipper&unknown=metadata HTTP/1.1\r\n"
    "Host: 127.0.0.1\r\nAuthorization: {token}\r\n"
    "Content-Type: application/x-ndjson\r\nContent-Length: {{}}\r\n\r\n"
)

#: Fields that the query fills in.
FILLED_IN = ("project_id", "level", "service")


def requests(batch: int, token: str) -> list[bodies.Template]:
    """Return the pool of requests with `batch` logs each, those of `bodies` in another form."""
    head = HEAD.format(token=token)
    pool = [_lines(template) for template in bodies.templates(batch)]
    return [bodies.Template(lines, batch, head) for lines in pool]


def _lines(template: bodies.Template) -> bytes:
    """Return a batch with one log per line, its metadata in addition to the remaining fields."""
    lines = []
    for log in template.decode_logs():
        metadata = log.pop("metadata")
        left = {name: value for name, value in log.items() if name not in FILLED_IN}
        lines.append(msgspec.json.encode(left | metadata))
    return b"\n".join(lines)
