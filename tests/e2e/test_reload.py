"""Hot reload on real nodes: what is dropped, edited or removed takes effect at once, and nothing else moves.

Each node has a tenants directory of its own, as on separate machines.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator

import pytest
from benchmarks.cluster import Status

from tests.e2e.tenant_bed import Bed

pytestmark = pytest.mark.e2e
MARKS = itertools.count()
LIVE_WITHIN_S = 3.0  # the aim is 1 s; this machine is shared


@pytest.fixture(scope="module")
def running() -> Iterator[Bed]:
    with Bed(own_tenants=True) as made:
        made.start()
        made.wait_seated()
        yield made


@pytest.fixture
def bed(running: Bed) -> Iterator[Bed]:
    """The module's system, without tenants at the start and the end of each test."""
    yield running
    for node in running.nodes:
        running.tenants_of(node).mkdir(exist_ok=True)
        for path in running.tenants_of(node).glob("*.toml"):
            path.unlink()
            running.wait(lambda status, path=path: path.stem not in status["tenants"], f"{path.stem} is gone", 2.0 + 8)
    status = running.status() or {}
    for name in status["tenants"]:
        running.gone(name)


def shared(bed: Bed, *names: str, more: str = "") -> str:
    return "".join(f'[process.{name}]\ncommand = {bed.plain()}\nrun_status = "load_sharing"\n{more}' for name in names)


def two(bed: Bed) -> None:
    """Tenants acme (two processes) and globex, well and on both sides."""
    mark = f"# {next(MARKS)}\n"  # another content each time: a file that is as it was is no edit
    bed.write_tenant("acme", mark + shared(bed, "ivr", "acd"), node="a1")
    bed.write_tenant("globex", mark + shared(bed, "ivr"), node="a1")
    bed.wait(lambda status: status["tenants"]["acme"]["state"] == status["tenants"]["globex"]["state"] == "ok", "both")


def everywhere(bed: Bed, condition: object, what: str) -> float:
    """Wait until the status of every node shows it; return the seconds it took."""
    begin = time.monotonic()
    for node in bed.nodes:
        bed.wait(condition, f"{what}, by {node}", 20.0, node)  # type: ignore[arg-type]
    return time.monotonic() - begin


def test_dropping_a_file_on_one_node_starts_the_tenant_on_all_nodes_at_once(bed: Bed) -> None:
    two(bed)
    before = bed.pids(bed.status() or {})
    text = f'[process.ivr]\ncommand = {bed.plain()}\nrun_status = "load_sharing"\ncopies = 2\n'
    for number, node in enumerate(("a1", "b1")):
        bed.write_tenant(f"new{number}", text, node=node)
        took = everywhere(bed, lambda status, n=number: status["tenants"][f"new{n}"]["state"] == "ok", "it runs")
        print(f"dropped on {node}: live on all nodes after {took * 1000:.0f} ms")
        assert took < LIVE_WITHIN_S
    status = bed.status() or {}
    assert {copy["node"] for copy in bed.copies(status, "new1/ivr")} == set(bed.nodes)
    assert bed.pids(status, but=("new0", "new1")) == before


def test_editing_a_file_restarts_only_what_changed(bed: Bed) -> None:
    two(bed)
    before = bed.pids(bed.status() or {})
    text = shared(bed, "ivr") + shared(bed, "acd", more="priority = 60\n") + shared(bed, "added")
    edited = text.replace("100000", "200000", 1)  # another command for ivr; priority of acd; a third process
    bed.write_tenant("acme", edited, node="a1")
    begin = time.monotonic()

    def done(status: Status) -> bool:
        now = bed.pids(status)
        changed = [key for key in before if now.get(key) not in (None, before[key])]
        return len(changed) == 2 and len(bed.ready("acme/added", status)) == 2

    status = bed.wait(done, "ivr restarted on both sides, the new one added")
    print(f"edited: in force after {(time.monotonic() - begin) * 1000:.0f} ms")
    now = bed.pids(bed.wait(lambda status: status["tenants"]["acme"]["state"] == "ok", "acme is ok"))
    assert {key for key in before if now[key] != before[key]} == {key for key in before if key[0] == "acme/ivr"}
    assert status["tenants"]["acme"]["processes"]["acd"]["priority"] == 60


def test_removing_a_file_stops_its_tenant_by_its_own_stop_order_and_no_other(bed: Bed) -> None:
    two(bed)
    script = 'trap "say stop; exit 0" TERM; rest'
    bed.write_tenant(
        "leaves",
        f"[process.db]\ncommand = {bed.shell(script)}\n[process.user]\ncommand = {bed.shell(script)}\n"
        'depends_on = ["db"]\n',
        node="b1",
    )
    before = bed.pids(bed.ok("leaves"), but=("leaves",))
    bed.tenants_of("b1").joinpath("leaves.toml").unlink()
    bed.gone("leaves")
    assert sorted(line[1] for line in bed.said("stop")) == ["leaves/db", "leaves/user"]
    assert bed.pids(bed.status() or {}) == before


def test_a_broken_file_changes_nothing_and_is_shown_with_line_and_column(bed: Bed) -> None:
    two(bed)
    before = bed.pids(bed.status() or {})
    bed.write_tenant("acme", shared(bed, "ivr") + '[process.acd]\ncomand = ["/bin/true"]\n', node="a1")
    status = bed.wait(lambda status: status["plan"]["errors"], "the error is shown")
    error = next(one for one in status["plan"]["errors"] if "comand" in one["text"])
    assert error["file"].endswith("acme.toml")
    assert (error["line"], error["column"]) == (5, 1)
    assert bed.pids(status) == before
    place = f"acme.toml:{error['line']}:{error['column']}"
    assert place in bed.hactl("status").stdout
    events = bed.json("events", "-n", "1000")
    assert any(event["kind"] == "plan-refused" and place in event["reason"] for event in events)
    path = bed.tenants_of("a1") / "acme.toml"
    checked = bed.hactl("check", str(path))
    assert checked.returncode == 2
    assert f"{path}:{error['line']}:{error['column']}" in checked.stdout
    assert bed.json("diff", node="a1", code=1)
    bed.write_tenant("acme", shared(bed, "ivr", "acd"), node="a1")
    bed.wait(lambda status: not status["plan"]["errors"], "mended")
    assert bed.pids(bed.status() or {}) == before


def test_a_broken_file_is_shown_by_all_nodes_wherever_it_lies(bed: Bed) -> None:
    two(bed)
    for node in ("a2", "b1"):  # a2's Server is not the one that decides
        bed.write_tenant("wrong", "[process.acd]\ncommand = 5\n", node=node)
        for asked in bed.nodes:
            status = bed.wait(
                lambda status: status["plan"]["errors"], f"{node}'s error is shown by {asked}", 10.0, asked
            )
            assert "wrong.toml:2:" in str([alarm["text"] for alarm in status["alarms"]])
        assert bed.json("diff", node=node, code=1)
        bed.tenants_of(node).joinpath("wrong.toml").unlink()
        for asked in bed.nodes:
            bed.wait(lambda status: not status["plan"]["errors"], f"{asked} shows it no more", 10.0, asked)
        assert bed.json("diff", node=node) == []


def test_removals_on_a_node_whose_server_does_not_decide_wait_too(bed: Bed) -> None:
    for name in ("acme", "globex"):
        bed.write_tenant(name, shared(bed, "ivr"), node="b2")
    bed.ok("acme", "globex")
    for name in ("acme", "globex"):
        bed.tenants_of("b2").joinpath(f"{name}.toml").unlink()
    bed.wait(lambda status: any("gone from b2" in alarm["text"] for alarm in status["alarms"]), "the alarm", node="a1")
    bed.json("apply", node="b2", code=5)
    bed.done("apply", "--confirm", node="b2")
    bed.gone("acme", "globex")


def test_a_file_cut_short_or_of_another_name_is_never_taken(bed: Bed) -> None:
    two(bed)
    before = bed.pids(bed.status() or {})
    directory = bed.tenants_of("a1")
    for name in ("x.toml.swp", ".x.toml", "x.txt"):
        (directory / name).write_text(shared(bed, "ivr"))
    with (directory / "half.toml").open("w") as file:  # written slowly: nothing before it is closed
        for piece in shared(bed, "ivr").splitlines(keepends=True):
            file.write(piece)
            file.flush()
            time.sleep(0.3)
            assert "half" not in (bed.status() or {})["tenants"]
    bed.ok("half")
    assert bed.pids(bed.status() or {}, but=("half",)) == before
    for name in ("x.toml.swp", ".x.toml", "x.txt"):
        (directory / name).unlink()


def test_removal_of_more_than_one_tenant_waits_for_a_confirmation(bed: Bed) -> None:
    two(bed)
    before = bed.pids(bed.status() or {})
    for name in ("acme", "globex"):
        bed.tenants_of("a1").joinpath(f"{name}.toml").unlink()
    bed.wait(lambda status: any("gone from a1" in alarm["text"] for alarm in status["alarms"]), "the alarm", node="a1")
    assert bed.pids(bed.status() or {}) == before
    assert "apply --confirm" in bed.json("apply", node="a1", code=5)["error"]
    waiting = bed.json("diff", node="a1", code=1)
    assert {one["file"] for one in waiting} == {"acme.toml", "globex.toml"}
    bed.done("apply", "--confirm", node="a1")
    bed.gone("acme", "globex")


def test_a_missing_directory_waits_for_a_confirmation(bed: Bed) -> None:
    two(bed)
    before = bed.pids(bed.status() or {})
    shutil.rmtree(bed.tenants_of("a1"))
    bed.wait(lambda status: any("missing" in alarm["text"] for alarm in status["alarms"]), "the alarm", node="a1")
    assert bed.pids(bed.status() or {}) == before
    bed.json("apply", node="a1", code=5)
    bed.tenants_of("a1").mkdir()
    two(bed)
    assert bed.pids(bed.status() or {}) == before


def test_of_edits_on_two_sides_the_second_is_refused_with_its_reason(bed: Bed) -> None:
    two(bed)
    bed.write_tenant("acme", shared(bed, "ivr", "acd", "third"), node="b1")  # b1 has no such file
    status = bed.wait(
        lambda status: [one for one in bed.ask("b1", "diff")["result"] if "acme" in one["file"]] and status,  # type: ignore[index]
        "b1 refuses it",
    )
    assert "third" not in status["tenants"]["acme"]["processes"]
    alarm = "the edit of acme.toml on b1 is not in force"
    for node in bed.nodes:
        bed.wait(lambda status: any(alarm in one["text"] for one in status["alarms"]), f"seen by {node}", 10.0, node)
    reason = next(one["reason"] for one in bed.json("diff", node="b1", code=1) if "acme" in one["file"])
    assert "not based on the version of a1" in reason
    bed.done("apply", "--confirm", node="b1")
    bed.wait(lambda status: len(bed.ready("acme/third", status)) == 2, "taken as it is")
    bed.tenants_of("b1").joinpath("acme.toml").unlink()
    bed.gone("acme")


def test_tenants_stand_over_a_restart_of_a_server(bed: Bed) -> None:
    two(bed)
    before = bed.pids(bed.status() or {})
    for node in ("a1", "b1"):
        old = bed.kill_agent(node, "server")
        bed.until(lambda node=node, old=old: bed.agent(node, "server") not in (None, old), "another Server")
    bed.wait_seated()
    bed.wait(lambda status: status["tenants"]["acme"]["state"] == "ok", "acme is ok")
    assert bed.pids(bed.status() or {}) == before
