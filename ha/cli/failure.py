"""Failure: how hactl ends when it does not end with 0.

Source: design section 8. Scripts branch on the numbers; people read the text, which always says what to do next.
"""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from typing import IO, Any

import click


class ExitCode(IntEnum):
    """The public exit codes."""

    DONE = 0
    FAILED = 1  # `diff`: differs
    USAGE = 2  # wrong usage or invalid configuration
    NO_ANSWER = 3  # no agent answers, or unknown name
    NOT_PERMITTED = 4
    REFUSED = 5  # in this state; the reason is printed
    TIMED_OUT = 124  # the outcome is unknown


NEXT_STEP = {
    ExitCode.FAILED: "see `hactl status` and `hactl events`",
    ExitCode.USAGE: "see `hactl COMMAND --help`; `hactl check` reads the files",
    ExitCode.NO_ANSWER: "see `hactl status` for the names; `hactl doctor` says what is wrong on this machine",
    ExitCode.NOT_PERMITTED: "be root, or a member of view_group or operate_group of the node file",
    ExitCode.REFUSED: "see `hactl status`; nothing was changed",
}


class Failure(click.ClickException):
    """Ends hactl with `code`. `help`: what to do next; `request`: the id that `hactl request` takes."""

    def __init__(self, code: int, text: str, *, help: str = "", request: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.request = request
        self.as_json = False
        self.help = help or (f"ask later: hactl request {request}" if code == ExitCode.TIMED_OUT and request else "")
        if not self.help and code in NEXT_STEP:
            self.help = NEXT_STEP[ExitCode(code)]

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to stderr: one line of JSON under --json, else text and the next step."""
        out = file or sys.stderr
        if self.as_json:
            whole = {"exit": int(self.code), "error": self.message, "help": self.help, "request": self.request}
            print(json.dumps(whole), file=out)
            return
        print(f"hactl: {self.message}", file=out)
        if self.help:
            print(f"  {self.help}", file=out)
