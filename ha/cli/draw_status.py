"""Draw `hactl status` for people: sides and nodes, tenants and copies, alarms with help, errors of the plan.

The input is the object of contract/status.json5, keys of which are only ever added; an absent one is drawn as "-",
because the agents that answer may be a version older than this program.
"""

from __future__ import annotations

from typing import Any

from ha.cli.table import Block, Cell, Lines, Table, Tone

Json = dict[str, Any]

_TONES = {
    "ok": Tone.GOOD, "up": Tone.GOOD, "ready": Tone.GOOD,
    "starting": Tone.BUSY, "moving": Tone.BUSY, "stopping": Tone.BUSY, "suspect": Tone.BUSY, "draining": Tone.BUSY,
    "drained": Tone.BUSY, "degraded": Tone.BUSY, "backoff": Tone.BUSY, "waiting": Tone.BUSY, "warning": Tone.BUSY,
    "dead": Tone.BAD, "failed": Tone.BAD, "frozen": Tone.BAD, "stuck": Tone.BAD, "no-lease": Tone.BAD,
    "unknown": Tone.BAD, "critical": Tone.BAD,
    "down": Tone.DIM, "stopped": Tone.DIM, "standby": Tone.DIM, "active": Tone.TITLE,
}  # fmt: skip
_NODE_COLUMNS = ("NODE", "STATE", "LEASE", "AGENTS", "FREEZES", "LATE", "AGE", "LINKS")
_COPY_COLUMNS = ("PROCESS", "RUN STATUS", "NODE", "COPY", "ROLE", "STATE", "PID", "RESTARTS", "SINCE", "REASON")
_OLD_MS = 1_000  # younger reports need no remark about their age


def draw(status: Json) -> list[Block]:
    """Return the blocks to print."""
    blocks: list[Block] = [Lines(tuple(_head(status)))]
    blocks += [_side(name, side) for name, side in sorted(_dict(status, "sides").items())]
    blocks += [_tenant(name, tenant) for name, tenant in sorted(_dict(status, "tenants").items())]
    blocks += [Lines(tuple(lines)) for lines in (_plan_errors(status), _alarms(status)) if lines]
    return blocks


def _head(status: Json) -> list[Cell]:
    plan = _dict(status, "plan")
    asked = f"{_text(status, 'source')} of {_text(status, 'node')}"
    lines = [
        Cell(f"system {_text(status, 'system')}: answered by the {asked}, plan {_text(plan, 'version')}", Tone.TITLE)
    ]
    if not status.get("complete", True):
        lines.append(Cell("incomplete: not all sides or nodes could be asked; AGE says how old a report is", Tone.BUSY))
    arbitration = _dict(status, "arbitration")
    voters = _dict(arbitration, "voters")
    words = ", ".join(f"{name} {_text(voter, 'state')}" for name, voter in sorted(voters.items())) or "none known"
    bad = any(voter.get("state") != "up" for voter in voters.values())
    lines.append(Cell(f"voters ({_text(arbitration, 'mode')}): {words}", Tone.BUSY if bad else Tone.PLAIN))
    return lines


def _side(name: str, side: Json) -> Table:
    server = side.get("server")
    title = f"side {name}: " + (f"server on {server}" if server else "no server")
    return Table(
        title, _NODE_COLUMNS, tuple(_node(node, report) for node, report in sorted(_dict(side, "nodes").items()))
    )


def _node(name: str, node: Json) -> tuple[Cell, ...]:
    age = node.get("as_of_ms")
    lease = node.get("lease_ms")
    links = _dict(node, "links")
    down = sorted(address for address, state in links.items() if state != "up")
    return (
        Cell(name),
        _state(node),
        Cell("none", Tone.BUSY) if lease is None else Cell(f"{lease}ms"),
        _agents(_dict(node, "agents")),
        _count(node.get("freezes")),
        _count(node.get("late_ticks")),
        Cell("-") if age is None else Cell(f"{age}ms", Tone.BUSY if age > _OLD_MS else Tone.PLAIN),
        Cell("down: " + " ".join(down), Tone.BAD) if down else Cell(f"{len(links)} up" if links else "-"),
    )


def _agents(agents: Json) -> Cell:
    if not agents:
        return Cell("-")
    troubled = []
    restarts = sum(int(agent.get("restarts") or 0) for agent in agents.values())
    for role, agent in sorted(agents.items()):
        if agent.get("state") != "up":
            troubled.append(f"{role} {_text(agent, 'state')}")
    words = [f"{len(agents) - len(troubled)} up", *troubled]
    if restarts:
        words.append(f"{restarts} restarts")
    return Cell(", ".join(words), Tone.BAD if troubled else Tone.GOOD)


def _tenant(name: str, tenant: Json) -> Table:
    active = tenant.get("active_side")
    words = [
        str(tenant.get("state", "-")),
        f"active on side {active}" if active else "active nowhere",
        f"home {_text(tenant, 'home')}",
        f"epoch {_text(tenant, 'epoch')}",
        f"priority {_text(tenant, 'priority')}",
    ]
    if tenant.get("wanted") == "stopped":
        words.append("stopped by wish")
    if tenant.get("held"):
        words.append("held: no automatic role change")
    rows: list[tuple[Cell, ...]] = []
    for process, report in sorted(_dict(tenant, "processes").items()):
        rows += _process(process, report)
    return Table(f"tenant {name}: " + ", ".join(words), _COPY_COLUMNS, tuple(rows))


def _process(name: str, process: Json) -> list[tuple[Cell, ...]]:
    copies = sorted(process.get("copies") or [], key=lambda copy: (copy["side"], copy["node"], copy["copy"]))
    first = Cell(name), Cell(_text(process, "run_status"))
    if not copies:
        return [(*first, Cell("-"), Cell("-"), Cell("-"), Cell("no copy", Tone.DIM))]
    again = Cell(""), Cell("")
    return [(*(again if number else first), *_copy(copy)) for number, copy in enumerate(copies)]


def _copy(copy: Json) -> tuple[Cell, ...]:
    role = copy.get("role")
    state = _state(copy)
    wanted = "up" if copy.get("wanted") == "up" else "down"
    if wanted == "up" and state.text == "down":
        state = Cell("down", Tone.BAD)  # it should run and does not
    return (
        Cell(_text(copy, "node")),
        Cell(_text(copy, "copy")),
        Cell(role or "-", _TONES.get(role or "", Tone.PLAIN)),
        state,
        Cell(_text(copy, "pid")),
        _count(copy.get("restarts")),
        Cell(str(copy.get("started_at") or "-")[:19].replace("T", " ")),
        Cell(_reason(copy)),
    )


def _reason(copy: Json) -> str:
    words = [str(copy["reason"])] if copy.get("reason") else []
    ended = copy.get("exit")
    if isinstance(ended, dict) and copy.get("state") in ("down", "backoff", "failed"):
        words += [_ended(ended)]
    return "; ".join(words)


def _ended(ended: Json) -> str:
    if "code" in ended:
        return f"exited with {ended['code']}"
    return f"ended by {ended['signal']}" if "signal" in ended else "how it ended is not known"


def _plan_errors(status: Json) -> list[Cell]:
    lines: list[Cell] = []
    for error in _dict(status, "plan").get("errors") or []:
        if not lines:
            lines.append(Cell("the plan has errors; the last good version stays", Tone.BAD))
        lines.append(Cell(f"  {error_line(error)}", Tone.BAD))
        if error.get("help"):
            lines.append(Cell(f"    {error['help']}"))
    return lines


def error_line(error: Json) -> str:
    """Return one finding as file:line:column: code: text."""
    where = f"{error['file']}:{error['line']}:{error['column']}" if error.get("line") else str(error.get("file"))
    return f"{where}: {_text(error, 'code')}: {_text(error, 'text')}"


def _alarms(status: Json) -> list[Cell]:
    lines: list[Cell] = []
    alarms = status.get("alarms") or []
    for alarm in sorted(alarms, key=lambda one: (one.get("severity") != "critical", str(one.get("since")))):
        severity = _text(alarm, "severity")
        text = f"{severity}: {_text(alarm, 'subject')}: {_text(alarm, 'text')} (since {_text(alarm, 'since')})"
        lines.append(Cell(text, _TONES.get(severity, Tone.BUSY)))
        if alarm.get("help"):
            lines.append(Cell(f"  {alarm['help']}"))
    return lines


def _state(report: Json) -> Cell:
    state = _text(report, "state")
    return Cell(state, _TONES.get(state, Tone.PLAIN))


def _count(value: object) -> Cell:
    return Cell("-") if value is None else Cell(str(value), Tone.BUSY if value else Tone.DIM)


def _dict(report: Json, key: str) -> Json:
    value = report.get(key)
    return value if isinstance(value, dict) else {}


def _text(report: Json, key: str) -> str:
    value = report.get(key)
    return "-" if value is None else str(value)
