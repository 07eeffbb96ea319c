"""Session: the global options, and the way of every request: send, hand each answer on, end with the right code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click

from ha.cli import client, place
from ha.cli.failure import ExitCode, Failure

VIEW_VERBS = frozenset({"status", "events", "logs", "diff", "request"})
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
MAX_TIMEOUT_S = 24 * 3600.0

Show = Callable[[object], None]


def duration(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Return the seconds of a duration as in the files ("500ms", "10s", "2m"). Raises click.BadParameter."""
    match = _DURATION.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a duration: write a number and ms, s, m or h, such as 10s")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise click.BadParameter(f"{value!r} is not between 1ms and 24h")
    return seconds


@dataclass(frozen=True, slots=True)
class Session:
    """The global options. `node` None: this machine's own; `timeout_s`: seconds until the outcome counts as unknown."""

    config: str
    node: str | None
    as_json: bool
    timeout_s: float

    def place(self) -> place.Place:
        """Return what the system file says about sockets and nodes. Raises Failure."""
        return place.read_place(self.config)

    def send(
        self, verb: str, args: Mapping[str, object], show: Show, *, show_json: Show | None = None, endless: bool = False
    ) -> None:
        """Ask the Monitor, show each result that is not None, and raise Failure unless all went well.

        `show_json`: under --json, if one line a result is not right. `endless`: a subscription, see client.ask.
        """
        name = place.VIEW_SOCKET if verb in VIEW_VERBS else place.OPERATE_SOCKET
        _, stream = place.connect(self.place(), self.node, name, self.timeout_s)
        display = (show_json or print_json) if self.as_json else show
        request = client.new_id()
        with stream:
            for reply in client.ask(
                stream, verb, {"wait": False, **args}, request=request, timeout_s=self.timeout_s, endless=endless
            ):
                if reply.result is not None:
                    display(reply.result)
                if reply.final and reply.exit:
                    self._fail(verb, reply, request)

    def act(self, verb: str, args: Mapping[str, object], said: str) -> None:
        """Ask for a change; `said`: what is printed when it was done, or accepted without --wait."""
        from ha.cli.values import show_value

        self.send(verb, args, show_value)
        if not self.as_json:
            click.echo(said)

    @staticmethod
    def _fail(verb: str, reply: client.Reply, request: str) -> None:
        if verb == "diff" and reply.exit == ExitCode.FAILED and not reply.error:
            raise click.exceptions.Exit(int(ExitCode.FAILED))  # it differs: that is the answer, not an error
        raise Failure(reply.exit, reply.error or f"{verb}: exit {reply.exit}, no reason was given", request=request)


def print_json(value: object) -> None:
    """Print one line of JSON, at once."""
    click.echo(json.dumps(value, ensure_ascii=False))


pass_session = click.make_pass_decorator(Session)
