"""Tenants on a real duplex system: run statuses, roles, crashes, moves, order, on two sides with two nodes each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.e2e.tenant_bed import Bed

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def running() -> Iterator[Bed]:
    with Bed() as made:
        made.start()
        made.wait_seated()
        yield made


@pytest.fixture
def bed(running: Bed) -> Iterator[Bed]:
    """The module's system, without tenants at the start and the end of each test."""
    yield running
    names = [path.stem for path in running.tenants_dir.glob("*.toml")]
    for name in names:
        running.remove_tenant(name)
        running.gone(name)
    running.ledger.unlink(missing_ok=True)
    running.ledger.with_suffix(".hang").unlink(missing_ok=True)
    for path in running.directory.glob("flag*"):
        path.unlink()


def two_warm(bed: Bed, name: str) -> None:
    bed.write_tenant(
        name,
        f'[process.acd]\ncommand = {bed.sdk()}\nrun_status = "warm"\nready = {{ by = "notify" }}\n'
        f'[process.rec]\ncommand = {bed.plain()}\ndepends_on = ["acd"]\n',
    )


def sides(bed: Bed, process: str) -> dict[str, list[str]]:
    """Side -> roles of the ready copies."""
    found: dict[str, list[str]] = {}
    for copy in bed.ready(process).values():
        found.setdefault(copy["side"], []).append(copy["role"])
    return found


# --- run statuses and roles -------------------------------------------------------------------------


def test_cold_runs_on_its_active_side_only(bed: Bed) -> None:
    bed.write_tenant("alder", f'[tenant]\nhome = "b"\n[process.db]\ncommand = {bed.plain()}\n')
    bed.ok("alder")
    assert sides(bed, "alder/db") == {"b": ["active"]}
    assert len(bed.running("alder")) == 1


@pytest.mark.parametrize("run_status", ["warm", "hot"])
def test_program_with_the_sdk_learns_its_roles_by_its_socket(bed: Bed, run_status: str) -> None:
    text = f'[process.acd]\ncommand = {bed.sdk()}\nrun_status = "{run_status}"\nready = {{ by = "notify" }}\n'
    bed.write_tenant(run_status, text)
    status = bed.ok(run_status)
    assert sides(bed, f"{run_status}/acd") == {"a": ["active"], "b": ["standby"]}
    before = bed.ready(f"{run_status}/acd", status)
    bed.done("switchover", run_status)
    after = bed.ready(f"{run_status}/acd", bed.ok(run_status))
    assert {copy["side"]: copy["role"] for copy in after.values()} == {"a": "standby", "b": "active"}
    standby = next(copy for copy in before.values() if copy["role"] == "standby")
    told = bed.said("role", f"{run_status}/acd", str(standby["pid"]))
    assert [line[3] for line in told] == ["standby", "active"]  # the same process, told twice
    epochs = [int(line[4]) for line in bed.said("role", f"{run_status}/acd", "active")]
    assert epochs == sorted(set(epochs))


def test_roles_are_told_by_command(bed: Bed) -> None:
    def hook(word: str) -> str:
        return f"{{ command = {bed.shell(f'say {word}')} }}"

    bed.write_tenant(
        "datil",
        f'[process.acd]\ncommand = {bed.shell("say start; rest")}\nrun_status = "warm"\n'
        f"promote = {hook('promote')}\ndemote = {hook('demote')}\n",
    )
    bed.ok("datil")
    bed.done("switchover", "datil")
    bed.ok("datil")
    assert [line[2][0] for line in bed.said("demote")] == ["a"]
    assert [line[2][0] for line in bed.said("promote")][-1] == "b"
    assert len(bed.said("start")) == 2  # nobody was restarted for it


def test_roles_are_told_by_signal(bed: Bed) -> None:
    script = 'trap "say promote" USR1; trap "say demote" USR2; say start; systemd-notify --ready; rest'
    bed.write_tenant(
        "elder",
        f'[process.acd]\ncommand = {bed.shell(script)}\nrun_status = "warm"\nready = {{ by = "notify" }}\n'
        'promote = { signal = "SIGUSR1" }\ndemote = { signal = "SIGUSR2" }\n',
    )
    bed.ok("elder")
    bed.done("switchover", "elder")
    bed.until(lambda: bed.said("promote")[-1][2][0] == "b" and bed.said("demote"), "both were told")
    assert [line[2][0] for line in bed.said("demote")] == ["a"]
    assert [line[2][0] for line in bed.said("promote")][-1] == "b"
    assert len(bed.said("start")) == 2


def test_load_sharing_runs_active_on_both_sides_and_all_nodes(bed: Bed) -> None:
    text = f'[process.ivr]\ncommand = {bed.plain()}\nrun_status = "load_sharing"\ncopies = 2\n'
    bed.write_tenant("fern", text)
    status = bed.ok("fern")
    copies = [copy for copy in bed.copies(status, "fern/ivr") if copy["state"] == "ready"]
    assert sorted(copy["node"] for copy in copies) == ["a1", "a2", "b1", "b2"]
    assert {copy["role"] for copy in copies} == {"active"}
    lost = copies[0]
    os.kill(lost["pid"], signal.SIGKILL)
    status = bed.wait(
        lambda status: len([c for c in bed.copies(status, "fern/ivr") if c["state"] == "ready"]) == 4
        and lost["pid"] not in bed.pids(status).values(),
        "the lost copy is back",
    )  # fmt: skip
    kept = {copy["pid"] for copy in copies[1:]}
    assert kept < set(bed.pids(status).values())


# --- crashes ----------------------------------------------------------------------------------------


def test_crash_of_the_warm_active_promotes_the_standby_and_makes_a_new_one(bed: Bed) -> None:
    two_warm(bed, "gorse")
    status = bed.ok("gorse")
    lost, standby = bed.active("gorse/acd", status), bed.ready("gorse/acd", status)
    os.kill(lost["pid"], signal.SIGKILL)
    after = bed.wait(
        lambda status: bed.active("gorse/acd", status)["side"] == "b" and status["tenants"]["gorse"]["state"] == "ok",
        "promoted on b, whole again",
    )
    now = bed.ready("gorse/acd", after)
    promoted = bed.active("gorse/acd", after)
    assert standby[promoted["node"]]["pid"] == promoted["pid"]
    assert sorted(copy["role"] for copy in now.values()) == ["active", "standby"]
    assert lost["pid"] not in bed.pids(after).values()
    assert bed.active("gorse/rec", after)["side"] == "b"  # the tenant is the unit
    assert after["tenants"]["gorse"]["epoch"] > status["tenants"]["gorse"]["epoch"]


def test_crash_of_a_cold_process_is_restarted_in_place(bed: Bed) -> None:
    bed.write_tenant("hazel", f"[process.db]\ncommand = {bed.plain()}\n")
    status = bed.ok("hazel")
    lost = bed.active("hazel/db", status)
    os.kill(lost["pid"], signal.SIGKILL)
    after = bed.wait(lambda status: bed.active("hazel/db", status)["pid"] != lost["pid"], "restarted")
    now = bed.active("hazel/db", after)
    assert (now["node"], now["epoch"], now["restarts"]) == (lost["node"], lost["epoch"], 1)


def test_policy_never_leaves_it_down_and_on_failure_minds_the_exit_code(bed: Bed) -> None:
    bed.write_tenant(
        "iris",
        f'[process.once]\ncommand = {bed.shell("say ran; exit 3")}\nrestart = {{ policy = "never" }}\n'
        f'[process.good]\ncommand = {bed.shell("say ran; exit 0")}\nrestart = {{ policy = "on-failure" }}\n',
    )
    status = bed.wait(
        lambda status: all(
            (copy := bed.copies(status, f"iris/{name}")[0])["state"] == "down" and copy["exit"] == {"code": code}
            for name, code in (("once", 3), ("good", 0))
        ),
        "both ended and stay down",
    )
    assert status["tenants"]["iris"]["wanted"] == "started"
    assert len(bed.said("ran", "iris/once")) == 1
    assert len(bed.said("ran", "iris/good")) == 1


def test_crash_beyond_the_intensity_escalates_to_failed_and_reset_brings_it_back(bed: Bed) -> None:
    flag = bed.directory / "flag-well"
    quick = 'restart = { intensity = 1, period = "30s", backoff = "10ms", backoff_max = "20ms" }\n'
    script = f"say start; test -e {flag} || exit 1; rest"
    bed.write_tenant(
        "juniper",
        f"[process.db]\ncommand = {bed.shell(script)}\n{quick}"
        f'[process.user]\ncommand = {bed.shell("say start; rest")}\ndepends_on = ["db"]\n',
    )
    status = bed.wait(lambda status: status["tenants"]["juniper"]["state"] == "failed", "juniper has failed", 60.0)
    alarm = next(alarm for alarm in status["alarms"] if alarm["subject"] == "juniper")
    assert alarm["severity"] == "critical"
    assert "died too often" in alarm["text"]
    assert alarm["help"].endswith("hactl reset juniper")
    assert {line[2][0] for line in bed.said("start", "juniper/db")} == {"a", "b"}  # it failed over
    kinds = [event["kind"] for event in bed.json("events", "-n", "1000") if event["subject"].startswith("juniper")]
    assert "escalate" in kinds
    assert "failed" in kinds
    assert bed.hactl("start", "juniper").returncode == 5
    flag.touch()
    bed.done("reset", "juniper", "--wait")
    after = bed.ok("juniper")
    assert bed.active("juniper/user", after)["side"] == bed.active("juniper/db", after)["side"]
    assert not [alarm for alarm in after["alarms"] if alarm["subject"].startswith("juniper")]


# --- planned moves ----------------------------------------------------------------------------------


def test_switchover_goes_there_and_back_and_touches_no_other_tenant(bed: Bed) -> None:
    two_warm(bed, "kale")
    two_warm(bed, "globex")
    bed.write_tenant("shared", f'[process.ivr]\ncommand = {bed.plain()}\nrun_status = "load_sharing"\ncopies = 2\n')
    before = bed.ok("kale", "globex", "shared")
    others = bed.pids(before, but=("kale",))
    acd = {copy["pid"] for copy in bed.ready("kale/acd", before).values()}
    for side in ("b", "a"):
        bed.done("switchover", "kale", "--to", side)
        status = bed.wait(
            lambda status, side=side: bed.active("kale/acd", status)["side"] == side
            and bed.active("kale/rec", status)["side"] == side and status["tenants"]["kale"]["state"] == "ok",
            f"kale is on {side}",
        )  # fmt: skip
        assert bed.pids(status, but=("kale",)) == others
        assert {copy["pid"] for copy in bed.ready("kale/acd", status).values()} == acd


def test_switchover_is_refused_while_the_standby_is_not_ready(bed: Bed) -> None:
    flag = bed.directory / "flag-ready"
    script = f'test "$HA_SIDE" = a || until test -e {flag}; do sleep 0.05; done; systemd-notify --ready; rest'
    bed.write_tenant(
        "larch",
        f'[process.acd]\ncommand = {bed.shell(script)}\nrun_status = "warm"\nready = {{ by = "notify" }}\n'
        'promote = { command = ["/bin/true"] }\ndemote = { command = ["/bin/true"] }\n',
    )
    bed.wait(lambda status: bed.active("larch/acd", status)["side"] == "a", "active on a")
    error = bed.json("switchover", "larch", code=5)
    assert "the standby of larch/acd on side b is not ready" in error["error"]
    assert bed.json("switchover", "larch", "--dry-run", code=5)["error"] == error["error"]
    flag.touch()
    status = bed.ok("larch")
    dry = bed.json("switchover", "larch", "--dry-run")
    assert (dry["from"], dry["to"], dry["dry_run"]) == ("a", "b", True)
    assert bed.pids(bed.ok("larch")) == bed.pids(status)
    bed.done("switchover", "larch")
    assert "already" in bed.json("switchover", "larch", "--to", "b", code=5)["error"]


def test_hold_keeps_a_tenant_where_it_is_until_unhold(bed: Bed) -> None:
    two_warm(bed, "maple")
    lost = bed.active("maple/acd", bed.ok("maple"))
    bed.done("hold", "maple")
    bed.wait(lambda status: status["tenants"]["maple"]["held"], "held")
    os.kill(lost["pid"], signal.SIGKILL)
    status = bed.wait(lambda status: bed.active("maple/acd", status)["pid"] != lost["pid"], "active again")
    assert bed.active("maple/acd", status)["node"] == lost["node"]  # restarted here, not moved
    bed.done("unhold", "maple")
    again = bed.active("maple/acd", bed.wait(lambda status: not status["tenants"]["maple"]["held"], "not held"))
    bed.ok("maple")
    os.kill(again["pid"], signal.SIGKILL)
    bed.wait(lambda status: bed.active("maple/acd", status)["side"] == "b", "moved")
    bed.ok("maple")


def test_drain_of_a_node_and_of_a_side_empties_it_until_undrain(bed: Bed) -> None:
    two_warm(bed, "nettle")
    bed.write_tenant("cold", f"[process.db]\ncommand = {bed.plain()}\n")
    bed.write_tenant("shared", f'[process.ivr]\ncommand = {bed.plain()}\nrun_status = "load_sharing"\ncopies = 2\n')
    bed.ok("nettle", "cold", "shared")
    try:
        bed.done("drain", "a1", "--wait")
        assert not bed.managed("a1")
        status = bed.wait(
            lambda status: status["sides"]["a"]["nodes"]["a1"]["state"] == "drained"
            and all(status["tenants"][name]["state"] == "ok" for name in ("nettle", "cold")),
            "a1 is drained",
        )  # fmt: skip
        assert bed.active("cold/db", status)["node"] == "a2"
        bed.done("undrain", "a1")
        bed.ok("nettle", "cold", "shared")
        bed.done("drain", "a", "--wait")
        assert not bed.managed("a1")
        assert not bed.managed("a2")
        bed.wait(
            lambda status: {bed.active(name, status)["side"] for name in ("nettle/acd", "cold/db")} == {"b"},
            "both are active on side b",
        )
        error = bed.json("switchover", "nettle", code=5)["error"]
        assert "drained" in error
    finally:
        bed.hactl("undrain", "a1")
        bed.done("undrain", "a")
    bed.ok("nettle", "cold", "shared")


# --- start, stop, restart ---------------------------------------------------------------------------


def test_stop_and_start_of_tenant_and_process_wait_until_it_is_so(bed: Bed) -> None:
    two_warm(bed, "oak")
    bed.ok("oak")
    bed.done("stop", "oak", "--wait")
    assert not bed.running("oak")
    bed.wait(lambda status: status["tenants"]["oak"]["state"] == "stopped", "stopped")
    bed.done("start", "oak", "--wait")
    assert bed.active("oak/acd")["state"] == "ready"
    status = bed.ok("oak")
    acd = {copy["pid"] for copy in bed.ready("oak/acd", status).values()}
    bed.done("stop", "oak/rec", "--wait")
    status = bed.status() or {}
    assert not bed.ready("oak/rec", status)
    assert {copy["pid"] for copy in bed.ready("oak/acd", status).values()} == acd
    bed.done("start", "oak/rec", "--wait")
    assert bed.active("oak/rec")["state"] == "ready"


def test_restart_gives_every_copy_another_pid_once(bed: Bed) -> None:
    two_warm(bed, "pine")
    before = bed.pids(bed.ok("pine"))
    bed.done("restart", "pine", "--wait")
    after = bed.pids(bed.ok("pine"))
    assert not set(before.values()) & set(after.values())
    assert len(bed.said("role", "pine/acd")) == 4  # two starts, twice
    assert all(copy["restarts"] == 0 for copy in bed.copies(bed.ok("pine"), "pine/acd"))


def test_rolling_restart_of_load_sharing_never_has_fewer_than_all_but_one_ready(bed: Bed) -> None:
    script = "sleep 0.3; systemd-notify --ready; rest"
    bed.write_tenant(
        "quince",
        f'[process.ivr]\ncommand = {bed.shell(script)}\nrun_status = "load_sharing"\ncopies = 2\n'
        'ready = { by = "notify" }\n',
    )
    before = bed.pids(bed.ok("quince"))
    assert len(before) == 4
    with bed.watched(
        lambda status: (
            sum(copy["state"] == "ready" for copy in bed.copies(status, "quince/ivr")),
            [(status["node"], c["node"], c["state"], c["pid"]) for c in bed.copies(status, "quince/ivr")],
        )
    ) as ready:
        bed.done("restart", "quince/ivr", "--rolling", "--wait")
    after = bed.pids(bed.ok("quince"))
    assert not set(before.values()) & set(after.values())
    assert min(ready)[0] == 3, "\n".join(map(str, ready))


def test_dependencies_start_across_tenants_in_order_and_stop_in_reverse(bed: Bed) -> None:
    script = 'trap "say stop; exit 0" TERM; sleep 0.2; say start; systemd-notify --ready; rest'
    table = f'command = {bed.shell(script)}\nready = {{ by = "notify" }}\n'
    bed.write_tenant(
        "rowan", f'[process.acd]\n{table}depends_on = ["system/db"]\n[process.rec]\n{table}depends_on = ["acd"]\n'
    )
    bed.write_tenant("system", f'[tenant]\nhome = "b"\n[process.db]\n{table}')
    bed.ok("rowan", "system")
    assert [line[1] for line in bed.said("start")] == ["system/db", "rowan/acd", "rowan/rec"]
    bed.done("stop", "rowan", "--wait")
    assert [line[1] for line in bed.said("stop")] == ["rowan/rec", "rowan/acd"]
    bed.done("start", "rowan", "--wait")
    assert len(bed.said("start", "system/db")) == 1
