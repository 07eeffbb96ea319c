"""Processes: starting, signalling, freezing, thawing and killing the copies of this node, as the machine wants it.

Nothing here decides. Starts are cut into slices of `SLICE_MS`, so that a thousand of them delay no deadline; one that
had to wait is asked about again (`may_start`). Freezes are written for all copies first and confirmed after.
Death is a pidfd, emptiness is cgroup.events (or a look every LOOK_MS where there are no cgroups).
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ha.agents.surroundings import account_of, environment_of_copy, remove_directory
from ha.agents.talk import Feed, Talk
from ha.core import spawner
from ha.core.spawning import events as ev
from ha.core.spawning.launch import OUTPUT_FIFO
from ha.core.spawning.state import SpawnerState
from ha.linux import identity as ids
from ha.linux.cgroups import CgroupTree
from ha.linux.clocks import boot_id, wall
from ha.linux.fence import CgroupFence, Fence, fence_for
from ha.linux.identity import Identity
from ha.linux.outcome import Outcome
from ha.linux.spawn import EXEC_TIMEOUT_MS, Pending, SpawnError, SpawnRequest, begin, finish
from ha.linux.users import Account
from ha.model.errors import HaError
from ha.model.plan import Policy, Process
from ha.model.status import Exit
from ha.model.timing import MS
from ha.runtime import log
from ha.runtime.loop import Loop, Timer

SLICE_MS = 8
LOOK_MS = 20
CONFIRM_MS = 50


@dataclass(slots=True)
class Running:
    """One instance that runs, or of which something is left. `pidfd` -1: its main process has been seen to end."""

    copy: str
    instance: str
    identity: Identity
    pidfd: int
    fence: Fence
    account: Account
    killing: bool = False
    events_fd: int = -1
    timer: Timer | None = None


@dataclass(slots=True)
class Starting:
    """A child between clone and exec."""

    effect: ev.Spawn
    pending: Pending
    account: Account
    timer: Timer


@dataclass(slots=True)
class Processes:
    """See the module. `trees` None: no cgroups, fences work by signals."""

    loop: Loop
    talk: Talk
    policy: Policy
    trees: CgroupTree | None
    feed: Feed
    state: Callable[[], SpawnerState]
    running: dict[str, Running] = field(default_factory=dict)
    _queue: deque[ev.Spawn] = field(default_factory=deque)
    _slice_end: int = 0
    _starting: dict[int, Starting] = field(default_factory=dict)
    _unsure: list[Running] = field(default_factory=list)  # freezes to be confirmed
    _accounts: dict[tuple[str, str], Account] = field(default_factory=dict)
    _cookies: dict[str, list[int]] | None = None

    # --- start -----------------------------------------------------------------------------------

    def spawn(self, effect: ev.Spawn) -> None:
        """Start a copy, at once unless the slice of this turn is used up."""
        now = self.loop.now()
        if not self._slice_end:
            self._slice_end = now + SLICE_MS * MS
            self.loop.call_at(now, self._next_slice)
        if self._queue or now >= self._slice_end:
            self._queue.append(effect)
        else:
            self._start(effect)

    def _next_slice(self) -> None:
        self._slice_end = self.loop.now() + SLICE_MS * MS
        while self._queue and (now := self.loop.now()) < self._slice_end:
            effect = self._queue.popleft()
            if spawner.may_start(self.state(), effect.copy, effect.instance, now):
                self._start(effect)
            else:
                self.feed(ev.Withheld(effect.copy, effect.instance))
        if self._queue:
            self.loop.call_at(self.loop.now(), self._next_slice)
        else:
            self._slice_end = 0

    def _start(self, effect: ev.Spawn) -> None:
        process, cgroup_fd = effect.process, -1
        try:
            account = self._account(process)
            directory = self.talk.open(effect.copy, account, effect.instance)
            environment = self._environment(effect.environment, effect.identity, process, account)
            if self.trees is not None:
                cgroup_fd = self.trees.cgroup(effect.copy).create()
            request = self._request(effect.command, environment, process, account, directory, cgroup_fd)
            pending = begin(request)
        except (HaError, OSError, ValueError) as error:
            self.feed(ev.SpawnFailed(effect.copy, effect.instance, str(error)))
            return
        finally:
            if cgroup_fd >= 0:
                os.close(cgroup_fd)
        timer = self.loop.call_at(self.loop.now() + EXEC_TIMEOUT_MS * MS, lambda: self._executed(pending.error_fd))
        self._starting[pending.error_fd] = Starting(effect, pending, account, timer)
        self.loop.add_fd(pending.error_fd, lambda _: self._executed(pending.error_fd))

    def _executed(self, error_fd: int) -> None:
        """The child has reached exec, or said why not, or has taken too long."""
        starting = self._starting.pop(error_fd)
        starting.timer.cancel()
        self.loop.remove_fd(error_fd)
        effect = starting.effect
        try:
            spawned = finish(starting.pending, CONFIRM_MS)
        except SpawnError as error:
            self.feed(ev.SpawnFailed(effect.copy, effect.instance, str(error)))
            return
        main = Identity(spawned.pid, spawned.start_ticks, boot_id(), ids.inode_of(spawned.pidfd))
        if self.trees is not None:
            fence: Fence = CgroupFence(self.trees.cgroup(effect.copy))
        else:
            fence = fence_for(None, effect.copy, main, effect.instance)
        running = Running(effect.copy, effect.instance, main, spawned.pidfd, fence, starting.account)
        self.running[effect.copy] = running
        self.feed(ev.Spawned(effect.copy, effect.instance, spawned.pid, spawned.start_ticks, wall()))
        self._watch(running)

    def _request(
        self, command: tuple[str, ...], environment: dict[str, str], process: Process, account: Account,
        directory: str, cgroup_fd: int,
    ) -> SpawnRequest:  # fmt: skip
        return SpawnRequest(
            argv=command, environment=environment, directory=process.working_directory, account=account,
            umask=process.umask, nofile=process.limits.nofile, core_bytes=process.limits.core_bytes,
            nice=process.limits.nice, output=f"{directory}/{OUTPUT_FIFO}", cgroup=cgroup_fd if cgroup_fd >= 0 else None,
        )  # fmt: skip

    def forget_accounts(self) -> None:
        """Another plan: names are looked up anew."""
        self._accounts.clear()

    def _account(self, process: Process) -> Account:
        key = (process.user, process.group)
        if key not in self._accounts:
            self._accounts[key] = account_of(self.policy, process, self.state().agent_user)
        return self._accounts[key]

    def _environment(
        self, planned: dict[str, str], identity: dict[str, str], process: Process, account: Account
    ) -> dict[str, str]:
        return environment_of_copy(self.policy, planned, identity, process, account)

    # --- adopt -----------------------------------------------------------------------------------

    def adopt(self, effect: ev.Adopt) -> None:
        """Find an instance from before a restart of this agent."""
        copy = self.state().copies[effect.copy]
        main = self._find(effect)
        pidfd = ids.open_verified(main)
        alive = pidfd is not None and not ids.ended(pidfd)
        fence = fence_for(self.trees, effect.copy, main if alive else None, effect.instance)
        account = Account(uid=os.geteuid(), gid=os.getegid())
        try:
            if copy.plan is not None:
                account = self._account(copy.plan)
            if alive:
                self.talk.open(effect.copy, account, effect.instance)
        except (HaError, OSError, ValueError) as error:
            log.warning("adopt.sockets", subject=effect.copy, reason=str(error))
        running = Running(effect.copy, effect.instance, main, -1 if pidfd is None else pidfd, fence, account)
        self.running[effect.copy] = running
        if alive:
            self.feed(ev.Adopted(effect.copy, effect.instance, main.pid, main.start_ticks))
            self._watch(running)
            return
        exit = (ids.reap(pidfd, main) if pidfd is not None else None) or Exit()
        self._close_pidfd(running)
        self.feed(ev.Exited(effect.copy, effect.instance, exit))

    def _find(self, effect: ev.Adopt) -> Identity:
        if effect.pid:
            return Identity(effect.pid, effect.start_ticks, boot_id())
        if self._cookies is None:  # once: whoever died with us between fork and journal
            from ha.linux.tree import find_cookies

            self._cookies = find_cookies()
        for pid in sorted(self._cookies.get(effect.instance, ())):
            stat = ids.read_stat(pid)
            if stat is not None and stat.session == pid:
                return Identity(pid, stat.start_ticks, boot_id())
        return Identity(0, 0, boot_id())

    # --- death -----------------------------------------------------------------------------------

    def _watch(self, running: Running) -> None:
        self.loop.add_fd(running.pidfd, lambda _: self._died(running))

    def _died(self, running: Running) -> None:
        exit = ids.reap(running.pidfd, running.identity)
        if exit is None:
            return
        self._close_pidfd(running)
        gone = running.fence.gone()
        if gone:
            self._release(running)
        self.feed(ev.Exited(running.copy, running.instance, exit, gone))
        if running.killing and not gone:
            self._look(running)

    def _close_pidfd(self, running: Running) -> None:
        if running.pidfd >= 0:
            self.loop.remove_fd(running.pidfd)
            os.close(running.pidfd)
            running.pidfd = -1

    # --- kill ------------------------------------------------------------------------------------

    def kill(self, effect: ev.KillTree) -> None:
        """End the tree; TreeGone follows when nothing is left."""
        running = self._of(effect.copy, effect.instance)
        if running is None:
            self.feed(ev.TreeGone(effect.copy, effect.instance))
            return
        running.killing = True
        if running.pidfd >= 0 or not running.fence.gone():
            running.fence.kill(0)
            if running.events_fd < 0:
                events_fd = running.fence.open_events()
                if events_fd is not None:
                    running.events_fd = events_fd
                    self.loop.add_fd(events_fd, lambda _: self._look(running), select.EPOLLPRI)
        self._look(running)

    def _look(self, running: Running) -> None:
        """Look whether anything is left; if so, look again when the kernel says so, or after a while."""
        if self.running.get(running.copy) is not running:
            return
        if running.events_fd >= 0:
            _rearm(running.events_fd)
        if running.pidfd >= 0:
            exit = ids.reap(running.pidfd, running.identity)
            if exit is not None:
                self._close_pidfd(running)
                self.feed(ev.Exited(running.copy, running.instance, exit))
        if running.pidfd < 0 and running.fence.gone():
            self._release(running)
            self.feed(ev.TreeGone(running.copy, running.instance))
        elif running.timer is None or running.timer.call is None:
            running.timer = self.loop.call_at(self.loop.now() + LOOK_MS * MS, lambda: self._look_again(running))

    def _look_again(self, running: Running) -> None:
        running.timer = None
        self._look(running)

    def _release(self, running: Running) -> None:
        del self.running[running.copy]
        if running.timer is not None:
            running.timer.cancel()
        if running.events_fd >= 0:
            self.loop.remove_fd(running.events_fd)
            os.close(running.events_fd)
            running.events_fd = -1

    def forget(self, effect: ev.Forget) -> None:
        """Remove what a copy that left the plan had: sockets, directory, cgroup."""
        self.talk.close(effect.copy)
        remove_directory(self.talk.directory(effect.copy))
        if self.trees is not None:
            self.trees.cgroup(effect.copy).remove()

    # --- freeze, thaw ----------------------------------------------------------------------------

    def freeze(self, effect: ev.Freeze) -> None:
        """Freeze the tree; what the kernel has not confirmed at once is asked again after the others are written."""
        running = self._of(effect.copy, effect.instance)
        if running is None:
            self.feed(ev.Frozen(effect.copy, effect.instance))  # nothing of it is known: nothing of it acts
            return
        outcome = running.fence.freeze(0)
        if outcome is Outcome.LATE:
            if not self._unsure:
                self.loop.call_at(self.loop.now(), self._confirm)
            self._unsure.append(running)
        else:
            self.feed(ev.Frozen(effect.copy, effect.instance, outcome.reached))

    def _confirm(self) -> None:
        unsure, self._unsure = self._unsure, []
        for running in unsure:
            outcome = running.fence.freeze(CONFIRM_MS)
            self.feed(ev.Frozen(running.copy, running.instance, outcome.reached))

    def thaw(self, effect: ev.Thaw) -> None:
        """Let the tree go on."""
        running = self._of(effect.copy, effect.instance)
        if running is None:
            return  # it died while frozen: Exited and TreeGone are on their way
        outcome = running.fence.thaw()
        self.talk.thawed(effect.copy)
        self.feed(ev.Thawed(effect.copy, effect.instance, outcome.reached))

    # --- signals and commands --------------------------------------------------------------------

    def signal(self, effect: ev.Signal) -> None:
        """Signal the main process."""
        running = self._of(effect.copy, effect.instance)
        if running is not None:
            self._send(running, effect.signal)

    def tell(self, effect: ev.TellRole) -> None:
        """Tell a copy its role."""
        running = self._of(effect.copy, effect.instance)
        if running is None:
            return
        told = (effect.copy, effect.instance, effect.role, effect.fencing)
        match effect.method:
            case ev.Method.SOCKET:
                self.talk.tell(effect)
            case ev.Method.SIGNAL:
                reason = self._send(running, effect.signal)
                self.feed(ev.RoleTold(*told, not reason, reason))
            case ev.Method.COMMAND:
                self._run(
                    running, effect.command, effect.environment, effect.identity,
                    lambda reason: self.feed(ev.RoleTold(*told, not reason, reason)),
                )  # fmt: skip

    def stop_command(self, effect: ev.StopCommand) -> None:
        """Run the stop command of a copy."""
        running = self._of(effect.copy, effect.instance)
        if running is not None:
            self._run(
                running, effect.command, effect.environment, effect.identity,
                lambda reason: self.feed(ev.CommandDone(effect.copy, effect.instance, not reason, reason)),
            )  # fmt: skip

    def _send(self, running: Running, name: str) -> str:
        """Signal the main process; return why not."""
        try:
            number = signal.Signals[name]
            sent = running.pidfd >= 0 and ids.send(running.pidfd, number)
        except (KeyError, OSError) as error:
            return f"cannot send {name}: {error}"
        return "" if sent else "it has ended"

    def _run(
        self, running: Running, command: tuple[str, ...], planned: dict[str, str], identity: dict[str, str],
        done: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Run a command in the copy's cgroup, as its user; `done` is called with why it failed, or ""."""
        copy = self.state().copies.get(running.copy)
        if copy is None or copy.plan is None:
            return
        cgroup_fd = -1
        try:
            environment = self._environment(planned, identity, copy.plan, running.account)
            if isinstance(running.fence, CgroupFence):
                cgroup_fd = running.fence.cgroup.create()
            directory = self.talk.directory(running.copy)
            spawned = finish(
                begin(self._request(command, environment, copy.plan, running.account, directory, cgroup_fd))
            )
        except (HaError, OSError, ValueError) as error:
            done(str(error))
            return
        finally:
            if cgroup_fd >= 0:
                os.close(cgroup_fd)

        def ended(_: int) -> None:
            exit = ids.reap(spawned.pidfd)
            if exit is None:
                return
            self.loop.remove_fd(spawned.pidfd)
            os.close(spawned.pidfd)
            done("" if exit.clean else f"{command[0]} {_ended(exit)}")

        self.loop.add_fd(spawned.pidfd, ended)

    def _of(self, copy: str, instance: str) -> Running | None:
        running = self.running.get(copy)
        return running if running is not None and running.instance == instance else None


def _rearm(events_fd: int) -> None:
    from ha.linux.cgroups import read_events

    read_events(events_fd)


def _ended(exit: Exit) -> str:
    return f"ended with code {exit.code}" if exit.code is not None else f"ended by {exit.signal}"
