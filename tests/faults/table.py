"""What was tried and what came of it: one row for each kind of fault or attack."""

import dataclasses

#: What must stay zero, with the heading of its column.
ZEROES = {
    "lost": "lost",
    "doubled": "doubled",
    "parts": "in part",
    "half": "half or not JSON",
    "forged": "forged",
    "errors": "500s",
    "failed": "other failures",
    "unresolved": "keyed, undecided",
}

HEADINGS = (
    "what",
    "tried",
    "batches acknowledged",
    "keyed",
    "sent again",
    *ZEROES.values(),
    "undecided, stored",
    "back after, s (worst)",
)


@dataclasses.dataclass
class Row:
    """The counts of one kind.

    `keyed` of the acknowledged batches had a key, and were sent again so often until they were
    acknowledged; `parts` and `unresolved` count those of which a part is there, or that never were.
    `undecided` counts batches whose client was told that they may be stored, or was told nothing,
    and that are; `back_seconds` is the longest time until a batch was acknowledged again.
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
        """Note how long it took until the service accepted again."""
        self.back_seconds = max(seconds, self.back_seconds or 0.0)

    def fail(self, remark: str, count: int = 1) -> None:
        """Note what went wrong and has no column of its own."""
        self.failed += count
        self.remark(remark)

    def remark(self, text: str) -> None:
        """Keep a text that helps to understand a count; the first few are enough."""
        if len(self.remarks) < 5:
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
[reliability.md](reliability.md) says what is tried, and how.

{table}
The columns:

- *keyed*: the acknowledged batches that were sent with an `Idempotency-Key`, until they were
  acknowledged. *sent again*: how often they were sent after the first time.
- *doubled*: batches found twice, or found although they were rejected for good.
- *in part*: keyed batches of which some lines are there, acknowledged or not.
- *half or not JSON*: lines that do not parse, and files that end in half a line.
- *forged*: lines that no client sent as a log.
- *other failures*: for example a wrong code, a late answer, a file left open, a traceback.
- *keyed, undecided*: keyed batches whose clients never came to see them acknowledged.
- *undecided, stored*: batches without a key whose clients were told that they may be stored, or
  were told nothing, and that are. They are no failures.
- *back after*: the longest time from a fault, or from its end where the service cannot work during
  it, to the next acknowledged batch. For power cuts the acknowledged batches of every state are
  counted again.
"""


def render_markdown(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    rule = ["---", *["--:"] * (len(HEADINGS) - 1)]
    lines = [list(HEADINGS), rule, *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
