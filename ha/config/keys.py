"""Keys: the one table of every key of the three files. It validates, and makes the JSON Schemas and the documents.

Rows of the contract that a later version brings stand in `later`: they are refused with "not yet", never ignored.
"""

from __future__ import annotations

import re

from ha.config import kinds
from ha.config.kinds import Choice, Command, Flag, Many, Number, Text, duration, size
from ha.config.report import did_you_mean
from ha.config.tables import Key, MapOf, OneOrMany, Table, TextOrTable, variable_check
from ha.model import plan, timing
from ha.model.names import NAME, SIDES

PLACEHOLDERS = ("node", "side", "address", "tenant", "process", "copy")
_PLACEHOLDER = re.compile(r"(?<!\$)\{([a-z_]+)\}")
_PROCESS_ID = re.compile(rf"(?:{NAME.pattern[1:-1]}/)?{NAME.pattern[1:-1]}")
DAY_MS = 86_400_000


def _filled(value: str) -> tuple[str, str, str] | None:
    for word in _PLACEHOLDER.findall(value):
        if word not in PLACEHOLDERS:
            help = did_you_mean(word, PLACEHOLDERS, kind="placeholders")
            return "unknown-placeholder", f"holds {{{word}}}", f"{help}; for the braces themselves write {{ {word} }}"
    return None


def _side(value: str) -> tuple[str, str, str] | None:
    return None if value in SIDES else ("bad-name", "is no side", f"the sides are {' and '.join(SIDES)}")


def _process_id(value: str) -> tuple[str, str, str] | None:
    good = _PROCESS_ID.fullmatch(value)
    return None if good else ("bad-name", "is no process", 'write "process" or "tenant/process"')


def _tcp(value: str) -> tuple[str, str, str] | None:
    host, colon, port = value.rpartition(":")
    good = colon and host and not host.endswith(":") and (_PLACEHOLDER.search(port) or _port(port))
    return _filled(value) if good else ("bad-value", "is no host and port", 'write "{address}:PORT"')


def _http(value: str) -> tuple[str, str, str] | None:
    if not re.match(r"http://[^/\s]+", value) or re.search(r"\s", value):
        return "bad-value", "is no http address", 'write "http://{address}:PORT/PATH"; https is not supported'
    return _filled(value)


def _port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 0 < int(text) < 65_536


def _variable_pattern(value: str) -> tuple[str, str, str] | None:
    good = re.fullmatch(r"[A-Za-z0-9_*?]+", value)
    return None if good else ("bad-value", "is no variable's name or pattern", 'such as "LD_*"')


def _relative(value: str) -> tuple[str, str, str] | None:
    return None if value else ("bad-value", "is empty", "name a path; a relative one counts from this file's directory")


NAME_TEXT = Text("a name", kinds.name_check, NAME.pattern)
PATH = Text("an absolute path", kinds.path_check, "^/")
FILLED = Text(check=_filled)
SIGNAL = Text("a signal's name", kinds.signal_check, "^SIG[A-Z0-9+]+$")
SIDE = Choice(SIDES)
RUN = Command(argument=FILLED)
ACCOUNT = Text("a user or group name", kinds.account_check)
VARIABLES = MapOf(FILLED, variable_check, "^[A-Za-z_][A-Za-z0-9_]*$", "variable")
ADDRESSES = Many(Text("an address", kinds.address_check), least=1, unique=True)
PRIORITY = Number(0, 100)
PORT = Number(1, 65_535)

# --- system file ----------------------------------------------------------------------------------

_some = duration(1, DAY_MS)
TIMING = Table(
    (
        Key("beat", _some, "Every agent says that it lives this often; a node's pull of its sub-lease is its beat."),
        Key("renew_every", _some, "A Server renews its leases at the voters this often."),
        Key("suspect", _some, "Silence after which an agent or node is suspect."),
        Key("freeze_after", _some, "A lease lasts this long from the send of its renewal; then active copies freeze."),
        Key("stall", _some, "Worst accepted stall of an agent, freezing included."),
        Key("rtt", _some, "Worst accepted round trip between nodes."),
        Key("rtt_local", _some, "Worst accepted round trip inside a node or side."),
        Key("drift", Number(0, 0.1, whole=False), "Largest relative rate error of any clock; no unit."),
        Key("promise", _some, "A voter grants a lease to nobody else for this long after a renewal."),
        Key("stagger", duration(0, DAY_MS), "How much later than the home side the other side claims a tenant."),
        Key("kill_after", _some, "A frozen copy that nobody took over is killed after this."),
        Key(
            "startup_wait", duration(0, DAY_MS), "At a cold boot: how long the other side leaves a tenant to its home."
        ),
    ),
    struct=timing.Timing,
)
SYSTEM = Table(
    (
        Key("system", Table((
            Key("name", NAME_TEXT, "The system's name, in every message.", required=True),
            Key("run_dir", PATH, "Per node below it: sockets, locks, guard table, journal.", default='"/run/ha"'),
            Key("data_dir", PATH, "Per node below it: epochs, votes, events, plans, logs.", default='"/var/lib/ha"'),
            Key("tenants_dir", Text(check=_relative), "Directory of the tenant files, relative to this file.",
                default='"tenants.d"'),
            Key("node_file", Text(check=_relative), "This machine's own file; it need not exist.",
                default='"/etc/ha/node.toml"'),
            Key("profile", Choice(tuple(timing.PROFILES)), "Timings, overridden by [timing].", default='"default"'),
        ), struct=None), "Names and places.", required=True),
        Key("timing", TIMING, "Durations of leases and beats; each key overrides the profile's value."),
        Key("arbitration", Table((
            Key("mode", Choice(("witness",), later=("holder-survives", "etcd")), "Who grants leases.",
                default='"witness"'),
            Key("voters", Many(NAME_TEXT, least=1, unique=True), "Where a Witness runs: an odd number of nodes.",
                default="the first server of each side and all of [witnesses]"),
        ), later=("etcd",)), "Who may be active."),
        Key("ports", Table((
            Key("state", PORT, "TCP port of the Monitor's broadcasts."),
            Key("command", PORT, "TCP port of the Spawner."),
            Key("vote", PORT, "TCP port of the Witness."),
            Key("control", PORT, "TCP port of the Server."),
            Key("beat", PORT, "TCP port of the Server's beats."),
        ), struct=plan.Ports), "TCP ports, the same on every node."),
        Key("sides", MapOf(Table((
            Key("servers", Many(NAME_TEXT, least=1, unique=True), "Where the side's Server may run, best first.",
                required=True),
        )), _side, f"^({'|'.join(SIDES)})$", "side"), "The two halves of the duplex system.", required=True),
        Key("nodes", MapOf(Table((
            Key("side", SIDE, "The side it belongs to.", required=True),
            Key("addresses", ADDRESSES, "Its IP addresses; more than one: redundant links.", required=True),
            Key("labels", Many(NAME_TEXT, unique=True), "What processes may ask for by `on`.", default="[]"),
        ), later=("fence",)), kinds.name_check, NAME.pattern, "node"), "All machines with agents.", required=True),
        Key("witnesses", MapOf(Table((
            Key("addresses", ADDRESSES, "Its IP addresses.", required=True),
        )), kinds.name_check, NAME.pattern, "witness"), "Places that only vote."),
    ),
)  # fmt: skip

# --- tenant file ----------------------------------------------------------------------------------

_WHERE = Choice(("any-side", "same-side"))
PROCESS_ID = Text("a process", _process_id)
DEPENDENCY = TextOrTable(
    PROCESS_ID,
    Table((
        Key("process", PROCESS_ID, '"process" of this tenant, or "tenant/process".', required=True),
        Key("where", _WHERE, "On which side it must be ready.", default='"any-side" in another tenant'),
    )),
    "process",
)  # fmt: skip
PROBE = Table(
    (
        Key("tcp", Text(check=_tcp), '"host:port" that must accept a connection.'),
        Key("http", Text(check=_http), "URL that must answer with `status`."),
        Key("exec", RUN, "Command that must exit with 0; it runs as the process's user."),
        Key("status", Number(100, 599), "Expected status code of `http`."),
        Key("interval", duration(10, DAY_MS), "Time between two checks.", default="monitor_interval"),
        Key("timeout", duration(1, DAY_MS), "No answer after this is a failure."),
        Key("failures", Number(1, 1_000), "Failures in a row until the copy counts as failed."),
        Key("successes", Number(1, 1_000), "Passes in a row until it counts as ready."),
        Key("initial_delay", duration(0, DAY_MS), "Before the first check of a started copy."),
    ),
    later=("sip", "rss", "cpu", "fds"),
    struct=plan.Probe,
)
ROLE_CHANGE = Table(
    (
        Key("command", RUN, "Command that makes the change; exit code 0 is success."),
        Key("signal", SIGNAL, "Signal to the main process."),
        Key("socket", Flag(), "true: by the control socket (`ha.sdk`)."),
        Key("timeout", duration(1, DAY_MS), "No success after this is a failure."),
    ),
    struct=plan.RoleChange,
)
RESTART = Table(
    (
        Key("policy", Choice(("always", "on-failure", "never")), "When a copy that ended unasked is started again."),
        Key("intensity", Number(0, 10_000), "Unplanned deaths within `period` that are borne; one more escalates."),
        Key("period", duration(1, 30 * DAY_MS), "The time `intensity` counts in."),
        Key("backoff", duration(0, DAY_MS), "Before the second restart; it doubles from then on."),
        Key("backoff_max", duration(0, DAY_MS), "Where the doubling ends."),
        Key("jitter", Number(0, 1, whole=False), "Random part of the backoff; no unit."),
        Key("stable", duration(0, 30 * DAY_MS), "A copy that ran this long begins with a fresh backoff."),
    ),
    struct=plan.Restart,
)
STOP = Table(
    (
        Key("signal", SIGNAL, "First signal to the main process."),
        Key("grace", duration(0, DAY_MS), "Then the whole process tree is killed."),
        Key("command", RUN, "Run instead of sending `signal`."),
    ),
    struct=plan.Stop,
)
LIMITS = Table(
    (
        Key("nofile", Number(16, 1 << 30), "Open files of a copy.", default="the agent's"),
        Key("core", size(), "Size of a core file.", default="the agent's"),
        Key("nice", Number(-20, 19), "Nice value.", default="the agent's"),
    ),
    later=("cpu", "memory", "tasks", "weight"),
    struct=plan.Limits,
)
LOG = Table(
    (
        Key("max_size", size(4096), "A log file is rotated at this size."),
        Key("keep", Number(0, 1_000), "Rotated files kept."),
        Key("to", Choice(("file",), later=("syslog", "journald")), "Where output goes.", default='"file"'),
    ),
    later=("rate",),
    struct=plan.Log,
)
READY = Table(
    (
        Key("by", Choice(("started", "probe", "notify"), later=("fd",)), "What makes a started copy ready."),
        Key("timeout", duration(1, DAY_MS), "A copy not ready after this has failed."),
    ),
    struct=plan.Ready,
)
PROCESS = Table(
    (
        Key("kind", Choice(("exec",), later=("oneshot", "address", "ocf")), "What it is.", default='"exec"'),
        Key("command", RUN, "Program (absolute path) and arguments.", required=True),
        Key("run_status", Choice(("cold", "warm", "hot", "load_sharing")), "What it is on the two sides."),
        Key("enabled", Flag(), "false: known, not started."),
        Key("priority", PRIORITY, "Among what may start, higher first."),
        Key("depends_on", Many(DEPENDENCY), "What must be ready first.", default="[]"),
        Key("copies", Number(1, 1_000), "Copies on each side."),
        Key("on", Many(NAME_TEXT, unique=True), "Labels that a node must carry, all of them."),
        Key("user", ACCOUNT, "Whom it runs as.", default="the agent's user"),
        Key("group", ACCOUNT, "Its group.", default="the user's"),
        Key("working_directory", PATH, "Its current directory."),
        Key("umask", Text("a string", kinds.umask_check, "^0?[0-7]{3}$"), "Its umask, octal.", default='"0027"'),
        Key("environment", VARIABLES, "Its variables, over the tenant's."),
        Key("environment_file", PATH, "File of the node with more variables: secrets; never sent, never shown."),
        Key("monitor_interval", duration(10, DAY_MS), "Its monitoring frequency: default interval of its probes."),
        Key("ready", READY, "When it counts as ready."),
        Key("probe", OneOrMany(PROBE), "Checks of the running process: one table or several.", default="none",
            field_name="probes"),
        Key("promote", ROLE_CHANGE, "How a standby is made active.", default="by the control socket"),
        Key("demote", ROLE_CHANGE, "How an active copy is made standby.", default="by the control socket"),
        Key("restart", RESTART, "What happens when it ends unasked."),
        Key("on_failure", Choice(("failover", "restart")), "When the active copy is lost: move first, or restart here.",
            default='"failover" for warm and hot, else "restart"'),
        Key("stop", STOP, "How it is stopped."),
        Key("limits", LIMITS, "Resource limits of a copy."),
        Key("log", LOG, "Where its output goes."),
    ),
    later=("cleanup", "watchdog", "listen", "address", "ocf"),
    struct=plan.Process,
)  # fmt: skip
TENANT = Table(
    (
        Key("tenant", Table((
            Key("name", NAME_TEXT, "The tenant's name.", default="the file's name"),
            Key("priority", PRIORITY, "Among tenants, higher first."),
            Key("home", SIDE, "The side where it is active if both can."),
            Key("failback", Choice(("manual", "auto")), "Whether it moves home by itself."),
            Key("failback_after", duration(0, 30 * DAY_MS), "auto: home has been ready for this long."),
            Key("enabled", Flag(), "false: known, not started."),
            Key("environment", VARIABLES, "Variables of all its processes."),
            Key("on_event", RUN, "Command run on each of its events."),
        ), later=("limits",), struct=plan.Tenant), "The tenant."),
        Key("process", MapOf(PROCESS, kinds.name_check, NAME.pattern, "process"), "Its processes.", required=True),
    ),
)  # fmt: skip

# --- node file ------------------------------------------------------------------------------------

NODE = Table(
    (
        Key("policy", Table((
            Key("plans", Choice(("local", "servers"), later=("signed",)),
                "local: only files of this node; servers: also what a Server of this system distributes."),
            Key("users", Many(ACCOUNT, unique=True), "Whom processes may run as; empty: anyone but root."),
            Key("commands", Many(PATH, unique=True),
                "Directories of programs; empty: any (who may write there is not checked yet)."),
            Key("environment_deny", Many(Text("a pattern", _variable_pattern), unique=True),
                "Variables a plan may not set; * and ? match."),
        ), later=("signers", "write_paths", "kinds", "addresses", "max_limits"), struct=plan.Policy),
            "What this node lets a plan do."),
        Key("control", Table((
            Key("view_group", ACCOUNT, "Group that may look by hactl.", default="the agent's group"),
            Key("operate_group", ACCOUNT, "Group that may act by hactl.", default="the agent's user only"),
        )), "Who may use hactl besides root."),
    ),
    later=("keys",),
)  # fmt: skip

FILES = {"system": SYSTEM, "tenant": TENANT, "node": NODE}
