"""Tables: kinds that hold keys, so that a whole file is one kind (`ha.config.keys`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from ha.config.kinds import BAD, Kind, Schema, Text, not_yet
from ha.config.positions import Path
from ha.config.report import Report, clip, did_you_mean, dotted


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table. `default` is said in the documents where it is not the plan struct's own."""

    name: str
    kind: Kind
    doc: str
    required: bool = False
    default: str = ""
    field_name: str = ""

    @property
    def field(self) -> str:
        """The plan struct's field: unless named, the key with the suffix of its unit."""
        return self.field_name or self.name + self.kind.suffix


@dataclass(frozen=True, slots=True)
class Table(Kind):
    """A table of known keys. `later`: keys of the contract that this version refuses. `struct`: where defaults are."""

    keys: tuple[Key, ...]
    later: tuple[str, ...] = ()
    struct: type[msgspec.Struct] | None = None
    words: str = "a table"

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return the good keys by field name."""
        if not isinstance(value, dict):
            return self.wrong(value, path, report, f"keys: {', '.join(key.name for key in self.keys)}")
        known = {key.name: key for key in self.keys}
        found: dict[str, object] = {}
        for name, item in value.items():
            at = (*path, name)
            if name in known:
                read = known[name].kind.read(item, at, report)
                if read is not BAD:
                    found[known[name].field] = read
            elif name in self.later:
                report.add(*not_yet(at, item, "remove the key: a later version brings it"), key=True)
            else:
                where = f"in [{dotted(path)}]" if path else "at the top of the file"
                text = f'unknown key "{clip(name)}" {where}'
                report.add("unknown-key", at, text, did_you_mean(name, known, kind="keys"), key=True)
        for key in self.keys:
            if key.required and key.name not in value:
                where = f"[{dotted(path)}]" if path else "the file"
                report.add("missing-key", path, f'{where} has no "{key.name}"', f"add it: {key.doc}", key=True)
        return found

    def schema(self) -> Schema:
        """Return an object that knows exactly these keys."""
        properties: dict[str, object] = {}
        for key in self.keys:
            schema = key.kind.schema()
            default = self.default_of(key)
            text = key.doc + (f" Default: {default}." if default else "")
            properties[key.name] = {"description": text, **schema}
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        required = [key.name for key in self.keys if key.required]
        return {**schema, "required": required} if required else schema

    def default_of(self, key: Key) -> str:
        """Return a key's default as it is written in TOML; empty where there is none."""
        if key.default or key.required or self.struct is None:
            return key.default
        for info in msgspec.structs.fields(self.struct):
            if info.name == key.field:
                value = info.default if info.default is not msgspec.NODEFAULT else None
                if value is None and callable(info.default_factory):
                    value = info.default_factory()
                if isinstance(value, msgspec.Struct):
                    return ""
                shown = "none" if value in ("", None) else key.kind.show(value)
                return f'"{shown}"' if key.kind.suffix else shown
        return ""


@dataclass(frozen=True, slots=True)
class MapOf(Kind):
    """A table with free keys: names of nodes or processes, or environment variables."""

    item: Kind
    check: Callable[[str], tuple[str, str, str] | None]
    pattern: str
    what: str  # "a process"
    words: str = "a table"
    named: tuple[str, ...] = field(default=())  # the only keys there may be

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return a dict; bad items are left out."""
        if not isinstance(value, dict):
            return self.wrong(value, path, report)
        found: dict[str, object] = {}
        for name, item in value.items():
            at = (*path, name)
            wrong = self.check(name)
            if wrong is not None:
                report.add(wrong[0], at, f'{self.what} "{clip(name)}" {wrong[1]}', wrong[2], key=True)
            read = self.item.read(item, at, report)
            if read is not BAD and wrong is None:
                found[name] = read
        return found

    def schema(self) -> Schema:
        """Return an object with a pattern for its keys."""
        return {
            "type": "object",
            "patternProperties": {self.pattern: self.item.schema()},
            "additionalProperties": False,
        }

    def show(self, value: object) -> str:
        """Return an empty table; longer ones are shown in the examples."""
        return "{}"


@dataclass(frozen=True, slots=True)
class OneOrMany(Kind):
    """One table, or an array of them; read to a list of (path, table) so that later checks find the place."""

    item: Table
    words: str = "a table or an array of tables"

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return the list of good ones, each with its path."""
        if not isinstance(value, list | dict):
            return self.wrong(value, path, report)
        found: list[tuple[Path, object]] = []
        many = isinstance(value, list)
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            at = (*path, number) if many else path
            read = self.item.read(item, at, report)
            if read is not BAD:
                found.append((at, read))
        return found

    def schema(self) -> Schema:
        """Return both forms."""
        one = self.item.schema()
        return {"anyOf": [one, {"type": "array", "items": one}]}


@dataclass(frozen=True, slots=True)
class TextOrTable(Kind):
    """A string, short for a table with only that `key`."""

    text: Text
    table: Table
    key: str
    words: str = "a string or a table"

    def read(self, value: object, path: Path, report: Report) -> object:
        """Return the table's dict."""
        if isinstance(value, str):
            read = self.text.read(value, path, report)
            return BAD if read is BAD else {self.key: read}
        if isinstance(value, dict):
            return self.table.read(value, path, report)
        return self.wrong(value, path, report)

    def schema(self) -> Schema:
        """Return both forms."""
        return {"anyOf": [self.text.schema(), self.table.schema()]}


def variable_check(value: str) -> tuple[str, str, str] | None:
    """Return what is wrong with the name of an environment variable."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return "bad-name", "is not a variable's name", "letters, digits and '_', not starting with a digit"
    if value in RESERVED_VARIABLES:
        return "bad-name", "is set by the agent", "choose another name"
    return None


RESERVED_VARIABLES = (
    "HA_ROLE", "HA_EPOCH", "HA_TENANT", "HA_PROCESS", "HA_NODE", "HA_SIDE", "HA_SOCKET", "NOTIFY_SOCKET",
)  # fmt: skip


def walk(table: Table, prefix: str = "") -> Iterator[tuple[str, Table, Key]]:
    """Yield (path of the table, table, key) of every key below `table`, in order, tables inside after their key."""
    for key in table.keys:
        yield prefix, table, key
        inner, at = key.kind, f"{prefix}.{key.name}" if prefix else key.name
        if isinstance(inner, MapOf):
            inner, at = inner.item, f"{at}.NAME"
        if isinstance(inner, OneOrMany):
            inner = inner.item
        if isinstance(inner, Table):
            yield from walk(inner, at)
