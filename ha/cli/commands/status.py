"""hactl status."""

from __future__ import annotations

from typing import Any

import click

from ha.cli.session import Session, pass_session


@click.command()
@pass_session
def status(session: Session) -> None:
    """Show sides, nodes, tenants, processes, copies and alarms."""
    session.send("status", {}, _show)


def _show(result: Any) -> None:
    from ha.cli.draw_status import draw
    from ha.cli.table import show_blocks

    show_blocks(draw(result))
