"""Values: any JSON as text, for answers that need no drawing of their own."""

from __future__ import annotations

import click

from ha.cli.table import Cell, Table, plain


def show_value(value: object) -> None:
    """Print a JSON value: text as it is, a list of objects as a table, an object as `key: value` lines."""
    text = as_text(value)
    if text:
        click.echo(text)


def as_text(value: object, indent: str = "") -> str:
    """Return a JSON value as lines of text without a newline at the end."""
    if isinstance(value, list):
        return _list_text(value, indent)
    if isinstance(value, dict):
        return "\n".join(_pair_text(str(key), item, indent) for key, item in value.items())
    return indent + scalar(value)


def scalar(value: object) -> str:
    """Return a number, string, flag or null as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _pair_text(key: str, value: object, indent: str) -> str:
    if isinstance(value, dict | list):
        return f"{indent}{key}:\n{as_text(value, indent + '  ')}" if value else f"{indent}{key}: none"
    return f"{indent}{key}: {scalar(value)}"


def _list_text(items: list[object], indent: str) -> str:
    objects = [item for item in items if isinstance(item, dict)]
    if not objects or len(objects) < len(items) or any(_nested(item) for item in objects):
        return "\n".join(as_text(item, indent) for item in items)
    columns = tuple(dict.fromkeys(str(key) for item in objects for key in item))
    rows = tuple(tuple(Cell(scalar(item.get(column))) for column in columns) for item in objects)
    table = plain([Table("", tuple(column.upper() for column in columns), rows)])
    return "\n".join(indent + line for line in table.split("\n"))


def _nested(item: dict[object, object]) -> bool:
    return any(isinstance(value, dict | list) for value in item.values())
