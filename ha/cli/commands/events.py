"""hactl events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from ha.cli.client import WentAway
from ha.cli.failure import ExitCode, Failure
from ha.cli.session import Session, pass_session, print_json

Event = dict[str, Any]

SHOWN = 100  # without --since
LOOK_AGAIN_S = 0.1  # while the agents of the node are being started again


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with those to come, until interrupted.")
@click.option("--since", metavar="ID", help="Those after this event; what is no longer kept shows as a gap.")
@click.option("-n", "limit", type=click.IntRange(min=1), help=f"At most so many; default: {SHOWN}, with --since all.")
@pass_session
def events(session: Session, follow: bool, since: str | None, limit: int | None) -> None:
    """Show what happened, one line an event."""
    limit = limit or (None if since else SHOWN)
    show: Callable[[Event], None] = print_json if session.as_json else _show
    try:
        if follow:
            _follow(session, since, limit, show)
        else:
            _once(session, {"since": since, "follow": False, "limit": limit}, show)
    except KeyboardInterrupt:  # how people end --follow
        return


def _once(session: Session, args: Event, show: Callable[[Event], None], *, endless: bool = False) -> None:
    def show_all(result: Any) -> None:
        for event in result:
            show(event)

    session.send("events", args, show_all, show_json=show_all, endless=endless)


def _follow(session: Session, since: str | None, limit: int | None, show: Callable[[Event], None]) -> None:
    """Show events without end: a subscription that is over, or whose agent was restarted, is taken up where it was."""
    last = since

    def note(event: Event) -> None:
        nonlocal last
        last = event.get("id") or last
        show(event)

    patience_ends = 0.0  # the first time, somebody must be there
    while True:
        try:
            _once(session, {"since": last, "follow": True, "limit": limit}, note, endless=True)
        except WentAway:
            patience_ends = time.monotonic() + session.timeout_s
        except Failure as failure:
            if failure.code != ExitCode.NO_ANSWER or time.monotonic() >= patience_ends:
                raise
        time.sleep(LOOK_AGAIN_S)
        limit = None


def _show(event: Event) -> None:
    click.echo(line_of(event))


def line_of(event: Event) -> str:
    """Return an event as a line of text."""
    if event.get("kind") == "gap":
        return "-- gap: events before this are no longer kept --"
    words = [str(event.get("time") or "-"), str(event.get("node")), f"{event.get('kind')} {event.get('subject')}"]
    if event.get("from") or event.get("to"):
        words.append(f"{event.get('from') or '-'} -> {event.get('to') or '-'}")
    if event.get("epoch"):
        words.append(f"epoch {event['epoch']}")
    if event.get("reason"):
        words.append(f"({event['reason']})")
    return "  ".join(words) + f"  [{event.get('id')}]"
