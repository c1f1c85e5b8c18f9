"""The clock of ages during jumps of the wall clock."""

import pytest

from astralog.clock import ADOPT_SECONDS, TrustedClock

DAY = 86400.0


class Clocks:
    """A wall clock and a boot clock that a test sets."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.elapsed = 50.0
        self.trusted = TrustedClock(lambda: self.wall, lambda: self.elapsed)

    def advance(self, seconds: float) -> None:
        """Advance both clocks."""
        self.wall += seconds
        self.elapsed += seconds


@pytest.fixture
def clocks() -> Clocks:
    """Return clocks that agree."""
    return Clocks()


def test_trusted_time_starts_with_the_wall_clock(clocks: Clocks) -> None:
    """Without a change of the wall clock, the two are the same."""
    clocks.advance(DAY)
    assert clocks.trusted.now() == clocks.wall


def test_recent_jump_is_ignored(clocks: Clocks) -> None:
    """Two days ahead for half an hour, and back: no age changes."""
    clocks.wall += 2 * DAY
    for _ in range(30):
        assert clocks.trusted.now() == clocks.wall - 2 * DAY
        clocks.advance(60)
    clocks.wall -= 2 * DAY
    assert clocks.trusted.now() == clocks.wall


@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY, 61.0])
def test_jump_is_adopted_after_an_hour(clocks: Clocks, jump: float) -> None:
    """A corrected clock is adopted."""
    clocks.wall += jump
    clocks.trusted.now()
    clocks.advance(ADOPT_SECONDS - 1)
    assert clocks.trusted.now() == clocks.wall - jump
    clocks.advance(1)
    assert clocks.trusted.now() == clocks.wall


def test_second_jump_starts_the_hour_anew(clocks: Clocks) -> None:
    """A clock that keeps jumping is never adopted."""
    for _ in range(5):
        clocks.wall += DAY
        before = clocks.trusted.now()
        clocks.advance(ADOPT_SECONDS - 1)
        assert clocks.trusted.now() == before + ADOPT_SECONDS - 1


def test_small_change_is_adopted_at_once(clocks: Clocks) -> None:
    """NTP steps of up to a minute are corrections."""
    clocks.wall -= 60
    assert clocks.trusted.now() == clocks.wall
