"""The Server's machine: decides for one side. `machine` is the door; see its module comment for the order of a step."""

from ha.core.server.machine import start, step, wake_at
from ha.core.server.state import Check, Checked, Directory, Exit, State, Stopping

__all__ = ["Check", "Checked", "Directory", "Exit", "State", "Stopping", "start", "step", "wake_at"]
