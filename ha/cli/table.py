"""Table: rows of toned cells, drawn plain or, on a terminal, in colours by rich."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum

import click


class Tone(StrEnum):
    """How a cell is meant; the value is rich's style."""

    PLAIN = ""
    TITLE = "bold"
    GOOD = "green"
    BUSY = "yellow"
    BAD = "bold red"
    DIM = "dim"


@dataclass(frozen=True, slots=True)
class Cell:
    """One piece of text."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Table:
    """`title`: a line above; `columns`: headings; rows may be shorter than `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Lines:
    """Text lines, without columns."""

    lines: tuple[Cell, ...]


Block = Table | Lines


def show_blocks(blocks: list[Block], *, colours: bool | None = None) -> None:
    """Print the blocks, an empty line between them; colours None: if stdout is a terminal."""
    if sys.stdout.isatty() if colours is None else colours:
        _show_rich(blocks)
    else:
        click.echo(plain(blocks))


def plain(blocks: list[Block]) -> str:
    """Return the blocks as plain text."""
    return "\n\n".join("\n".join(_plain_lines(block)) for block in blocks)


def _plain_lines(block: Block) -> list[str]:
    if isinstance(block, Lines):
        return [cell.text for cell in block.lines]
    if not block.rows:
        return [block.title]
    rows = [[*block.columns], *([cell.text for cell in row] for row in block.rows)]
    widths = [max((len(row[n]) for row in rows if n < len(row)), default=0) for n in range(len(block.columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return [block.title, *("  " + line for line in lines)] if block.title else lines


def _show_rich(blocks: list[Block]) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    for number, block in enumerate(blocks):
        if number:
            console.print()
        if isinstance(block, Lines):
            for cell in block.lines:
                console.print(Text(cell.text, style=cell.tone.value))
            continue
        if block.title:
            console.print(Text(block.title, style=Tone.TITLE.value))
        if not block.rows:
            continue
        table = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=Tone.DIM.value)
        for column in block.columns:
            table.add_column(column, overflow="fold")
        for row in block.rows:
            table.add_row(*(Text(cell.text, style=cell.tone.value) for cell in row))
        console.print(table)
