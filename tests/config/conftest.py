"""Fixtures: findings of a changed system file, or of a process with some lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ha.config import check_files, load_system
from ha.config.system import read_system
from ha.model.errors import Finding
from ha.model.plan import System, Tenant
from tests.config.config_bed import SYSTEM, Read


@pytest.fixture
def system_file(tmp_path: Path) -> Path:
    file = tmp_path / "system.toml"
    file.write_text(SYSTEM)
    return file


@pytest.fixture
def system(system_file: Path) -> System:
    return load_system(str(system_file))


@pytest.fixture
def system_errors(system_file: Path) -> Read:
    """Findings of the system file with this text in place of its own."""

    def read(text: str) -> tuple[Finding, ...]:
        system_file.write_text(text)
        return tuple(read_system(str(system_file))[1].findings)

    return read


@pytest.fixture
def tenant_errors(system: System) -> Read:
    """Findings of a process `p` with these lines, in the tenant `acme`; the lines begin on line 3."""

    def read(lines: str) -> tuple[Finding, ...]:
        text = f'[process.p]\ncommand = ["/bin/true"]\n{lines}\n'
        return check_files({"acme": text.encode()}, system).findings

    return read


@pytest.fixture
def process(system: System) -> Callable[[str], Tenant]:
    """The tenant `acme` with a process `p` with these lines; it must pass."""

    def read(lines: str) -> Tenant:
        text = f'[process.p]\ncommand = ["/bin/true"]\n{lines}\n'
        checked = check_files({"acme": text.encode()}, system)
        assert checked.findings == ()
        return checked.tenants[0]

    return read
