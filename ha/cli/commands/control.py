"""hactl start, stop, restart, reset, switchover, drain, undrain, hold, unhold: what changes what should be."""

from __future__ import annotations

import click

from ha.cli.session import Session, pass_session
from ha.model.names import NAME, NAME_HELP, SIDES


def target(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return TENANT or TENANT/PROCESS as given. Raises click.BadParameter when a part is no name."""
    parts = [] if value is None else value.split("/")
    if len(parts) > 2 or not all(NAME.match(part) for part in parts):
        raise click.BadParameter(f"{value!r} is not TENANT or TENANT/PROCESS: {NAME_HELP}")
    return value


def tenant_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the name of a tenant as given. Raises click.BadParameter when it is no name."""
    if value is not None and not NAME.match(value):
        raise click.BadParameter(f"{value!r} is not TENANT: {NAME_HELP}")
    return value


target_argument = click.argument("target", callback=target, metavar="TENANT[/PROCESS]")
wait_option = click.option("--wait", is_flag=True, help="Return when it is done, not when it is accepted.")


def _said(what: str, wait: bool) -> str:
    return f"{what}: {'done' if wait else 'accepted, see `hactl status`'}"


@click.command()
@target_argument
@wait_option
@pass_session
def start(session: Session, target: str, wait: bool) -> None:
    """Start a tenant or a process; kept on both sides."""
    session.act("start", {"target": target, "wait": wait}, _said(f"start {target}", wait))


@click.command()
@target_argument
@wait_option
@pass_session
def stop(session: Session, target: str, wait: bool) -> None:
    """Stop a tenant or a process; kept on both sides."""
    session.act("stop", {"target": target, "wait": wait}, _said(f"stop {target}", wait))


@click.command()
@target_argument
@click.option("--rolling", is_flag=True, help="One copy after the other, each ready before the next, side a first.")
@wait_option
@pass_session
def restart(session: Session, target: str, rolling: bool, wait: bool) -> None:
    """Stop and start again what runs."""
    args = {"target": target, "rolling": rolling, "wait": wait}
    session.act("restart", args, _said(f"restart {target}", wait))


@click.command()
@target_argument
@wait_option
@pass_session
def reset(session: Session, target: str, wait: bool) -> None:
    """Forget deaths, backoff and `failed`, and try again."""
    session.act("reset", {"target": target, "wait": wait}, _said(f"reset {target}", wait))


@click.command()
@click.argument("tenant", callback=tenant_name, metavar="TENANT")
@click.option("--to", type=click.Choice(SIDES), help="Side to move to; default: the other one.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, change nothing.")
@pass_session
def switchover(session: Session, tenant: str, to: str | None, dry_run: bool) -> None:
    """Move a tenant to the other side.

    Planned work: its standbys must be ready.
    """
    args = {"tenant": tenant, "to": to, "dry_run": dry_run}
    said = f"switchover {tenant}: possible, nothing was changed" if dry_run else f"switchover {tenant}: done"
    session.act("switchover", args, said)


@click.command()
@click.argument("target", metavar="NODE|SIDE")
@wait_option
@pass_session
def drain(session: Session, target: str, wait: bool) -> None:
    """Move everything off a node or a side.

    Nothing is started there until `undrain`.
    """
    session.act("drain", {"target": target, "wait": wait}, _said(f"drain {target}", wait))


@click.command()
@click.argument("target", metavar="NODE|SIDE")
@pass_session
def undrain(session: Session, target: str) -> None:
    """Let a node or a side be used again."""
    session.act("undrain", {"target": target}, f"undrain {target}: done")


@click.command()
@click.argument("tenant", callback=tenant_name, metavar="[TENANT]", required=False)
@pass_session
def hold(session: Session, tenant: str | None) -> None:
    """No automatic role change until `unhold`.

    Of one tenant, or of all.
    """
    session.act("hold", {"tenant": tenant}, f"hold {tenant or 'all tenants'}: done")


@click.command()
@click.argument("tenant", callback=tenant_name, metavar="[TENANT]", required=False)
@pass_session
def unhold(session: Session, tenant: str | None) -> None:
    """Allow automatic role changes again."""
    session.act("unhold", {"tenant": tenant}, f"unhold {tenant or 'all tenants'}: done")
