"""Starts the call centre's programs on free loopback ports, and ends what it started."""

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "callcenter"
sys.path.insert(0, str(EXAMPLES))


class Running:
    """A started program; `line` reads its JSON lines."""

    def __init__(self, name, arguments, environment):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HA_", "NOTIFY"))}
        command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**clean, **environment})
        self._unread = b""

    def line(self, event=None, timeout=10.0, **fields):
        """Return the next JSON line with this event and these fields. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            head, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                found = json.loads(head)
                if (event is None or found.get("event") == event) and fields.items() <= found.items():
                    return found
            elif select.select([self.process.stdout], [], [], left)[0]:
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    raise TimeoutError(f"ended without {event} {fields}, exit code {self.process.wait()}")
                self._unread += data
        raise TimeoutError(f"no {event} {fields} within {timeout} s")

    def end(self, timeout=10.0):
        """SIGTERM; return the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()


@pytest.fixture
def start():
    running = []

    def begin(name, *arguments, environment=None, ready=True):
        program = Running(name, arguments, environment or {})
        running.append(program)
        if ready:
            program.line("ready")
        return program

    yield begin
    codes = [program.end() if not program.process.stdout.closed else 0 for program in reversed(running)]
    assert all(code == 0 for code in codes), f"a program did not end cleanly: {codes}"


@pytest.fixture
def free_port():
    """Return a function that gives ports free for TCP and UDP, two in a row, none given twice."""
    given = set()

    def find():
        for _ in range(100):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            if port + 1 < 65536 and not given & {port, port + 1} and all(_free(port + n) for n in (0, 1)):
                given.update((port, port + 1))
                return port
        raise AssertionError("no two free ports in a row")

    return find


def _free(port):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


class Talk:
    """A line connection to a program; reading waits for a line, at most five seconds."""

    def __init__(self, port):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self._file = self._socket.makefile("r", encoding="utf-8", newline="\n")
        self.greeting = self.read()

    def read(self):
        return self._file.readline().rstrip("\n")

    def send(self, line):
        self._socket.sendall(line.encode() + b"\n")

    def ask(self, line):
        self.send(line)
        return self.read()

    def close(self):
        self._file.close()
        self._socket.close()


@pytest.fixture
def talk():
    opened = []

    def connect(port):
        opened.append(Talk(port))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


class Phone:
    """A UDP socket that speaks SIP as a test wants, byte by byte."""

    def __init__(self, port):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.connect(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.target = port

    def request(self, method, *, call="call-1", branch="z9hG4bK-1", to_tag="", cseq=1, uri="", body="", extra=(),
                cseq_method=""):  # fmt: skip
        uri = uri or f"sip:100@127.0.0.1:{self.target}"
        lines = [
            f"{method} {uri} SIP/2.0", f"Via: SIP/2.0/UDP 127.0.0.1:{self.port};branch={branch};rport",
            "Max-Forwards: 70", "From: <sip:test@127.0.0.1>;tag=abc",
            f"To: <sip:100@127.0.0.1>{';tag=' + to_tag if to_tag else ''}", f"Call-ID: {call}",
            f"CSeq: {cseq} {cseq_method or method}", f"Contact: <sip:test@127.0.0.1:{self.port}>",
            *extra, f"Content-Length: {len(body)}", "", body,
        ]  # fmt: skip
        return "\r\n".join(lines)

    def send(self, text):
        self._socket.send(text.encode() if isinstance(text, str) else text)

    def read(self, timeout=5.0):
        """Return the next message, or None after `timeout`."""
        import sip

        data = self.read_raw(timeout)
        return Heard(*sip.parse(data)) if data else None

    def read_raw(self, timeout=5.0):
        """Return the next datagram, or None after `timeout`."""
        self._socket.settimeout(timeout)
        try:
            return self._socket.recv(65536)
        except TimeoutError:
            return None

    def final(self, timeout=5.0):
        """Return the next answer that is not provisional."""
        while (heard := self.read(timeout)) and heard.code and heard.code < 200:
            pass
        return heard

    def ask(self, method, **fields):
        self.send(self.request(method, **fields))
        return self.final()

    def close(self):
        self._socket.close()


class Heard:
    """A message, with what tests look at."""

    def __init__(self, message, parts):
        self.message = message
        self.code = getattr(message, "code", None)
        self.method = getattr(message, "method", None)
        self.tag = parts.to_tag
        self.cseq = (parts.cseq, parts.cseq_method)
        self.headers = message.headers


@pytest.fixture
def phone(start, free_port):
    """A phone, and an IVR that stands alone at `phone.target`."""
    port = free_port()
    start("ivr.py", "--port", port)
    phone = Phone(port)
    yield phone
    phone.close()
