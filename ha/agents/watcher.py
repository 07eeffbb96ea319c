"""Watcher: the executable that watches the Master, `python -m ha.agents.watcher --config FILE --node NAME`.

No network, no zmq, no msgspec, no argparse: it is to be small, and the last thing the kernel ends for want of memory
(OOM score -1000 where that is permitted). It needs nothing of the system file but run_dir/NODE; without `--run` it
reads the file, then executes itself again with what it found, so that the reader's memory is not kept.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from collections import deque

from ha.core import watcher
from ha.core.watcher import Do, Mode
from ha.linux import lean

ENDED, FAILED, USAGE, RUNNING = 0, 1, 2, 5  # as in ha.agents.common.ExitCode
OOM_SCORE = "-1000"
END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
NO_SIGNALS = (signal.SIGHUP, signal.SIGUSR2)


def main(argv: list[str] | None = None) -> int:
    """Watch until told to end, or until the Master has ended on purpose; return an exit code."""
    options = _options(sys.argv[1:] if argv is None else argv)
    if options is None or not options.get("--config") or not options.get("--node"):
        sys.stderr.write("usage: python -m ha.agents.watcher --config FILE --node NAME [--run RUN_DIR/NODE]\n")
        return USAGE
    config, node = os.path.abspath(options["--config"]), options["--node"]
    if "--run" not in options:
        return _again(config, node)
    try:
        return _Watcher(config, node, options["--run"]).run()
    except _Running as error:
        sys.stderr.write(f"ha-watcher: {error}\n")
        return RUNNING
    except OSError as error:
        sys.stderr.write(f"ha-watcher: cannot watch the Master of {node}: {error}\n")
        return FAILED


class _Running(Exception):
    """Another live Watcher is there."""


def _options(words: list[str]) -> dict[str, str] | None:
    found = dict(zip(words[::2], words[1::2], strict=False))
    return found if len(words) % 2 == 0 and found.keys() <= {"--config", "--node", "--run"} else None


def _again(config: str, node: str) -> int:
    from ha.agents.files import load_system
    from ha.model.errors import HaError

    try:
        run = f"{load_system(config).run_dir}/{node}"
    except HaError as error:
        sys.stderr.write(f"ha-watcher: {error}\n")
        return USAGE
    arguments = ("-m", "ha.agents.watcher", "--config", config, "--node", node, "--run", run)
    return os.execv(sys.executable, (sys.executable, *arguments))


class _Watcher:
    """The machine's world: one pidfd, one signal pipe, the table."""

    def __init__(self, config: str, node: str, run: str) -> None:
        self.config, self.node, self.run_dir = config, node, run
        self.lock = _hold(run)
        self.table = lean.LeanTable(run)
        self.table.enter("watcher")
        self.epoll = select.epoll()
        self.pid = 0  # the Master whose pidfd is open
        self.pidfd = -1
        self.waiting: deque[watcher.Event | None] = deque()
        self.ending = False
        self.usual_oom_score = _oom_score()
        _set_oom_score(OOM_SCORE)
        _title(node)

    def run(self) -> int:
        """Turn until the end."""
        wake = self._take_signals()
        self.state, todo = watcher.start(self._now())
        self._do(todo)
        while not self.ending:
            wait_ns = max(0, watcher.wake_at(self.state) - self._now())
            ready = [fd for fd, _ in self.epoll.poll(wait_ns / 1_000_000_000)]
            self.table.turn("watcher", self._now())
            if wake in ready:
                self.ending = self.ending or any(number in END_SIGNALS for number in os.read(wake, 64))
            if self.pidfd in ready:
                self._feed(watcher.MasterDied(self._forget()))
            else:
                self._feed(None)
        return ENDED

    def _feed(self, event: watcher.Event | None) -> None:
        self.waiting.append(event)
        while self.waiting and not self.ending:
            self.state, todo = watcher.step(self.state, self.waiting.popleft(), self._now())
            self._do(todo)

    def _do(self, todo: list[Do]) -> None:
        for what in todo:
            if what is Do.LOOK:
                self.waiting.append(self._look())
            elif what is Do.START:
                self.waiting.append(self._start())
            elif what is Do.KILL:
                self._log("master.stuck", f"pid={self.pid}")
                _send(self.pidfd, signal.SIGKILL)
            else:
                self._log("master.ended", "the Watcher ends too")
                self.ending = True

    def _look(self) -> watcher.Looked:
        """Read the lock while no Master is known, or the known one does not hold it; then the table."""
        if self.pid == 0 or lean.ended(self.pidfd):
            pid, pidfd = lean.open_holder(self.run_dir, "master")
            if pid:
                self._keep(pid, pidfd)
                return self._looked(pid)
            return self._looked(0)
        return self._looked(self.pid)

    def _looked(self, pid: int) -> watcher.Looked:
        turn = self.table.turn_of("master", pid) if pid else 0
        return watcher.Looked(pid, turn, Mode(self.table.mode()))

    def _start(self) -> watcher.Event:
        """Start the Master with our own output; it ends quietly if another one has taken the lock meanwhile."""
        arguments = ("-m", "ha.agents.master", "--config", self.config, "--node", self.node, "--resume")
        _set_oom_score(self.usual_oom_score)  # what it starts inherits ours
        try:
            pid = os.posix_spawn(
                sys.executable, (sys.executable, *arguments), os.environ, setsid=True, setsigmask=(),
                setsigdef=(*END_SIGNALS, *NO_SIGNALS, signal.SIGPIPE),
            )  # fmt: skip
            pidfd = os.pidfd_open(pid)  # not reaped by anybody but us: it is that process
        except OSError as error:
            self._log("master.not-started", str(error))
            return watcher.NotStarted()
        finally:
            _set_oom_score(OOM_SCORE)
        self._log("master.started", f"pid={pid}")
        self._keep(pid, pidfd)
        return watcher.Started(pid)

    def _keep(self, pid: int, pidfd: int) -> None:
        self._forget()
        self.pid, self.pidfd = pid, pidfd
        self.epoll.register(pidfd, select.EPOLLIN)

    def _forget(self) -> int:
        """Give up the pidfd, reaping the process if it is ours; return the pid it had."""
        pid, self.pid = self.pid, 0
        if self.pidfd >= 0:
            try:
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                pass  # not our child: whoever started ha-master reaps it
            self.epoll.unregister(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
        return pid

    def _take_signals(self) -> int:
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (*END_SIGNALS, *NO_SIGNALS):
            signal.signal(number, _nothing)
        self.epoll.register(read, select.EPOLLIN)
        return read

    def _now(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def _log(self, event: str, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        try:
            os.write(2, f"{stamp} level=warning agent=watcher node={self.node} event={event} {text}\n".encode())
        except OSError:
            return  # nobody reads


def _hold(run: str) -> int:
    """Take the role's lock, in the form of `ha.linux.locks`; return its descriptor, to be kept open."""
    fd = os.open(f"{run}/agents/watcher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise _Running(f"another Watcher holds {run}/agents/watcher.lock") from None
    line = f"{os.getpid()} {lean.start_ticks(os.getpid())} {lean.boot_id()}"
    os.pwrite(fd, line.ljust(lean.LINE_BYTES - 1).encode() + b"\n", 0)
    os.ftruncate(fd, lean.LINE_BYTES)
    return fd


def _oom_score() -> str:
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return file.read().strip()


def _set_oom_score(score: str) -> None:
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(score)
    except OSError:
        return  # lowering it needs CAP_SYS_RESOURCE


def _title(node: str) -> None:
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(f"ha: watcher {node}")


def _send(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def _nothing(_number: int, _frame: object) -> None:
    """Let the wake-up fd tell the loop."""


if __name__ == "__main__":
    sys.exit(main())
