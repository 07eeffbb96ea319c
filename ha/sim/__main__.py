"""`python -m ha.sim [--seed N] [--seeds K] [--minutes M]`: play seeds; print what failed and how to play it again."""

from __future__ import annotations

import argparse
import sys
import time

from ha.sim.run import Report, harsh, run, usual


def main(argv: list[str] | None = None) -> int:
    """Play the seeds asked for. Return 0 if no invariant was violated, else 1."""
    parser = argparse.ArgumentParser(prog="python -m ha.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="first seed (default 1)")
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds (default 20)")
    parser.add_argument("--minutes", type=float, default=0.5, help="virtual minutes of faults a seed (default 0.5)")
    parser.add_argument("--story", action="store_true", help="print the faults of each seed")
    parser.add_argument("--harsh", action="store_true", help="draw the system, tenants, habits and commands as well")
    wanted = parser.parse_args(argv)
    draw = harsh if wanted.harsh else usual
    started = time.monotonic()
    events, failed = 0, []
    for seed in range(wanted.seed, wanted.seed + wanted.seeds):
        report = run(seed, wanted.minutes, draw(seed))
        events += report.events
        if wanted.story or report.failure:
            _tell(report)
        if report.failure:
            failed.append(seed)
            flags = " --harsh" if wanted.harsh else ""
            sys.stdout.write(
                f"again: python -m ha.sim --seed {seed} --seeds 1 --minutes {wanted.minutes}{flags} --story\n"
            )
    took = time.monotonic() - started
    sys.stdout.write(
        f"{wanted.seeds} seeds, {events} events in {took:.1f} s ({events / took:.0f}/s), "
        f"{len(failed)} violated{': ' + ', '.join(map(str, failed)) if failed else ''}\n"
    )
    return 1 if failed else 0


def _tell(report: Report) -> None:
    sys.stdout.write(f"seed {report.seed}: {report.events} events, {report.seconds:.0f} virtual s\n")
    for fault in report.faults:
        sys.stdout.write(f"  {fault}\n")
    if report.failure:
        sys.stdout.write(f"  FAILED: {report.failure}\n")


if __name__ == "__main__":
    sys.exit(main())
