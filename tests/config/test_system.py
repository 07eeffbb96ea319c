"""The system file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ha.config import load_system
from ha.model.errors import ConfigError
from ha.model.timing import PROFILES
from tests.config.config_bed import ROOT, SYSTEM, Read, only


def test_a_small_file_becomes_a_system_with_every_default(system_file: Path) -> None:
    system = load_system(str(system_file))
    assert system.name == "demo"
    assert system.voters == ("a1", "b1", "w1")
    assert system.timing == PROFILES["default"]
    assert system.tenants_dir == str(system_file.parent / "tenants.d")
    assert system.file == str(system_file)
    assert (system.run_dir, system.data_dir, system.node_file) == ("/run/ha", "/var/lib/ha", "/etc/ha/node.toml")
    assert system.sides == {"a": ("a1",), "b": ("b1",)}
    assert system.nodes["a1"].labels == ("db",)
    assert system.witnesses["w1"].side == ""


def test_the_shipped_file_says_the_defaults_of_the_code() -> None:
    text = (ROOT / "conf/system.toml").read_text()
    shipped = load_system(str(ROOT / "conf/system.toml"))
    assert shipped.timing == PROFILES["default"]
    assert all(f"\n{field.removesuffix('_ms')} = " in text for field in shipped.timing.__struct_fields__)
    assert all(f"\n{field} = " in text for field in shipped.ports.__struct_fields__)


def test_timing_overrides_the_profile(system_file: Path) -> None:
    text = SYSTEM.replace('name = "demo"', 'name = "demo"\nprofile = "wan"') + '[timing]\nstagger = "1s"\n'
    system_file.write_text(text)
    timing = load_system(str(system_file)).timing
    assert (timing.stagger_ms, timing.promise_ms) == (1_000, PROFILES["wan"].promise_ms)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_keeps_the_safety_lines(name: str, system_errors: Read) -> None:
    assert system_errors(SYSTEM.replace('"demo"', f'"demo"\nprofile = "{name}"')) == ()


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("", '[timing]\npromise = "700ms"\n', "unsafe-timing", "promise is 700ms"),
        ("", '[timing]\nrenew_every = "100ms"\n', "unsafe-timing", "2*(3*renew_every)"),
        ("", '[timing]\nrenew_every = "0ms"\n', "out-of-range", "renew_every"),
        ("", '[timing]\nsuspect = "90ms"\n', "unsafe-timing", "not more than beat"),
        ("", "[timing]\ndrift = 2\n", "out-of-range", "drift"),
        ("", '[timing]\nbeat = "90 ms"\n', "bad-unit", '"90 ms"'),
        ("", "[timing]\nbeat = 90\n", "wrong-type", "90 is an integer"),
        ("", '[arbitration]\nmode = "etcd"\n', "not-yet", '"etcd"'),
        ("", '[arbitration]\nvoters = ["a1", "b1"]\n', "bad-voters", "there are 2"),
        ("", '[arbitration]\nvoters = ["a1", "b1", "w2"]\n', "unknown-node", '"w2"'),
        ("", '[arbitration]\nvoters = ["a1", "b1", "b1"]\n', "duplicate", "twice"),
        ("", '[arbitration.etcd]\nprefix = "/ha"\n', "not-yet", "etcd"),
        ("", "[ports]\nvote = 7701\n", "duplicate", "port of state"),
        ("", "[ports]\nvote = 0\n", "out-of-range", "vote"),
        ('[witnesses.w1]\naddresses = ["127.0.0.50"]\n', "", "bad-voters", "a1, b1"),
        ("127.0.0.21", "10.0.0.21", "not-yet", "10.0.0.21"),
        ("127.0.0.21", "localhost", "bad-address", "localhost"),
        ("127.0.0.21", "127.0.0.11", "duplicate", "address of a1"),
        ('"127.0.0.21"', "", "bad-value", "empty"),
        ('addresses = ["127.0.0.21"]\n', "", "missing-key", "addresses"),
        ('servers = ["b1"]', 'servers = ["b9"]', "unknown-node", '"b9"'),
        ('servers = ["b1"]', 'servers = ["a1"]', "unknown-node", "side a"),
        ('[sides.b]\nservers = ["b1"]\n', "", "missing-key", "two sides"),
        ("[sides.b]", "[sides.c]", "bad-name", '"c"'),
        ("[witnesses.w1]", "[witnesses.a1]", "duplicate", "both a node and a witness"),
        ("[nodes.a1]", "[nodes.a1.fence]\nagent = 'x'\n[nodes.a1]", "not-yet", "fence"),
        ('name = "demo"', 'name = "Demo"', "bad-name", '"Demo"'),
        ('name = "demo"', "", "missing-key", "name"),
        ('name = "demo"', 'name = "demo"\nrun_dri = "/x"', "unknown-key", "run_dri"),
        ('name = "demo"', 'name = "demo"\nrun_dir = "run"', "bad-value", "absolute"),
        ('name = "demo"', f'name = "demo"\nrun_dir = "/{"r" * 100}"', "path-too-long", "bytes"),
        ('name = "demo"', 'name = "demo"\nprofile = "fats"', "bad-value", "fats"),
    ],
)
def test_an_error_is_said_once_with_its_value_and_what_to_do(
    old: str, new: str, code: str, words: str, system_errors: Read
) -> None:
    text = SYSTEM.replace(old, new, 1) if old else SYSTEM + new
    finding = only(system_errors(text))
    assert (finding.code, words in finding.text) == (code, True), str(finding)
    assert finding.help
    assert finding.line
    assert finding.column


def test_line_and_column_are_those_of_the_value(system_errors: Read) -> None:
    finding = only(system_errors(SYSTEM.replace('"127.0.0.21"', '"127.0.0.21", "1.2.3.4"')))
    line = SYSTEM.splitlines().index('addresses = ["127.0.0.21"]') + 1
    assert (finding.line, finding.column) == (line, 28)


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_system(str(tmp_path / "none.toml"))
    assert only(caught.value.findings).code == "unreadable"


@pytest.mark.parametrize(
    ("data", "code", "place"),
    [
        (b"[system\n", "bad-syntax", (1, 8)),
        (b"a = 1\na = 2\n", "bad-syntax", (2, 6)),
        (b"a = 1\n\xff", "bad-encoding", (2, 1)),
        (b"\xef\xbb\xbfa = 1\n", "bad-encoding", (1, 1)),
        (b"a = " + b"[" * 10_000, "too-deep", (0, 0)),
        (b"a = " + b"9" * 5_000, "bad-syntax", (0, 0)),
        (b"#" * (1024 * 1024 + 1), "too-big", (0, 0)),
    ],
)
def test_what_is_no_toml_is_one_finding(data: bytes, code: str, place: tuple[int, int], system_file: Path) -> None:
    system_file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_system(str(system_file))
    finding = only(caught.value.findings)
    assert (finding.code, (finding.line, finding.column)) == (code, place)
