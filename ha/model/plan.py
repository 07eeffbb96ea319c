"""Plan: what TOML becomes. Frozen, typed, validated; the same structs travel to the nodes.

Durations are int milliseconds (`_ms`), sizes int bytes (`_bytes`). `{node} {side} {address} {tenant}
{process} {copy}` in commands, environment values and probe targets are filled in on the node
(`ha.model.plan.fill`). Source: contract/system.toml, contract/tenant.toml, contract/node.toml.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ha.model.digest import digest_of
from ha.model.names import copy_key, process_id
from ha.model.status import RunStatus
from ha.model.timing import Timing


class Plain(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the plan's structs: MessagePack maps, so that N and N-1 read each other."""


class Dependency(Plain, frozen=True):
    """`tenant/process` must be ready: in the same tenant on my side, else anywhere (design section 2)."""

    tenant: str
    process: str
    where: Literal["any-side", "same-side"]

    @property
    def id(self) -> str:
        """`tenant/process`."""
        return process_id(self.tenant, self.process)


class Probe(Plain, frozen=True):
    """One configured check. `target`: "host:port" for tcp, a URL for http; `command` for exec."""

    kind: Literal["tcp", "http", "exec"]
    target: str = ""
    command: tuple[str, ...] = ()
    status: int = 200  # http: the status code that passes
    interval_ms: int = 1_000
    timeout_ms: int = 1_000
    failures: int = 3  # consecutive failures until the copy counts as failed
    successes: int = 1  # consecutive passes until it counts as ready
    initial_delay_ms: int = 0


class Ready(Plain, frozen=True):
    """When a started copy counts as ready."""

    by: Literal["started", "probe", "notify"] = "started"
    timeout_ms: int = 60_000


class RoleChange(Plain, frozen=True):
    """How a running copy is told its role: exactly one of command, signal, socket; none: see `by`."""

    command: tuple[str, ...] = ()
    signal: str = ""
    socket: bool = False
    timeout_ms: int = 2_000


class Restart(Plain, frozen=True):
    """Restart policy. More than `intensity` unplanned deaths within `period_ms` escalate."""

    policy: Literal["always", "on-failure", "never"] = "always"
    intensity: int = 5
    period_ms: int = 60_000
    backoff_ms: int = 100
    backoff_max_ms: int = 30_000
    jitter: float = 0.2  # relative
    stable_ms: int = 10_000


class Stop(Plain, frozen=True):
    """How a copy is stopped: command or signal to the main process, `grace_ms`, then the whole tree is killed."""

    signal: str = "SIGTERM"
    grace_ms: int = 10_000
    command: tuple[str, ...] = ()


class Log(Plain, frozen=True):
    """Size-rotated output file: the current file and `keep` older ones."""

    max_size_bytes: int = 64 * 1024 * 1024
    keep: int = 5


class Limits(Plain, frozen=True):
    """Resource limits of one copy; None: inherited from the agent."""

    nofile: int | None = None
    core_bytes: int | None = None
    nice: int | None = None


class Process(Plain, frozen=True):
    """One `[process.NAME]` table."""

    name: str
    command: tuple[str, ...]
    run_status: RunStatus = RunStatus.COLD
    enabled: bool = True
    priority: int = 50
    depends_on: tuple[Dependency, ...] = ()
    copies: int = 1  # per side
    on: tuple[str, ...] = ()  # labels: a node must carry all of them
    user: str = ""
    group: str = ""
    working_directory: str = "/"
    umask: int = 0o027
    environment: dict[str, str] = {}
    environment_file: str = ""
    monitor_interval_ms: int = 1_000
    ready: Ready = Ready()
    probes: tuple[Probe, ...] = ()
    promote: RoleChange | None = None
    demote: RoleChange | None = None
    restart: Restart = Restart()
    on_failure: Literal["failover", "restart"] = "restart"
    stop: Stop = Stop()
    limits: Limits = Limits()
    log: Log = Log()


class Tenant(Plain, frozen=True):
    """One tenant file. `serial` grows with each accepted edit; commands name it as the plan version."""

    name: str
    serial: int = 0
    priority: int = 50
    home: str = "a"
    failback: Literal["manual", "auto"] = "manual"
    failback_after_ms: int = 300_000
    enabled: bool = True
    environment: dict[str, str] = {}
    on_event: tuple[str, ...] = ()
    processes: tuple[Process, ...] = ()

    def process(self, name: str) -> Process | None:
        """Return the process of that name, or None."""
        return next((process for process in self.processes if process.name == name), None)

    def copy_keys(self, process: Process) -> tuple[str, ...]:
        """Return the copy keys of a process on one side."""
        return tuple(copy_key(self.name, process.name, n) for n in range(1, process.copies + 1))


class Ports(Plain, frozen=True):
    """TCP ports, the same on every node."""

    state: int = 7701
    command: int = 7702
    vote: int = 7703
    control: int = 7704
    beat: int = 7705


class Node(Plain, frozen=True):
    """One machine, or one witness place (`side` is empty then)."""

    name: str
    addresses: tuple[str, ...]
    side: str = ""
    labels: tuple[str, ...] = ()


class System(Plain, frozen=True):
    """The system file. `sides`: side -> nodes where its Server may run, in order of preference."""

    name: str
    run_dir: str
    data_dir: str
    tenants_dir: str  # absolute
    node_file: str
    file: str  # absolute path this was read from
    profile: str = "default"
    timing: Timing = Timing()
    voters: tuple[str, ...] = ()
    ports: Ports = Ports()
    sides: dict[str, tuple[str, ...]] = {}
    nodes: dict[str, Node] = {}
    witnesses: dict[str, Node] = {}

    def place(self, name: str) -> Node:
        """Return the node or witness place of that name. Raises KeyError."""
        return self.nodes[name] if name in self.nodes else self.witnesses[name]

    def nodes_of(self, side: str) -> tuple[str, ...]:
        """Return the names of a side's nodes, sorted."""
        return tuple(sorted(name for name, node in self.nodes.items() if node.side == side))

    def servers(self) -> tuple[str, ...]:
        """Return every node where a Server may run, in order of preference, side a first."""
        return tuple(name for side in sorted(self.sides) for name in self.sides[side])

    @property
    def majority(self) -> int:
        """Votes that make a majority."""
        return len(self.voters) // 2 + 1

    def rules_digest(self) -> str:
        """Return what all voters and holders must agree upon before any vote counts (rule 3)."""
        return digest_of(msgspec.json.encode([self.name, list(self.voters), self.timing]))


class Policy(Plain, frozen=True):
    """`[policy]` of the node file: what this node lets a plan do. Empty `users`: anyone but root."""

    plans: Literal["local", "servers"] = "servers"
    users: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()  # directories; empty: any absolute path
    environment_deny: tuple[str, ...] = ("LD_*", "PYTHON*", "PERL5*", "BASH_ENV", "ENV", "NODE_OPTIONS")


class NodeFile(Plain, frozen=True):
    """This machine's own file; groups that may look (`view_group`) and act (`operate_group`) by hactl."""

    policy: Policy = Policy()
    view_group: str = ""
    operate_group: str = ""


def fill(text: str, *, node: Node, tenant: str, process: str, copy: int) -> str:
    """Return `text` with the placeholders filled in; other braces stay as they are."""
    for name, value in (
        ("node", node.name), ("side", node.side), ("address", node.addresses[0]),
        ("tenant", tenant), ("process", process), ("copy", str(copy)),
    ):  # fmt: skip
        text = text.replace("{" + name + "}", value)
    return text


_TENANTS = msgspec.msgpack.Decoder(tuple[Tenant, ...])


def encode_plan(tenants: tuple[Tenant, ...]) -> bytes:
    """Return the tenants as they travel in `PutPlan`, sorted by name so that equal plans are equal bytes."""
    return msgspec.msgpack.encode(sorted(tenants, key=lambda tenant: tenant.name), order="deterministic")


def decode_plan(data: bytes) -> tuple[Tenant, ...]:
    """Return the tenants of a `PutPlan`. Raises msgspec.ValidationError or msgspec.DecodeError."""
    return _TENANTS.decode(data)
