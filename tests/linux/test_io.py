"""Sockets, inotify, FIFOs and logs of managed processes, on the real kernel."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ha.linux import sockets
from ha.linux.fifo import make_fifo, open_fifo, read_fifo
from ha.linux.identity import ended, reap
from ha.linux.inotify import DirectoryWatch
from ha.linux.rotate import RotatingFile
from ha.linux.sockets import ControlSocket, Notice, NotifySocket, Peer, parse_notice
from ha.linux.users import Account
from ha.model.errors import NotPermitted
from ha.model.status import Exit
from tests.linux.conftest import Children, wait_for

NOBODY = Account(uid=65534, gid=65534, groups=(65534,))


@pytest.mark.skipif(not shutil.which("systemd-notify"), reason="no systemd-notify here")
def test_an_unmodified_systemd_notify_says_ready_and_its_barrier_returns(children: Children, tmp_path: Path) -> None:
    path = str(tmp_path / "notify.sock")
    notify = NotifySocket(path)
    tool = shutil.which("systemd-notify")
    assert tool
    child = children.start(tool, "--ready", "--status=all well", environment={"NOTIFY_SOCKET": path})
    got: list[Notice] = []

    def served() -> bool:
        got.extend(notify.receive())
        return ended(child.pidfd)

    wait_for(served, "the end of systemd-notify, which waits for its barrier")
    assert reap(child.pidfd) == Exit(code=0)
    got.extend(notify.receive())
    assert any(notice.ready and notice.status == "all well" for notice in got)
    notify.close()


def test_notices_are_read_line_by_line_and_rubbish_says_nothing() -> None:
    assert parse_notice(b"READY=1\nSTATUS=a=b\nMAINPID=1\n\xff\nWATCHDOG_USEC=30000000", 7) == Notice(
        pid=7, ready=True, status="a=b", watchdog_usec=30_000_000
    )
    assert parse_notice(b"READY=0\nWATCHDOG=1\nSTOPPING=1\nWATCHDOG_USEC=-1", 7) == Notice(
        pid=7, watchdog=True, stopping=True
    )
    assert len(parse_notice(b"STATUS=" + b"x" * 5_000, 7).status or "") == 200


def test_a_notice_names_its_sender_and_leaves_no_descriptor(tmp_path: Path) -> None:
    notify = NotifySocket(str(tmp_path / "n"))
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
        program.connect(notify.path)
        read, write = os.pipe()
        socket.send_fds(program, [b"BARRIER=1"], [write])
        os.close(write)
        socket.send_fds(program, [b"READY=1"], [read] * 10)
        assert [notice.pid for notice in notify.receive()] == [os.getpid()] * 2
        assert os.read(read, 1) == b"", "the barrier is over when our copy is closed"
        os.close(read)
    assert len(os.listdir("/proc/self/fd")) == before
    assert notify.receive() == []
    notify.close()


@pytest.mark.root
def test_sockets_and_fifo_belong_to_the_processes_user(open_tmp: Path) -> None:
    os.chown(open_tmp, NOBODY.uid, NOBODY.gid)
    open_tmp.chmod(0o700)
    notify = NotifySocket(str(open_tmp / "notify.sock"), NOBODY)
    control = ControlSocket(str(open_tmp / "control.sock"), NOBODY)
    make_fifo(str(open_tmp / "out"), NOBODY)
    for name in ("notify.sock", "control.sock", "out"):
        seen = os.stat(open_tmp / name)
        assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o777) == (NOBODY.uid, NOBODY.gid, 0o600)
    assert os.stat(__file__).st_uid != NOBODY.uid
    notify.close()
    control.close()
    with open(open_tmp / "ours again", "w"):
        assert os.stat(open_tmp / "ours again").st_uid == 0


def test_only_our_own_sockets_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c"
    ControlSocket(str(path)).close()
    ControlSocket(str(path)).close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(NotPermitted, match="no socket stands there"):
        ControlSocket(str(path))
    assert path.read_text() == "precious"
    with pytest.raises(NotPermitted, match="longer than 107 bytes"):
        NotifySocket(str(tmp_path / ("x" * 120)))


def test_json_lines_come_and_go_in_pieces_with_the_peer_named(tmp_path: Path) -> None:
    listener = ControlSocket(str(tmp_path / "c"))
    with socket.socket(socket.AF_UNIX) as program:
        program.connect(listener.path)
        connection = listener.accept()
        assert connection is not None
        assert listener.accept() is None
        assert connection.peer == Peer(os.getpid(), os.getuid(), os.getgid())
        program.sendall(b'{"a": 1}\n\n{"b"')
        assert connection.receive() == [{"a": 1}]
        program.sendall(b": 2}\n")
        assert connection.receive() == [{"b": 2}]
        assert connection.send({"role": "active"})
        assert json.loads(program.recv(100)) == {"role": "active"}
        program.sendall(b'{"last": 1}\n')
    assert connection.receive() == [{"last": 1}]
    assert connection.receive() == []
    assert connection.closed == "peer closed"
    assert not connection.send({})
    assert listener.connections == set()
    listener.close()


@pytest.mark.parametrize(
    ("data", "reason"), [(b"[1]\n", "no JSON object"), (b"{\n", "no JSON object"), (b"x" * 140_000, "line too long")]
)
def test_a_malformed_or_endless_line_closes_only_that_connection(tmp_path: Path, data: bytes, reason: str) -> None:
    listener = ControlSocket(str(tmp_path / "c"))
    with socket.socket(socket.AF_UNIX) as bad, socket.socket(socket.AF_UNIX) as good:
        for program in (bad, good):
            program.connect(listener.path)
        first, second = listener.accept(), listener.accept()
        assert first is not None
        assert second is not None
        bad.sendall(data)
        for _ in range(4):
            first.receive()
        assert first.closed == reason
        good.sendall(b"{}\n")
        assert second.receive() == [{}]
    listener.close()


def test_a_program_that_does_not_read_is_closed_at_a_bound(tmp_path: Path) -> None:
    listener = ControlSocket(str(tmp_path / "c"))
    with socket.socket(socket.AF_UNIX) as program:
        program.connect(listener.path)
        connection = listener.accept()
        assert connection is not None
        sent = 0
        while connection.send({"x": "y" * 10_000}):
            sent += 10_000
            assert sent < 2 * sockets.OUT_BYTES
        assert connection.closed == "does not read"
    listener.close()


def test_more_connections_than_allowed_are_closed_at_once(tmp_path: Path) -> None:
    listener = ControlSocket(str(tmp_path / "c"))
    programs = [socket.socket(socket.AF_UNIX) for _ in range(sockets.CONNECTIONS + 1)]
    for number, program in enumerate(programs):
        program.connect(listener.path)
        assert (listener.accept() is not None) == (number < sockets.CONNECTIONS)
    assert programs[-1].recv(1) == b""
    for program in programs:
        program.close()
    listener.close()


def test_inotify_names_what_was_closed_moved_or_deleted(tmp_path: Path) -> None:
    directory = tmp_path / "tenants.d"
    directory.mkdir()
    watch = DirectoryWatch(str(directory))
    assert not watch.drain().names
    (directory / "a.toml").write_text("x")
    (tmp_path / "b").write_text("y")
    (tmp_path / "b").rename(directory / "b.toml")
    assert watch.drain().names == {"a.toml", "b.toml"}
    (directory / "a.toml").unlink()
    (directory / "b.toml").rename(tmp_path / "b")
    assert watch.drain().names == {"a.toml", "b.toml"}
    assert not watch.drain().lost
    directory.rmdir()
    assert watch.drain().lost
    watch.close()
    with pytest.raises(OSError, match="cannot watch"):
        DirectoryWatch(str(directory))


LINES = 20_000


def test_no_line_is_lost_over_a_killed_reader_and_the_writer_never_sees_epipe(
    children: Children, tmp_path: Path
) -> None:
    path, log = str(tmp_path / "out"), tmp_path / "log"
    make_fifo(path)
    held = open_fifo(path)  # a second agent holds it without reading, so that the last words of the dead stay
    # Like an agent: it reads, appends, and is killed at any moment between the two only by its own choice.
    reader = (
        "import sys, select\nfrom ha.linux.fifo import *\nfrom ha.linux.rotate import RotatingFile\n"
        f"fd = open_fifo({path!r}); log = RotatingFile({str(log)!r}, 1 << 30, 1)\nprint(flush=True)\n"
        "while True:\n  select.select([fd], [], []); log.write(read_fifo(fd, 4096))\n"
        "  if log._size > 20_000 and sys.argv[1] == 'first': __import__('os').kill(__import__('os').getpid(), 9)\n"
    )

    def start(which: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", reader, which], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        return process

    first = start("first")
    script = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; exit 3"
    writer = children.start("/bin/sh", "-c", script, output=path)
    first.wait()
    second = start("second")
    wait_for(lambda: ended(writer.pidfd), "the writer's end")
    assert reap(writer.pidfd) == Exit(code=3)
    wait_for(lambda: log.read_bytes().endswith(b"line %d\n" % (LINES - 1)), "the last line")
    assert log.read_text().splitlines() == [f"line {number}" for number in range(LINES)]
    second.kill()
    second.wait()
    os.close(held)


def test_a_fifo_has_a_large_buffer_and_is_quiet_without_writers(tmp_path: Path) -> None:
    import fcntl
    import select

    path = str(tmp_path / "out")
    make_fifo(path)
    make_fifo(path)
    fd = open_fifo(path)
    assert fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) >= 64 * 1024
    os.close(os.open(path, os.O_WRONLY))
    assert select.select([fd], [], [], 0)[0] == []
    assert read_fifo(fd) == b""
    os.close(fd)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotPermitted):
        open_fifo(str(tmp_path / "file"))
    with pytest.raises(NotPermitted):
        make_fifo(str(tmp_path / "file"))


def test_a_log_rotates_by_size_and_keeps_as_many_as_asked(tmp_path: Path) -> None:
    log = RotatingFile(str(tmp_path / "log"), 10, 2)
    for number in range(6):
        log.write(b"line %d\n" % number)
    log.close()
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts == {"log": "line 5\n", "log.1": "line 4\n", "log.2": "line 3\n"}
    again = RotatingFile(str(tmp_path / "log"), 100, 2)
    again.write(b"line 6\n")
    assert (tmp_path / "log").read_text() == "line 5\nline 6\n"
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    again.write(b"line 7\n")
    assert (tmp_path / "log").read_text() == "line 7\n"
    again.close()


def test_a_log_that_keeps_none_starts_over(tmp_path: Path) -> None:
    log = RotatingFile(str(tmp_path / "log"), 10, 0)
    log.write(b"12345678\n")
    log.write(b"abc\n")
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").read_text() == "abc\n"
