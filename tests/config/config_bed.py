"""A small system as text, with one place to change, and how findings are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ha.model.errors import Finding

ROOT = Path(__file__).parents[2]
SYSTEM = """\
[system]
name = "demo"

[sides.a]
servers = ["a1"]
[sides.b]
servers = ["b1"]

[nodes.a1]
side = "a"
addresses = ["127.0.0.11"]
labels = ["db"]
[nodes.b1]
side = "b"
addresses = ["127.0.0.21"]
labels = ["db"]

[witnesses.w1]
addresses = ["127.0.0.50"]
"""

Read = Callable[[str], tuple[Finding, ...]]


def only(findings: tuple[Finding, ...]) -> Finding:
    """Return the one finding there is."""
    assert len(findings) == 1, "\n".join(map(str, findings))
    return findings[0]
