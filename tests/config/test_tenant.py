"""One tenant file: what it becomes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ha.config import check_files, load_tenant
from ha.model.errors import ConfigError
from ha.model.plan import Dependency, Process, System, Tenant, decode_plan, encode_plan
from ha.model.status import RunStatus
from tests.config.config_bed import ROOT, Read, only

Make = Callable[[str], Tenant]


def test_the_smallest_file_has_every_default_of_the_plan(system: System) -> None:
    tenant = load_tenant(b'[process.p]\ncommand = ["/bin/true"]\n', file="/x/acme.toml", system=system)
    assert tenant == Tenant(name="acme", processes=(Process(name="p", command=("/bin/true",)),))
    assert decode_plan(encode_plan((tenant,))) == (tenant,)


def test_every_key_reaches_the_plan(system: System) -> None:
    from ha.config import load_system

    shipped = load_system(str(ROOT / "conf/system.toml"))
    data = (ROOT / "conf/tenants.d/acme.toml").read_bytes()
    tenant = load_tenant(data, file="acme.toml", system=shipped)
    acd = tenant.process("acd")
    assert acd is not None
    assert acd.run_status is RunStatus.WARM
    assert acd.depends_on == (
        Dependency(tenant="acme", process="store", where="same-side"),
        Dependency(tenant="system", process="directory", where="any-side"),
    )
    assert acd.umask == 0o027
    assert (acd.limits.nofile, acd.limits.core_bytes, acd.limits.nice) == (4096, 0, 0)
    assert acd.log.max_size_bytes == 64 << 20
    assert acd.probes[0].command == ("/bin/true",)
    assert (acd.probes[0].interval_ms, acd.probes[0].timeout_ms) == (5_000, 2_000)
    assert acd.promote is not None
    assert acd.promote.command == ("/bin/true",)
    assert tenant.failback_after_ms == 300_000


def test_probes_take_the_monitor_interval_unless_they_have_their_own(process: Make) -> None:
    one = process('monitor_interval = "250ms"\nprobe = [{ tcp = "{address}:1" }, { exec = ["/x"], interval = "2s" }]')
    assert [probe.interval_ms for probe in one.processes[0].probes] == [250, 2_000]


def test_one_probe_may_be_a_table_of_its_own(process: Make) -> None:
    tenant = process('[process.p.probe]\nhttp = "http://{address}:80/x"\nstatus = 204')
    probe = tenant.processes[0].probes[0]
    assert (probe.kind, probe.target, probe.status) == ("http", "http://{address}:80/x", 204)


@pytest.mark.parametrize(
    ("status", "on_failure"),
    [("cold", "restart"), ("warm", "failover"), ("hot", "failover"), ("load_sharing", "restart")],
)
def test_the_default_of_on_failure_follows_the_run_status(status: str, on_failure: str, process: Make) -> None:
    assert process(f'run_status = "{status}"').processes[0].on_failure == on_failure


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('"q"', ("acme", "q", "same-side")),
        ('"acme/q"', ("acme", "q", "same-side")),
        ('"other/q"', ("other", "q", "any-side")),
        ('{ process = "q" }', ("acme", "q", "same-side")),
        ('{ process = "other/q", where = "same-side" }', ("other", "q", "same-side")),
    ],
)
def test_a_dependency_is_on_my_side_in_my_tenant_and_anywhere_in_another(
    text: str, where: tuple[str, str, str], system: System
) -> None:
    data = f'[process.p]\ncommand = ["/x"]\ndepends_on = [{text}]\n[process.q]\ncommand = ["/x"]\n'.encode()
    found = load_tenant(data, file="acme.toml", system=system).processes[0].depends_on[0]
    assert (found.tenant, found.process, found.where) == where


@pytest.mark.parametrize(("text", "ms"), [("1500ms", 1_500), ("1.5s", 1_500), ("2m", 120_000), ("1h", 3_600_000)])
def test_durations_are_milliseconds(text: str, ms: int, process: Make) -> None:
    assert process(f'stop.grace = "{text}"').processes[0].stop.grace_ms == ms


@pytest.mark.parametrize(
    ("text", "size"), [("4096B", 4096), ("0.5MiB", 1 << 19), ("64MiB", 64 << 20), ("1TiB", 1 << 40)]
)
def test_sizes_are_bytes(text: str, size: int, process: Make) -> None:
    assert process(f'log.max_size = "{text}"').processes[0].log.max_size_bytes == size


@pytest.mark.parametrize("word", ["${name}", "{ print }", "{Name}", "{}", "{address}", "{1}"])
def test_other_braces_are_left_alone(word: str, process: Make) -> None:
    assert process(f'environment = {{ A = "{word}" }}').processes[0].environment == {"A": word}


@pytest.mark.parametrize(
    ("lines", "code", "words", "help"),
    [
        ("prioritty = 3", "unknown-key", '"prioritty"', 'did you mean "priority"?'),
        ('priority = "80"', "wrong-type", "is a string, expected an integer", "without quotes: 80"),
        ("priority = 101", "out-of-range", "101", "from 0 to 100"),
        ("priority = true", "wrong-type", "a boolean", "0 to 100"),
        ("enabled = 1", "wrong-type", "an integer", "true or false"),
        ('monitor_interval = "100 ms"', "bad-unit", '"100 ms"', "ms, s, m, h"),
        ("monitor_interval = 100", "wrong-type", "100 is an integer", "ms, s, m, h"),
        ('monitor_interval = "100"', "bad-unit", '"100"', "ms, s, m, h"),
        ('monitor_interval = "1ms"', "out-of-range", '"1ms"', "from 10ms"),
        ('stop.grace = "0.0001s"', "bad-unit", "no whole number of ms", "ms, s, m, h"),
        ('log.max_size = "64MB"', "bad-unit", '"64MB"', "MiB"),
        ('log.rate = "1MiB"', "not-yet", "rate", "remove"),
        ('log.to = "syslog"', "not-yet", "syslog", "file"),
        ('kind = "oneshot"', "not-yet", "oneshot", "exec"),
        ('kind = "exce"', "bad-value", "exce", "exec"),
        ('run_status = "hott"', "bad-value", '"hott"', 'did you mean "hot"?'),
        ('cleanup = ["/x"]', "not-yet", "cleanup", "later version"),
        ('watchdog = "10s"', "not-yet", "watchdog", "later version"),
        ("listen = []", "not-yet", "listen", "later version"),
        ("limits = { cpu = 1.0 }", "not-yet", "cpu", "later version"),
        ("limits = { nice = 20 }", "out-of-range", "20", "-20 to 19"),
        ('ready = { by = "fd" }', "not-yet", "fd", "started, probe, notify"),
        ('ready = { by = "probe" }', "bad-value", "there is no probe", "add"),
        ('probe = { sip = "x:1" }', "not-yet", "sip", "later version"),
        ('probe = { interval = "1s" }', "bad-value", "nothing to check", "exactly one"),
        ('probe = { tcp = "x:1", http = "http://x/" }', "bad-value", "tcp and http", "exactly one"),
        ('probe = { tcp = "x:1", status = 200 }', "bad-value", "only http has a status", "remove"),
        ('probe = { tcp = "x" }', "bad-value", "no host and port", "PORT"),
        ('probe = { tcp = "x:99999" }', "bad-value", "no host and port", "PORT"),
        ('probe = { http = "https://x/" }', "bad-value", "no http address", "https is not supported"),
        ("probe = 3", "wrong-type", "a table or an array", "write"),
        ("promote = { socket = false }", "bad-value", "no way", "exactly one"),
        ('promote = { socket = true, signal = "SIGUSR1" }', "bad-value", "signal and socket", "exactly one"),
        ('promote = { signal = "SIGKILL" }', "bad-value", "cannot be caught", "SIGUSR1"),
        ('demote = { signal = "SIGUSR" }', "bad-value", "no signal", "did you mean"),
        ('stop = { signal = "SIGSTOP" }', "bad-value", "does not end", "SIGTERM"),
        ('run_status = "load_sharing"\non_failure = "failover"', "bad-value", "nothing to move", "restart"),
        ('restart = { backoff = "2s", backoff_max = "1s" }', "out-of-range", "backoff_max, 1000ms", "at least"),
        ('working_directory = "tmp"', "bad-value", "no absolute path", "/..."),
        ('environment_file = "/a/../b"', "bad-value", "'..'", "without"),
        ('umask = "999"', "bad-value", "no umask", "octal"),
        ("umask = 18", "wrong-type", "an integer", "quotes"),
        ("environment = { A = 1 }", "wrong-type", "an integer", 'in quotes: "1"'),
        ('environment = { "A B" = "1" }', "bad-name", "A B", "letters"),
        ('environment = { HA_ROLE = "x" }', "bad-name", "HA_ROLE", "another name"),
        ('environment = { A = "\\u0000" }', "bad-value", "NUL", "remove"),
        ('environment = { A = "{adress}" }', "unknown-placeholder", "{adress}", 'did you mean "address"?'),
        ('user = "a:b"', "bad-value", "no user", "at most"),
        ("user = 1000", "wrong-type", "an integer", 'in quotes: "1000"'),
        ('stop = { command = "stop it" }', "wrong-type", "an array of strings", '["stop", "it"]'),
        ('stop = { command = ["stop"] }', "bad-value", "no absolute path", "PATH is not searched"),
        ("stop = { command = [] }", "bad-value", "empty", "absolute path"),
        ('depends_on = ["a b"]', "bad-name", "no process", "tenant/process"),
        ("depends_on = [3]", "wrong-type", "an integer", "string or a table"),
        ("depends_on = [{}]", "missing-key", "process", "add it"),
        ('depends_on = [{ process = "q", where = "any-side" }]', "bad-value", "same tenant", "remove where"),
        ('depends_on = "q"', "wrong-type", "expected an array", '["q"]'),
        ("restart = { jitter = nan }", "out-of-range", "nan", "0 to 1"),
        ("restart = { intensity = 2024-01-01 }", "wrong-type", "a date or time", "0 to 10000"),
    ],
)
def test_an_error_is_said_once_with_its_value_and_what_to_do(
    lines: str, code: str, words: str, help: str, system: System
) -> None:
    text = f'[process.q]\ncommand = ["/x"]\n[process.p]\ncommand = ["/bin/true"]\n{lines}\n'
    finding = only(check_files({"acme": text.encode()}, system).findings)
    assert (finding.code, words in finding.text, help in finding.help) == (code, True, True), str(finding)
    assert finding.line >= 5
    assert finding.column >= 1


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", "missing-key", "process"),
        ("[process]\n", "missing-key", "no process"),
        ("[process.p]\n", "missing-key", '"command"'),
        ("[process.P]\ncommand = ['/x']\n", "bad-name", '"P"'),
        ("[process]\np = 3\n", "wrong-type", "process.p"),
        ("process = 3\n", "wrong-type", "process = 3"),
        ("[tenant]\nname = 'A'\n[process.p]\ncommand = ['/x']\n", "bad-name", '"A"'),
        ("[tenant]\nhome = 'c'\n[process.p]\ncommand = ['/x']\n", "bad-value", '"c"'),
        ("[tenant]\nlimits = { cpu = 2.0 }\n[process.p]\ncommand = ['/x']\n", "not-yet", "limits"),
        ("[tenants]\n[process.p]\ncommand = ['/x']\n", "unknown-key", '"tenants" at the top'),
    ],
)
def test_an_error_of_the_file_is_said_once(text: str, code: str, words: str, system: System) -> None:
    finding = only(check_files({"acme": text.encode()}, system).findings)
    assert (finding.code, words in finding.text) == (code, True), str(finding)


def test_the_file_name_must_be_a_name_unless_the_tenant_has_one(system: System) -> None:
    body = b'[process.p]\ncommand = ["/x"]\n'
    finding = only(check_files({"Acme Inc": body}, system).findings)
    assert (finding.code, '"Acme Inc"' in finding.text) == ("bad-name", True)
    assert check_files({"Acme Inc": b'[tenant]\nname = "acme"\n' + body}, system).tenants[0].name == "acme"


def test_a_name_that_makes_a_socket_path_too_long_is_reported_and_a_long_one_that_fits_is_not(system: System) -> None:
    import msgspec

    long = "p" * 31
    text = f'[process.{long}]\ncommand = ["/x"]\n'.encode()
    assert check_files({"t" * 31: text}, system).findings == ()
    deep = msgspec.structs.replace(system, run_dir="/" + "r" * 40)
    finding = only(check_files({"t" * 31: text}, deep).findings)
    assert (finding.code, finding.line, finding.column) == ("path-too-long", 1, 10)


def test_all_errors_come_in_one_pass_in_file_order(tenant_errors: Read) -> None:
    found = tenant_errors('priority = "x"\ncopies = 0\nuser = ""\nnosuch = 1\nlog = { keep = -1, size = "x" }')
    assert [finding.line for finding in found] == [3, 4, 5, 6, 7, 7]


def test_a_flood_of_errors_ends_with_saying_so(tenant_errors: Read) -> None:
    found = tenant_errors("\n".join(f"x{n} = 1" for n in range(1_000)))
    assert len(found) == 101
    assert found[-1].code == "too-many"


def test_load_tenant_raises_with_every_finding(system: System) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tenant(b"[process.p]\npriority = 'x'\n", file="acme.toml", system=system)
    assert [finding.code for finding in caught.value.findings] == ["missing-key", "wrong-type"]
    assert "acme.toml:2:12: wrong-type" in str(caught.value)
