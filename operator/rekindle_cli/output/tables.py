"""Tables for people: coloured and fitted on a terminal, plain aligned columns elsewhere."""

from collections.abc import Sequence
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(header: Sequence[str], rows: Sequence[Sequence[str]], stream: IO[str]) -> None:
    """Print a table; cells are text and never markup."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    if console.is_terminal and not console.is_dumb_terminal:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in header:
            table.add_column(title)
        for cells in rows:
            table.add_row(*(Text(cell) for cell in cells))
        console.print(table)
        return
    for line in plain(header, rows):
        print(line, file=stream)


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines with a header."""
    everything = [header, *rows]
    widths = [max(len(cells[column]) for cells in everything) for column in range(len(header))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in everything
    ]
