"""The demo as a whole, as a user runs it: it ends well in time, and whatever happens it leaves nothing."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.callcenter import demo
from examples.callcenter.demo_story import Failed
from examples.callcenter.demo_system import System

ROOT = Path(__file__).resolve().parents[2]
DEMO_S = 180  # the bound of the issue
STEPS = 10
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(DEMO_S + 60)]


@contextmanager
def running(*options: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo; end it, by its own ways, if the test has not."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.callcenter.demo", *options], cwd=ROOT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def directory_of(text: str) -> Path:
    found = re.search(r"directory (\S+),", text)
    assert found, text
    return Path(found[1])


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """Return the output up to the line with that word."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if word in line:
            return text
    pytest.fail(f"ended without {word!r}: {text}")


def left(directory: Path) -> list[str]:
    return System(directory).leftovers() if directory.exists() else []


def test_every_claim_holds_and_nothing_is_left() -> None:
    began = time.monotonic()
    with running() as process:
        text, _ = process.communicate(timeout=DEMO_S)
    assert process.returncode == 0, text
    assert time.monotonic() - began < DEMO_S
    assert len(re.findall(r"(?m)^\d+\. ", text)) == STEPS
    assert "NOT SO" not in text
    assert not directory_of(text).exists()


@pytest.mark.parametrize("moment", ["directory", "Real SIP calls", "A whole node is lost", "Ordered stop"])
def test_an_interrupt_ends_everything_and_leaves_nothing(moment: str) -> None:
    with running() as process:
        text = read_until(process, "directory")
        directory = directory_of(text)
        if moment not in text:
            read_until(process, moment)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    assert process.returncode == demo.INTERRUPTED, text
    assert "nothing is left" in text
    assert not directory.exists()


def test_what_is_kept_can_be_used_and_ended_as_it_says() -> None:
    with running("--keep") as process:
        text, _ = process.communicate(timeout=DEMO_S)
    directory = directory_of(text)
    try:
        assert process.returncode == 0, text
        commands = re.findall(r"(?m)^  ((?:export|hactl|make) .*)$", text)
        assert [command.split()[0] for command in commands] == ["export", "hactl", "make"], text
        script = f"{commands[0]}; hactl status && hactl switchover acme && hactl --json status"
        used = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, timeout=60, check=False)
        assert used.returncode == 0, used.stderr + used.stdout
        assert "switchover acme: done" in used.stdout
    finally:
        end = [sys.executable, "-m", "examples.callcenter.demo", "--end", str(directory)]
        ended = subprocess.run(end, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not directory.exists()


def test_a_step_that_fails_is_named_gives_exit_code_1_and_ends_what_was_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[System] = []

    def sabotaged(world: demo.World) -> None:
        made.append(world.system)
        for place in ("w1", "a1"):
            world.system.start(place)
        raise Failed("sabotaged by the test")

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(demo, "ordered_start", sabotaged)
    monkeypatch.setattr(sys, "argv", ["demo"])
    try:
        assert demo.main() == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    system = made[0]
    assert f"logs and data are kept in {system.root}" in capsys.readouterr().out
    assert (system.logs / "w1.log").exists()
    assert left(system.root) == []
    for process in system.places.values():
        process.wait()
    system.remove()


def test_an_agent_that_ends_at_its_start_is_told_at_once() -> None:
    system = System()
    system.config.write_text(system.config.read_text() + "\n[nonsense]\n")
    try:
        system.start("w1")
        assert system.places["w1"].wait(30) != 0
        with pytest.raises(Failed, match=r"w1 ended with code \d+: .*nonsense"):
            demo._none_ended(system)
    finally:
        system.end()
        system.remove()
