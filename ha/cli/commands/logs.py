"""hactl logs."""

from __future__ import annotations

from typing import Any

import click

from ha.cli.commands.control import target as target_callback
from ha.cli.failure import ExitCode, Failure
from ha.cli.session import Session, pass_session


@click.command()
@click.argument("target", callback=target_callback, metavar="TENANT/PROCESS")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written, until interrupted.")
@click.option("-n", "lines", type=click.IntRange(min=0), default=100, show_default=True, help="Lines to begin with.")
@click.option("--copy", type=click.IntRange(min=1), default=1, show_default=True, help="Which copy of this node.")
@pass_session
def logs(session: Session, target: str, follow: bool, lines: int, copy: int) -> None:
    """Show the output of a process on the asked node."""
    if "/" not in target:
        raise Failure(ExitCode.USAGE, f"cannot show logs of {target}: name TENANT/PROCESS")
    args = {"target": target, "copy": copy, "lines": lines, "follow": follow}
    try:
        session.send("logs", args, _show, endless=follow)
    except KeyboardInterrupt:  # how people end --follow
        return


def _show(result: Any) -> None:
    if isinstance(result, dict):
        result = result.get("lines", result.get("text", ""))
    for line in result if isinstance(result, list) else [str(result).removesuffix("\n")]:
        click.echo(line)
