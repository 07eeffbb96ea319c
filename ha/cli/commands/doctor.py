"""hactl doctor: what this machine can do, and what stands in the way of its agents. Asks no agent."""

from __future__ import annotations

from typing import Any

import click

from ha.cli.failure import ExitCode
from ha.cli.session import Session, pass_session, print_json


@click.command()
@pass_session
def doctor(session: Session) -> None:
    """Look at this machine, asking no agent.

    Kernel, file modes, ports, clocks. Exit code 1: something must be mended.
    """
    from ha.cli.examine import Verdict, examine
    from ha.cli.table import Cell, Table, Tone, show_blocks

    found = examine(session.config, session.node)
    if session.as_json:
        rows: list[dict[str, Any]] = [
            {"area": one.area, "verdict": one.verdict.value, "text": one.text, "help": one.help} for one in found
        ]
        print_json({"checks": rows})
    else:
        tones = {Verdict.OK: Tone.GOOD, Verdict.NOTE: Tone.BUSY, Verdict.BAD: Tone.BAD}
        cells = tuple(
            (Cell(one.verdict.value, tones[one.verdict]), Cell(one.area), Cell(one.text), Cell(one.help))
            for one in found
        )
        show_blocks([Table("", ("VERDICT", "AREA", "FOUND", "WHAT TO DO"), cells)])
    if any(one.verdict is Verdict.BAD for one in found):
        raise click.exceptions.Exit(int(ExitCode.FAILED))
