"""All benchmarks in one run: `scripts/bench_all.py [--only crash,many] [--quick] [--peers-only] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks import failover, supervision, tree
from benchmarks.measure import Figure, repeated
from benchmarks.ours import Ours
from benchmarks.peers import S6, Bare, Circus, Peer, Runit, Supervisord
from benchmarks.report import table
from benchmarks.supervision import attempt

Bench = Callable[[bool, bool], Iterator[Figure]]  # (quick, with our own agents)
RUNS = 5  # of figures that are one number a run


def contestants(ours: bool, *others: Peer) -> list[Peer]:
    """Return ours, if wanted, before the others."""
    return [*([Ours()] if ours else []), *others]


def crash(quick: bool, ours: bool) -> Iterator[Figure]:
    """Crash -> restarted."""
    kills = 20 if quick else 200
    for peer in contestants(ours, Bare(), S6(), Runit(), Circus(0.01)):
        yield from attempt("crash -> restarted", peer, partial(supervision.crash, peer, kills))
    for slow in (Circus(), Supervisord()):  # about a second each
        yield from attempt("crash -> restarted", slow, partial(supervision.crash, slow, min(kills, 30)))


def many(quick: bool, ours: bool) -> Iterator[Figure]:
    """1,000 programs started."""
    count = 50 if quick else 1_000
    for peer in contestants(ours, Bare(), Circus(), Supervisord()):
        yield from attempt(f"{count} programs started", peer, partial(supervision.many, peer, count))


def killed(quick: bool, ours: bool) -> Iterator[Figure]:
    """Kill -9 of the supervisor, started again."""
    for peer in contestants(ours, *([Ours(all_agents=True)] if ours else []), S6(), Runit(), Circus(), Supervisord()):
        yield from attempt("supervisor killed: duplicates", peer, partial(supervision.killed_supervisor, peer))


def escaped(quick: bool, ours: bool) -> Iterator[Figure]:
    """A child that left its session, after a stop."""
    for peer in contestants(ours, S6(), Runit(), Circus(), Supervisord()):
        yield from attempt("escaped child after stop: left", peer, partial(supervision.escaped_child, peer))


def footprint(quick: bool, ours: bool) -> Iterator[Figure]:
    """Memory and idle CPU."""
    seconds = 1.0 if quick else 10.0
    for count in (5,) if quick else (5, 200):
        for peer in contestants(ours, S6(), Runit(), Circus(0.01), Circus(), Supervisord()):
            yield from attempt(
                f"memory (PSS), {count} programs", peer, partial(supervision.footprint, peer, count, seconds)
            )


def depend(quick: bool, ours: bool) -> Iterator[Figure]:
    """50 programs that depend on each other."""
    count = 10 if quick else 50
    for shape in ("tree", "chain"):
        measures = [tree.floor, *([tree.ours] if ours else [])]
        for measure in measures:
            yield repeated([measure(shape, count) for _ in range(1 if quick else RUNS)])


def failover_(quick: bool, ours: bool) -> Iterator[Figure]:
    """Crash of the active, loss of a node, kill of a Server: only ours."""
    if not ours:
        return
    yield failover.crashes(3 if quick else 60)
    yield failover.server_kills(2 if quick else 20)
    for profile in ("default", "fast"):
        for number in (signal.SIGKILL, signal.SIGSTOP):
            losses = 30 if profile == "default" else 8
            yield failover.node_losses(1 if quick else losses, profile, number)


BENCHES: dict[str, Bench] = {
    "crash": crash, "many": many, "depend": depend, "killed": killed, "escaped": escaped, "footprint": footprint,
    "failover": failover_,
}  # fmt: skip


def main() -> None:
    """Run what was asked for, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(BENCHES), help=f"of {','.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="few samples: does it run at all?")
    parser.add_argument("--peers-only", action="store_true", help="leave our own agents out")
    parser.add_argument("--json", type=Path, help="write all samples there")
    options = parser.parse_args()
    figures: list[Figure] = []
    for name in options.only.split(","):
        for figure in BENCHES[name](options.quick, not options.peers_only):
            figures.append(figure)
            print(f"  {figure.figure}: {figure.who}: {figure.p50} {figure.unit} {figure.remark}", file=sys.stderr)
    print(table(figures))
    if options.json:
        host = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
        whole = [
            {"figure": f.figure, "who": f.who, "unit": f.unit, "p50": f.p50, "p99": f.p99, "samples": f.samples,
             "remark": f.remark} for f in figures
        ]  # fmt: skip
        options.json.write_text(json.dumps({"host": host, "figures": whole}, indent=1))


if __name__ == "__main__":
    main()
