"""`astralog tail` beside the real service: every stored log is shown once, in order, at once."""

import signal
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.service import Service, make_batch, wait_for
from tests.support.tail import Compressor, Tail, read_lines, tail


@pytest.mark.slow
def test_every_stored_log_is_followed_once(tmp_path: Path) -> None:
    """Rotation, compression, kills and restarts neither hide a log nor show one twice.

    The lines of each segment are shown in their order.
    """
    with Service(tmp_path, workers=2, segment_bytes=300_000) as service:
        with (
            Load(service) as load,
            Compressor(service.data_dir),
            Tail(tmp_path, service.data_dir, "-f", "-n", "all", "--json") as follower,
        ):
            for _ in range(4):
                load.wait_for_acknowledged(300)
                service.kill()
                service.start()
            load.wait_for_acknowledged(300)
            load.stop()
            assert 0 == service.stop()
            wait_for(lambda: not service.files("*.ndjson"))
            stored = [read_lines(path) for path in service.files()]
            shown = follower.wait_for_lines(sum(map(len, stored)))
            assert -signal.SIGINT == follower.stop()
    assert 10 < len(stored)
    place = {line: number for number, line in enumerate(shown)}
    assert len(shown) == len(place) == sum(map(len, stored))
    for lines in stored:
        places = [place[line] for line in lines]
        assert sorted(places) == places
    load.check(follower.logs())
    assert "" == follower.errors()
