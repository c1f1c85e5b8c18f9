"""Tables of texts, for the terminal and for Markdown."""

from collections.abc import Sequence


def text_table(table: Sequence[Sequence[str]]) -> str:
    """Return a table for the terminal, every column as wide as it must be."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(value.rjust(width) for value, width in zip(row, widths, strict=True))
        for row in table
    )


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, numbers to the right."""
    first, *rest = ("| " + " | ".join(row) + " |" for row in table)
    return "\n".join([first, "|" + " ---: |" * len(table[0]), *rest])
