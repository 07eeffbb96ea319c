"""A demo that was left running (KEEP=1): how to use it, and its end by `make demo ARGS="--end DIRECTORY"`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from examples.callcenter.demo_system import NODES, ROOT, System

STOP_S = 30.0


def explain(system: System) -> None:
    """Print what can be done with a system that is left running."""
    python = "" if os.access(ROOT / ".venv/bin/python", os.X_OK) else f" HA_PYTHON={sys.executable}"
    print(f"""
The system is left running, and calls go on. To look at it and steer it:
  export PATH={ROOT / "bin"}:$PATH HA_CONFIG={system.config} HA_NODE=a1{python}
  hactl status; hactl switchover acme; hactl events --follow
Drop tenant files into {system.tenants_dir}; logs are in {system.logs}.
To end it, and remove its directory:
  make -C {ROOT} demo ARGS="--end {system.root}" """)


def end(directory: Path) -> int:
    """End a kept demo: its nodes by SIGTERM, then what stands beside them. Return 0 when nothing is left."""
    if not (directory / "system.toml").is_file():
        print(f"demo: cannot end {directory}: there is no system.toml in it", file=sys.stderr)
        return 2
    system = System(directory)
    began = time.monotonic()
    system.signal_masters(signal.SIGTERM)
    while any(system.members(node) for node in NODES) and time.monotonic() < began + STOP_S:
        time.sleep(0.05)
    late = {node for node in NODES if system.members(node)}
    system.end()
    left = [*(f"{node} did not end within {STOP_S:.0f} s" for node in sorted(late)), *system.leftovers()]
    if left:
        print("\n".join(left))
        return 1
    system.remove()
    print(f"all nodes ended after {(time.monotonic() - began) * 1000:.0f} ms, nothing is left, {directory} is removed")
    return 0
