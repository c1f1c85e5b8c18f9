"""A load that knows from the record of a run the batches acknowledged by a given moment."""

import random
from collections import Counter, defaultdict

from tests.support.keyed_load import KEYED_START
from tests.support.load import LARGEST_BATCH, Load
from tests.support.service import Service

#: Batches with a key that are sent again after a cut: so many of those that were not acknowledged
#: by then, among them all that were under way. Beside them, one or two of those that were.
UNDECIDED_BATCHES = 4


def size_of(number: int) -> int:
    """Return how many logs a batch has."""
    return number % LARGEST_BATCH + 1


class TracedLoad(Load):
    """A load that knows which batch was posted on which port, in order."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, threads=3, keyed=3)
        self.posted: defaultdict[int, list[int]] = defaultdict(list)

    def note_post(self, number: int, port: int) -> None:
        """Take note of the order of the batches on a port."""
        self.posted[port].append(number)

    def acknowledged_by(self, answers: list[tuple[int, int]]) -> dict[int, int]:
        """Return the batches that these responses acknowledge, with their sizes."""
        sent: Counter[int] = Counter()
        batches = {}
        for port, status in answers:
            if port in self.posted:
                number = self.posted[port][sent[port]]
                sent[port] += 1
                if status == 200:
                    batches[number] = size_of(number)
        return batches

    def batches_to_send(
        self, acknowledged: dict[int, int], chance: random.Random
    ) -> list[tuple[int, int]]:
        """Return the numbers and sizes of batches with keys that are sent again after a cut.

        Of those that were acknowledged, the newest is among them: its record is the last one.
        """
        keyed = {number for numbers in self.posted.values() for number in numbers}
        keyed = {number for number in keyed if number >= KEYED_START}
        stored = sorted(keyed & acknowledged.keys())
        undecided = sorted(keyed - acknowledged.keys())[:UNDECIDED_BATCHES]
        numbers = undecided + stored[-1:] + chance.sample(stored[:-1], min(1, len(stored[:-1])))
        chance.shuffle(numbers)
        return [(number, size_of(number)) for number in numbers]
