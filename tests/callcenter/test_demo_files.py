"""The files of the demo, as a user would read and copy them."""

import os
import shutil
import subprocess
import sys

import pytest
import tomli

from examples.callcenter.demo_story import Failed, RoleWatch
from examples.callcenter.demo_system import EXAMPLES, Hactl, System
from ha.config import check_paths


@pytest.fixture
def system():
    made = System()
    yield made
    shutil.rmtree(made.root)


def test_no_two_processes_of_a_node_share_a_port(system):
    ports = []
    for template in (*sorted((EXAMPLES / "tenants.d").glob("*.toml")), EXAMPLES / "initech.toml"):
        for process in tomli.loads(system.render(template))["process"].values():
            words = process["command"]
            ports += [words[words.index(option) + 1] for option in ("--port", "--health-port") if option in words]
    assert len(ports) == len(set(ports)) >= 10


def test_every_file_passes_the_check(system):
    file = system.drop(EXAMPLES / "initech.toml")
    assert check_paths(str(system.config), ()) == ()
    assert check_paths(str(system.config), (str(file),)) == ()


def test_the_broken_file_is_refused_by_line_and_column(system):
    found = check_paths(str(system.config), (str(system.drop(EXAMPLES / "broken.toml")),))
    assert {finding.line for finding in found} == {3, 7}
    assert all(finding.file.endswith("broken.toml") for finding in found)
    assert all(finding.column and finding.text for finding in found)


def test_a_system_that_never_ran_leaves_nothing(system):
    assert system.leftovers() == []


def test_what_still_runs_is_found_and_ended_and_nothing_else(system):
    other = subprocess.Popen(["sleep", "60"])
    running = system.run("acd.py", "--bind", system.address("b2"), "--port", "5110", log="acd")
    try:
        watch = RoleWatch(system, 5110)
        with pytest.raises(Failed):
            watch.hear(0, timeout=0.5)  # without HA_EPOCH it says 0
        watch.close()
        assert system.members() == {running.pid}
        assert system.members("a1") == set()
        assert any(f"process {running.pid}" in line for line in system.leftovers())
        assert f"listening at {system.address('b2')}:5110" in system.leftovers()
        system.places["outside"] = running
        system.end()
        assert running.poll() == -9
        assert other.poll() is None
        assert system.leftovers() == []
    finally:
        for process in (running, other):
            process.kill()
            process.wait()


def test_the_watch_hears_who_becomes_active(system):
    one = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "acd.py"), "--bind", system.address("b1"), "--port", "5110"],
        stdout=subprocess.DEVNULL, env=os.environ | {"HA_EPOCH": "131073"},
    )  # fmt: skip
    watch = RoleWatch(system, 5110)
    try:
        assert watch.hear(65536)[1:] == ("b1", 131073)
    finally:
        watch.close()
        one.terminate()
        one.wait()


def test_hactl_refuses_the_broken_file_with_exit_code_2(system):
    with pytest.raises(Hactl, match=r"broken.toml:3:\d+: .*\n.*broken.toml:7:\d+: ") as refused:
        system.hactl("check", str(system.drop(EXAMPLES / "broken.toml")))
    assert refused.value.code == 2
