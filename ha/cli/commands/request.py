"""hactl request."""

from __future__ import annotations

import click

from ha.cli.session import Session, pass_session
from ha.cli.values import show_value


@click.command()
@click.argument("id", metavar="ID")
@pass_session
def request(session: Session, id: str) -> None:
    """Ask what became of an earlier request."""
    session.send("request", {"id": id}, show_value)
