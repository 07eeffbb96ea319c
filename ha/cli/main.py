"""hactl: see and steer a duplex system from any of its nodes."""

from __future__ import annotations

import importlib
import sys

import click

import ha
from ha.cli.failure import Failure
from ha.cli.place import DEFAULT_CONFIG
from ha.cli.session import Session, duration

# name -> module and function; imported when called, so that `hactl --json status` pays for nothing else.
COMMANDS = {
    "status": "status:status",
    "start": "control:start",
    "stop": "control:stop",
    "restart": "control:restart",
    "reset": "control:reset",
    "switchover": "control:switchover",
    "drain": "control:drain",
    "undrain": "control:undrain",
    "hold": "control:hold",
    "unhold": "control:unhold",
    "events": "events:events",
    "check": "check:check",
    "diff": "plan:diff",
    "apply": "plan:apply",
    "logs": "logs:logs",
    "request": "request:request",
    "doctor": "doctor:doctor",
}


class LazyGroup(click.Group):
    """Loads a command's module when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, or None if there is none of that name."""
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, function = where.partition(":")
        command: click.Command = getattr(importlib.import_module(f"ha.cli.commands.{module}"), function)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", envvar="HA_CONFIG", default=DEFAULT_CONFIG, show_default=True, help="System file (HA_CONFIG)."
)
@click.option("--node", envvar="HA_NODE", help="Node to ask (HA_NODE); default: the one that runs on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object, or one a line.")
@click.option(
    "--timeout",
    callback=duration,
    metavar="T",
    default="10s",
    show_default=True,
    help="Then the outcome counts as unknown.",
)
@click.version_option(ha.__version__, prog_name="hactl")
@click.pass_context
def cli(ctx: click.Context, config: str, node: str | None, as_json: bool, timeout: float) -> None:
    """See and steer a duplex system from any of its nodes.

    Exit codes: 0 done, 1 failed (diff: differs), 2 wrong usage or invalid configuration, 3 no agent answers or unknown
    name, 4 not permitted, 5 refused in this state, 124 timed out (outcome unknown: ask `hactl request ID` later).
    """
    ctx.obj = Session(config, node or None, as_json, timeout)


def main(arguments: list[str] | None = None) -> None:
    """Run hactl and end the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run hactl with these arguments and return its exit code."""
    as_json = "--json" in arguments
    try:
        result = cli.main(arguments, prog_name="hactl", standalone_mode=False)
    except click.Abort:
        return 130
    except click.exceptions.Exit as error:
        return error.exit_code
    except Failure as failure:
        failure.as_json = as_json
        failure.show()
        return failure.code
    except click.ClickException as error:  # usage
        error.show()
        return error.exit_code
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
