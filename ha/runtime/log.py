"""Log: one line a transition, key=value, to stderr or a file; nothing per tick at INFO.

2026-07-06T12:00:00.123+0000 level=info agent=server node=a1 event=tenant.moved subject=acme from=a to=b
"""

from __future__ import annotations

import logging
import sys
import time

_logger = logging.getLogger("ha")


class _Format(logging.Formatter):
    def __init__(self, agent: str, node: str) -> None:
        super().__init__()
        self._who = f"agent={agent} node={node}"

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        zone = time.strftime("%z", time.localtime(record.created))
        line = (
            f"{stamp}.{int(record.msecs):03d}{zone} level={record.levelname.lower()} {self._who} {record.getMessage()}"
        )
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"


def setup(agent: str, node: str, *, path: str = "", level: int = logging.INFO) -> None:
    """Log to the file `path` (0600, appended), or to stderr."""
    handler: logging.Handler = logging.FileHandler(path) if path else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format(agent, node))
    _logger.handlers[:] = [handler]
    _logger.setLevel(level)
    _logger.propagate = False
    logging.raiseExceptions = False  # a full disk under the log must not end an agent


def line(event: str, level: int = logging.INFO, **fields: object) -> None:
    """Write one line; fields that are empty or None are left out, values with spaces are quoted."""
    if _logger.isEnabledFor(level):
        _logger.log(level, "%s", " ".join([f"event={event}", *_pairs(fields)]))


def warning(event: str, **fields: object) -> None:
    """Write one line that wants somebody's attention."""
    line(event, logging.WARNING, **fields)


def crashed(event: str, error: BaseException) -> None:
    """Write what ended the agent, with its traceback."""
    _logger.critical("event=%s", event, exc_info=error)


def _pairs(fields: dict[str, object]) -> list[str]:
    return [f"{key.rstrip('_')}={_quoted(value)}" for key, value in fields.items() if value is not None and value != ""]


def _quoted(value: object) -> str:
    text = str(value)
    if text.isprintable() and not any(char in ' "=' for char in text):
        return text
    return '"' + "".join(char if char.isprintable() and char != '"' else "?" for char in text) + '"'
