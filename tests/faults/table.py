"""The results: one row per kind of fault or attack."""

import dataclasses

#: Counts that must stay zero, with the headings of their columns.
ZEROES = {
    "lost": "lost",
    "doubled": "doubled",
    "parts": "partial",
    "half": "malformed lines",
    "forged": "forged",
    "errors": "500s",
    "failed": "other failures",
    "unresolved": "keyed, unresolved",
}

HEADINGS = (
    "fault",
    "attempts",
    "batches acknowledged",
    "keyed",
    "retries",
    *ZEROES.values(),
    "unanswered, stored",
    "recovery, s (worst)",
)


@dataclasses.dataclass
class Row:
    """The counts of one kind.

    `keyed` acknowledged batches had a key, and were retried `sent_again` times until they were
    acknowledged. `parts` counts keyed batches that are stored in part, `unresolved` those that were
    never acknowledged. `undecided` counts stored batches whose clients received no response, or
    that they may be stored. `back_seconds` is the longest time to the next acknowledged batch.
    """

    what: str
    tried: int = 0
    acknowledged: int = 0
    keyed: int = 0
    sent_again: int = 0
    lost: int = 0
    doubled: int = 0
    parts: int = 0
    half: int = 0
    forged: int = 0
    errors: int = 0
    failed: int = 0
    unresolved: int = 0
    undecided: int = 0
    back_seconds: float | None = None
    remarks: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_bad(self) -> bool:
        """Return whether a promise was broken."""
        return any(getattr(self, name) for name in ZEROES)

    def was_back_after(self, seconds: float) -> None:
        """Record the time until the service accepted batches again."""
        self.back_seconds = max(seconds, self.back_seconds or 0.0)

    def fail(self, remark: str, count: int = 1) -> None:
        """Count a failure that has no column."""
        self.failed += count
        self.remark(remark)

    def remark(self, text: str) -> None:
        """Keep a text that explains a count: five different ones at most."""
        if len(self.remarks) < 5 and text not in self.remarks:
            self.remarks.append(text)

    def cells(self) -> list[str]:
        """Return the row as text, in the order of HEADINGS."""
        back = "" if self.back_seconds is None else f"{self.back_seconds:.1f}"
        zeroes = [f"{getattr(self, name):,}" for name in ZEROES]
        batches = (self.tried, self.acknowledged, self.keyed, self.sent_again)
        counts = [*(f"{count:,}" for count in batches), *zeroes, f"{self.undecided:,}"]
        return [self.what, *counts, back]


def render(rows: list[Row]) -> str:
    """Return the rows as a table for a terminal."""
    lines = [list(HEADINGS), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for cells in lines:
        first, *rest = (cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:]))
        text.append("  ".join([first, *rest]))
    return "\n".join(text)


REPORT = """\
# Results of the last run of fault injection

`make faults` on commit {commit}, {day}, seed {seed}, {seconds:.0f} s.
[Reliability](reliability.md#tests-of-each-promise) describes each kind.

{table}
The columns:

- *keyed*: acknowledged batches with an `Idempotency-Key`, sent until they were acknowledged.
  *retries*: their sends after the first.
- *doubled*: batches found twice, or found although they were rejected for good.
- *partial*: keyed batches that are stored in part, acknowledged or not.
- *malformed lines*: lines that do not parse, and files that end in half a line.
- *forged*: lines that no client sent as a log.
- *other failures*: for example a wrong code, a late response, a file left open, a traceback.
- *keyed, unresolved*: keyed batches that were never acknowledged.
- *unanswered, stored*: stored batches without a key whose clients received no response, or the
  response that they may be stored. They are not failures.
- *recovery*: the longest time from a fault, or from its end if the service cannot work during it,
  to the next acknowledged batch. For power cuts the acknowledged batches of every state are
  counted again.
"""


def render_markdown(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    rule = ["---", *["--:"] * (len(HEADINGS) - 1)]
    lines = [list(HEADINGS), rule, *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
