"""All files together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ha.config import check_files, check_paths, load_node_file, read_directory
from ha.config.source import UNREADABLE
from ha.model.errors import ConfigError, Finding
from ha.model.plan import NodeFile, System
from tests.config.config_bed import ROOT, SYSTEM, only

GOOD = b'[process.p]\ncommand = ["/x"]\n'


def file(*processes: str, head: str = "") -> bytes:
    """A tenant file; each process is `name` or `name: dependencies`."""
    text = head
    for process in processes:
        name, _, needs = process.partition(":")
        listed = ", ".join(f'"{need}"' for need in needs.split())
        text += f'[process.{name}]\ncommand = ["/x"]\ndepends_on = [{listed}]\n'
    return text.encode()


def check(system: System, /, **files: bytes) -> tuple[Finding, ...]:
    return check_files(files, system).findings


def test_files_that_pass_become_tenants_by_name(system: System) -> None:
    checked = check_files({"zeta": GOOD, "acme": GOOD, "bad": b"x"}, system)
    assert [tenant.name for tenant in checked.tenants] == ["acme", "zeta"]
    assert checked.failed == ("bad",)
    assert checked.names == {"acme": "acme", "zeta": "zeta"}
    assert only(checked.findings).file == os.path.join(system.tenants_dir, "bad.toml")


def test_a_dependency_on_another_tenant_is_found_across_files(system: System) -> None:
    assert check(system, acme=file("p:system/db"), system=file("db")) == ()
    finding = only(check(system, acme=file("p:system/dbs"), system=file("db")))
    assert (finding.code, finding.line, finding.column) == ("unknown-process", 3, 15)
    assert finding.help == 'did you mean "db"?'
    finding = only(check(system, acme=file("p:sytem/db"), system=file("db")))
    assert finding.help == 'did you mean "system"?'


def test_a_file_that_cannot_be_read_does_not_make_others_fail(system: System) -> None:
    checked = check_files({"acme": file("p:system/db"), "system": b"[["}, system)
    assert (checked.failed, len(checked.findings)) == (("system",), 1)


def test_a_process_whose_table_is_bad_is_not_also_unknown(system: System) -> None:
    text = b'[process]\nq = 3\n[process.p]\ncommand = ["/x"]\ndepends_on = ["q"]\n'
    assert only(check(system, acme=text)).code == "wrong-type"


def test_a_cycle_is_printed_as_a_path_in_each_of_its_files(system: System) -> None:
    found = check(system, acme=file("p:beta/q"), beta=file("q:r", "r:acme/p"))
    assert [finding.code for finding in found] == ["cycle", "cycle"]
    assert "acme/p -> beta/q -> beta/r -> acme/p" in found[0].text
    assert "beta/q -> beta/r -> acme/p -> beta/q" in found[1].text
    assert [(finding.line, finding.column) for finding in found] == [(3, 15), (3, 15)]


def test_a_process_that_waits_for_itself_is_a_cycle(system: System) -> None:
    assert "acme/p -> acme/p" in only(check(system, acme=file("p:p"))).text


def test_two_cycles_are_two_findings_and_what_hangs_on_them_is_none(system: System) -> None:
    found = check(system, acme=file("a:b", "b:a", "c:d", "d:c a", "e:c"))
    assert [finding.code for finding in found] == ["cycle", "cycle"]


def test_a_long_chain_is_no_cycle_and_takes_no_recursion(system: System) -> None:
    chain = [f"p{n}:p{n + 1}" for n in range(1_500)]
    assert check(system, acme=file(*chain, "p1500")) == ()
    assert len(check(system, acme=file(*chain, "p1500:p0"))) == 1


def test_of_two_files_with_one_tenant_the_one_with_its_name_passes(system: System) -> None:
    checked = check_files({"acme": GOOD, "abc": b'[tenant]\nname = "acme"\n' + GOOD}, system)
    finding = only(checked.findings)
    assert (finding.code, finding.line, finding.column) == ("duplicate-tenant", 2, 8)
    assert checked.failed == ("abc",)


def test_labels_that_no_node_or_no_side_carries_are_reported(system_file: Path) -> None:
    from ha.config import load_system

    system_file.write_text(SYSTEM.replace('labels = ["db"]', 'labels = ["db", "media"]', 1))
    system = load_system(str(system_file))
    finding = only(check(system, acme=GOOD + b'on = ["medai"]\n'))
    assert (finding.code, finding.line, finding.column, finding.help) == (
        "unknown-label", 3, 7, 'did you mean "media"?'
    )  # fmt: skip
    finding = only(check(system, acme=GOOD + b'on = ["media"]\n'))
    assert (finding.code, "side b" in finding.text) == ("no-node", True)


# --- directory ------------------------------------------------------------------------------------


def test_a_directory_gives_its_toml_files_and_nothing_else(tmp_path: Path) -> None:
    for name in ("acme.toml", ".hidden.toml", "acme.toml~", "note.txt"):
        (tmp_path / name).write_bytes(GOOD)
    (tmp_path / "sub.toml").mkdir()
    (tmp_path / "gone.toml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.toml")
    assert read_directory(str(tmp_path)) == {"acme": GOOD}
    assert read_directory(str(tmp_path / "none")) is None


def test_a_file_that_cannot_be_read_is_not_a_file_that_is_gone(system: System) -> None:
    finding = only(check(system, acme=UNREADABLE))
    assert finding.code == "unreadable"


# --- hactl check ----------------------------------------------------------------------------------


def tenants(system_file: Path, **files: bytes) -> Path:
    directory = system_file.parent / "tenants.d"
    directory.mkdir(exist_ok=True)
    for name, data in files.items():
        (directory / f"{name}.toml").write_bytes(data)
    return directory


def node_file(system_file: Path, text: str) -> None:
    path = system_file.parent / "node.toml"
    path.write_text(text)
    path.chmod(0o600)
    system_file.write_text(SYSTEM.replace('"demo"', '"demo"\nnode_file = "node.toml"'))


def test_the_shipped_files_pass() -> None:
    assert check_paths(str(ROOT / "conf/system.toml")) == ()
    assert load_node_file(str(ROOT / "conf/node.toml")) == NodeFile()


def test_a_named_file_is_checked_as_if_it_stood_in_the_directory(system_file: Path, tmp_path: Path) -> None:
    tenants(system_file, system=file("db"), broken=b"x")
    new = tmp_path / "new.toml"
    new.write_bytes(file("p:system/db"))
    assert check_paths(str(system_file), (str(new),)) == ()
    assert only(check_paths(str(system_file))).file.endswith("tenants.d/broken.toml")


def test_a_named_file_with_which_another_does_not_pass_is_told_so(system_file: Path, tmp_path: Path) -> None:
    tenants(system_file, system=file("db"), acme=file("p:system/db"))
    new = tmp_path / "system.toml.d"
    new.mkdir()
    (new / "system.toml").write_bytes(file("database"))
    finding = only(check_paths(str(system_file), (str(new / "system.toml"),)))
    assert (finding.code, finding.file.endswith("acme.toml")) == ("unknown-process", True)


def test_everything_is_checked_in_one_pass(system_file: Path) -> None:
    tenants(system_file, acme=b"[process.p]\nx = 1\n")
    node_file(system_file, "[policy]\nkinds = []\n")
    system_file.write_text(system_file.read_text() + "[timing]\nbeat = 1\n")
    found = check_paths(str(system_file))
    assert [finding.file.rpartition("/")[2] for finding in found] == [
        "node.toml",
        "system.toml",
        "acme.toml",
        "acme.toml",
    ]


def test_a_system_file_that_is_no_toml_still_lets_a_named_file_be_checked(system_file: Path, tmp_path: Path) -> None:
    system_file.write_text("[")
    (tmp_path / "new.toml").write_bytes(GOOD + b"on = ['x']\nnosuch = 1\n")
    found = check_paths(str(system_file), (str(tmp_path / "new.toml"),))
    assert sorted(finding.code for finding in found) == ["bad-syntax", "unknown-key"]


def test_a_missing_directory_and_a_missing_file_are_findings(system_file: Path) -> None:
    assert only(check_paths(str(system_file))).file.endswith("tenants.d")
    found = check_paths(str(system_file), ("/nonexistent/x.toml", "a\0b"))
    assert [finding.code for finding in found] == ["unreadable", "unreadable"]


# --- node file ------------------------------------------------------------------------------------


def test_without_a_node_file_the_defaults_hold(tmp_path: Path) -> None:
    assert load_node_file(str(tmp_path / "node.toml")) == NodeFile()


def test_a_node_file_says_policy_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[policy]\nplans = "local"\nusers = ["acme"]\ncommands = ["/opt"]\n[control]\nview_group = "v"\n')
    path.chmod(0o600)
    found = load_node_file(str(path))
    assert (found.policy.plans, found.policy.users, found.policy.commands) == ("local", ("acme",), ("/opt",))
    assert (found.view_group, found.operate_group) == ("v", "")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_node_file_that_others_may_write_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("")
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load_node_file(str(path))
    assert only(caught.value.findings).code == "unsafe-file"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_node_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("")
    path.chmod(0o600)
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError) as caught:
        load_node_file(str(path))
    assert "12345" in only(caught.value.findings).text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('[policy]\nplans = "signed"\n', "not-yet"),
        ('[policy]\nwrite_paths = ["/x"]\n', "not-yet"),
        ('[keys]\ndir = "/x"\n', "not-yet"),
        ('[policy]\nusers = "acme"\n', "wrong-type"),
        ('[policy]\ncommands = ["bin"]\n', "bad-value"),
        ('[policy]\nenvironment_deny = ["A B"]\n', "bad-value"),
        ("[polcy]\n", "unknown-key"),
        ("[", "bad-syntax"),
    ],
)
def test_an_error_of_the_node_file_is_said_once(text: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_node_file(str(path))
    assert only(caught.value.findings).code == code
