"""Whatever bytes a file holds: findings, never a traceback."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ha.config import check_files, load_node_file, load_system, load_tenant
from ha.model.errors import ConfigError
from ha.model.plan import decode_plan, encode_plan
from tests.config.config_bed import ROOT, SYSTEM

SHIPPED = load_system(str(ROOT / "conf/system.toml"))
TENANT = (ROOT / "conf/tenants.d/acme.toml").read_bytes()
NODE = (ROOT / "conf/node.toml").read_bytes()
VALUES = [
    b'""',
    b'"x"',
    b"3",
    b"-1",
    b"1.5",
    b"nan",
    b"true",
    b"[]",
    b"{}",
    b"[[]]",
    b"{ a = 1 }",
    b"2024-01-01",
    b'"\\u0000"',
]


def refused(load: Callable[[], object]) -> None:
    """Load, or be refused with findings; nothing else may happen."""
    try:
        load()
    except ConfigError as error:
        if not error.findings:
            raise


@st.composite
def mangled(draw: st.DrawFn, text: bytes) -> bytes:
    """A valid file with some bytes deleted, inserted or replaced, or with values of other types."""
    for _ in range(draw(st.integers(1, 4))):
        how = draw(st.sampled_from(["delete", "insert", "replace", "value", "line"]))
        at = draw(st.integers(0, max(len(text) - 1, 0)))
        length = draw(st.integers(1, 20))
        if how == "delete":
            text = text[:at] + text[at + length :]
        elif how == "insert":
            text = text[:at] + draw(st.binary(min_size=1, max_size=8)) + text[at:]
        elif how == "replace":
            text = text[:at] + draw(st.sampled_from(list(b'[]{}="\n.,#\\ax0'))).to_bytes(1, "big") + text[at + 1 :]
        else:
            lines = text.split(b"\n")
            number = at % len(lines)
            key, equals, _ = lines[number].partition(b"=")
            if how == "line":
                lines.insert(draw(st.integers(0, len(lines))), lines[number])
            elif equals:
                lines[number] = key + equals + b" " + draw(st.sampled_from(VALUES))
            text = b"\n".join(lines)
    return text


@given(mangled(TENANT))
@settings(max_examples=400, deadline=None)
def test_a_mangled_tenant_file_brings_findings_or_a_plan_that_travels(data: bytes) -> None:
    checked = check_files(
        {"acme": data, "other": TENANT.replace(b"# name", b"name").replace(b'"acme" ', b'"other" ')}, SHIPPED
    )
    assert all(finding.text and finding.line >= 0 for finding in checked.findings)
    assert decode_plan(encode_plan(checked.tenants)) == checked.tenants
    refused(lambda: load_tenant(data, file="acme.toml", system=SHIPPED))


@given(mangled(SYSTEM.encode()))
@settings(max_examples=300, deadline=None)
def test_a_mangled_system_file_brings_findings_or_a_system(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "system.toml")
        file.write_bytes(data)
        refused(lambda: load_system(str(file)))


@given(mangled(NODE))
@settings(max_examples=100, deadline=None)
def test_a_mangled_node_file_brings_findings_or_a_policy(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "node.toml")
        file.write_bytes(data)
        file.chmod(0o600)
        refused(lambda: load_node_file(str(file)))


@given(st.binary(max_size=200))
def test_any_bytes_bring_findings(data: bytes) -> None:
    assert check_files({"acme": data}, SHIPPED).findings
