"""hactl diff, apply: the files against what is in force."""

from __future__ import annotations

import click

from ha.cli.session import Session, pass_session
from ha.cli.values import show_value


@click.command()
@pass_session
def diff(session: Session) -> None:
    """Say what the files would change.

    Exit code 1: they differ from what is in force.
    """
    session.send("diff", {}, show_value)


@click.command()
@click.option("--confirm", is_flag=True, help="Also a missing directory, or the removal of more than one tenant.")
@pass_session
def apply(session: Session, confirm: bool) -> None:
    """Read the files now and put them in force."""
    session.act("apply", {"confirm": confirm}, "apply: done")
