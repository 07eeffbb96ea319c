"""What the Spawner's machine is told, and what it wants done.

Every event of a copy names the instance (the cookie `HA_INSTANCE` of one start), so that what is said late about an
earlier instance changes nothing. Every effect below has an outcome, named with it; the shell may report it in
the same turn or any time later.
"""

from __future__ import annotations

from enum import StrEnum

from ha.core.machine import Effect, Event
from ha.model.plan import Process
from ha.model.status import Exit, Role


class Method(StrEnum):
    """How a running copy is told its role."""

    COMMAND = "command"
    SIGNAL = "signal"
    SOCKET = "socket"


# --- events ----------------------------------------------------------------------------------------


class Spawned(Event, frozen=True):
    """exec succeeded. `started_at`: wall clock, for display."""

    copy: str
    instance: str
    pid: int
    start_ticks: int
    started_at: float = 0.0


class SpawnFailed(Event, frozen=True):
    """Nothing was started, nothing is left."""

    copy: str
    instance: str
    reason: str


class Withheld(Event, frozen=True):
    """A Spawn waited until `ha.core.spawner.may_start` no longer held: nothing was started."""

    copy: str
    instance: str


class Adopted(Event, frozen=True):
    """The main process of an instance from before a restart of the Spawner runs: identity compared."""

    copy: str
    instance: str
    pid: int
    start_ticks: int


class Exited(Event, frozen=True):
    """The main process ended (also the answer to `Adopt` when it is not there); its tree may live on.

    `gone`: nothing else of the instance is left either, which saves the `TreeGone`.
    """

    copy: str
    instance: str
    exit: Exit
    gone: bool = False


class TreeGone(Event, frozen=True):
    """Nothing of the instance is left."""

    copy: str
    instance: str


class Frozen(Event, frozen=True):
    """The whole tree stands still, or (not ok) could not be made to."""

    copy: str
    instance: str
    ok: bool = True


class Thawed(Event, frozen=True):
    """The tree goes on, or (not ok) could not be made to."""

    copy: str
    instance: str
    ok: bool = True


class RoleTold(Event, frozen=True):
    """The copy confirmed the role (command ended with 0, signal was sent, socket said done), or did not."""

    copy: str
    instance: str
    role: Role
    fencing: int
    ok: bool
    reason: str = ""


class CommandDone(Event, frozen=True):
    """The stop command ended."""

    copy: str
    instance: str
    ok: bool
    reason: str = ""


class Notified(Event, frozen=True):
    """sd_notify or control socket: READY=1 (`ready`), STATUS= (`status`, None: not said)."""

    copy: str
    instance: str
    ready: bool = False
    status: str | None = None


class Connected(Event, frozen=True):
    """The program speaks the control socket. `role`, `fencing`: what it says it is, None: it does not say."""

    copy: str
    instance: str
    role: Role | None = None
    fencing: int = 0


class WatchdogArmed(Event, frozen=True):
    """The program armed its watchdog; 0: disarmed."""

    copy: str
    instance: str
    interval_ms: int


class WatchdogMissed(Event, frozen=True):
    """The program did not ping in time, frozen time left out."""

    copy: str
    instance: str


class AgentSpawned(Event, frozen=True):
    """An agent of this node runs: started, or found by its lock after a restart of the Spawner."""

    role: str
    pid: int


class AgentSpawnFailed(Event, frozen=True):
    """An agent could not be started."""

    role: str
    reason: str


class AgentExited(Event, frozen=True):
    """An agent ended."""

    role: str
    pid: int
    reason: str = ""


class MasterState(Event, frozen=True):
    """The Master's pid; 0: it is dead."""

    pid: int


class WatcherState(Event, frozen=True):
    """The Watcher's pid; 0: it is dead."""

    pid: int


# --- effects ---------------------------------------------------------------------------------------


class Adopt(Effect, frozen=True):
    """Find the instance again: pid 0 means by its cookie. -> Adopted | Exited, then TreeGone if nothing is left."""

    copy: str
    instance: str
    pid: int
    start_ticks: int


class Spawn(Effect, frozen=True):
    """Start a copy. -> Spawned | SpawnFailed | Withheld

    A shell that makes it wait asks `ha.core.spawner.may_start` just before.

    Environment, later over earlier: PATH, HOME, USER, LANG; `environment`; the file `process.environment_file`;
    `identity` (HA_*, NOTIFY_SOCKET). Nothing else is inherited. `command` has its placeholders filled in.
    """

    copy: str
    instance: str
    command: tuple[str, ...]
    process: Process
    role: Role
    fencing: int
    environment: dict[str, str]
    identity: dict[str, str]


class Signal(Effect, frozen=True):
    """Send a signal ("SIGTERM") to the main process by its pidfd. No outcome."""

    copy: str
    instance: str
    signal: str


class StopCommand(Effect, frozen=True):
    """Run the stop command in the copy's cgroup, as its user. -> CommandDone"""

    copy: str
    instance: str
    command: tuple[str, ...]
    environment: dict[str, str]
    identity: dict[str, str]
    timeout_ms: int


class TellRole(Effect, frozen=True):
    """Tell a running copy its role; a command runs in its cgroup and freezes with it. -> RoleTold"""

    copy: str
    instance: str
    role: Role
    fencing: int
    method: Method
    timeout_ms: int
    command: tuple[str, ...] = ()
    signal: str = ""
    environment: dict[str, str] = {}
    identity: dict[str, str] = {}


class Freeze(Effect, frozen=True):
    """Stop every thread of the whole tree. -> Frozen"""

    copy: str
    instance: str


class Thaw(Effect, frozen=True):
    """Let the tree go on. -> Thawed"""

    copy: str
    instance: str


class KillTree(Effect, frozen=True):
    """End everything of the instance. -> Exited (if the main process lived), TreeGone"""

    copy: str
    instance: str


class Forget(Effect, frozen=True):
    """The copy has left the plan: remove its directory. No outcome."""

    copy: str


class Deadline(Effect, frozen=True):
    """One line of the guard table; `instance` empty: take it out.

    `shared`: it follows `SetDeadlines.shared_ns`; else `deadline_ns` is its own, and 0 that it never had a right.
    """

    copy: str
    instance: str
    pid: int
    deadline_ns: int
    shared: bool = False
    fencing: int = 0
    start_ticks: int = 0


class SetDeadlines(Effect, frozen=True):
    """Lines of the guard table that changed, and the deadline all shared lines follow from now on. No outcome."""

    entries: tuple[Deadline, ...]
    shared_ns: int


class SpawnAgent(Effect, frozen=True):
    """Start an agent of this node: `sys.executable -m ha.agents.ROLE`. -> AgentSpawned | AgentSpawnFailed"""

    role: str


class SignalAgent(Effect, frozen=True):
    """Signal an agent. -> AgentExited, when it ends"""

    role: str
    pid: int
    signal: str


class End(Effect, frozen=True):
    """The Spawner's own loop ends; copies are left as they are."""


class KeepPlan(Effect, frozen=True):
    """Write the plan to data_dir/NODE/plan.mp, whole or not at all; the Monitor reads it there. No outcome."""

    digest: str
    tenants: bytes
