"""Logs of about 300 bytes with four keys of metadata, as small services write them."""

import msgspec

from bench import bodies, measure
from bench.load import HEAD
from bench.results import Cell
from bench.runs import Runner, progress

METADATA = ("log_id", "user_id", "path", "duration_ms")

#: Logs per batch and connections.
SIZES = ((500, 8), (100, 8))


def measure_lean(runner: Runner) -> list[Cell]:
    """Measure the sizes, and the codec before and after each."""
    cells = []
    codec = measure.Yardstick(lambda batch: measure.codec_cpu_per_log(batch, requests))
    for batch, connections in SIZES:
        progress(f"lean logs: {batch} a batch, {connections} connections")
        codec.take(batch)
        cells.append(runner.cell(batch, connections, make=requests))
        codec.take(batch)
        cells[-1].codec_us_per_log = codec.median(batch) * 1e6
    return cells


def requests(batch: int, token: str = "") -> list[bodies.Template]:
    """Return the pool of requests with `batch` logs each, those of `bodies` with less metadata."""
    head = HEAD.format(token=token)
    pool = [_shorten(template) for template in bodies.templates(batch)]
    return [bodies.Template(body, batch, head) for body in pool]


def _shorten(template: bodies.Template) -> bytes:
    logs = template.decode_logs()
    for log in logs:
        log["metadata"] = {name: log["metadata"][name] for name in METADATA}
    return msgspec.json.encode({"logs": logs})
