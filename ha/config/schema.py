"""JSON Schemas (draft 4, which Taplo reads) and the tables of docs/configuration.md, from the one table of keys.

`python -m ha.config.schema` writes them below the current directory; `--check` says which are not current (exit 1).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ha.config.keys import FILES
from ha.config.kinds import Choice, Kind, Many, Number, Unit
from ha.config.tables import Key, MapOf, OneOrMany, Table, walk

DOCUMENT = "docs/configuration.md"
TITLES = {"system": "The system file", "tenant": "A tenant file", "node": "The node file"}


def schema_text(name: str) -> str:
    """Return the JSON Schema of a file: system, tenant or node."""
    head = {"$schema": "http://json-schema.org/draft-04/schema#", "title": TITLES[name]}
    return json.dumps({**head, **FILES[name].schema()}, indent=1, ensure_ascii=False) + "\n"


def keys_text(name: str) -> str:
    """Return the tables of a file's keys in Markdown, one for each TOML table."""
    tables: dict[str, tuple[Table, list[Key]]] = {}
    for path, table, key in walk(FILES[name]):
        tables.setdefault(path, (table, []))[1].append(key)
    parts = []
    for path, (table, keys) in tables.items():
        rows = [_row(table, key) for key in keys if not _holds_keys(key.kind)]
        head = f"#### `[{path}]`\n" if path else "#### At the top\n"
        if rows:
            head += "\n| key | value | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        if table.later:
            head += f"\nRefused with `not-yet`: {', '.join(f'`{word}`' for word in table.later)}.\n"
        if rows or table.later:
            parts.append(head)
    return "\n".join(parts)


def document_text(text: str) -> str:
    """Return the document with the tables between its `<!-- keys: NAME -->` and `<!-- end -->` marks made anew."""
    for name in FILES:
        mark = f"<!-- keys: {name} -->\n"
        before, found, after = text.partition(mark)
        if found:
            text = before + mark + keys_text(name) + "".join(after.partition("<!-- end -->")[1:])
    return text


def generated(root: Path) -> dict[Path, str]:
    """Return every generated file below `root` with the content it should have. Raises OSError."""
    files = {root / "docs/schema" / f"{name}.json": schema_text(name) for name in FILES}
    document = root / DOCUMENT
    return {**files, document: document_text(document.read_text("utf-8"))}


def _holds_keys(kind: Kind) -> bool:
    inner = kind.item if isinstance(kind, MapOf | OneOrMany) else kind
    return isinstance(inner, Table)


def _row(table: Table, key: Key) -> str:
    default = "**required**" if key.required else table.default_of(key)
    code = default and (default[0] in '"[{-' or default[0].isdigit() or default in ("true", "false"))
    shown = f"`{default}`" if code and " " not in default else default
    cells = (f"`{key.name}`", _value(key.kind), shown, key.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(kind: Kind) -> str:
    """Return what a value may be, with units and range."""
    if isinstance(kind, Choice):
        return ", ".join(f'`"{word}"`' for word in kind.choices)
    if isinstance(kind, Number):
        return f"{kind.words}, {kind.least:.12g} to {kind.most:.12g}"
    if isinstance(kind, Unit):
        units = ", ".join(kind.units)
        return f"{kind.words} ({units}), from {kind.show(kind.least)}" if kind.least else f"{kind.words} ({units})"
    if isinstance(kind, Many):
        return f"array: {_value(kind.item)}"
    if isinstance(kind, MapOf):
        return f"table: {kind.what} = {kind.item.words}"
    return kind.words


def main(arguments: list[str] | None = None) -> int:
    """Write or check the generated files; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ha.config.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not current")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's directory")
    options = parser.parse_args(arguments)
    stale = []
    for path, text in generated(options.root).items():
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale.append(path)
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    for path in stale:
        sys.stdout.write(f"{path}: {'not current, run python -m ha.config.schema' if options.check else 'written'}\n")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
