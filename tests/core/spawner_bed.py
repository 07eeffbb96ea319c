"""A bed for the Spawner's machine: virtual time, a Server reduced to its grants, a kernel reduced to trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ha.core import spawner
from ha.core.machine import Effect, Event, Persist, Received, Send, Tick
from ha.core.spawning import events as ev
from ha.model import messages as m
from ha.model.digest import digest_of
from ha.model.names import Agent
from ha.model.plan import Dependency, Node, Policy, Process, RoleChange, Stop, System, Tenant, encode_plan
from ha.model.status import Exit, Role, RunStatus, Wanted
from ha.model.timing import MS, Timing

NODE = Node(name="a1", addresses=("127.0.0.11",), side="a")
TIMING = Timing()
SYSTEM = System(
    name="demo", run_dir="/run/ha", data_dir="/var/lib/ha", tenants_dir="/x", node_file="/y", file="/z",
    sides={"a": ("a1", "a2"), "b": ("b1",)},
    nodes={"a1": NODE, "a2": Node(name="a2", addresses=("127.0.0.12",), side="a"),
           "b1": Node(name="b1", addresses=("127.0.0.21",), side="b")},
)  # fmt: skip
SIGNALLED = RoleChange(signal="SIGUSR1")
ACME = Tenant(
    name="acme",
    serial=1,
    processes=(
        Process(name="db", command=("/bin/db", "{node}"), run_status=RunStatus.HOT, promote=RoleChange(socket=True)),
        Process(name="ivr", command=("/bin/ivr",), run_status=RunStatus.COLD, stop=Stop(grace_ms=1_000)),
        Process(name="warm", command=("/bin/warm",), run_status=RunStatus.WARM, promote=SIGNALLED, demote=SIGNALLED),
        Process(name="plain", command=("/bin/plain",), run_status=RunStatus.WARM, stop=Stop(grace_ms=1_000)),
        Process(
            name="web", command=("/bin/web",), run_status=RunStatus.LOAD_SHARING, copies=2,
            depends_on=(Dependency(tenant="acme", process="db", where="any-side"),),
        ),
    ),
)  # fmt: skip
USERS = Policy(users=("root",))


BOOM = Exit(signal="SIGSEGV")


@dataclass
class Tree:
    """One instance in the kernel. `acts`: it holds the role active, as it knows itself."""

    copy: str
    instance: str
    role: Role
    fencing: int
    exclusive: bool
    main: bool = True
    frozen: bool = False
    stubborn: bool = False  # does not end by a signal


@dataclass
class Bed:
    """See the module. `auto`: outcomes come at once; else they wait in `pending`."""

    auto: bool = True
    now: int = 1_000 * MS
    incarnation: int = 1
    policy: Policy = USERS
    plan: tuple[Tenant, ...] = (ACME,)
    journal: dict[str, object] = field(default_factory=dict)
    disk_plan: bytes = b""
    guard: dict[str, int] = field(default_factory=dict)
    lines: dict[str, ev.Deadline] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)
    pending: list[Event] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    sent: list[Send] = field(default_factory=list)
    rights: dict[str, int] = field(default_factory=dict)
    version: int = 1
    lease_until: int = 0
    seated: bool = True
    answering: bool = True
    stubborn: bool = False
    counter: int = 0
    pid: int = 100
    check: Callable[[Bed], None] = lambda bed: None
    promises: dict[str, int] = field(default_factory=dict)  # copy -> latest instant any grant allowed it

    def __post_init__(self) -> None:
        self.boot()
        if self.plan:
            self.put_plan(*self.plan)

    # --- time and events ---

    def boot(self) -> None:
        self.state = spawner.start(
            NODE, SYSTEM, self.policy, "boot-1", self.incarnation, dict(self.journal), self.now,
            guard=dict(self.guard), plan=self.disk_plan, agent_user="root",
        )  # fmt: skip
        self.feed(Tick())

    def restart(self) -> None:
        """kill -9 of the Spawner: only journal, plan file, guard table and trees are left."""
        self.incarnation += 1
        self.pending.clear()
        self.boot()

    def feed(self, event: Event) -> list[Effect]:
        self.state, effects = spawner.step(self.state, event, self.now)
        self.effects += effects
        for effect in effects:
            self.do(effect)
        self.check(self)
        if self.auto:
            self.settle()
        return effects

    def settle(self) -> None:
        while self.pending:
            self.feed(self.pending.pop(0))

    def run(self, ms: int) -> None:
        """Let time pass, tick by tick as the machine asks for them."""
        end = self.now + ms * MS
        while (wake := spawner.wake_at(self.state)) <= end:
            self.now = max(self.now, wake)
            self.feed(Tick())
        self.now = end
        self.feed(Tick())

    def receive(self, body: m.Message, role: Agent = Agent.SERVER, node: str = "a1", request: int = 1) -> list[Effect]:
        return self.feed(Received(role, node, 77, 1, request, body))

    # --- the world ---

    def do(self, effect: Effect) -> None:
        match effect:
            case Persist():
                if effect.value is None:
                    self.journal.pop(effect.key, None)
                else:
                    self.journal[effect.key] = msgspec.to_builtins(effect.value, builtin_types=(bytes,))
            case Send():
                self.sent.append(effect)
                if isinstance(effect.body, m.Pull) and self.answering and effect.node == "a1":
                    self.grant(effect)
            case ev.KeepPlan():
                self.disk_plan = effect.tenants
            case ev.SetDeadlines():
                for line in effect.entries:
                    self.lines[line.copy] = line
                    if not line.instance:
                        del self.lines[line.copy]
                self.guard = {
                    copy: effect.shared_ns if line.shared else line.deadline_ns for copy, line in self.lines.items()
                }
            case ev.Spawn():
                self.pid += 1
                tree = Tree(effect.copy, effect.instance, effect.role, effect.fencing,
                            effect.process.run_status.exclusive, stubborn=self.stubborn)  # fmt: skip
                assert not [t for t in self.trees.values() if t.copy == effect.copy], "a copy was started twice"
                self.trees[effect.instance] = tree
                self.pending.append(ev.Spawned(effect.copy, effect.instance, self.pid, 7, 1.0))
            case ev.Adopt():
                if effect.instance in self.trees:
                    self.pending.append(ev.Adopted(effect.copy, effect.instance, effect.pid or 99, 7))
                else:
                    self.pending.append(ev.Exited(effect.copy, effect.instance, Exit()))
                    self.pending.append(ev.TreeGone(effect.copy, effect.instance))
            case ev.Signal():
                self.end_main(effect.instance, Exit(signal=effect.signal))
            case ev.KillTree():
                tree = self.trees.pop(effect.instance, None)
                if tree is not None and tree.main:
                    self.pending.append(ev.Exited(effect.copy, effect.instance, Exit(signal="SIGKILL")))
                self.pending.append(ev.TreeGone(effect.copy, effect.instance))
            case ev.Freeze():
                if effect.instance in self.trees:
                    self.trees[effect.instance].frozen = True
                self.pending.append(ev.Frozen(effect.copy, effect.instance, effect.instance in self.trees))
            case ev.Thaw():
                if effect.instance in self.trees:
                    self.trees[effect.instance].frozen = False
                self.pending.append(ev.Thawed(effect.copy, effect.instance))
            case ev.TellRole():
                tree = self.trees.get(effect.instance)
                if tree is not None and not tree.frozen:
                    tree.role, tree.fencing = effect.role, effect.fencing
                    self.pending.append(ev.RoleTold(effect.copy, effect.instance, effect.role, effect.fencing, True))
            case ev.SpawnAgent():
                self.pid += 1
                self.pending.append(ev.AgentSpawned(effect.role, self.pid))
            case _:
                return

    def end_main(self, instance: str, exit: Exit) -> None:
        tree = self.trees.get(instance)
        if tree is None or not tree.main or tree.frozen or tree.stubborn:
            return
        tree.main = False
        self.pending.append(ev.Exited(tree.copy, instance, exit))

    def grant(self, pull: Send) -> None:
        body = m.Grant(
            self.seated, max(0, self.lease_until - self.now), self.version,
            tuple(m.Right(copy, fencing) for copy, fencing in self.rights.items()),
        )  # fmt: skip
        if self.seated:
            until = self.now + TIMING.sub_lease_ns(body.remaining_ns)
            for copy in self.rights:
                self.promises[copy] = max(self.promises.get(copy, 0), until)
        self.pending.append(Received(Agent.SERVER, pull.node, 77, 1, pull.request, body))

    # --- what a Server says ---

    def put_plan(self, *tenants: Tenant) -> list[Effect]:
        data = encode_plan(tenants)
        return self.receive(m.PutPlan(digest_of(data), data))

    def allow(self, copy: str, fencing: int, ms: int = 600) -> None:
        self.rights[copy] = fencing
        self.version += 1
        self.lease_until = self.now + ms * MS

    def order(self, copy: str, role: Role | None = None, fencing: int = 0, **more: object) -> list[Effect]:
        wanted = more.pop("wanted", Wanted.UP)
        generation = more.pop("generation", None)
        if generation is None:
            self.counter += 1
            generation = (1, 1, self.counter)
        order = m.Order(copy, wanted, generation, more.pop("serial", 1), role, fencing, **more)  # type: ignore[arg-type]
        return self.receive(m.Orders(generation, (order,)))  # type: ignore[arg-type]

    def down(self, copy: str) -> list[Effect]:
        return self.order(copy, wanted=Wanted.DOWN)

    def crash_alone(self, copy: str, exit: Exit = BOOM) -> None:
        """It dies, and the shell sees at once that nothing of its tree is left."""
        tree = self.tree(copy)
        assert tree is not None
        del self.trees[tree.instance]
        self.feed(ev.Exited(tree.copy, tree.instance, exit, gone=True))
        self.settle()

    def crash(self, copy: str) -> None:
        tree = self.tree(copy)
        assert tree is not None
        self.end_main(tree.instance, Exit(code=1))
        self.settle()

    # --- looking ---

    def tree(self, copy: str) -> Tree | None:
        return next((tree for tree in self.trees.values() if tree.copy == copy), None)

    def fact(self, copy: str) -> m.Fact:
        return self.state.copies[copy].fact()

    def last(self, kind: type[m.Message]) -> m.Message:
        return next(send.body for send in reversed(self.sent) if isinstance(send.body, kind))

    def all(self, kind: type[Effect]) -> list[Effect]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def acting(self, copy: str) -> bool:
        """Whether anything of the copy can act as active right now."""
        tree = self.tree(copy)
        return tree is not None and tree.exclusive and not tree.frozen and tree.role is Role.ACTIVE
