from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ha.linux import clocks, host, users
from ha.linux.users import UnknownAccount, check_modes, ensure_directory, resolve
from ha.model.errors import NotPermitted


def test_boottime_goes_on_and_the_boot_has_an_id() -> None:
    first = clocks.boottime_ns()
    assert clocks.boottime_ns() >= first
    assert len(clocks.boot_id()) == 36
    assert abs(clocks.wall() - time.time()) < 5


def test_the_rate_error_counts_frequency_tick_offset_and_adjtime() -> None:
    def rate(**parts: object) -> float:
        values = {"freq": 0, "tick_us": 10_000, "offset_s": 0.0, "constant": 6, "adjtime_left": False} | parts
        return clocks.rate_error(**values)  # type: ignore[arg-type]

    assert rate() == 0
    assert rate(freq=-100 * 65_536) == pytest.approx(100e-6)
    assert rate(tick_us=9_000) == pytest.approx(0.1)
    assert rate(offset_s=0.5) == pytest.approx(0.5 / 256)
    assert rate(adjtime_left=True) == pytest.approx(500e-6)


def test_this_clock_is_not_slewed_beyond_a_tenth() -> None:
    assert not clocks.slewed(0.12)
    assert clocks.slewed(-1.0)


def test_the_doctor_names_every_feature_and_leaves_no_cgroup() -> None:
    found = host.features(f"ha-doctor-{os.getpid()}")
    assert [feature.name for feature in found] == [
        "kernel", "pidfd", "exit status of others' children", "cgroup v2 freezer", "cgroup.kill", "clone3 into cgroup",
        "rights", "open files", "processes", "clock rate", "systemd-notify", "boot id",
    ]  # fmt: skip
    for feature in found:
        assert feature.state is host.Verdict.GOOD or feature.follows
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        assert not os.path.exists(f"{mount}/ha-doctor-{os.getpid()}")


def test_kernel_versions_are_read() -> None:
    assert host.kernel_version("6.1.0-18-amd64") == (6, 1)
    assert host.kernel_version("rubbish") == (0, 0)


def test_accounts_resolve_to_numbers_or_say_who_is_unknown() -> None:
    assert resolve("root").uid == 0
    assert resolve("0", "0").groups[0] == 0
    assert resolve("").uid == os.geteuid()
    assert resolve("3999999999").groups == (3999999999,)
    for user, group in (
        ("no-such-user", ""),
        ("root", "no-such-group"),
        (str(2**32 - 1), ""),
        ("root", str(2**32 - 1)),
    ):
        with pytest.raises(UnknownAccount, match="cannot resolve"):
            resolve(user, group)


def test_modes_wider_than_allowed_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("")
    path.chmod(0o644)
    check_modes(str(path), at_most=0o644)
    with pytest.raises(NotPermitted, match="chmod 0600"):
        check_modes(str(path), at_most=0o600)
    with pytest.raises(NotPermitted, match="belongs to uid"):
        check_modes(str(path), at_most=0o644, owners=(12345,))
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(NotPermitted, match="symbolic link"):
        check_modes(str(link), at_most=0o777)


def test_a_directory_is_made_or_corrected_but_never_through_a_link(tmp_path: Path) -> None:
    path = tmp_path / "p"
    for mode in (0o711, 0o700):
        ensure_directory(str(path), mode)
        assert path.stat().st_mode & 0o777 == mode
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(NotPermitted):
        ensure_directory(str(tmp_path / "link"), 0o700)


@pytest.mark.root
def test_acting_as_a_user_ends_with_the_block_even_after_an_error(tmp_path: Path) -> None:
    nobody = users.Account(uid=65534, gid=65534)
    with pytest.raises(PermissionError), users.as_user(nobody):
        (tmp_path / "x").write_text("")
    (tmp_path / "x").write_text("")
    assert (tmp_path / "x").stat().st_uid == 0
