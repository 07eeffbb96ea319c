"""Host: what this machine can do for us, for `hactl doctor`: each feature, what follows from it, how to mend it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum

import msgspec

from ha.linux import clocks, identity, spawn
from ha.linux.cgroups import CgroupTree
from ha.model.status import Exit

NOFILE_WANTED = 8_192  # a pidfd, a cgroup.events, a FIFO and two sockets for each of 1,000 copies, and room
NPROC_WANTED = 4_096
SLEW_NOTED = 500e-6


class Verdict(StrEnum):
    """How good a feature is here."""

    GOOD = "good"
    WEAK = "weak"  # we go on, with what `follows`
    MISSING = "missing"  # not here; `follows` says what takes its place, or that nothing does


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `hactl doctor`. `required`: agents do not run without it."""

    name: str
    state: Verdict
    value: str
    follows: str = ""
    mend: str = ""
    required: bool = False


def features(tree_name: str = "ha-doctor") -> tuple[Feature, ...]:
    """Return all features, in the order to print. `tree_name`: cgroup tree to try, `ha-<system>-<node>`.

    Starts /bin/true-like children and removes the tree again if it is empty.
    """
    tree, reason = CgroupTree.find(tree_name)
    try:
        return (
            _kernel(), _pidfd(), _exit_info(), _cgroup(tree, reason), _kill(tree), _clone_into(tree), _rights(),
            _nofile(), _nproc(), _clock(), _notify(), _boot(),
        )  # fmt: skip
    finally:
        if tree is not None:
            with suppress(OSError):  # a tree in use stays
                os.rmdir(tree.root)


def _kernel() -> Feature:
    uname = os.uname()
    version = kernel_version(uname.release)
    state = Verdict.GOOD if version >= (5, 14) else Verdict.WEAK if version >= (5, 4) else Verdict.MISSING
    return Feature(
        name="kernel", state=state, value=f"{uname.release} {uname.machine}", required=True,
        follows="" if state is Verdict.GOOD else "pidfds need 5.4, cgroup.kill 5.14",
        mend="" if state is Verdict.GOOD else "run a kernel of 5.14 or later; 6.15 knows every exit status",
    )  # fmt: skip


def kernel_version(release: str) -> tuple[int, int]:
    """Return (major, minor) of a release such as "6.1.0-18-amd64"; (0, 0) for anything else."""
    words = release.split("-")[0].split(".")
    if len(words) < 2 or not (words[0].isdigit() and words[1].isdigit()):
        return 0, 0
    return int(words[0]), int(words[1])


def _pidfd() -> Feature:
    try:
        fd = os.pidfd_open(os.getpid())
    except OSError as error:
        return Feature(
            name="pidfd", state=Verdict.MISSING, value=error.strerror or "", required=True,
            follows="processes cannot be watched or signalled safely", mend="kernel 5.4; allow pidfd_open in seccomp",
        )  # fmt: skip
    try:
        inode = identity.inode_of(fd)
    finally:
        os.close(fd)
    return Feature(name="pidfd", state=Verdict.GOOD, value="with inode" if inode else "without inode", required=True)


def _exit_info() -> Feature:
    found = _with_child(_reap_then_ask)
    if found == Exit(code=0):
        return Feature(name="exit status of others' children", state=Verdict.GOOD, value="PIDFD_GET_INFO")
    return Feature(
        name="exit status of others' children", state=Verdict.WEAK, value="until they are reaped",
        follows="a death while the Spawner is down can have an unknown exit status", mend="kernel 6.15",
    )  # fmt: skip


def _reap_then_ask(pid: int, pidfd: int) -> Exit | None:
    os.waitpid(pid, 0)
    return identity.exit_by_info(pidfd)


def _cgroup(tree: CgroupTree | None, reason: str) -> Feature:
    if tree is not None:
        cgroup = tree.cgroup("doctor/probe.1")
        os.close(cgroup.create())
        frozen = cgroup.freeze(100)
        cgroup.thaw()
        cgroup.remove()
        if frozen.reached:
            return Feature(name="cgroup v2 freezer", state=Verdict.GOOD, value=tree.root)
        reason = f"{tree.root}: freezing is {frozen}"
    return Feature(
        name="cgroup v2 freezer", state=Verdict.MISSING, value=reason,
        follows="process trees are frozen and ended by signals, found by session and HA_INSTANCE",
        mend="mount cgroup2 at /sys/fs/cgroup; under systemd set Delegate=yes",
    )  # fmt: skip


def _kill(tree: CgroupTree | None) -> Feature:
    if tree is not None:
        return Feature(name="cgroup.kill", state=Verdict.GOOD, value="usable")
    return Feature(name="cgroup.kill", state=Verdict.MISSING, value="", follows="as above", mend="kernel 5.14")


def _clone_into(tree: CgroupTree | None) -> Feature:
    name = "clone3 into cgroup"
    if tree is None:
        return Feature(name=name, state=Verdict.MISSING, value="no cgroup", follows="children are not placed")
    if not spawn.clone_usable():
        return Feature(
            name=name, state=Verdict.WEAK, value="not safe with this interpreter's allocator",
            follows="a start takes about 1 ms longer", mend="unset PYTHONMALLOC and PYTHONDEVMODE",
        )  # fmt: skip
    cgroup = tree.cgroup("doctor/clone.1")
    fd = cgroup.create()
    try:
        _with_child(_reap_then_ask, fd)
    finally:
        os.close(fd)
        cgroup.remove()
    if spawn.uses_clone3():
        return Feature(name=name, state=Verdict.GOOD, value="usable")
    return Feature(name=name, state=Verdict.WEAK, value="refused", follows="a start takes about 1 ms longer",
                   mend="allow clone3 in seccomp")  # fmt: skip


def _rights() -> Feature:
    if os.geteuid() == 0:
        return Feature(name="rights", state=Verdict.GOOD, value="root")
    return Feature(
        name="rights", state=Verdict.WEAK, value=f"uid {os.geteuid()}",
        follows="processes run as this user only; `user`, negative nice and higher limits are refused",
        mend="run ha-master as root",
    )  # fmt: skip


def _nofile() -> Feature:
    return _limit("open files", resource.RLIMIT_NOFILE, NOFILE_WANTED, "LimitNOFILE")


def _nproc() -> Feature:
    return _limit("processes", resource.RLIMIT_NPROC, NPROC_WANTED, "LimitNPROC")


def _limit(name: str, which: int, wanted: int, setting: str) -> Feature:
    soft, hard = resource.getrlimit(which)
    enough = hard in (-1, resource.RLIM_INFINITY) or hard >= wanted
    return Feature(
        name=name, state=Verdict.GOOD if enough else Verdict.WEAK, value=f"{_count(soft)} of {_count(hard)}",
        follows="" if enough else "fewer than 1,000 copies fit on this node",
        mend="" if enough else f"{setting}={wanted} in the unit, or ulimit",
    )  # fmt: skip


def _count(value: int) -> str:
    return "unlimited" if value in (-1, resource.RLIM_INFINITY) else str(value)


def _clock() -> Feature:
    rate = clocks.slew()
    steady = rate <= SLEW_NOTED
    return Feature(
        name="clock rate", state=Verdict.GOOD if steady else Verdict.WEAK, value=f"{rate * 1e6:.1f} ppm off nominal",
        follows="" if steady else "beyond `drift` this node is granted no lease",
        mend="" if steady else "let NTP finish, or have it slew at most 500 ppm (chrony: maxslewrate 500)",
    )  # fmt: skip


def _notify() -> Feature:
    path = shutil.which("systemd-notify")
    return Feature(
        name="systemd-notify", state=Verdict.GOOD if path else Verdict.WEAK, value=path or "not found",
        follows="" if path else "shell scripts need another way to say READY=1 (python: ha.sdk)",
    )  # fmt: skip


def _boot() -> Feature:
    return Feature(name="boot id", state=Verdict.GOOD, value=clocks.boot_id(), required=True)


def _with_child(ask: Callable[[int, int], Exit | None], cgroup: int | None = None) -> Exit | None:
    program = shutil.which("true") or "/bin/true"
    try:
        child = spawn.spawn(spawn.SpawnRequest(argv=(program,), environment={}, cgroup=cgroup))
    except spawn.SpawnError:
        return None
    try:
        return ask(child.pid, child.pidfd)
    finally:
        identity.send(child.pidfd, signal.SIGKILL)
        os.close(child.pidfd)
