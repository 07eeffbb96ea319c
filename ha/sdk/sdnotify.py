"""sd_notify: say READY=1 and the like to `NOTIFY_SOCKET`, without libsystemd. Source: sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(text: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send `text` ("READY=1", "STATUS=...", newline between several); return whether it was sent.

    False without NOTIFY_SOCKET, or when nobody reads there: a program runs as well without its agent.
    """
    where = environ.get("NOTIFY_SOCKET", "")
    if not where.startswith(("/", "@")):
        return False
    address = "\0" + where[1:] if where[0] == "@" else where
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(text.encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            return False
    return True
