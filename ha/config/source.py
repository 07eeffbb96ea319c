"""Source: the bytes of one file -> a TOML dict, or a finding; never a traceback, whatever the bytes are."""

from __future__ import annotations

import errno
import os
import re
import stat

import tomli

from ha.config.positions import Positions, index
from ha.config.report import Report, clip
from ha.model.limits import MAX_CONFIG_BYTES

UNREADABLE = b"\0unreadable"  # stands for the content of a file that is there but could not be read


def load(path: str, report: Report) -> dict[str, object] | None:
    """Return the TOML of a file; None after reporting why not."""
    try:
        data = read_bytes(path)
    except OSError as error:
        report.place("unreadable", f"cannot read the file: {error.strerror}", "check its path and mode")
    except ValueError:
        report.place("unreadable", "cannot read the file: its path holds a NUL character", "check its path")
    else:
        return parse(data, report)
    return None


def read_bytes(path: str) -> bytes:
    """Return a regular file's content, one byte more than the limit at most. Raises OSError, ValueError."""
    fd = open_regular(path)
    try:
        return read_open(fd)
    finally:
        os.close(fd)


def open_regular(path: str) -> int:
    """Return a descriptor of a regular file. Raises OSError, ValueError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file")
    return fd


def read_open(fd: int) -> bytes:
    """Return the content of an open file, one byte more than the limit at most. Raises OSError."""
    data = b""
    while len(data) <= MAX_CONFIG_BYTES:
        more = os.read(fd, MAX_CONFIG_BYTES + 1 - len(data))
        if not more:
            break
        data += more
    return data


def parse(data: bytes, report: Report) -> dict[str, object] | None:
    """Return the TOML of `data` and fill in the report's positions; None after reporting why it is none."""
    text = _text(data, report)
    if text is None:
        return None
    try:
        found: dict[str, object] = tomli.loads(text)
    except RecursionError:
        report.place("too-deep", "the file is nested too deeply", "write flat tables")
    except ValueError as error:  # TOMLDecodeError, and what Python refuses, such as an integer of 5,000 digits
        _syntax(error, text, report)
    else:
        report.positions = index(text)
        return found
    return None


def _text(data: bytes, report: Report) -> str | None:
    if data == UNREADABLE:
        report.place("unreadable", "cannot read the file", "check its mode and owner")
    elif len(data) > MAX_CONFIG_BYTES:
        report.place("too-big", f"the file has more than {MAX_CONFIG_BYTES} bytes", "split it: one tenant a file")
    elif data.startswith(b"\xef\xbb\xbf"):
        report.place("bad-encoding", "the file begins with a byte order mark", "save it as UTF-8 without one", 1, 1)
    else:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            before = data[: error.start]
            line, column = before.count(b"\n") + 1, len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
            text = f"byte 0x{data[error.start]:02x} is not UTF-8"
            report.place("bad-encoding", text, "save the file as UTF-8", line, column)
    return None


def _syntax(error: ValueError, text: str, report: Report) -> None:
    """Report what tomli said, at the place it said."""
    said = str(error)
    match = re.search(r"\(at line (\d+), column (\d+)\)", said)
    line, column = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if "(at end of document)" in said:
        line, column = Positions([0, *(found.end() for found in re.finditer("\n", text))]).at(len(text))
    what = clip(re.sub(r"\s*\(at [^)]*\)", "", said))
    report.place("bad-syntax", f"not TOML: {what}", "https://toml.io describes the syntax", line, column)
