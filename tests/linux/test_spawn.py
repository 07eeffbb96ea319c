from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ha.linux import spawn as module
from ha.linux.cgroups import CgroupTree
from ha.linux.fifo import make_fifo, open_fifo, read_fifo
from ha.linux.identity import ended, reap
from ha.linux.spawn import SpawnError, SpawnRequest, spawn, spawn_agent
from ha.linux.steps import Stage
from ha.linux.users import Account
from ha.model.status import Exit
from tests.linux.conftest import Children, wait_for

NOBODY = Account(uid=65534, gid=65534, groups=(65534,))


@pytest.fixture(params=["clone3", "fork"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "clone3" and not module.uses_clone3():
        pytest.skip("clone3 is not usable here")
    monkeypatch.setattr(module, "_clone_works", request.param == "clone3")
    return str(request.param)


def output_of(children: Children, tmp_path: Path, script: str, **options: object) -> str:
    """What a shell script writes to its FIFO."""
    path = str(tmp_path / "out")
    make_fifo(path)
    fd = open_fifo(path)
    child = children.start("/bin/sh", "-c", script, output=path, **options)
    wait_for(lambda: ended(child.pidfd), "the script's end")
    data = read_fifo(fd)
    os.close(fd)
    return data.decode()


def fail(**options: object) -> SpawnError:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(SpawnError) as caught:
        spawn(SpawnRequest(**{"argv": ("/bin/true",), "environment": {}} | options))  # type: ignore[arg-type]
    assert set(os.listdir("/proc/self/fd")) - before <= {str(module._null_fd), str(module._oom_fd[1])} | before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    return caught.value


def test_a_failed_start_names_its_stage_and_leaves_nothing(tmp_path: Path, way: str) -> None:
    module._null()
    module.own_oom_score_adj()
    missing = fail(argv=("/nowhere/program",))
    assert (missing.stage, missing.errno) == (Stage.EXEC, errno.ENOENT)
    assert str(missing) == "cannot start /nowhere/program: exec: No such file or directory"
    assert fail(argv=("sleep",)).stage is Stage.REQUEST
    assert fail(argv=()).stage is Stage.REQUEST
    assert fail(directory="/nowhere").stage is Stage.DIRECTORY
    assert fail(output=str(tmp_path / "no" / "fifo")).stage is Stage.OUTPUT
    script = tmp_path / "script"
    script.write_text("no shebang")
    script.chmod(0o755)
    assert fail(argv=(str(script),)).errno == errno.ENOEXEC


@pytest.mark.root
def test_a_limit_or_user_that_cannot_be_set_names_its_stage() -> None:
    assert fail(nofile=1 << 40).stage is Stage.LIMITS
    assert fail(account=Account(uid=65534, gid=65534), directory="/root").stage is Stage.DIRECTORY
    assert fail(account=NOBODY, nice=-1, nofile=None, directory="/root").errno == errno.EACCES


def test_the_uid_that_means_no_change_is_refused_so_nothing_runs_as_root_by_it() -> None:
    assert fail(account=Account(uid=2**32 - 1, gid=65534)).stage is Stage.REQUEST
    assert fail(account=Account(uid=65534, gid=2**32 - 1)).stage is Stage.REQUEST


def test_a_removed_cgroup_names_its_stage(cgroups: CgroupTree, way: str) -> None:
    cgroup = cgroups.cgroup("acme/gone.1")
    fd = cgroup.create()
    cgroup.remove()
    assert fail(cgroup=fd).stage in (Stage.CGROUP, Stage.FORK)
    os.close(fd)


def test_the_child_has_all_that_was_asked_for(children: Children, tmp_path: Path) -> None:
    said = output_of(
        children, tmp_path,
        "umask; ulimit -n; ulimit -c; pwd; echo $A; nice; ps -o sid=,pid= -p $$ | tr -s ' '; ls /proc/self/fd | wc -l; "
        "readlink /proc/self/fd/0; grep -E 'Sig(Ign|Blk)' /proc/self/status; cat /proc/self/oom_score_adj",
        environment={"A": "b c", "PATH": "/usr/bin:/bin"}, directory="/usr", umask=0o027, nofile=99, core_bytes=0,
        nice=3, oom_score_adj=5,
    ).splitlines()  # fmt: skip
    assert said[:6] == ["0027", "99", "0", "/usr", "b c", "3"]
    sid, pid = said[6].split()
    assert sid == pid
    assert said[7] == "4"  # 0, 1, 2 and the directory that ls reads
    assert said[8] == "/dev/null"
    assert [line.split()[1] for line in said[9:11]] == ["0" * 16, "0" * 16]
    assert said[11] == "5"
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN, "or the line above proves nothing"


@pytest.mark.root
def test_the_child_is_that_user_with_no_group_of_ours(children: Children, open_tmp: Path) -> None:
    os.chown(open_tmp, NOBODY.uid, NOBODY.gid)
    path = str(open_tmp / "out")
    make_fifo(path, NOBODY)
    assert os.stat(path).st_uid == NOBODY.uid
    fd = open_fifo(path, NOBODY)
    child = children.start(
        "/bin/sh", "-c", "id -u; id -g; id -G; grep CapEff /proc/self/status", output=path, account=NOBODY
    )
    wait_for(lambda: ended(child.pidfd), "the end")
    words = read_fifo(fd).decode().split()
    assert words == ["65534", "65534", "65534", "CapEff:", "0" * 16]
    os.close(fd)


@pytest.mark.root
def test_a_link_planted_for_the_output_is_not_followed(open_tmp: Path) -> None:
    secret = open_tmp / "secret"
    secret.write_text("mine")
    secret.chmod(0o600)
    theirs = open_tmp / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY.uid, NOBODY.gid)
    (theirs / "out").symlink_to(secret)
    assert fail(output=str(theirs / "out"), account=NOBODY).stage is Stage.OUTPUT
    (theirs / "out").unlink()
    os.link(secret, theirs / "out")
    refused = fail(output=str(theirs / "out"), account=NOBODY)
    assert (refused.stage, refused.errno) == (Stage.OUTPUT, errno.EACCES)


def test_the_child_starts_in_its_cgroup_and_our_descriptors_stay_ours(children: Children, cgroups: CgroupTree) -> None:
    cgroup = cgroups.cgroup("acme/acd.1")
    fd = cgroup.create()
    leak = socket.socket()
    leak.set_inheritable(True)
    child = children.start("/bin/sleep", "100", cgroup=fd)
    os.close(fd)
    assert cgroup.pids() == (child.pid,)
    leak.close()
    # The loader opens libraries at first.
    wait_for(lambda: sorted(os.listdir(f"/proc/{child.pid}/fd")) == ["0", "1", "2"], "three descriptors")


def test_a_start_survives_busy_allocators_in_other_threads(way: str, children: Children) -> None:
    """ZeroMQ's I/O threads allocate while we clone: the child must not wait for their locks."""
    zmq = pytest.importorskip("zmq")
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        for side in (push, pull):
            side.set_hwm(100_000)
            side.linger = 0
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        push.connect(f"tcp://127.0.0.1:{port}")
        environment = {f"VARIABLE_{n}": "x" * 200 for n in range(200)}
        for _ in range(150):
            for _ in range(50):
                push.send(b"y" * 3_000, copy=False)
            child = spawn(SpawnRequest(argv=("/bin/true",), environment=environment))
            while pull.poll(0):
                pull.recv()
            os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
            os.close(child.pidfd)


def test_signals_and_the_collector_are_as_before() -> None:
    import gc

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    child = spawn(SpawnRequest(argv=("/bin/true",), environment={}))
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
    os.close(child.pidfd)
    assert gc.isenabled()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert threading.active_count() == 1


def test_many_starts_overlap_and_each_error_finds_its_own(children: Children) -> None:
    pending = [
        module.begin(SpawnRequest(argv=("/bin/true" if n % 2 else "/nowhere/x",), environment={})) for n in range(20)
    ]
    for number, one in enumerate(pending):
        if number % 2:
            children.spawned.append(module.finish(one))
        else:
            with pytest.raises(SpawnError, match="exec"):
                module.finish(one)


def test_an_agent_gets_its_own_session_and_appends_its_output(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    for _ in range(2):
        agent = spawn_agent(("/bin/sh", "-c", "ps -o sid= -p $$; echo $$"), {"PATH": "/usr/bin:/bin"}, output=str(log))
        os.waitid(os.P_PIDFD, agent.pidfd, os.WEXITED | os.WNOWAIT)
        assert reap(agent.pidfd) == Exit(code=0)
        os.close(agent.pidfd)
    words = log.read_text().split()
    assert len(words) == 4
    assert words[0] == words[1]
    assert words[2] == words[3]


def test_dev_mode_falls_back_to_fork() -> None:
    script = "from ha.linux import spawn; print(spawn.uses_clone3())"
    said = subprocess.run([sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_limits_of_the_parent_stay(children: Children) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    children.start("/bin/sleep", "100", nofile=64)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
