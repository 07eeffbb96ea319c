"""hactl check: read the files as the agents would, without asking any agent."""

from __future__ import annotations

import click

from ha.cli.failure import ExitCode
from ha.cli.session import Session, pass_session, print_json


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path())
@pass_session
def check(session: Session, files: tuple[str, ...]) -> None:
    """Check the files without asking an agent.

    The system file and its tenant files, or the tenant files named. Exit code 2: they do not pass.
    """
    from ha.config import check_paths

    findings = check_paths(session.config, files)
    if session.as_json:
        keys = ("file", "line", "column", "code", "text", "help")
        print_json({"errors": [{key: getattr(finding, key) for key in keys} for finding in findings]})
    else:
        click.echo("\n".join(map(str, findings)) or "the files pass")
    if findings:
        raise click.exceptions.Exit(int(ExitCode.USAGE))
