"""Programs: the managed OS processes of the simulated nodes, and the ground truth of who acts.

A program acts for its process when it lives, is not frozen, its node is not paused, and its own last word is that it
is active. Invariant number one is checked whenever any of these changes: at most one acts for an exclusive process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ha.core.machine import Effect, Event
from ha.core.spawning import events as sp
from ha.model.names import process_of
from ha.model.plan import Process
from ha.model.status import Exit, Role
from ha.model.timing import MS
from ha.sim.kernel import Kernel


class Violation(Exception):
    """An invariant does not hold; the text says which, when and between whom."""


@dataclass(slots=True, frozen=True)
class Habit:
    """How the programs of one process behave. Chances in [0, 1], drawn anew each time."""

    dies_young: float = 0.0  # it ends by itself soon after its start
    spawn_fails: float = 0.0
    deaf: float = 0.0  # it does not react to its stop signal
    slow_ms: int = 60  # it is ready at most this long after its start
    refuses_role: float = 0.0
    ignores_role: float = 0.0  # no answer to a role until the time is over
    connects: bool = True  # it speaks the control socket


GOOD = Habit()


@dataclass(slots=True)
class Program:
    """One OS process."""

    node: str
    copy: str
    instance: str
    pid: int
    process: Process
    role: Role
    fencing: int
    alive: bool = True
    frozen: bool = False
    ready: bool = False
    pending: list[Callable[[], None]] = field(default_factory=list)  # what waits for the thaw


@dataclass(slots=True)
class Programs:
    """All programs of all nodes. `tell(node, event)` reaches the node's Spawner, `gone(node, ...)` its Monitor."""

    kernel: Kernel
    tell: Callable[[str, Event], None]
    gone: Callable[[str, str, int], None]
    by_instance: dict[tuple[str, str], Program] = field(default_factory=dict)
    acting: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    pids: int = 1000
    activations: int = 0
    spawns: int = 0
    fences: dict[str, int] = field(default_factory=dict)
    habits: dict[str, Habit] = field(default_factory=dict)  # by process id
    watch: Callable[[Effect, str], None] = lambda effect, node: None  # told of every Spawn and TellRole

    def habit(self, copy: str) -> Habit:
        """Return how the programs of this copy behave."""
        return self.habits.get(process_of(copy), GOOD)

    def chance(self, chance: float) -> bool:
        """Draw; draws nothing at all for what never happens."""
        return chance > 0 and self.kernel.rng.random() < chance

    def carry_out(self, node: str, effect: Effect) -> bool:
        """Do a Spawner's effect; False: not ours."""
        match effect:
            case sp.Spawn():
                self.watch(effect, node)
                self._spawn(node, effect)
            case sp.Signal():
                self._with(node, effect.copy, effect.instance, lambda p: self._signal(p, effect.signal))
            case sp.StopCommand():
                done = sp.CommandDone(effect.copy, effect.instance, not self.chance(0.2))
                self.kernel.after(2 * MS, lambda: self.tell(node, done))
                if done.ok:
                    self._with(node, effect.copy, effect.instance, lambda p: self._signal(p, "SIGTERM"))
            case sp.TellRole():
                self.watch(effect, node)
                self._tell_role(node, effect)
            case sp.Freeze():
                self._later(node, effect.copy, effect.instance, self._freeze)
            case sp.Thaw():
                self._later(node, effect.copy, effect.instance, self._thaw)
            case sp.KillTree():
                self._later(node, effect.copy, effect.instance, lambda p: self._die(p, Exit(signal="SIGKILL")), True)
            case sp.Adopt():
                self._adopt(node, effect)
            case _:
                return False
        return True

    def crash(self, node: str, copy: str) -> None:
        """Kill whatever runs as `copy` on a node, as if it had died by itself."""
        for program in list(self.by_instance.values()):
            if program.node == node and program.copy == copy and program.alive:
                self._die(program, Exit(signal="SIGSEGV"))

    def running(self, node: str | None = None) -> list[Program]:
        """Return what lives, on one node or everywhere."""
        return [p for p in self.by_instance.values() if p.alive and node in (None, p.node)]

    def lose_node(self, node: str) -> None:
        """Everything on a node dies without a word."""
        for program in self.running(node):
            program.alive = False
            self._check(program)

    def pause(self, node: str, on: bool) -> None:
        """All programs of a node stand still, or go on."""
        (self.paused.add if on else self.paused.discard)(node)
        for program in self.running(node):
            self._check(program)

    def _spawn(self, node: str, effect: sp.Spawn) -> None:
        self.spawns += 1
        habit = self.habit(effect.copy)
        if self.chance(habit.spawn_fails):
            failed = sp.SpawnFailed(effect.copy, effect.instance, "no such file")
            self.kernel.after(MS, lambda: self.tell(node, failed))
            return
        self.pids += 1
        program = Program(node, effect.copy, effect.instance, self.pids, effect.process, effect.role, effect.fencing)
        self.by_instance[(node, effect.instance)] = program
        self._check(program)
        pid = self.pids
        self.kernel.after(
            self.kernel.between(MS // 2, 3 * MS),
            lambda: self.tell(node, sp.Spawned(effect.copy, effect.instance, pid, pid, 1.0)),
        )
        if habit.connects:
            self.kernel.after(3 * MS, lambda: self._unfrozen(program, lambda: self._connect(program)))
        delay = self.kernel.between(3 * MS, habit.slow_ms * MS)
        self.kernel.after(delay, lambda: self._unfrozen(program, lambda: self._ready(program)))
        if self.chance(habit.dies_young):
            when = self.kernel.between(MS, 300 * MS)
            self.kernel.after(when, lambda: self._unfrozen(program, lambda: self._die(program, Exit(code=1))))

    def _connect(self, program: Program) -> None:
        if program.alive:
            said = sp.Connected(program.copy, program.instance, program.role, program.fencing)
            self.tell(program.node, said)

    def _ready(self, program: Program) -> None:
        if program.alive:
            program.ready = True
            self.tell(program.node, sp.Notified(program.copy, program.instance, True))

    def _with(self, node: str, copy: str, instance: str, act: Callable[[Program], None]) -> None:
        program = self.by_instance.get((node, instance))
        if program is not None and program.copy == copy:
            act(program)

    def _later(self, node: str, copy: str, instance: str, act: Callable[[Program], None], tree: bool = False) -> None:
        program = self.by_instance.get((node, instance))
        if program is None or (not program.alive and tree):
            self.kernel.after(MS, lambda: self.tell(node, sp.TreeGone(copy, instance)))
        elif program.alive:
            self.kernel.after(self.kernel.between(MS // 10, 3 * MS), lambda: act(program))

    def _signal(self, program: Program, signal: str) -> None:
        if signal in ("SIGTERM", "SIGINT", "SIGQUIT") and not self.chance(self.habit(program.copy).deaf):
            delay = self.kernel.between(1, 300) * MS
            self.kernel.after(delay, lambda: self._unfrozen(program, lambda: self._die(program, Exit(code=0))))

    def _unfrozen(self, program: Program, act: Callable[[], None]) -> None:
        if program.frozen:
            program.pending.append(act)
        else:
            act()

    def _tell_role(self, node: str, effect: sp.TellRole) -> None:
        program = self.by_instance.get((node, effect.instance))
        habit = self.habit(effect.copy)
        unheard = effect.method is sp.Method.SOCKET and not habit.connects
        ignores, refuses = unheard or self.chance(habit.ignores_role), self.chance(habit.refuses_role)
        told: list[bool] = []

        def change() -> None:
            if program is None or not program.alive:
                return  # one that is late is obeyed late: nobody told it that the time is over
            told.append(True)
            if refuses:
                no = sp.RoleTold(effect.copy, effect.instance, effect.role, effect.fencing, False, "refused")
                self.tell(node, no)
                return
            program.role, program.fencing = effect.role, effect.fencing
            self._check(program)
            self.tell(node, sp.RoleTold(effect.copy, effect.instance, effect.role, effect.fencing, True))

        def give_up() -> None:
            if not told:
                told.append(True)
                late = sp.RoleTold(effect.copy, effect.instance, effect.role, effect.fencing, False, "timed out")
                self.tell(node, late)

        if program is not None and not ignores:
            self.kernel.after(self.kernel.between(MS // 5, 8 * MS), lambda: self._unfrozen(program, change))
        self.kernel.after(effect.timeout_ms * MS, give_up)

    def _freeze(self, program: Program) -> None:
        if program.alive:
            program.frozen = True
            self._check(program)
            self.tell(program.node, sp.Frozen(program.copy, program.instance))

    def _thaw(self, program: Program) -> None:
        if program.alive:
            program.frozen = False
            self._check(program)
            self.tell(program.node, sp.Thawed(program.copy, program.instance))
            for act in program.pending:
                act()
            program.pending.clear()

    def _die(self, program: Program, exit_: Exit) -> None:
        if not program.alive:
            return
        program.alive = False
        self._check(program)
        node, copy, instance, pid = program.node, program.copy, program.instance, program.pid
        alone = self.kernel.rng.random() < 0.7  # nothing of its tree outlives it, and the shell sees that at once
        self.kernel.after(MS // 10, lambda: self.tell(node, sp.Exited(copy, instance, exit_, alone)))
        self.kernel.after(MS // 10, lambda: self.gone(node, copy, pid))
        if not alone:
            later = self.kernel.between(MS // 5, 2 * MS)
            self.kernel.after(later, lambda: self.tell(node, sp.TreeGone(copy, instance)))

    def _adopt(self, node: str, effect: sp.Adopt) -> None:
        program = self.by_instance.get((node, effect.instance))

        def answer() -> None:
            if program is not None and program.alive:
                self.tell(node, sp.Adopted(effect.copy, effect.instance, program.pid, program.pid))
                if self.habit(program.copy).connects:
                    self.kernel.after(MS, lambda: self._unfrozen(program, lambda: self._connect(program)))
            else:
                self.tell(node, sp.Exited(effect.copy, effect.instance, Exit()))
                self.tell(node, sp.TreeGone(effect.copy, effect.instance))

        self.kernel.after(MS // 5, answer)

    def _check(self, program: Program) -> None:
        """Keep the ground truth, and hold it against invariant number one."""
        if not program.process.run_status.exclusive:
            return
        name = process_of(program.copy)
        acting = self.acting.setdefault(name, set())
        key = (program.node, program.instance)
        acts = program.alive and not program.frozen and program.role is Role.ACTIVE and program.node not in self.paused
        if not acts:
            acting.discard(key)
            return
        if key not in acting:
            acting.add(key)
            self.activations += 1
        if len(acting) > 1:
            raise Violation(f"two active copies of {name} at {self.kernel.now / 1e6:.3f} ms: {sorted(acting)}")
        # A copy may be thawed at its old number before it hears the new one, so numbers are compared between copies.
        self.fences[name] = max(self.fences.get(name, 0), program.fencing)
